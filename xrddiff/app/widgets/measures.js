// What is measured in a picture: a line, a box, curves beside it. Comes after canvas.js; the numbers are made in Python (xrddiff.app.widgets.measures).

/** About `n` round numbers between `a` and `b`. */
function roundNumbers(a, b, n) {
  const rough = (b - a) / n, power = 10 ** Math.floor(Math.log10(rough)), step = power * [1, 2, 5, 10].find((k) => k * power >= rough), out = [];
  for (let k = Math.ceil(a / step); k * step <= b * (1 + 1e-12); k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

/** A curve with axes; values that are missing leave a gap. */
class Plot {
  constructor(name) {
    this.canvas = make("canvas", { width: 640, height: 320, role: "img", class: "xrddiff-plot" });
    this.said = make("span", { class: "xrddiff-hint" });
    this.head = make("b");
    this.el = make("figure", { class: "xrddiff-curve", "data-plot": name }, make("figcaption", {}, this.head, " ", this.said), this.canvas);
    this.canvas.addEventListener("pointermove", (e) => this.read(e.offsetX / this.canvas.clientWidth));
    this.canvas.addEventListener("pointerleave", () => { this.said.textContent = ""; });
  }

  show(plot) {
    this.x = numbers(plot.x, "float32");
    this.y = numbers(plot.y, "float32");
    this.plot = plot;
    this.head.textContent = plot.title;
    const seen = Array.from(this.y).filter(Number.isFinite), most = seen.reduce((a, b) => Math.max(a, b), -Infinity);
    this.el.dataset.n = this.x.length;
    this.canvas.setAttribute("aria-label", seen.length ? `${plot.title}: ${seen.length} values up to ${shortNumber(most)}${plot.y_name ? ` ${plot.y_name}` : ""}; ${plot.x_name} ${shortNumber(this.x[0])} to ${shortNumber(this.x[this.x.length - 1])}` : `${plot.title}: no valid value`);
    this.draw();
  }

  /** The point below the pointer. */
  read(part) {
    const [left, right] = this.ends, x = this.from + ((part * 640 - left) / (right - left)) * (this.to - this.from);
    let k = 0;
    this.x.forEach((v, i) => { if (Math.abs(v - x) < Math.abs(this.x[k] - x)) k = i; });
    this.said.textContent = `${shortNumber(Number(this.x[k].toPrecision(4)))} ${this.plot.x_name}: ${shortNumber(Number(this.y[k].toPrecision(4)))}`;
  }

  draw() {
    const g = this.canvas.getContext("2d"), { x, y, plot } = this, colour = getComputedStyle(this.el).color, [w, h] = [640, 320], [left, right, top, bottom] = [84, w - 14, 12, h - 58];
    const log = plot.log, seen = Array.from(y).filter((v) => Number.isFinite(v) && (!log || v > 0));
    let low = seen.reduce((a, b) => Math.min(a, b), Infinity), high = seen.reduce((a, b) => Math.max(a, b), -Infinity);
    g.clearRect(0, 0, w, h);
    this.ends = [left, right];
    [this.from, this.to] = [x[0], x[x.length - 1]];
    if (!seen.length || !(this.to > this.from)) return;
    if (!(high > low)) { low -= 0.5; high += 0.5; }
    const px = (v) => left + ((v - this.from) / (this.to - this.from)) * (right - left), f = log ? Math.log10 : (v) => v;
    const py = (v) => bottom - ((f(v) - f(low)) / (f(high) - f(low))) * (bottom - top);
    g.font = "22px system-ui, sans-serif";
    g.fillStyle = g.strokeStyle = colour;
    g.lineWidth = 1;
    g.textAlign = "center";
    for (const v of roundNumbers(this.from, this.to, 5)) { g.fillText(shortNumber(v), px(v), bottom + 26); g.fillRect(px(v), bottom, 1.5, 6); }
    g.fillText(plot.x_name, (left + right) / 2, h - 6);
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const v of log ? roundNumbers(f(low), f(high), 3).map((e) => Number((10 ** e).toPrecision(3))) : roundNumbers(low, high, 4)) { g.fillText(shortNumber(v), left - 10, py(v)); g.fillRect(left - 6, py(v), 6, 1.5); }
    g.textBaseline = "alphabetic";
    g.strokeRect(left, top, right - left, bottom - top);
    g.strokeStyle = "#0072B2";
    g.lineWidth = 2.5;
    g.beginPath();
    let pen = false;
    for (let k = 0; k < x.length; k++) {
      const there = Number.isFinite(y[k]) && (!log || y[k] > 0);
      if (there) (pen ? g.lineTo : g.moveTo).call(g, px(x[k]), py(y[k]));
      pen = there;
    }
    g.stroke();
  }
}

/** A view with a line, a box and curves beside the picture. */
class Measured extends View {
  build() {
    super.build();
    this.plots = new Map();
    this.numbers = make("div", { class: "xrddiff-numbers", role: "status", "aria-label": "statistics of the box" });
    this.side = make("div", { class: "xrddiff-side" }, this.numbers);
    this.row.append(this.side);
    this.on(["_plots", "statistics"], () => this.takeMeasures());
    this.on(["line", "box"], () => this.redraw(true));
    this.on(["center", "_rings"], () => { this.read(); this.redraw(true); });
    this.off.push(onTheme(() => this.plots.forEach((p) => p.draw())));
    this.takeMeasures();
  }

  on(names, f) {
    for (const name of names) {
      this.model.on(`change:${name}`, f);
      this.off.push(() => this.model.off(`change:${name}`, f));
    }
  }

  takeMeasures() {
    const had = this.aside(), plots = this.model.get("_plots") || [], found = this.model.get("statistics") || {};
    for (const [name, plot] of this.plots) if (!plots.some((p) => p.name === name)) { plot.el.remove(); this.plots.delete(name); }
    for (const p of plots) {
      if (!this.plots.has(p.name)) { this.plots.set(p.name, new Plot(p.name)); this.side.append(this.plots.get(p.name).el); }
      this.plots.get(p.name).show(p);
    }
    this.numbers.replaceChildren(...Object.entries(found).map(([name, v]) => make("div", {}, make("b", { text: name }), make("span", { text: v === null ? "–" : shortNumber(v) }))));
    this.numbers.hidden = !Object.keys(found).length;
    this.side.hidden = this.numbers.hidden && !plots.length;
    if (this.aside() !== had) this.layout();
  }

  /** The width that curves take beside the picture. */
  aside() { return this.side && !this.side.hidden && this.root.clientWidth > 720 ? 336 : 0; }

  /** Corners that were set with a tool: the line or the box. */
  measure([a, b]) {
    this.set(this.tool(), [...a, ...b]);
  }

  /** The beam, where it was moved to. */
  beamOf(image) {
    const at = this.model.get("center");
    return at ? { ...image.beam, x: at[0], y: at[1] } : image.beam;
  }

  ringsOf(image) {
    const own = this.model.get("_rings") || [];
    return own.length ? own : image.rings;
  }

  drawMore(g, line) {
    const box = this.model.get("box"), along = this.model.get("line");
    for (const [colour, width] of [["#000000", 3.5], ["#F0E442", 1.5]]) {
      g.strokeStyle = colour;
      g.lineWidth = width;
      if (along) line([along.slice(0, 2), along.slice(2)], false);
      if (box) line([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]], true);
    }
  }
}
