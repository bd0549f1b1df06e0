// The view of xrddiff.app.widgets.training_monitor.

function progressBars(model) {
  return following(model, ["progress"], make("div", { class: "xrddiff-bars" }), (box) => {
    box.replaceChildren(
      ...model.get("progress").flatMap(({ name, value, whole, said }) => [
        make("span", { text: name }),
        make("progress", { "aria-label": `${name}: ${said}`, max: whole || 1, value: whole ? value : 0 }),
        make("span", { class: "xrddiff-quietly", text: said }),
      ]),
    );
  });
}

function findingList(model) {
  return following(model, ["findings"], make("div"), (box) => {
    const found = model.get("findings");
    const rows = found.map(({ severity, where, seen, cause, remedy }) =>
      make("li", { class: `xrddiff-${severity}` },
        make("strong", { text: `${severity}, ${where}: ` }), `${seen}. `,
        make("span", { class: "xrddiff-quietly", text: cause }), " ", make("em", { text: remedy })),
    );
    box.replaceChildren(rows.length ? make("ul", { class: "xrddiff-findings" }, ...rows) : make("span", { class: "xrddiff-quietly", text: "nothing wrong was found so far" }));
  });
}

/** The samples of one epoch, and a slider that goes through the epochs. */
function oneEpoch(model) {
  const range = make("input", { type: "range", min: 0, step: 1, class: "xrddiff-slider", "aria-label": "epoch",
    input: () => (model.set("epoch", model.get("epochs")[range.value]), model.save_changes()) });
  const said = make("output", {});
  const box = make("div", {}, make("label", { class: "xrddiff-row" }, "epoch ", range, said), picturePair(model, "drawn", "", "drawn_told"));
  return following(model, ["epochs", "epoch", "chart"], box, () => {
    const epochs = model.get("epochs"), epoch = model.get("epoch");
    box.hidden = model.get("chart") !== "samples" || !epochs.length;
    range.max = epochs.length - 1;
    range.value = epochs.indexOf(epoch);
    range.setAttribute("aria-valuetext", `epoch ${epoch}`);
    said.textContent = `${epoch} of ${epochs.at(-1) ?? 0}`;
  });
}

function render({ model, el }) {
  rootOf(el, "training monitor");
  const text = (name, tag, words = {}) => following(model, [name], make(tag, words), (e) => (e.textContent = model.get(name)));
  const chart = make("select", { change: () => (model.set("chart", chart.value), model.save_changes()) });
  following(model, ["charts", "chart"], chart, () => {
    const now = model.get("chart");
    chart.replaceChildren(...model.get("charts").map(([name, title]) => make("option", { value: name, text: title, selected: name === now })));
    chart.disabled = !chart.childElementCount;
    chart.value = now;
  });
  const left = make("div", {},
    make("div", { class: "xrddiff-row" }, make("label", {}, "curve ", chart),
      make("button", { text: "Look now", click: () => model.send("look") })),
    picturePair(model, "light", "dark", "told"), oneEpoch(model),
    following(model, ["charts"], make("p", { class: "xrddiff-quietly", text: "no curve yet: the first steps are not done" }), (p) => (p.hidden = model.get("charts").length > 0)),
  );
  const machine = following(model, ["devices"], make("p", { class: "xrddiff-quietly" }), (p) => {
    const [where, ...lines] = model.get("devices");
    p.textContent = lines.length ? `${where}: ${lines.join(", ")}` : "";
    p.hidden = !lines.length;
  });
  el.append(
    make("div", { class: "xrddiff-head" }, text("title", "strong"), badge(model, "state"), text("why", "span")),
    progressBars(model), text("numbers", "p", { class: "xrddiff-quietly" }),
    make("div", { class: "xrddiff-columns" }, left,
      make("div", {}, make("h3", { text: "Health" }), findingList(model), make("h3", { text: "Log" }), logLines(model, "log", "log of the run"), machine)),
  );
  return stayInTouch(model);
}
export default { render };
