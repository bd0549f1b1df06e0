// The view of xrddiff.app.widgets.job_monitor.

const NUMBERS = ["TIME", "NODES", "EPOCH", "STEP", "LOSS"];

function jobTable(model, group) {
  const titles = model.get("columns");
  const kind = (i) => (NUMBERS.includes(titles[i]) ? "xrddiff-number" : "");
  const body = make("tbody");
  const choose = (id) => (model.set("chosen", id), model.save_changes());
  following(model, ["rows", "chosen"], body, () => {
    const chosen = model.get("chosen");
    const focused = body.contains(document.activeElement) ? document.activeElement.value : null;
    body.replaceChildren(
      ...model.get("rows").map(({ id, cells }) => {
        const radio = make("input", { type: "radio", name: group, value: id, "aria-label": `job ${id}`, change: () => choose(id) });
        radio.checked = id === chosen;
        const row = make("tr", { class: id === chosen ? "xrddiff-chosen" : "", click: () => id === model.get("chosen") || choose(id) },
          ...cells.map((cell, i) => make("td", { class: kind(i) }, i ? null : radio, cell)));
        if (id === focused) queueMicrotask(() => radio.focus());
        return row;
      }),
    );
    if (!body.childElementCount) body.append(make("tr", {}, make("td", { colspan: titles.length, text: "no jobs" })));
  });
  const table = make("table", {},
    make("thead", {}, make("tr", {}, ...titles.map((t, i) => make("th", { scope: "col", class: kind(i), text: t.toLowerCase() })))), body);
  return make("div", { class: "xrddiff-jobs", tabindex: 0, role: "region", "aria-label": "jobs of this cluster" }, table);
}

function question(model) {
  const yes = make("button", { text: "Cancel the job", click: () => model.send("confirm") });
  const no = make("button", { text: "Keep it", click: () => model.send("keep") });
  const words = make("p", { id: `xrddiff-${Math.random().toString(36).slice(2)}` });
  const escape = (event) => event.key === "Escape" && model.send("keep");
  const box = make("div", { class: "xrddiff-question", role: "alertdialog", "aria-label": "Cancel?", "aria-describedby": words.id, keydown: escape },
    words, make("div", { class: "xrddiff-row" }, yes, no));
  return following(model, ["asking"], box, () => {
    words.textContent = model.get("asking");
    const opens = box.hidden;
    box.hidden = !words.textContent;
    if (!box.hidden && opens) no.focus();
  });
}

function render({ model, el }) {
  rootOf(el, "job monitor");
  const of = () => model.get("rows").find(({ id }) => id === model.get("chosen"));
  const action = (text, message, may) =>
    following(model, ["rows", "chosen"], make("button", { text, click: () => model.send({ [message]: model.get("chosen") }) }), (b) => (b.disabled = !(of() && may(of()))));
  el.append(
    jobTable(model, `xrddiff-${Math.random().toString(36).slice(2)}`),
    make("div", { class: "xrddiff-row" },
      action("Cancel…", "cancel", (job) => job.queued), action("Resume", "resume", (job) => job.resume),
      action("Show its training", "watch", (job) => job.watch), make("button", { text: "Look now", click: () => model.send("look") }),
      following(model, ["said"], make("span", { role: "status", class: "xrddiff-quietly" }), (e) => (e.textContent = model.get("said")))),
    question(model),
    following(model, ["chosen"], make("h3"), (h) => (h.textContent = model.get("chosen") ? `Log of job ${model.get("chosen")}` : "Log: choose a job")),
    logLines(model, "log", "log of the job"),
  );
  return stayInTouch(model);
}
export default { render };
