// A series of pictures: a frame slider, and for the explorer its file, its peaks and its mask. Comes after canvas.js.

const TOOLS = [["look", "pan", "p"], ["line", "line profile", "l"], ["box", "box with statistics", "b"], ["centre", "drag the centre", "c"], ["rectangle", "mask a rectangle", "r"], ["polygon", "mask a polygon", "y"]];

class Series extends Measured {
  build() {
    super.build();
    const parts = this.model.get("_parts") || [];
    this.buildFrames();
    if (parts.includes("mask")) this.buildTools();
    if (parts.includes("source")) this.buildSource();
    if (parts.includes("mask")) { this.buildCentre(); this.buildMask(); }
    if (parts.includes("mask")) this.overlays.append(this.check("find peaks", "find_peaks"), this.check("radial curve", "show_curve"));
    if (parts.includes("peaks")) this.overlays.append(this.check("peaks", "show_peaks"));
    this.on(["frame", "n_frames"], () => this.showNumber());
    this.on(["_shown", "sentence"], () => this.arrived());
    this.showNumber();
  }

  // ------------------------------------------------------------------ which frame

  buildFrames() {
    this.slider = make("input", { type: "range", min: 0, step: 1, class: "xrddiff-slider", input: () => this.ask(Number(this.slider.value)) });
    const typed = () => this.ask(Number(this.number.value));
    this.number = make("input", { type: "number", min: 0, step: 1, "aria-label": "frame number", change: typed, keydown: onEnter(typed) });
    this.count = make("span");
    this.frames = make("div", { class: "xrddiff-tools" },
      make("label", { class: "xrddiff-wide" }, "frame ", this.slider), this.number, this.count,
      this.button("◀", "previous frame", () => this.step(-1)), this.button("▶", "next frame", () => this.step(1)));
    this.above.append(this.frames);
    this.waiting = null;
  }

  showNumber() {
    const n = this.model.get("n_frames"), i = this.waiting === null ? this.model.get("frame") : this.wanted;
    this.frames.hidden = n < 2;
    this.slider.max = this.number.max = Math.max(0, n - 1);
    this.slider.value = i;
    if (document.activeElement !== this.number) this.number.value = i;
    this.count.textContent = `of ${n}`;
    this.root.dataset.frame = this.model.get("_shown");
  }

  /** Ask for a frame; while one is on its way, only the last wish is remembered. */
  ask(i) {
    if (!Number.isFinite(i)) return;
    this.wanted = Math.max(0, Math.min(this.model.get("n_frames") - 1, Math.round(i)));
    this.slider.value = this.number.value = this.wanted;
    if (this.waiting === null) this.sendFrame();
  }

  sendFrame() {
    if (this.model.get("frame") === this.wanted) return;
    this.waiting = this.wanted;
    this.model.set("frame", this.wanted);
    this.model.save_changes();
    clearTimeout(this.patience);
    this.patience = setTimeout(() => { this.waiting = null; }, 20000);
  }

  arrived() {
    if (this.waiting !== null && (this.model.get("_shown") === this.waiting || this.model.get("sentence"))) {
      this.waiting = null;
      clearTimeout(this.patience);
      if (this.wanted !== this.model.get("frame")) this.sendFrame();
    }
    this.showNumber();
  }

  resting() { return this.waiting === null; }

  step(by) { this.ask((this.waiting === null ? this.model.get("frame") : this.wanted) + by); }

  hint() { return `${super.hint()}${this.model.get("n_frames") > 1 ? " Page Up, Page Down: other frames." : ""}`; }

  // ------------------------------------------------------------------ which file

  buildSource() {
    const typed = () => this.set("source", field.value.trim());
    const field = make("input", { type: "text", class: "xrddiff-path", spellcheck: "false", change: typed, keydown: onEnter(typed) });
    const show = () => { field.value = this.model.get("source"); };
    this.on(["source"], show);
    show();
    this.above.prepend(make("div", { class: "xrddiff-tools" }, make("label", { class: "xrddiff-wide" }, "file or name ", field)));
  }

  // ------------------------------------------------------------------ what the mouse does

  buildTools() {
    const select = make("select", { change: () => this.takeUp(select.value) });
    for (const [value, text, key] of TOOLS) select.append(make("option", { value, text: `${text} (${key})` }));
    const show = () => { select.value = this.model.get("tool"); clear.hidden = !this.model.get("line") && !this.model.get("box"); };
    const clear = this.button("Clear", "remove the line and the box", () => { this.model.set("line", null); this.set("box", null); });
    this.on(["tool", "line", "box"], show);
    show();
    this.overlays.before(make("label", {}, "mouse ", select), clear);
  }

  takeUp(tool) {
    this.draft = [];
    this.set("tool", tool);
    this.redraw(true);
  }

  choose(key) {
    const found = this.mayDraw() && TOOLS.find((t) => t[2] === key);
    if (found) this.takeUp(found[0]);
    return Boolean(found);
  }

  mayDraw() { return (this.model.get("_parts") || []).includes("mask"); }

  // ------------------------------------------------------------------ the centre

  buildCentre() {
    const select = make("select", { change: () => { this.model.set("show_rings", true); this.set("calibrant", select.value); } });
    for (const name of ["", ...(this.model.get("_calibrants") || [])]) select.append(make("option", { value: name, text: name || "none" }));
    const typed = () => { if (fields.every((f) => f.value !== "")) this.moveCentre(fields.map((f) => Number(f.value))); };
    const fields = ["x", "y"].map((name) => make("input", { type: "number", step: 0.1, class: "xrddiff-value", "aria-label": `centre ${name}`, change: typed, keydown: onEnter(typed) }));
    const back = this.button("Reset", "the centre as the frames have it", () => this.set("center", null)), said = make("span", { role: "status", class: "xrddiff-note" });
    const show = () => {
      select.value = this.model.get("calibrant");
      back.disabled = !this.model.get("center");
      said.textContent = this.model.get("fitted");
      const at = this.centre();
      fields.forEach((f, k) => { if (document.activeElement !== f) f.value = at ? Number(at[k].toFixed(2)) : ""; });
      this.root.dataset.beam = at ? at.map((v) => v.toFixed(3)).join(" ") : "";
    };
    this.on(["center", "calibrant", "fitted", "_pictures"], () => setTimeout(show, 0));
    setTimeout(show, 0);
    this.below.append(make("details", { class: "xrddiff-details" }, make("summary", { text: "Find the beam centre" }),
      make("div", { class: "xrddiff-tools" }, make("label", {}, "rings of ", select), make("span", { class: "xrddiff-labelled" }, make("span", { text: "centre" }), ...fields),
        this.button("Fit", "fit the centre to the rings", () => this.model.send({ do: "fit" })), back, said),
      make("div", { class: "xrddiff-hint", text: "Choose “drag the centre” (c) for the mouse and drag the rings onto those of the frame, or press Space to put the centre at the cross; then fit." })));
  }

  centre() {
    const image = this.panes.length && this.panes[0].image;
    if (!image) return null;
    const beam = this.beamOf(image);
    return beam ? [beam.x, beam.y] : [image.width / 2, image.height / 2];
  }

  moveCentre(at, now = true) { this.set("center", at.map((v) => Math.round(v * 100) / 100), now); }

  down(e, pane) {
    super.down(e, pane);
    if (this.grip && this.tool() === "centre") this.grip.centre = this.centre();
  }

  move(e, pane) {
    super.move(e, pane);
    if (!this.grip || !this.grip.centre) return;
    const { x, y, centre } = this.grip;
    this.moveCentre([centre[0] + (e.clientX - x) / this.at.zoom, centre[1] + (e.clientY - y) / this.at.zoom], false);
  }

  up(e, pane) {
    const moved = this.grip && this.grip.centre;
    super.up(e, pane);
    if (moved) this.model.save_changes();
  }

  // ------------------------------------------------------------------ the mask

  buildMask() {
    this.unmask = make("input", { type: "checkbox" });
    const below = make("input", { type: "number", step: "any", class: "xrddiff-value" }), above = make("input", { type: "number", step: "any", class: "xrddiff-value" });
    const value = (field) => (field.value === "" ? null : Number(field.value));
    const threshold = () => {
      if (value(below) === null && value(above) === null) return;
      this.edit({ shape: "threshold", below: value(below), above: value(above), frame: this.model.get("frame") });
    };
    const stop = this.button("Beamstop", "mask the shadow of the beamstop", () => this.model.send({ do: "beamstop" }));
    const undo = this.button("Undo", "undo the last edit of the mask", () => this.undo());
    const file = make("input", { type: "text", class: "xrddiff-file", spellcheck: "false", change: () => this.set("mask_file", file.value.trim()) });
    const save = this.button("Save", "save the mask", () => {
      this.model.send({ do: "save", file: file.value.trim(), edits: this.model.get("edits") });
    });
    const saved = make("span", { role: "status", class: "xrddiff-note" });
    const show = () => {
      undo.disabled = !this.model.get("edits").length;
      undo.textContent = this.model.get("edits").length ? `Undo (${this.model.get("edits").length})` : "Undo";
      if (document.activeElement !== file) file.value = this.model.get("mask_file");
      saved.textContent = this.model.get("saved");
    };
    this.on(["edits", "mask_file", "saved"], show);
    show();
    this.maskTools = make("details", { class: "xrddiff-details" }, make("summary", { text: "Edit the mask" }),
      make("div", { class: "xrddiff-tools" },
        make("label", { class: "xrddiff-check" }, this.unmask, "make valid instead"),
        make("label", {}, "values below ", below), make("label", {}, "above ", above), this.button("Apply", "mask by value in this frame", threshold), stop, undo),
      make("div", { class: "xrddiff-tools" }, make("label", {}, "save as ", file), save, saved),
      make("div", { class: "xrddiff-hint", text: "On the picture: Space sets a corner at the cross, Enter closes a polygon, Escape gives up, U undoes. With the mouse: drag a rectangle; click the corners of a polygon, double-click to close it." }));
    this.below.append(this.maskTools);
  }

  tool() { return this.mayDraw() ? this.model.get("tool") : "look"; }

  edit(edit) {
    this.model.set("edits", [...this.model.get("edits"), { ...edit, valid: this.unmask.checked }]);
    this.model.set("show_mask", true);
    this.model.save_changes();
  }

  point(x, y) {
    if (this.tool() === "centre") { this.moveCentre([x, y]); return; }
    const round = (v) => Math.round(v * 100) / 100;
    this.draft = [...this.draft, [round(x), round(y)]];
    if (TWO_POINTS.includes(this.tool()) && this.draft.length > 1) {
      const [a, b] = [this.draft[0], this.draft[this.draft.length - 1]];
      this.draft = [];
      if (Math.abs(a[0] - b[0]) < 0.3 && Math.abs(a[1] - b[1]) < 0.3) return;
      if (this.tool() !== "rectangle") this.measure([a, b]);
      else this.edit({ shape: "rectangle", x: [a[0], b[0]].map(round), y: [a[1], b[1]].map(round) });
    }
    this.redraw(true);
  }

  finish() {
    if (this.tool() === "polygon" && this.draft.length > 2) this.edit({ shape: "polygon", points: this.draft });
    this.draft = [];
    this.redraw(true);
  }

  undo() {
    const edits = this.model.get("edits");
    if (edits && edits.length) this.set("edits", edits.slice(0, -1));
  }
}

export default {
  render({ model, el }) {
    const view = new Series(model, el);
    return () => view.end();
  },
};
