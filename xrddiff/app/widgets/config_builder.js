// The view of xrddiff.app.widgets.config_builder.

let fieldNumber = 0;

/** A field of a word: label, control, unit and range, where its value comes from. */
function wordField(model, word, say) {
  const id = `xrddiff-word-${++fieldNumber}`;
  const changed = () => control.value.trim() === (model.get("given")[word.name] ?? "") || say(word.name, control.value.trim());
  const control = word.choices.length
    ? make("select", { id, change: changed, "aria-describedby": `${id}-about` })
    : make("input", { id, type: "text", change: changed, keydown: (event) => event.key === "Enter" && changed(), spellcheck: "false", autocomplete: "off", "aria-describedby": `${id}-about` });
  const about = make("span", { class: "xrddiff-quietly", id: `${id}-about` });
  const row = make("div", { class: "xrddiff-word" }, make("label", { for: id, text: word.short, title: word.name }), control, about);
  const show = () => {
    const given = model.get("given")[word.name];
    const [value, origin, unused] = model.get("values")[word.name] ?? ["", "", ""];
    row.classList.toggle("xrddiff-given", given !== undefined);
    row.dataset.unused = unused;
    const wrong = model.get("wrong");
    control.setAttribute("aria-invalid", String(given !== undefined && wrong.includes(word.name)));
    if (word.choices.length) {
      const usual = given === undefined ? `${value} (${origin})` : "as the presets say";
      control.replaceChildren(make("option", { value: "", text: usual }), ...word.choices.map((c) => make("option", { value: c, text: c })));
      control.value = given ?? "";
    } else {
      if (document.activeElement !== control || control.value.trim() !== (given ?? "")) control.value = given ?? "";
      control.placeholder = value;
    }
    const unit = [word.unit, word.kind].filter(Boolean).join("; ");
    about.textContent = `${word.meaning}${unit ? ` (${unit})` : ""}${origin && origin !== "default" ? ` — ${origin}` : ""}${unused ? ` — no effect: ${unused}` : ""}`;
  };
  return { word, row, show };
}

/** All words by section, with a box to find some of them. */
function wordForm(model, say) {
  const fields = model.get("fields").map((word) => wordField(model, word, say));
  const find = make("input", { type: "search", placeholder: "lr, batch, noise …", input: () => sift() });
  const every = make("input", { type: "checkbox", change: () => sift() });
  const sections = new Map();
  for (const f of fields) {
    if (!sections.has(f.word.section)) {
      const box = make("details", { open: f.word.section === "training" }, make("summary", { text: f.word.section }));
      sections.set(f.word.section, { box, own: [], before: null });
    }
    const section = sections.get(f.word.section);
    section.own.push(f);
    section.box.append(f.row);
  }
  const sift = () => {
    const asked = find.value.trim().toLowerCase();
    for (const section of sections.values()) {
      for (const { word, row } of section.own) {
        const hit = `${word.name} ${word.meaning}`.toLowerCase().includes(asked);
        row.hidden = !hit || (row.dataset.unused && !every.checked && !row.classList.contains("xrddiff-given"));
      }
      section.box.hidden = section.own.every(({ row }) => row.hidden);
      if (asked && section.before === null) section.before = section.box.open;
      if (asked) section.box.open = true;
      else if (section.before !== null) [section.box.open, section.before] = [section.before, null];
    }
  };
  const show = () => (fields.forEach((f) => f.show()), sift());
  for (const name of ["given", "values", "wrong"]) model.on(`change:${name}`, show);
  show();
  return make("div", {},
    make("div", { class: "xrddiff-row" }, make("label", {}, "find a word ", find), make("label", {}, every, " also words without effect here")),
    make("div", { class: "xrddiff-words", tabindex: 0, role: "region", "aria-label": "words of the run" }, ...[...sections.values()].map(({ box }) => box)));
}

function groupForm(model, say) {
  return make("div", { class: "xrddiff-groups" }, ...model.get("groups").map(({ name, choices, about }) => {
    const id = `xrddiff-group-${++fieldNumber}`;
    const control = make("select", { id, change: () => say(name, control.value) });
    const said = make("div", { class: "xrddiff-quietly xrddiff-about" });
    const box = make("div", {}, make("label", { for: id, text: name.replace("_", " ") }), control, said);
    return following(model, ["given", "values"], box, () => {
      const given = model.get("given")[name], value = model.get("values")[name]?.[0] ?? "";
      const all = given === undefined || choices.includes(given) ? choices : [...choices, given];
      control.replaceChildren(make("option", { value: "", text: given === undefined ? `${value || "none"}${value === "default" ? "" : " (default)"}` : "the default" }),
        ...all.map((c) => make("option", { value: c, text: c })));
      control.value = given ?? "";
      said.textContent = said.title = about[given ?? value] ?? "";
    });
  }));
}

/** Text to copy, with a button for it. */
function codeBox(model, name, label) {
  const pre = make("pre", { class: "xrddiff-code", tabindex: 0, role: "region", "aria-label": label });
  following(model, [name], pre, () => (pre.textContent = model.get(name)));
  const copy = make("button", { text: "Copy", "aria-label": `Copy ${label}`, click: async () => {
    try {
      await navigator.clipboard.writeText(model.get(name));
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(pre); // no access to the clipboard: Ctrl-C does the rest
    }
  } });
  return make("div", {}, make("div", { class: "xrddiff-row" }, make("strong", { text: label }), copy), pre);
}

function changedTable(model) {
  return following(model, ["changed", "notes"], make("div", { class: "xrddiff-changed", tabindex: 0, role: "region", "aria-label": "what differs from the presets" }), (box) => {
    const rows = model.get("changed").map(([word, preset, now, unit]) =>
      make("tr", {}, make("td", { text: word }), make("td", { text: preset }), make("td", { text: `${now} ${unit}`.trim() })));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...["word", "presets", "here"].map((t) => make("th", { scope: "col", text: t })))), make("tbody", {}, ...rows));
    box.replaceChildren(rows.length ? table : make("span", { class: "xrddiff-quietly", text: "nothing: the presets as they are" }),
      ...model.get("notes").map((text) => make("p", { text: `Note: ${text}.` })));
  });
}

function launchRow(model) {
  const list = `xrddiff-profiles-${++fieldNumber}`;
  const profile = make("input", { list, spellcheck: "false", placeholder: "small, or FILE.yaml", change: () => model.send({ profile: profile.value.trim() }) }); // buttons that need it wait for the kernel
  following(model, ["profile"], profile, () => (profile.value = model.get("profile")));
  const options = make("datalist", { id: list }, ...model.get("profiles").map(([name, about]) => make("option", { value: name, text: about })));
  const button = (text, message, may) =>
    following(model, ["busy", "wrong", "profile"], make("button", { text, click: () => model.send(message) }), (b) => (b.disabled = !may()));
  const ready = () => !model.get("wrong") && !model.get("busy");
  const cluster = () => ready() && model.get("profile");
  return make("div", {},
    make("div", { class: "xrddiff-row" }, button("Train here", "launch", ready), button("Stop", "stop", () => model.get("busy") === "run"),
      make("label", {}, "profile ", profile), options, button("Show the script", "script", cluster), button("Submit", "submit", cluster)),
    following(model, ["said", "busy"], make("p", { role: "status", class: "xrddiff-quietly" }), (p) => (p.textContent = model.get("busy") === "work" ? "checking …" : model.get("said"))),
    following(model, ["script"], codeBox(model, "script", "batch script"), (box) => (box.hidden = !model.get("script"))));
}

function render({ model, el }) {
  rootOf(el, "config builder");
  const say = (name, to) => model.send({ set: name, to });
  el.append(
    groupForm(model, say),
    make("div", { class: "xrddiff-columns" }, wordForm(model, say),
      make("div", {}, make("h3", { text: "What differs from the presets" }), changedTable(model),
        codeBox(model, "command", "command"), codeBox(model, "python", "in Python"),
        make("details", {}, make("summary", { text: "the whole configuration" }), codeBox(model, "yaml", "config.yaml")),
        make("h3", { text: "Start it" }), launchRow(model))),
  );
  return stayInTouch(model);
}
export default { render };
