// Frames as points of a map, with a small picture of the frame under the pointer (xrddiff.app.widgets.points).

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({ model, el }) {
  const root = rootOf(el, "map of frames");
  const size = { width: 460, height: 360, left: 44, right: 12, top: 12, bottom: 38 };
  const canvas = make("canvas", { class: "xrddiff-map", role: "slider", tabindex: "0", "aria-label": "frame on the map" });
  const card = make("div", { class: "xrddiff-card", hidden: true });
  const small = make("canvas", { "aria-hidden": "true" });
  const words = make("div", {});
  card.append(small, words);
  const legend = make("div", { class: "xrddiff-map-legend" });
  root.append(sentenceLine(model), make("div", { class: "xrddiff-map-box" }, canvas, card), legend);

  let xy = [], places = [], under = -1;
  const colour = (name, other) => getComputedStyle(root).getPropertyValue(name).trim() || other;

  function arrange() {
    xy = floats(model.get("xy"));
    const n = xy.length / 2, low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (let i = 0; i < 2 * n; i++) {
      low[i % 2] = Math.min(low[i % 2], xy[i]);
      high[i % 2] = Math.max(high[i % 2], xy[i]);
    }
    const span = [0, 1].map((k) => (high[k] - low[k] || 1) * 1.08);
    const from = [0, 1].map((k) => (low[k] + high[k] - span[k]) / 2);
    const w = size.width - size.left - size.right, h = size.height - size.top - size.bottom;
    places = Array.from({ length: n }, (_, i) => [
      size.left + ((xy[2 * i] - from[0]) / span[0]) * w,
      size.top + h - ((xy[2 * i + 1] - from[1]) / span[1]) * h,
    ]);
    root._ticks = { from, span, w, h };
  }

  function ticks(from, span) {
    const rough = span / 5, ten = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough);
    const out = [];
    for (let k = Math.ceil(from / step); k * step <= from + span; k++) out.push(+(k * step).toPrecision(6));
    return out;
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, { from, span, w, h } = root._ticks;
    canvas.width = size.width * ratio;
    canvas.height = size.height * ratio;
    canvas.style.width = `${size.width}px`;
    const c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    const ink = colour("--jp-ui-font-color1", "#1f1f1f"), faint = colour("--jp-border-color2", "#dddddd");
    c.font = "11px " + colour("--jp-ui-font-family", "sans-serif");
    c.lineWidth = 1;
    ticks(from[0], span[0]).forEach((v) => {
      const x = size.left + ((v - from[0]) / span[0]) * w;
      c.strokeStyle = faint;
      c.beginPath(); c.moveTo(x, size.top); c.lineTo(x, size.top + h); c.stroke();
      c.fillStyle = ink; c.textAlign = "center"; c.fillText(v, x, size.top + h + 14);
    });
    ticks(from[1], span[1]).forEach((v) => {
      const y = size.top + h - ((v - from[1]) / span[1]) * h;
      c.strokeStyle = faint;
      c.beginPath(); c.moveTo(size.left, y); c.lineTo(size.left + w, y); c.stroke();
      c.fillStyle = ink; c.textAlign = "right"; c.fillText(v, size.left - 5, y + 4);
    });
    const [nameX, nameY] = model.get("axes");
    c.fillStyle = ink;
    c.textAlign = "center";
    c.fillText(nameX, size.left + w / 2, size.height - 6);
    c.save(); c.translate(11, size.top + h / 2); c.rotate(-Math.PI / 2); c.fillText(nameY, 0, 0); c.restore();
    const colours = bytes(model.get("colours"));
    places.forEach(([x, y], i) => {
      c.fillStyle = `rgb(${colours[3 * i]},${colours[3 * i + 1]},${colours[3 * i + 2]})`;
      c.beginPath(); c.arc(x, y, 3.4, 0, 2 * Math.PI); c.fill();
    });
    c.strokeStyle = ink;
    c.lineWidth = 1.6;
    const mark = (i, path) => { if (i >= 0 && i < places.length) { c.beginPath(); path(...places[i]); c.stroke(); } };
    mark(model.get("first"), (x, y) => c.rect(x - 6, y - 6, 12, 12));
    mark(model.get("last"), (x, y) => { c.moveTo(x, y - 9); c.lineTo(x + 9, y); c.lineTo(x, y + 9); c.lineTo(x - 9, y); c.closePath(); });
    mark(model.get("frame"), (x, y) => c.arc(x, y, 8, 0, 2 * Math.PI));
  }

  function show(i) { // the card of frame i, -1: none
    under = i;
    card.hidden = i < 0;
    canvas.dataset.under = i;
    if (i < 0) return;
    const [h, w] = model.get("thumb_shape"), levels = bytes(model.get("thumbs")), lut = bytes(model.get("lut"));
    if (h) {
      small.width = w; small.height = h;
      const c = small.getContext("2d"), image = c.createImageData(w, h);
      for (let p = 0; p < w * h; p++) {
        const v = levels[i * w * h + p];
        image.data.set([lut[3 * v], lut[3 * v + 1], lut[3 * v + 2], 255], 4 * p);
      }
      c.putImageData(image, 0, 0);
    }
    words.textContent = model.get("names")[i];
    const [x, y] = places[i];
    card.style.left = `${x > size.width / 2 ? x - 128 : x + 14}px`;
    card.style.top = `${Math.max(0, Math.min(y - 20, size.height - 150))}px`;
  }

  function near(event) {
    const box = canvas.getBoundingClientRect(), k = size.width / box.width;
    const x = (event.clientX - box.left) * k, y = (event.clientY - box.top) * k;
    let best = -1, least = 14 * 14;
    places.forEach(([px, py], i) => {
      const d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) [best, least] = [i, d];
    });
    return best;
  }

  function pick(i) {
    if (i < 0 || i >= places.length) return;
    model.set("frame", i);
    model.save_changes();
    show(i);
  }

  function towards(dx, dy) { // the nearest frame in a direction
    const now = places[Math.max(0, model.get("frame"))];
    let best = -1, least = Infinity;
    places.forEach(([x, y], i) => {
      const along = (x - now[0]) * dx + (y - now[1]) * dy, off = Math.abs((x - now[0]) * dy + (y - now[1]) * dx);
      const d = along + 2 * off;
      if (along > 0.5 && off <= along * 1.5 && d < least) [best, least] = [i, d];
    });
    return best;
  }

  const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("pointermove", (e) => { const i = near(e); if (i !== under) show(i); });
  canvas.addEventListener("pointerleave", () => show(-1));
  canvas.addEventListener("blur", () => show(-1));
  canvas.addEventListener("click", (e) => pick(near(e)));
  canvas.addEventListener("keydown", (e) => {
    const frame = model.get("frame");
    if (turns[e.key]) pick(towards(...turns[e.key]));
    else if (e.key === "PageDown") pick(frame + 1);
    else if (e.key === "PageUp") pick(frame - 1);
    else if (e.key === "Home") pick(0);
    else if (e.key === "End") pick(places.length - 1);
    else return;
    e.preventDefault();
    e.stopPropagation();
  });

  function tell() {
    const frame = Math.max(0, model.get("frame"));
    canvas.setAttribute("aria-valuemin", 0);
    canvas.setAttribute("aria-valuemax", Math.max(0, places.length - 1));
    canvas.setAttribute("aria-valuenow", frame);
    canvas.setAttribute("aria-valuetext", model.get("names")[frame] || "");
  }
  function explain() {
    legend.replaceChildren(...model.get("legend").map(([name, hex]) => make("span", {},
      make("i", { style: `background:${hex}` }), name)));
  }
  model.on("change:xy", () => { arrange(); draw(); });
  model.on("change:colours change:first change:last change:axes", draw);
  model.on("change:frame change:names", () => { draw(); tell(); if (under >= 0) show(under); });
  model.on("change:legend", explain);
  arrange(); draw(); tell(); explain();
  return onTheme(draw);
}
export default { render };
