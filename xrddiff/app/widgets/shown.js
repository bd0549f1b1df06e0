// What every widget's module begins with (xrddiff.app.widgets.shown): the line for sentences, and elements with labels.

/** An element: `make("label", {class: "x", text: "frame"}, child, …)`; functions become listeners. */
function make(tag, words = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(words)) {
    if (name === "text") el.textContent = value;
    else if (typeof value === "function") el.addEventListener(name, value);
    else if (value === true) el.setAttribute(name, "");
    else if (value !== false && value != null) el.setAttribute(name, value);
  }
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab asks the element that has the focus, not those around it
  el.append(...children.filter((c) => c != null));
  return el;
}

/** A listener of keydown that calls `f` on Enter. */
function onEnter(f) {
  return (e) => { if (e.key === "Enter") f(); };
}

/** The line that shows the model's `sentence`; a screen reader reads it out when it changes. */
function sentenceLine(model) {
  const line = make("div", { class: "xrddiff-sentence", role: "alert" });
  const show = () => {
    line.textContent = model.get("sentence") || "";
    line.hidden = !line.textContent;
  };
  model.on("change:sentence", show);
  show();
  return line;
}

/** Call `f` when the page turns light or dark; what a canvas holds does not follow by itself. Returns a function that ends it. */
function onTheme(f) {
  const later = () => requestAnimationFrame(f);
  const watch = new MutationObserver(later), media = window.matchMedia("(prefers-color-scheme: dark)");
  for (const el of [document.documentElement, document.body]) {
    watch.observe(el, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "data-theme", "data-vscode-theme-kind"] });
  }
  media.addEventListener("change", later);
  return () => { watch.disconnect(); media.removeEventListener("change", later); };
}

/** The root of a widget: keys that are pressed inside it belong to it and not to JupyterLab. */
function rootOf(el, label) {
  el.classList.add("xrddiff");
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", label);
  return el;
}
