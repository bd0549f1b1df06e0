// What widgets that follow something share: word to the kernel that they are seen, pictures in two themes, lines of a log.

/** Tell the kernel while this view is on the screen; returns what ends it. */
function stayInTouch(model) {
  const tell = () => document.visibilityState === "visible" && model.send("here");
  const timer = setInterval(tell, 60_000);
  document.addEventListener("visibilitychange", tell);
  tell();
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", tell);
    model.send("gone");
  };
}

/** The PNG bytes of two traits as a picture for light pages and one for dark pages. */
function picturePair(model, light, dark, told) {
  const box = make("div", { class: "xrddiff-picture" });
  const urls = {};
  const show = () => {
    const text = model.get(told);
    const made = [[light, "xrddiff-light"], [dark, "xrddiff-dark"]].map(([name, kind]) => {
      const data = model.get(name);
      if (urls[name]) URL.revokeObjectURL(urls[name]);
      if (!data?.byteLength) return null;
      urls[name] = URL.createObjectURL(new Blob([data], { type: "image/png" }));
      return make("img", { class: kind, src: urls[name], alt: text });
    });
    box.replaceChildren(...made.filter((image) => image));
    box.hidden = !box.childElementCount;
  };
  for (const name of [light, dark, told]) model.on(`change:${name}`, show);
  show();
  return box;
}

/** Lines [severity, text] that can be scrolled with the keyboard, and stay at their end unless somebody scrolled up. */
function logLines(model, name, label) {
  const box = make("pre", { class: "xrddiff-log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": label });
  const marks = { error: "✗ ", warning: "! ", note: "· " };
  const show = () => {
    const end = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    const lines = model.get(name);
    box.replaceChildren(...lines.map(([kind, text]) => make("span", { class: `xrddiff-${kind}`, text: `${marks[kind] ?? ""}${text}\n` })));
    if (!lines.length) box.textContent = "nothing yet";
    if (end) box.scrollTop = box.scrollHeight;
  };
  model.on(`change:${name}`, show);
  show();
  requestAnimationFrame(() => (box.scrollTop = box.scrollHeight));
  return box;
}

/** A word for a state, with a colour that repeats it. */
function badge(model, name) {
  const mark = make("span");
  const show = () => {
    mark.textContent = model.get(name);
    mark.className = `xrddiff-badge xrddiff-is-${mark.textContent.toLowerCase()}`;
  };
  model.on(`change:${name}`, show);
  show();
  return mark;
}

/** An element whose content is made again whenever one of the traits changes. */
function following(model, names, element, fill) {
  const show = () => fill(element);
  for (const name of names) model.on(`change:${name}`, show);
  show();
  return element;
}
