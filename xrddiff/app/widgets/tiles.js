// Small pictures in rows, one of which is picked (xrddiff.app.widgets.points).

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const typed = (kind, view) => new kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function render({ model, el }) {
  const root = rootOf(el, model.get("what"));
  const canvas = make("canvas", { class: "xrddiff-tiles", role: "slider", tabindex: "0", "aria-label": model.get("what") });
  const words = make("div", { class: "xrddiff-tiles-words", "aria-hidden": "true" });
  root.append(sentenceLine(model), make("div", { class: "xrddiff-tiles-box" }, canvas), words);
  const width = 460, gap = 4, bar = 4;
  let order = [], columns = 1, side = 1;

  function arrange() {
    order = typed(Int32Array, model.get("order"));
    side = order.length > 400 ? 18 : order.length > 100 ? 30 : 42;
    columns = Math.max(1, Math.floor(width / (side + gap)));
  }
  const place = (k) => [(k % columns) * (side + gap) + gap / 2, Math.floor(k / columns) * (side + bar + gap) + gap / 2];

  function draw() {
    const ratio = window.devicePixelRatio || 1, [h, w] = model.get("shape");
    const rows = Math.ceil(order.length / columns), height = rows * (side + bar + gap);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    c.imageSmoothingEnabled = false;
    const levels = bytes(model.get("tiles")), lut = bytes(model.get("lut"));
    const shares = typed(Float32Array, model.get("shares")), most = Math.max(...shares, 1e-12);
    const style = getComputedStyle(root), ink = style.getPropertyValue("--jp-ui-font-color1").trim() || "#1f1f1f";
    const small = document.createElement("canvas");
    small.width = w; small.height = h;
    const s = small.getContext("2d"), image = s.createImageData(w, h);
    order.forEach((i, k) => {
      const [x, y] = place(k);
      for (let p = 0; p < w * h; p++) {
        const v = levels[i * w * h + p];
        image.data.set([lut[3 * v], lut[3 * v + 1], lut[3 * v + 2], 255], 4 * p);
      }
      s.putImageData(image, 0, 0);
      c.globalAlpha = shares[i] > 0 ? 1 : 0.35; // never used
      c.drawImage(small, x, y, side, side);
      c.globalAlpha = 1;
      c.fillStyle = ink;
      c.fillRect(x, y + side + 1, (side * shares[i]) / most, bar - 2);
      if (i === model.get("picked")) {
        c.strokeStyle = "#ffffff"; c.lineWidth = 4; c.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
        c.strokeStyle = "#0072b2"; c.lineWidth = 2.5; c.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
      }
    });
  }
  function at(event) {
    const box = canvas.getBoundingClientRect(), k = width / box.width;
    const column = Math.floor(((event.clientX - box.left) * k) / (side + gap));
    const n = Math.floor(((event.clientY - box.top) * k) / (side + bar + gap)) * columns + column;
    return column < columns && n >= 0 && n < order.length ? n : -1;
  }
  function pick(k) {
    if (k < 0 || k >= order.length) return;
    model.set("picked", order[k]);
    model.save_changes();
  }
  function tell() {
    const k = order.indexOf(model.get("picked"));
    canvas.setAttribute("aria-valuemin", 0);
    canvas.setAttribute("aria-valuemax", Math.max(0, order.length - 1));
    canvas.setAttribute("aria-valuenow", Math.max(0, k));
    canvas.setAttribute("aria-valuetext", model.get("names")[model.get("picked")] || "");
  }
  function see(k) { // what is under the pointer, or picked
    words.textContent = model.get("names")[k < 0 ? model.get("picked") : order[k]] || "";
  }
  const steps = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns, ArrowDown: () => columns };
  canvas.addEventListener("pointermove", (e) => see(at(e)));
  canvas.addEventListener("pointerleave", () => see(-1));
  canvas.addEventListener("click", (e) => pick(at(e)));
  canvas.addEventListener("keydown", (e) => {
    const k = order.indexOf(model.get("picked"));
    if (steps[e.key]) pick(k + steps[e.key]());
    else if (e.key === "Home") pick(0);
    else if (e.key === "End") pick(order.length - 1);
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  model.on("change:order change:tiles change:shares", () => { arrange(); draw(); tell(); see(-1); });
  model.on("change:picked change:names", () => { draw(); tell(); see(-1); });
  arrange(); draw(); tell(); see(-1);
  return onTheme(draw);
}
export default { render };
