// Pictures of a detector, drawn in the browser from their numbers: scale, contrast, zoom, marks and read-out need no kernel.
// Comes after shown.js (xrddiff.app.widgets.canvas puts them together).

const TYPES = {
  uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
};
const KINDS = {
  found: ["circle", "#56B4E9"], true: ["square", "#00B888"], matched: ["circle", "#00B888"],
  missed: ["cross", "#FF7A1A"], asked: ["diamond", "#E58AC0"], predicted: ["square", "#F0E442"],
};

const TWO_POINTS = ["rectangle", "box", "line"]; // tools that are dragged from one point to another

/** A typed array of what came as bytes. */
function numbers(view, type) {
  const T = TYPES[type], size = T.BYTES_PER_ELEMENT;
  const { buffer, byteOffset, byteLength } = view;
  if (byteOffset % size) return new T(buffer.slice(byteOffset, byteOffset + byteLength));
  return new T(buffer, byteOffset, byteLength / size);
}

/** Counts that came as bytes, with the few that a byte does not hold beside them. */
function widened({ data, dtype, rare }) {
  const values = new TYPES[dtype](numbers(data, "uint8")), at = numbers(rare.at, "uint32"), large = numbers(rare.values, dtype);
  at.forEach((k, i) => { values[k] = large[i]; });
  return values;
}

function shortNumber(v) {
  if (!Number.isFinite(v)) return "–";
  if (Number.isInteger(v) && Math.abs(v) < 1e7) return String(v).replace("-", "−");
  const a = Math.abs(v);
  return (a >= 1e5 || a < 1e-3 ? v.toExponential(2) : v.toPrecision(4)).replace("-", "−");
}

/** A colour scale: value -> 0 … 1, and back. `width`: below it, asinh is linear. */
function scaleOf(name, width) {
  if (name === "linear") return { to: (v) => v, from: (t) => t };
  if (name === "log") return { to: (v) => Math.log(Math.max(v, 1e-9)), from: Math.exp };
  if (name === "sqrt") return { to: (v) => Math.sqrt(Math.max(v, 0)), from: (t) => t * t };
  return { to: (v) => Math.asinh(v / width), from: (t) => Math.sinh(t) * width };
}

/** One picture: its numbers, and smaller versions of them in which spots are kept. */
class Image2D {
  constructor(picture, codes, reasons) {
    Object.assign(this, { title: picture.title, width: picture.width, height: picture.height, type: picture.dtype });
    Object.assign(this, { signed: picture.signed, unit: picture.unit, beam: picture.beam, rings: picture.rings || [] });
    if (picture.small) this.setPreview(picture.small, reasons);
    else this.fill(picture, codes);
  }

  /** A smaller version that is shown until all pixels are here. */
  setPreview(small, reasons) {
    const { level: n, width, height } = small, of = (part) => (part.rare ? widened(part) : numbers(part.data, part.dtype));
    const values = of({ ...small, dtype: this.type }), { part } = small.mean;
    const mean = part === 1 ? of(small.mean) : Float32Array.from(of(small.mean), (v) => v / part);
    this.values = this.codes = null;
    this.preview = n;
    this.levels = [];
    this.levels[n] = { width, height, values, mean };
    this.setReasons(reasons);
    this.sample = Float64Array.from(numbers(small.some, this.type)).filter(Number.isFinite);
  }

  /** Why pixels of the preview are masked; bit 7: all of a block are. */
  setReasons(reasons) {
    const all = reasons && new Uint8Array(reasons.byteLength), any = reasons && new Uint8Array(reasons.byteLength);
    if (reasons) numbers(reasons, "uint8").forEach((b, k) => { any[k] = b & 127; if (b & 128) all[k] = any[k]; });
    Object.assign(this.levels[this.preview], { codes: all || null, any: any || null });
  }

  /** All pixels. */
  fill({ data, rare }, codes) {
    this.values = rare ? widened({ data, rare, dtype: this.type }) : numbers(data, this.type);
    this.setCodes(codes);
  }

  /** Why pixels are masked, of all of them or of the preview. */
  reasons() { return this.values ? this.codes : this.levels[this.preview].any; }

  setCodes(codes) {
    this.codes = codes ? numbers(codes, "uint8") : null;
    this.levels = [{ width: this.width, height: this.height, values: this.values, mean: this.values, codes: this.codes, any: this.codes }];
    this.sample = null;
  }

  /** Version `n`, shrunk 2ⁿ times: the strongest valid pixel and the mean of a block; masked where all are (`codes`) or any is (`any`). */
  level(n) {
    if (!this.values) return this.levels[this.preview];
    while (n > 0 && (this.width - 1) >> n === 0 && (this.height - 1) >> n === 0) n--;
    return (this.levels[n] ??= this.shrunk(n));
  }

  /** One pass over the pixels: most levels are never asked for. */
  shrunk(n) {
    const { width: w, height: h, values: raw, codes: masks } = this, k = 1 << n, signed = this.signed != null;
    const width = (w + k - 1) >> n, height = (h + k - 1) >> n;
    const values = new Float32Array(width * height), mean = new Float32Array(width * height);
    const codes = masks && new Uint8Array(width * height), any = masks && new Uint8Array(width * height);
    for (let by = 0, at = 0; by < height; by++) {
      const y0 = by << n, y1 = Math.min(y0 + k, h);
      for (let bx = 0; bx < width; bx++, at++) {
        const x0 = bx << n, x1 = Math.min(x0 + k, w);
        let best = signed ? 0 : -Infinity, sum = 0, count = 0, reason = 0;
        for (let y = y0; y < y1; y++) {
          for (let i = y * w + x0, end = y * w + x1; i < end; i++) {
            if (masks !== null && masks[i] !== 0) {
              if (masks[i] > reason) reason = masks[i];
              continue;
            }
            const v = raw[i];
            if (signed ? Math.abs(v) > Math.abs(best) : v > best) best = v;
            sum += v;
            count++;
          }
        }
        values[at] = best;
        mean[at] = signed ? best : sum / count;
        if (reason) {
          any[at] = reason;
          if (count === 0) codes[at] = reason;
        }
      }
    }
    return { width, height, values, mean, codes, any };
  }

  /** Some of the valid values, for the histogram. */
  some() {
    if (this.sample === null) {
      const n = this.values.length, step = Math.max(1, Math.floor(n / 65521)), out = [];
      for (let k = 0; k < n; k += step) {
        if ((this.codes === null || !this.codes[k]) && Number.isFinite(this.values[k])) out.push(this.values[k]);
      }
      this.sample = Float64Array.from(out);
    }
    return this.sample;
  }

  inside(x, y) { return x >= 0 && y >= 0 && x < this.width && y < this.height; }
}

/** Angles at a point of the picture: {panel, fs, ss, tt, q, d}; panels know their own place in space. */
function angles(image, panels, x, y, beam) {
  const out = {};
  let px, py, pz;
  if (panels) {
    const flat = panels.index[Math.floor(y) * image.width + Math.floor(x)];
    if (flat === undefined || flat < 0) return { gap: true };
    const [, nss, nfs] = panels.shape;
    out.panel = Math.floor(flat / (nss * nfs));
    out.ss = Math.floor(flat / nfs) % nss;
    out.fs = flat % nfs;
    const at = (k) => panels.origin[3 * out.panel + k] + (out.fs + 0.5) * panels.fs[3 * out.panel + k]
      + (out.ss + 0.5) * panels.ss[3 * out.panel + k];
    [px, py, pz] = [at(0), at(1), at(2)];
    if (beam) { px += (image.beam.x - beam.x) * beam.pixel; py += (image.beam.y - beam.y) * beam.pixel; }
  } else if (beam) {
    px = (Math.floor(x) + 0.5 - beam.x) * beam.pixel;
    py = (Math.floor(y) + 0.5 - beam.y) * beam.pixel;
    pz = beam.distance;
  } else return out;
  out.tt = Math.atan2(Math.hypot(px, py), pz);
  if (beam && beam.wavelength) {
    out.d = beam.wavelength / (2 * Math.sin(out.tt / 2));
    out.q = (2 * Math.PI) / out.d;
  }
  return out;
}

/** A canvas with one picture, and one above it with what is drawn on the picture. */
class Pane {
  constructor(view, k) {
    Object.assign(this, { view, k, image: null });
    this.base = make("canvas", { class: "xrddiff-base" });
    this.over = make("canvas", { class: "xrddiff-over", tabindex: 0, role: "application" });
    this.caption = make("figcaption");
    this.box = make("div", { class: "xrddiff-box" }, this.base, this.over);
    this.el = make("figure", { class: "xrddiff-pane" }, this.caption, this.box);
    for (const [event, handler] of Object.entries({
      pointerdown: "down", pointermove: "move", pointerup: "up", pointercancel: "up", pointerleave: "leave",
      wheel: "wheel", dblclick: "twice", keydown: "key", focus: "focus", blur: "leave",
    })) this.over.addEventListener(event, (e) => view[handler](e, this), { passive: false });
  }

  /** Fit the canvas to its box, `width` × `height` CSS pixels. */
  size(width, height) {
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this, { width, height, ratio });
    for (const c of [this.base, this.over]) {
      const w = Math.round(width * ratio), h = Math.round(height * ratio);
      if (c.width !== w || c.height !== h) { c.width = w; c.height = h; }
      c.style.width = `${width}px`;
      c.style.height = `${height}px`;
    }
    this.box.style.width = `${width}px`;
    this.box.style.height = `${height}px`;
  }

  toImage(px, py) {
    const { x, y, zoom } = this.view.at;
    return [x + (px - this.width / 2) / zoom, y + (py - this.height / 2) / zoom];
  }

  toScreen(x, y) {
    const at = this.view.at;
    return [(x - at.x) * at.zoom + this.width / 2, (y - at.y) * at.zoom + this.height / 2];
  }

  /** The picture itself: one pass over the pixels of the screen. */
  draw() {
    const { image, view } = this, g = this.base.getContext("2d");
    if (!image || !this.base.width) return;
    const w = this.base.width, h = this.base.height, at = view.at, step = 1 / (at.zoom * this.ratio);
    const n = Math.max(0, Math.floor(Math.log2(step) + 1e-6)), level = image.level(n), k = 2 ** image.levels.indexOf(level);
    const out = g.createImageData(w, h), pixels = new Uint32Array(out.data.buffer);
    const [x0, y0] = this.toImage(0, 0), columns = new Int32Array(w);
    for (let i = 0; i < w; i++) {
      const x = x0 + (i + 0.5) * step;
      columns[i] = x < 0 || x >= image.width ? -1 : Math.floor(x / k);
    }
    const colour = view.colours(image, level.values === image.values), codes = view.model.get("show_mask") ? level.any : level.codes, { values, mean } = level;
    const masked = view.maskColours(), spot = 5 * ((view.model.get("_auto").asinh || [])[2] || 1); // noise stays noise, spots stay spots
    for (let j = 0; j < h; j++) {
      const y = y0 + (j + 0.5) * step;
      if (y < 0 || y >= image.height) continue;
      const row = Math.floor(y / k) * level.width, line = j * w;
      for (let i = 0; i < w; i++) {
        const c = columns[i];
        if (c < 0) continue;
        const code = codes === null ? 0 : codes[row + c];
        const v = values[row + c], m = mean[row + c];
        pixels[line + i] = code ? masked[code] : colour(v - m > spot ? v : m);
      }
    }
    g.putImageData(out, 0, 0);
  }

  /** Rings, panels, marks, what is being drawn, and the cross. */
  drawOver() {
    const { view, image } = this, g = this.over.getContext("2d"), { model } = view;
    g.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    g.clearRect(0, 0, this.width, this.height);
    if (!image) return;
    const line = (points, closed) => {
      g.beginPath();
      points.forEach(([x, y], k) => (k ? g.lineTo : g.moveTo).apply(g, this.toScreen(x, y)));
      if (closed) g.closePath();
      g.stroke();
    };
    if (model.get("show_panels") && view.panels) {
      g.strokeStyle = "#56B4E9";
      g.lineWidth = 1;
      for (const corners of view.panels.outlines) line(corners, true);
    }
    if (model.get("show_rings") && view.beamOf(image)) this.drawRings(g, image);
    this.drawMarks(g);
    view.drawMore(g, line);
    if (view.draft.length) {
      g.strokeStyle = "#ffffff";
      g.lineWidth = 1.5;
      g.setLineDash([5, 3]);
      const points = view.cursor ? [...view.draft, [view.cursor.x, view.cursor.y]] : view.draft;
      if (["rectangle", "box"].includes(view.tool()) && points.length > 1) {
        const [[a, b], [c, d]] = [points[0], points[points.length - 1]];
        line([[a, b], [c, b], [c, d], [a, d]], true);
      } else line(points, false);
      g.setLineDash([]);
    }
    if (view.cursor && (view.cursor.keys || view.cursor.pane !== this)) {
      const [x, y] = this.toScreen(view.cursor.x, view.cursor.y);
      for (const [colour, width] of [["#000000", 3], ["#ffffff", 1]]) {
        g.strokeStyle = colour;
        g.lineWidth = width;
        g.beginPath();
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          g.moveTo(x + 4 * dx, y + 4 * dy);
          g.lineTo(x + 11 * dx, y + 11 * dy);
        }
        g.stroke();
      }
    }
  }

  drawRings(g, image) {
    g.lineWidth = 1;
    g.font = "11px system-ui, sans-serif";
    g.textAlign = "center";
    g.textBaseline = "middle";
    const signed = image.signed != null, beam = this.view.beamOf(image), [x, y] = this.toScreen(beam.x, beam.y);
    const rings = this.view.ringsOf(image), own = rings !== image.rings; // those of a calibrant stand out from the rings below them
    rings.forEach(([d, r], k) => {
      const radius = r * this.view.at.zoom;
      g.strokeStyle = signed ? "rgba(0,0,0,.6)" : own ? "#5CE1FF" : "rgba(255,255,255,.7)";
      g.setLineDash([4, 3]);
      g.beginPath();
      g.arc(x, y, radius, 0, 2 * Math.PI);
      g.stroke();
      g.setLineDash([]);
      const text = `${d} Å`, half = g.measureText(text).width / 2 + 3;
      for (let b = 0; b < 360; b += 15) {
        const a = b - 45 - (own ? 25 * k : 0);
        const tx = x + radius * Math.cos((a * Math.PI) / 180), ty = y + radius * Math.sin((a * Math.PI) / 180);
        if (tx < half || tx > this.width - half || ty < 8 || ty > this.height - 8) continue;
        g.fillStyle = "rgba(0,0,0,.65)";
        g.fillRect(tx - half, ty - 8, 2 * half, 16);
        g.fillStyle = "#ffffff";
        g.fillText(text, tx, ty);
        break;
      }
    });
  }

  drawMarks(g) {
    const hidden = this.view.model.get("hidden_marks"), size = Math.min(16, Math.max(5, 2.5 * this.view.at.zoom));
    for (const marks of this.view.marks[this.k] || []) {
      if (hidden.includes(marks.name)) continue;
      const [shape, colour] = KINDS[marks.kind] || KINDS.found;
      for (const [stroke, width] of [["rgba(0,0,0,.75)", 3.2], [colour, 1.6]]) {
        g.strokeStyle = stroke;
        g.lineWidth = width;
        g.beginPath();
        for (let i = 0; i < marks.xy.length; i += 2) {
          const [x, y] = this.toScreen(marks.xy[i], marks.xy[i + 1]);
          if (x < -20 || y < -20 || x > this.width + 20 || y > this.height + 20) continue;
          markPath(g, shape, x, y, shape === "square" ? 0.7 * size : size);
        }
        g.stroke();
      }
    }
  }
}

function markPath(g, shape, x, y, s) {
  if (shape === "circle") { g.moveTo(x + s, y); g.arc(x, y, s, 0, 2 * Math.PI); }
  else if (shape === "square") g.rect(x - s, y - s, 2 * s, 2 * s);
  else if (shape === "diamond") { g.moveTo(x, y - 1.3 * s); g.lineTo(x + 1.3 * s, y); g.lineTo(x, y + 1.3 * s); g.lineTo(x - 1.3 * s, y); g.closePath(); }
  else { g.moveTo(x - s, y - s); g.lineTo(x + s, y + s); g.moveTo(x + s, y - s); g.lineTo(x - s, y + s); }
}

/** All of it: controls, pictures with one scale and one window, read-out. */
class View {
  constructor(model, el) {
    this.model = model;
    this.root = rootOf(el, model.get("label"));
    this.panes = [];
    this.marks = [];
    this.draft = [];
    this.at = { x: 0, y: 0, zoom: 0 };
    this.whole = true;
    this.cursor = this.grip = null;
    this.off = [];
    this.table = numbers(model.get("_palettes"), "uint8");
    this.build();
    const on = (names, f) => {
      for (const name of names) {
        model.on(`change:${name}`, f);
        this.off.push(() => model.off(`change:${name}`, f));
      }
    };
    on(["_pictures"], () => this.take());
    on(["_codes"], () => this.takeCodes());
    on(["_small_codes"], () => this.takeReasons());
    on(["_whole"], () => this.takeWhole());
    on(["_marks"], () => this.takeMarks());
    on(["_panels"], () => this.takePanels());
    on(["scale", "limits", "_auto"], () => { this.plotted = false; this.redraw(); });
    on(["_palettes"], () => { this.table = numbers(model.get("_palettes"), "uint8"); this.redraw(); });
    on(["show_rings", "show_panels", "show_mask", "hidden_marks", "_reasons"], () => { this.legend(); this.redraw(); });
    on(["window"], () => this.takeWindow());
    on(["height"], () => this.layout());
    on(["note"], () => this.showNote());
    this.off.push(onTheme(() => { this.plotted = false; this.redraw(true); }));
    this.watch = new ResizeObserver(() => this.layout());
    this.watch.observe(this.root);
    this.takePanels();
    this.take();
    this.takeMarks();
    this.takeWindow();
    this.showNote();
  }

  end() {
    this.off.forEach((f) => f());
    clearTimeout(this.rest);
    this.watch.disconnect();
  }

  set(name, value, now = true) {
    this.model.set(name, value);
    clearTimeout(this.saving);
    if (now) this.model.save_changes();
    else this.saving = setTimeout(() => this.model.save_changes(), 150);
  }

  button(text, title, f) { return make("button", { type: "button", class: "xrddiff-button", text, title, "aria-label": title, click: f }); }

  check(text, name) {
    const box = make("input", { type: "checkbox", change: () => this.set(name, box.checked) });
    const show = () => { box.checked = this.model.get(name); };
    this.model.on(`change:${name}`, show);
    this.off.push(() => this.model.off(`change:${name}`, show));
    show();
    return make("label", { class: "xrddiff-check" }, box, text);
  }

  build() {
    const { model } = this;
    this.scale = make("select", { change: () => this.set("scale", this.scale.value) });
    for (const name of model.get("_scales")) this.scale.append(make("option", { value: name, text: name }));
    this.colour = make("select", { change: () => this.set("colours", this.colour.value) });
    for (const name of model.get("_colours")) this.colour.append(make("option", { value: name, text: name }));
    this.ends = ["darkest", "brightest"].map((name, k) => {
      const typed = () => this.typeLimit(k, Number(end.value)), end = make("input", { type: "number", step: "any", class: "xrddiff-value", "aria-label": `${name} value`, change: typed, keydown: onEnter(typed) });
      return end;
    });
    this.goal = ["x", "y"].map((name) => make("input", { type: "number", step: 1, class: "xrddiff-pixel", "aria-label": `go to ${name}`, keydown: onEnter(() => this.goTo()) }));
    this.plot = make("canvas", { width: 440, height: 88, "aria-hidden": "true" });
    this.handles = ["low", "high"].map((name, k) => make("div", {
      class: "xrddiff-handle", role: "slider", tabindex: 0, "aria-label": `contrast, ${name}`,
      keydown: (e) => this.handleKey(e, k), pointerdown: (e) => this.handleDown(e, k), pointermove: (e) => this.handleMove(e, k),
      pointerup: (e) => { e.currentTarget.releasePointerCapture(e.pointerId); this.held = null; this.model.save_changes(); },
    }));
    this.histogram = make("div", { class: "xrddiff-histogram" }, this.plot, ...this.handles);
    this.legendBox = make("span", { class: "xrddiff-legend", role: "group", "aria-label": "marks" });
    this.tools = make("div", { class: "xrddiff-tools" },
      make("label", {}, "scale ", this.scale),
      make("label", {}, "colours ", this.colour),
      make("span", { class: "xrddiff-labelled" }, make("span", { text: "contrast" }), this.ends[0], this.histogram, this.ends[1]),
      this.button("Auto", "contrast: automatic", () => this.set("limits", null)),
      this.button("+", "zoom in", () => this.zoomBy(1.5)),
      this.button("−", "zoom out", () => this.zoomBy(1 / 1.5)),
      this.button("Whole", "the whole picture", () => this.showWhole()),
      make("span", { class: "xrddiff-labelled" }, make("span", { text: "go to" }), ...this.goal, this.button("Go", "go to this pixel", () => this.goTo())),
      this.overlays = make("span", { class: "xrddiff-overlays" }), this.legendBox);
    this.above = make("div");
    this.below = make("div");
    this.row = make("div", { class: "xrddiff-row" });
    this.readout = make("div", { class: "xrddiff-readout", role: "status", "aria-live": "polite" });
    this.noteBox = make("div", { class: "xrddiff-note" });
    this.root.append(this.above, this.tools, sentenceLine(model), this.noteBox, this.row, this.readout, this.below);
    this.rings = this.check("rings", "show_rings");
    this.outlines = this.check("panels", "show_panels");
    this.maskBox = this.check("mask", "show_mask");
    this.overlays.append(this.rings, this.outlines, this.maskBox);
  }

  showNote() {
    this.noteBox.textContent = this.model.get("note") || "";
    this.noteBox.hidden = !this.noteBox.textContent;
  }

  // ------------------------------------------------------------------ what comes from the kernel

  take() {
    const [pictures, codes, small] = ["_pictures", "_codes", "_small_codes"].map((name) => this.model.get(name) || []);
    while (this.panes.length < pictures.length) {
      const pane = new Pane(this, this.panes.length);
      this.panes.push(pane);
      this.row.append(pane.el);
    }
    while (this.panes.length > pictures.length) this.panes.pop().el.remove();
    const before = this.panes.length && this.panes[0].image;
    pictures.forEach((picture, k) => {
      const pane = this.panes[k];
      pane.image = new Image2D(picture, codes[k], small[k]);
      pane.caption.textContent = picture.title;
      pane.caption.hidden = !picture.title;
      const how = "arrows move a cross, plus and minus zoom, 0 shows all";
      pane.over.setAttribute("aria-label", `${picture.title || "picture"}, ${picture.width} by ${picture.height} pixels; ${how}`);
    });
    const first = this.panes.length ? this.panes[0].image : null;
    this.root.classList.toggle("xrddiff-empty", !first);
    for (const el of [this.tools, this.row, this.readout]) el.hidden = !first;
    if (!first) return;
    this.rings.hidden = !this.panes.some((p) => p.image.rings.length);
    this.maskBox.hidden = !this.panes.some((p) => p.image.reasons());
    this.reasonKey();
    if (!before || before.width !== first.width || before.height !== first.height) {
      this.whole = true;
      this.cursor = null;
    }
    this.plotted = false;
    this.sliding = Boolean(before);
    this.layout();
    this.read();
    this.askForWhole();
  }

  previews() { return this.panes.some((p) => p.image && !p.image.values); }

  /** Nothing else is on its way to the screen. */
  resting() { return true; }

  /** Ask for all pixels of what is shown as a preview, once nothing else is wanted. */
  askForWhole(after = 250) {
    clearTimeout(this.rest);
    if (!this.previews()) return;
    this.rest = setTimeout(() => {
      if (this.resting() && this.previews()) this.model.send({ do: "whole", number: this.model.get("_number") });
    }, after);
  }

  takeWhole() {
    const whole = this.model.get("_whole"), codes = this.model.get("_codes") || [];
    if (!whole || whole.number !== this.model.get("_number")) return;
    this.panes.forEach((p, k) => { if (p.image && !p.image.values) p.image.fill(whole.data[k], codes[k]); });
    this.plotted = false;
    this.read();
    this.redraw();
  }

  takeCodes() {
    const codes = this.model.get("_codes") || [];
    this.panes.forEach((p, k) => {
      if (p.image && !p.image.values) return; // they come with all pixels
      // new pictures that came in the same message have them already
      const fits = codes[k] && codes[k].byteLength === p.image.values.length;
      if (p.image) p.image.setCodes(fits ? codes[k] : null);
    });
    this.showCodes();
  }

  /** The preview is masked anew; new pictures in the same message have the reasons already. */
  takeReasons() {
    const reasons = this.model.get("_small_codes") || [];
    this.panes.forEach((p, k) => {
      if (!p.image || p.image.values) return;
      const { width, height } = p.image.level(0);
      if (!reasons[k] || reasons[k].byteLength === width * height) p.image.setReasons(reasons[k]);
    });
    this.showCodes();
  }

  showCodes() {
    this.maskBox.hidden = !this.panes.some((p) => p.image && p.image.reasons());
    this.reasonKey();
    this.plotted = false;
    this.read();
    this.redraw();
  }

  takeMarks() {
    this.marks = (this.model.get("_marks") || []).map((list) => list.map((m) => ({ ...m, xy: numbers(m.xy, "float32") })));
    this.legend();
    this.redraw();
  }

  takePanels() {
    const p = this.model.get("_panels"), there = Boolean(p && p.shape);
    this.outlines.hidden = !there;
    if (!there) { this.panels = null; return; }
    const [origin, fs, ss] = ["origin", "fs", "ss"].map((name) => numbers(p[name], "float64"));
    const [n, nss, nfs] = p.shape, outlines = [];
    for (let k = 0; k < n; k++) {
      outlines.push([[0, 0], [nfs, 0], [nfs, nss], [0, nss]].map(([f, s]) => [0, 1].map(
        (c) => (origin[3 * k + c] + f * fs[3 * k + c] + s * ss[3 * k + c]) / p.pixel - p.corner[c])));
    }
    this.panels = { shape: p.shape, origin, fs, ss, outlines, index: numbers(p.index, "int32") };
    this.redraw();
  }

  // ------------------------------------------------------------------ where one looks

  layout() {
    const first = this.panes.length && this.panes[0].image;
    if (!first) return;
    const n = this.panes.length, room = Math.max(160, (this.root.clientWidth || 640) - 8 - this.aside()), gap = 8;
    const most = this.model.get("height");
    const across = Math.min(n, Math.max(1, Math.floor((room + gap) / (220 + gap))));
    const wide = Math.floor((room - (across - 1) * gap) / across) - 2;
    const fit = Math.min(wide / first.width, most / first.height);
    const width = Math.round(Math.min(wide, Math.max(fit * first.width, Math.min(wide, most)))), height = Math.round(Math.min(most, Math.max(fit * first.height, 120)));
    for (const pane of this.panes) pane.size(width, height);
    if (this.whole) this.showWhole(false);
    this.redraw();
  }

  fitZoom() {
    const p = this.panes[0];
    return Math.min(p.width / p.image.width, p.height / p.image.height);
  }

  showWhole(tell = true) {
    const p = this.panes[0];
    if (!p) return;
    this.whole = true;
    this.at = { x: p.image.width / 2, y: p.image.height / 2, zoom: this.fitZoom() };
    if (tell) this.moved();
  }

  zoomBy(factor, about = null) {
    const p = this.panes[0], { x, y, zoom } = this.at;
    if (!p) return;
    const next = Math.min(64, Math.max(this.fitZoom(), zoom * factor));
    const [ax, ay] = about || (this.cursor && this.cursor.keys ? [this.cursor.x, this.cursor.y] : [x, y]);
    this.at = { x: ax + (x - ax) * (zoom / next), y: ay + (y - ay) * (zoom / next), zoom: next };
    this.moved();
  }

  /** Look at the pixel whose numbers were typed, close up, with the cross on it. */
  goTo() {
    const [x, y] = this.goal.map((field) => Math.floor(Number(field.value))), pane = this.panes[0];
    if (this.goal.some((field) => field.value === "") || !pane.image.inside(x, y)) { this.goal.forEach((f) => f.classList.add("xrddiff-wrong")); return; }
    this.goal.forEach((f) => f.classList.remove("xrddiff-wrong"));
    this.cursor = { x: x + 0.5, y: y + 0.5, pane, keys: true };
    this.at = { x: x + 0.5, y: y + 0.5, zoom: Math.max(this.at.zoom, 10) };
    this.moved();
    pane.over.focus({ preventScroll: true });
    this.read();
  }

  panBy(dx, dy) {
    this.at = { ...this.at, x: this.at.x + dx, y: this.at.y + dy };
    this.moved();
  }

  /** After any move: stay near the picture, tell Python a little later. */
  moved() {
    const p = this.panes[0], a = this.at;
    for (const [c, size, seen] of [["x", p.image.width, p.width], ["y", p.image.height, p.height]]) {
      const half = seen / 2 / a.zoom;
      a[c] = half * 2 >= size ? size / 2 : Math.min(size - half, Math.max(half, a[c]));
    }
    this.whole = a.zoom <= this.fitZoom() * 1.0001;
    const half = [p.width / 2 / a.zoom, p.height / 2 / a.zoom], round = (v) => Math.round(v * 100) / 100;
    const seen = this.whole ? null : [a.x - half[0], a.y - half[1], a.x + half[0], a.y + half[1]].map(round);
    this.told = JSON.stringify(seen);
    this.set("window", seen, false);
    if (!this.whole) this.askForWhole(0);
    this.redraw();
  }

  takeWindow() {
    const seen = this.model.get("window"), p = this.panes[0];
    if (!p || JSON.stringify(seen) === this.told) return;
    this.told = JSON.stringify(seen);
    if (seen === null) this.showWhole(false);
    else {
      const [x0, y0, x1, y1] = seen;
      this.whole = false;
      const zoom = Math.min(p.width / (x1 - x0), p.height / (y1 - y0));
      this.at = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom: Math.min(64, Math.max(this.fitZoom(), zoom)) };
    }
    this.redraw();
  }

  // ------------------------------------------------------------------ colours and contrast

  limits() {
    const name = this.model.get("scale"), auto = this.model.get("_auto")[name] || [0, 1, 1], own = this.model.get("limits");
    let [low, high] = own || auto;
    if (name === "log") low = Math.max(low, 1e-3 * Math.max(high, 1e-6));
    if (!(high > low)) high = low + 1e-6 + Math.abs(low) * 1e-6;
    return { name, low, high, width: auto[2] || 1 };
  }

  colours(image, counts) {
    const table = new Uint32Array(257), { table: t } = this, from = image.signed == null ? 0 : 768;
    for (let k = 0; k < 256; k++) {
      const c = from + 3 * k;
      table[k] = (255 << 24) | (t[c + 2] << 16) | (t[c + 1] << 8) | t[c];
    }
    const bad = this.maskColours()[1];
    if (image.signed != null) {
      const k = 127.5 / image.signed;
      return (v) => (v === v ? table[Math.max(0, Math.min(255, Math.round(127.5 + v * k)))] : bad);
    }
    const { name, low, high, width } = this.limits(), scale = scaleOf(name, width);
    const a = scale.to(low), k = 255.999 / (scale.to(high) - a), { to } = scale;
    if (counts && !image.type.startsWith("float") && !image.type.endsWith("32")) { // few different values: look them up
      const least = image.type.startsWith("u") ? 0 : -32768, top = Math.ceil(Math.min(high, 65535)), known = new Uint32Array(top - least + 1);
      for (let v = least; v <= top; v++) known[v - least] = table[Math.max(0, Math.min(255, Math.floor((to(v) - a) * k)))];
      return (v) => (v === v ? known[Math.min(v, top) - least] : bad);
    }
    const ends = Float64Array.from({ length: 255 }, (_, c) => scale.from(a + (c + 1) / k)); // where each colour ends
    return (v) => {
      if (v !== v) return bad;
      let c = 0;
      for (let half = 128; half; half >>= 1) if (v >= ends[c + half - 1]) c += half;
      return table[c];
    };
  }

  maskColours() {
    const grey = this.table.subarray(1536, 1539), shown = this.model.get("show_mask"), out = new Uint32Array(256);
    const pack = (r, g, b) => (255 << 24) | (b << 16) | (g << 8) | r;
    out.fill(pack(...grey));
    if (shown) (this.model.get("_reasons") || []).forEach(([, colour], k) => {
      out[k + 1] = pack(...[1, 3, 5].map((c) => parseInt(colour.slice(c, c + 2), 16)));
    });
    return out;
  }

  plain() { return this.panes.map((p) => p.image).filter((image) => image && image.signed == null); }

  /** The ends of the histogram, on the scale. */
  range() {
    const { name, low, high, width } = this.limits(), scale = scaleOf(name, width);
    let least = Infinity, most = -Infinity;
    for (const image of this.plain()) for (const v of image.some()) {
      if (name === "log" && v <= 0) continue;
      if (v < least) least = v;
      if (v > most) most = v;
    }
    if (!(most > least)) [least, most] = [low, high];
    const auto = this.model.get("_auto")[name] || [low, high];
    least = Math.min(least, low, auto[0]);
    most = Math.max(most, high, auto[1]);
    return { scale, a: scale.to(least), b: scale.to(most) };
  }

  /** A limit that was typed; the other one stays. */
  typeLimit(k, v) {
    const { low, high } = this.limits();
    if (Number.isFinite(v) && this.ends[k].value !== "") this.set("limits", k ? [Math.min(low, v), v] : [v, Math.max(high, v)]);
  }

  /** The histogram and its handles; once for all that came together. */
  contrast() {
    this.plotted = true;
    this.scale.value = this.model.get("scale");
    this.colour.value = this.model.get("colours");
    if (!this.plain().length) { this.histogram.parentElement.hidden = true; return; }
    this.histogram.parentElement.hidden = false;
    const { scale, a, b } = this.range(), { low, high } = this.limits(), bins = 110, counts = new Float64Array(bins);
    for (const image of this.plain()) for (const v of image.some()) {
      const k = Math.floor(((scale.to(v) - a) / (b - a)) * bins);
      if (k >= 0 && k <= bins) counts[Math.min(k, bins - 1)] += 1;
    }
    const g = this.plot.getContext("2d"), w = this.plot.width, h = this.plot.height, most = Math.log1p(Math.max(...counts));
    g.clearRect(0, 0, w, h);
    const style = getComputedStyle(this.root);
    g.fillStyle = style.color;
    g.globalAlpha = 0.55;
    counts.forEach((n, k) => { const size = most ? (Math.log1p(n) / most) * (h - 6) : 0; g.fillRect((k * w) / bins, h - size, w / bins - 0.5, size); });
    g.globalAlpha = 1;
    [low, high].forEach((v, k) => {
      const part = Math.min(1, Math.max(0, (scale.to(v) - a) / (b - a))), handle = this.handles[k];
      if (document.activeElement !== this.ends[k]) this.ends[k].value = Number(v.toPrecision(4));
      handle.style.left = `${100 * part}%`;
      handle.title = `${k ? "brightest" : "darkest"}: ${shortNumber(v)}`;
      for (const [name, value] of [["valuemin", scale.from(a)], ["valuemax", scale.from(b)], ["valuenow", v]]) handle.setAttribute(`aria-${name}`, String(Number(value.toPrecision(6))));
      handle.setAttribute("aria-valuetext", shortNumber(v));
    });
    this.root.dataset.limits = `${low} ${high}`;
  }

  setHandle(k, part, now) {
    const { scale, a, b } = this.held || this.range(), { low, high } = this.limits(), eps = 0.005;
    const other = (scale.to(k ? low : high) - a) / (b - a);
    part = k ? Math.min(1, Math.max(part, other + eps)) : Math.max(0, Math.min(part, other - eps));
    const v = scale.from(a + part * (b - a));
    this.set("limits", k ? [low, v] : [v, high], now);
  }

  handleDown(e, k) {
    e.preventDefault();
    this.handles[k].focus();
    this.handles[k].setPointerCapture(e.pointerId);
    this.held = this.range();
  }

  handleMove(e, k) {
    if (!this.held) return;
    const box = this.histogram.getBoundingClientRect();
    this.setHandle(k, (e.clientX - box.left) / box.width, false);
  }

  handleKey(e, k) {
    const step = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 }[e.key];
    if (step === undefined) return;
    e.preventDefault();
    const { scale, a, b } = this.range(), { low, high } = this.limits();
    this.setHandle(k, (scale.to(k ? high : low) - a) / (b - a) + step, true);
  }

  // ------------------------------------------------------------------ legend and read-out

  legend() {
    const hidden = this.model.get("hidden_marks"), seen = new Map();
    for (const list of this.marks) for (const m of list) {
      const had = seen.get(m.name);
      seen.set(m.name, { kind: m.kind, n: Math.max(had ? had.n : 0, m.xy.length / 2) });
    }
    this.legendBox.replaceChildren(...[...seen].map(([name, { kind, n }]) => {
      const [shape, colour] = KINDS[kind] || KINDS.found;
      const sign = make("canvas", { width: 36, height: 36, class: "xrddiff-sign", "aria-hidden": "true" }), g = sign.getContext("2d");
      for (const [stroke, width] of [["#000000", 6], [colour, 3.5]]) {
        g.strokeStyle = stroke;
        g.lineWidth = width;
        g.beginPath();
        markPath(g, shape, 18, 18, 10);
        g.stroke();
      }
      const box = make("input", { type: "checkbox", change: () => this.set("hidden_marks", box.checked ? hidden.filter((h) => h !== name) : [...hidden, name]) });
      box.checked = !hidden.includes(name);
      return make("label", { class: "xrddiff-check" }, box, sign, `${name} (${n})`);
    }));
    this.reasonKey();
  }

  /** Which colour is which reason, while the mask is shown. */
  reasonKey() {
    if (!this.reasonBox) { this.reasonBox = make("span", { class: "xrddiff-legend" }); this.legendBox.after(this.reasonBox); }
    const shown = this.model.get("show_mask") && !this.maskBox.hidden, there = new Set();
    if (shown) for (const p of this.panes) for (const c of (p.image && p.image.reasons()) || []) if (c) there.add(c);
    this.reasonBox.replaceChildren(...(shown ? this.model.get("_reasons") : []).map(([name, colour], k) => there.has(k + 1)
      ? make("span", { class: "xrddiff-check" }, make("span", { class: "xrddiff-swatch", style: `background:${colour}` }), name) : null).filter(Boolean));
  }

  read() {
    const c = this.cursor, parts = [];
    const first = this.panes.length && this.panes[0].image;
    if (!first) return;
    if (c && first.inside(c.x, c.y)) {
      const x = Math.floor(c.x), y = Math.floor(c.y), put = (name, value) => parts.push([name, value]);
      put("x", x);
      put("y", y);
      const image = c.pane.image || first, a = angles(image, this.panels, c.x, c.y, this.beamOf(image));
      if (a.panel !== undefined) put("panel", `${a.panel} (fs ${a.fs}, ss ${a.ss})`);
      if (a.q !== undefined) {
        put("q", `${a.q.toFixed(3)} Å⁻¹`);
        put("d", `${shortNumber(Number(a.d.toPrecision(4)))} Å`);
      }
      if (a.tt !== undefined) put("2θ", `${((a.tt * 180) / Math.PI).toFixed(2)}°`);
      for (const p of this.panes) {
        const k = y * p.image.width + x, v = p.image.values && p.image.values[k], code = p.image.codes ? p.image.codes[k] : 0;
        const name = this.panes.length > 1 ? p.image.title : "value";
        if (a.gap) put(name, "between the panels");
        else if (v === null) put(name, "…");
        else {
          put(name, `${shortNumber(v)}${p.image.unit ? ` ${p.image.unit}` : ""}`);
          if (code) put("masked", (this.model.get("_reasons")[code - 1] || ["masked"])[0]);
        }
      }
    }
    this.readout.replaceChildren(...parts.map(([name, value]) => make("span", { class: "xrddiff-item" }, make("b", { text: `${name} ` }), String(value))));
    if (!parts.length) this.readout.append(make("span", { class: "xrddiff-hint", text: this.hint() }));
  }

  hint() { return "Drag to pan; click, then turn the wheel to zoom; double-click for the whole. Keys: arrows, + − 0."; }

  // ------------------------------------------------------------------ mouse and keyboard

  tool() { return "look"; }
  /** Choose a tool by its key; false where there is none. */
  choose() { return false; }
  drawMore() {}
  beamOf(image) { return image.beam; }
  ringsOf(image) { return image.rings; }
  /** The width that is taken beside the pictures. */
  aside() { return 0; }
  point() {}
  finish() {}
  cancel() { this.draft = []; this.redraw(); }
  undo() {}
  step() {}

  place(e, pane) {
    const box = pane.over.getBoundingClientRect();
    return pane.toImage(e.clientX - box.left, e.clientY - box.top);
  }

  down(e, pane) {
    if (e.button) return;
    pane.over.focus({ preventScroll: true });
    pane.over.setPointerCapture(e.pointerId);
    const [x, y] = this.place(e, pane);
    this.grip = { x: e.clientX, y: e.clientY, at: { ...this.at }, from: [x, y] };
    if (TWO_POINTS.includes(this.tool())) this.draft = [[x, y]];
    else if (this.tool() === "polygon" && e.detail < 2) this.point(x, y);
  }

  move(e, pane) {
    const [x, y] = this.place(e, pane);
    this.cursor = { x, y, pane, keys: false };
    if (this.grip && this.tool() === "look") {
      this.at = { ...this.at, x: this.grip.at.x - (e.clientX - this.grip.x) / this.at.zoom, y: this.grip.at.y - (e.clientY - this.grip.y) / this.at.zoom };
      this.moved();
    }
    this.read();
    this.redraw(true);
  }

  up(e, pane) {
    if (this.grip && TWO_POINTS.includes(this.tool()) && this.draft.length) {
      const [x, y] = this.place(e, pane);
      this.point(x, y);
    }
    this.grip = null;
  }

  leave() {
    if (this.grip) return;
    this.cursor = null;
    this.read();
    this.redraw(true);
  }

  focus(e, pane) {
    if (!this.cursor && pane.over.matches(":focus-visible")) this.cursor = { x: Math.floor(this.at.x) + 0.5, y: Math.floor(this.at.y) + 0.5, pane, keys: true };
    this.read();
    this.redraw(true);
  }

  wheel(e, pane) {
    if (!(e.ctrlKey || e.metaKey || document.activeElement === pane.over || pane.over.getRootNode().activeElement === pane.over)) return;
    e.preventDefault();
    this.zoomBy(Math.exp(-Math.max(-100, Math.min(100, e.deltaY)) / 300), this.place(e, pane));
  }

  twice() {
    if (this.tool() === "polygon") this.finish();
    else this.showWhole();
  }

  key(e, pane) {
    const far = e.shiftKey ? 10 : 1, arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const image = pane.image;
    if (arrows && image) {
      const c = this.cursor && image.inside(this.cursor.x, this.cursor.y) ? this.cursor : { x: this.at.x, y: this.at.y };
      const clip = (v, n) => Math.min(n - 0.5, Math.max(0.5, Math.floor(v) + 0.5));
      this.cursor = { x: clip(c.x + far * arrows[0], image.width), y: clip(c.y + far * arrows[1], image.height), pane, keys: true };
      const half = [pane.width / 2 / this.at.zoom, pane.height / 2 / this.at.zoom];
      const dx = Math.max(0, Math.abs(this.cursor.x - this.at.x) - half[0]) * Math.sign(this.cursor.x - this.at.x);
      const dy = Math.max(0, Math.abs(this.cursor.y - this.at.y) - half[1]) * Math.sign(this.cursor.y - this.at.y);
      if (dx || dy) this.panBy(dx, dy);
      this.read();
      this.redraw(true);
    } else if (e.key === "+" || e.key === "=") this.zoomBy(1.5);
    else if (e.key === "-" || e.key === "−") this.zoomBy(1 / 1.5);
    else if (e.key === "0" || e.key === "Home") this.showWhole();
    else if (e.key === "PageDown" || e.key === ".") this.step(1);
    else if (e.key === "PageUp" || e.key === ",") this.step(-1);
    else if (e.key === " " && this.tool() !== "look") { if (this.cursor) this.point(this.cursor.x, this.cursor.y); }
    else if (e.key === "Enter" && this.tool() !== "look") this.finish();
    else if (e.key === "Escape") this.cancel();
    else if (e.key === "g" && !e.ctrlKey && !e.metaKey) this.goal[0].focus();
    else if (e.key === "a" && !e.ctrlKey && !e.metaKey) this.set("limits", null);
    else if (e.key === "u" || ((e.ctrlKey || e.metaKey) && e.key === "z")) this.undo();
    else if (e.ctrlKey || e.metaKey || e.altKey || !this.choose(e.key)) return;
    e.preventDefault();
    e.stopPropagation();
  }

  // ------------------------------------------------------------------ drawing

  /** Draw again in the next frame of the screen; `over`: only what is above the pictures. */
  redraw(over = false) {
    if (!over) this.stale = true;
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = null;
      if (this.stale) for (const pane of this.panes) pane.draw();
      for (const pane of this.panes) pane.drawOver();
      if (!this.plotted && !this.sliding) this.contrast();
      if (this.stale) this.drawn();
      this.stale = false;
      // the picture first: the histogram of the next frame follows when that is on the screen
      if (!this.plotted) setTimeout(() => { this.sliding = false; if (!this.plotted) this.contrast(); }, 0);
    });
  }

  /** For whoever measures and tests: what is on the screen now. */
  drawn() {
    this.root.dataset.zoom = this.at.zoom.toFixed(4);
    this.root.dataset.whole = !this.previews();
    this.root.dataset.centre = `${this.at.x.toFixed(2)} ${this.at.y.toFixed(2)}`;
    this.root.dispatchEvent(new CustomEvent("xrddiff-drawn", { detail: { frame: this.model.get("_shown"), whole: !this.previews() } }));
  }
}
