// A slider of the browser's own, with a name that is read out (xrddiff.app.widgets.points).

function render({ model, el }) {
  const name = make("span", { text: model.get("label") });
  const range = make("input", { type: "range" });
  const out = make("output", {});
  el.classList.add("xrddiff-slide");
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.append(make("label", {}, name, range), out);
  const show = () => {
    for (const k of ["min", "max", "step"]) range[k] = model.get(k);
    range.value = model.get("value");
    range.disabled = model.get("disabled");
    out.textContent = model.get("text") || String(+model.get("value").toFixed(3));
  };
  range.addEventListener("input", () => {
    model.set("value", Number(range.value));
    model.save_changes();
  });
  model.on("change", show);
  show();
}
export default { render };
