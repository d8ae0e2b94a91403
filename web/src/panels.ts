// What is around the picture: the case list, labels, model, view, measures, versions, comments. Each part is built once and `draw`n again
// when the page changed.

import type { Label, Status, Summary, Version } from "./api";
import type { App } from "./app";
import { ago, button, el } from "./dom";
import { added, changed } from "./labels";
import { COMPARED } from "./overlay";
import type { Tool } from "./stage";
import { PLANES, type Plane } from "./view";
import { PRESETS } from "./windows";

export interface Part {
  root: HTMLElement;
  draw(): void;
}

export const STATUS: Record<Status, string> = { todo: "To do", draft: "Draft", done: "Done", reviewed: "Reviewed" };

/** Draw `node`'s children only when `key` changed: what is under the pointer or has the focus is not pulled away. */
function once(node: HTMLElement & { drawn?: string }, key: unknown, make: () => (Node | string)[]): void {
  const text = JSON.stringify(key);
  if (node.drawn === text) return;
  node.drawn = text;
  node.replaceChildren(...make());
}

// -------------------------------------------------------------------------------------------------------------------------- case list
export function caseList(app: App): Part {
  let shown: Status | "all" = "all";
  const search = el("input", { type: "search", placeholder: "Find a case", "aria-label": "Find a case", id: "find", autocomplete: "off", oninput: () => draw() });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Filter by status" });
  let seen = "";
  const list = el("div", { class: "cases", role: "listbox", "aria-label": "Cases" });
  const strategy = el(
    "select",
    { "aria-label": "How the next case is chosen", onchange: () => app.keep({ strategy: strategy.value as App["settings"]["strategy"] }) },
    ...[["order", "in order"], ["uncertainty", "most uncertain"], ["diversity", "most different"]].map(([v, t]) => el("option", { value: v }, t)),
  );
  const next = button("Next case", () => void app.next(), { key: "G", class: "wide", icon: "next" });
  const root = el("aside", { class: "left", "aria-label": "Cases" }, el("div", { class: "finder" }, search, chips), list, el("div", { class: "next" }, next, strategy));

  function row(c: Summary): HTMLElement {
    const sides = c.shape ? c.shape.join(" × ") : "";
    const doubt = c.priority === null ? "" : `uncertainty ${c.priority.toFixed(2)}`;
    const open = app.current?.record.id === c.id;
    return el(
      "button",
      { type: "button", class: `case ${open ? "open" : ""}`, role: "option", "aria-selected": String(open), "data-case": c.id, onclick: () => void app.open(c.id) },
      el("span", { class: `dot ${c.status}`, title: STATUS[c.status] }),
      el("span", { class: "name" }, c.name),
      el("span", { class: "facts" }, [sides, doubt, app.saving.hasDraft(c) ? "not saved" : ""].filter(Boolean).join("   ")),
    );
  }

  function draw(): void {
    strategy.value = app.settings.strategy;
    const counts = (s: Status | "all") => (s === "all" ? app.cases.length : app.cases.filter((c) => c.status === s).length);
    const all = ["all", "todo", "draft", "done", "reviewed"] as const;
    once(chips, [shown, all.map(counts)], () =>
      all.map((s) => {
        const chip = el("button", { type: "button", class: "chip", "aria-pressed": String(s === shown), onclick: () => ((shown = s), draw()) }, s === "all" ? "All" : STATUS[s], el("b", {}, String(counts(s))));
        return chip;
      }),
    );
    const words = search.value.trim().toLowerCase();
    const rows = app.cases.filter((c) => (shown === "all" || c.status === shown) && (!words || c.name.toLowerCase().includes(words)));
    once(list, [app.stamp, shown, words, app.current?.record.id], () => (rows.length ? rows.map(row) : [el("p", { class: "quiet" }, app.cases.length ? "No case is like that." : "There are no cases.")]));
    const id = app.current?.record.id ?? seen;
    if (id !== seen) list.querySelector(".open")?.scrollIntoView({ block: "nearest" });
    seen = id;
  }

  return { root, draw };
}

// ------------------------------------------------------------------------------------------------------------------------------- tools
export const TOOLS: { id: Tool; text: string; key: string; hint: string }[] = [
  { id: "navigate", text: "Look around", key: "V", hint: "Drag to move through the slices or turn the 3D view; right button: window; middle: pan" },
  { id: "box", text: "Box", key: "B", hint: "Drag a box around the structure" },
  { id: "plus", text: "Click: belongs to it", key: "C", hint: "Click on what is missing (right button or Shift: on what is too much)" },
  { id: "minus", text: "Click: does not belong", key: "X", hint: "Click on what is too much" },
  { id: "scribble", text: "Scribble", key: "S", hint: "Draw a line through the structure (right button or Shift: through what is too much)" },
  { id: "lasso", text: "Lasso", key: "L", hint: "Draw an outline around the structure" },
  { id: "brush", text: "Brush", key: "D", hint: "Paint by hand (right button or Shift: erase)" },
  { id: "eraser", text: "Eraser", key: "E", hint: "Erase by hand" },
];

export function toolRail(app: App): Part {
  const tools = TOOLS.map((t) => button(t.text, () => app.setTool(t.id), { icon: t.id, key: t.key, class: "bare tool", id: `tool-${t.id}` }));
  const undo = button("Undo", () => app.undo(), { icon: "undo", key: "Ctrl+Z", class: "bare tool", id: "undo" });
  const redo = button("Redo", () => app.redo(), { icon: "redo", key: "Ctrl+Y", class: "bare tool", id: "redo" });
  const between = button("Fill the slices between drawn ones", () => void app.remote.interpolate(), { icon: "between", key: "I", class: "bare tool", id: "interpolate" });
  const carry = button("Carry the mask on through the slices", () => void app.remote.propagate(), { icon: "carry", key: "P", class: "bare tool", id: "propagate" });
  const line = () => el("hr");
  const root = el("div", { class: "rail", role: "toolbar", "aria-label": "Tools", "aria-orientation": "vertical" }, ...tools, line(), undo, redo, line(), between, carry);
  return {
    root,
    draw() {
      const open = app.current;
      TOOLS.forEach((t, n) => {
        tools[n].setAttribute("aria-pressed", String(app.tool === t.id));
        const kind = ({ box: "box", plus: "point", minus: "point", scribble: "scribble" } as const)[t.id as "box"];
        tools[n].disabled = !open || (kind !== undefined && !open.prompter?.takes(kind));
      });
      undo.disabled = !open?.history.canUndo;
      redo.disabled = !open?.history.canRedo;
      between.disabled = carry.disabled = !open || open.grid.dims === 2;
      between.hidden = carry.hidden = app.project?.dims === 2;
    },
  };
}

// ------------------------------------------------------------------------------------------------------------------------ right column
function section(title: string, ...children: Node[]): HTMLElement {
  return el("details", { open: true, class: "section" }, el("summary", {}, title), el("div", { class: "body" }, ...children));
}

export function labelPanel(app: App): Part {
  const list = el("div", { class: "labels", role: "radiogroup", "aria-label": "Active label" });
  const others = el("input", { type: "checkbox", id: "keep-others", onchange: () => app.keep({ keepOthers: others.checked }) });
  const add = button("Add label", () => void addLabel(), { class: "small", id: "add-label" });
  const root = section("Labels", list, el("div", { class: "row spread" }, add, el("label", { class: "check", title: "Drawing changes only voxels that have no other label" }, others, "Protect others")));
  let renaming: number | null = null;

  async function addLabel(): Promise<void> {
    if (await app.setLabels(added)) {
      renaming = app.project.labels.at(-1)!.value;
      app.choose(renaming);
      draw();
    }
  }

  async function change(label: Label, to: Partial<Label>): Promise<void> {
    renaming = null;
    if (Object.entries(to).every(([k, v]) => label[k as keyof Label] === v)) return draw();
    await app.setLabels(changed(label, to));
    draw();
  }

  function row(label: Label, n: number): HTMLElement {
    const active = app.label === label.value;
    const colour = el("input", { type: "color", value: label.color, title: "Colour", "aria-label": `Colour of ${label.name}`, onchange: () => void change(label, { color: colour.value }) });
    if (renaming === label.value) {
      const field = el("input", { type: "text", value: label.name, maxlength: 100, "aria-label": "Name of the label", class: "rename" });
      let over = false;
      const finish = (kept: boolean) => {
        if (over) return;
        over = true;
        if (kept && field.value.trim()) void change(label, { name: field.value.trim() });
        else (renaming = null), draw();
      };
      field.addEventListener("keydown", (e) => {
        if (e.key === "Enter") finish(true);
        if (e.key === "Escape") finish(false);
      });
      field.addEventListener("blur", () => finish(true));
      requestAnimationFrame(() => (field.focus(), field.select()));
      return el("div", { class: "label active" }, colour, field);
    }
    return el(
      "div",
      { class: `label ${active ? "active" : ""}` },
      colour,
      el("button", { type: "button", class: "pick", role: "radio", "aria-checked": String(active), onclick: () => app.choose(label.value), ondblclick: () => ((renaming = label.value), draw()) }, el("span", { class: "name" }, label.name), n < 9 && el("kbd", {}, String(n + 1))),
      button("Rename", () => ((renaming = label.value), draw()), { class: "link" }),
      app.project.labels.length > 1 && button("Remove", () => void app.removeLabel(label), { class: "link" }),
    );
  }

  function draw(): void {
    others.checked = app.settings.keepOthers;
    once(list, [app.project?.labels, app.label, renaming], () => (app.project?.labels ?? []).map(row));
  }
  return { root, draw };
}

export function modelPanel(app: App): Part {
  const choice = el("select", { id: "model", "aria-label": "Model that answers to prompts, or carries masks on", onchange: () => app.useModel(choice.value) });
  const state = el("p", { class: "state", role: "status" });
  const text = el("input", { type: "text", placeholder: "Say what to outline", "aria-label": "Say what to outline", maxlength: 200 });
  const ask = el("form", { class: "row", onsubmit: (e: Event) => (e.preventDefault(), app.askText(text.value)) }, text, el("button", { type: "submit", class: "small" }, "Outline"));
  const fresh = button("New object", () => app.finishObject(), { key: "N", class: "small", title: "The next prompt begins another object", id: "new-object" });
  const runs = el("select", { "aria-label": "Model to start from" });
  const start = button("Run on this case", () => void app.remote.run(runs.value), { key: "R", class: "small", id: "run-model" });
  const automatic = el("div", { class: "row" }, runs, start);
  const root = section("Assistant", el("div", { class: "row" }, choice, fresh), ask, state, automatic);
  return {
    root,
    draw() {
      once(choice, app.assistants, () => [...app.assistants.map((m) => el("option", { value: m.id }, m.carries ? `${m.title} (P)` : m.title)), el("option", { value: "" }, "None: by hand")]);
      choice.value = app.settings.model;
      const prompter = app.current?.prompter;
      ask.hidden = !prompter?.takes("text");
      fresh.disabled = !prompter?.target;
      automatic.hidden = !app.automatic.length;
      once(runs, app.automatic, () => [...app.automatic].reverse().map((m) => el("option", { value: m.id }, m.title)));
      start.disabled = !app.current;
      const words = { off: "", starting: "Loading the model", embedding: "Looking at the image", ready: "Ready", failed: prompter?.error ?? "" }[prompter?.state ?? "off"];
      state.textContent = app.lastAnswer && prompter?.state === "ready" ? (app.lastAnswer === "..." ? "Answering" : `Answered in ${app.lastAnswer}`) : words;
      state.className = `state ${prompter?.state ?? "off"} ${app.lastAnswer === "..." ? "busy" : ""}`;
    },
  };
}

export function viewPanel(app: App): Part {
  const channel = el("select", { "aria-label": "Image", onchange: () => void app.setChannel(channel.value) });
  const channels = el("div", { class: "row" }, el("span", { class: "what" }, "Image"), channel);
  const planes = el("div", { class: "segments", role: "group", "aria-label": "Planes" });
  const names: Record<Plane, string> = { all: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3D" };
  const preset = el("select", { "aria-label": "Window", id: "preset", onchange: () => app.applyPreset(preset.value) });
  const low = el("input", { type: "number", "aria-label": "Lowest grey value", onchange: () => own(0, low.value) });
  const high = el("input", { type: "number", "aria-label": "Highest grey value", onchange: () => own(1, high.value) });
  const opacity = el("input", { type: "range", min: 5, max: 100, step: 5, "aria-label": "Opacity of the mask", id: "opacity", oninput: () => app.setOpacity(Number(opacity.value) / 100) });
  const shown = el("input", { type: "checkbox", onchange: () => app.toggleVisible() });
  const smooth = el("input", { type: "checkbox", onchange: () => app.setSmooth(smooth.checked) });
  const doubt = el("input", { type: "checkbox", onchange: () => void app.overlay.showDoubt() });
  const doubtful = el("label", { class: "check", title: "How unsure the model was (U)" }, doubt, "Model's uncertainty");
  const radius = el("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": "Radius of the brush", id: "radius", oninput: () => app.keep({ radius: radiusOf(Number(radius.value)) }) });
  const size = el("output", {});
  const grey = el("div", { class: "row" }, el("span", { class: "what" }, "Window"), preset);
  const range = el("div", { class: "row" }, el("span", { class: "what" }), low, el("span", { class: "to" }, "to"), high);
  const root = section(
    "View",
    planes,
    channels,
    grey,
    range,
    el("div", { class: "row" }, el("span", { class: "what" }, "Mask"), opacity, el("label", { class: "check", title: "Show the mask (O)" }, shown, "show")),
    el("div", { class: "row" }, el("span", { class: "what" }, "Brush"), radius, size),
    el("div", { class: "row" }, el("label", { class: "check" }, smooth, "Smooth pixels"), doubtful),
  );
  function own(end: 0 | 1, value: string): void {
    const window = app.view.window;
    if (!window) return;
    window[end] = Number(value);
    app.view.setWindow(...window);
    app.windowChanged(null);
  }
  return {
    root,
    draw() {
      planes.hidden = app.project?.dims === 2;
      channels.hidden = (app.current?.record.channels.length ?? 0) < 2;
      once(channel, app.current?.record.channels, () => (app.current?.record.channels ?? []).map((c) => el("option", { value: c }, c)));
      channel.value = app.channel;
      once(planes, app.view.plane, () => PLANES.map((p) => el("button", { type: "button", "aria-pressed": String(p === app.view.plane), onclick: () => app.setPlane(p) }, names[p])));
      const window = app.current ? app.view.window : null;
      grey.hidden = range.hidden = !window;
      once(preset, [app.presets, app.preset], () => [...app.presets, ...(app.preset in PRESETS ? [] : [app.preset])].map((n) => el("option", { value: n }, n)));
      preset.value = app.preset;
      if (window && document.activeElement !== low && document.activeElement !== high) {
        low.value = String(Number(window[0].toPrecision(4)));
        high.value = String(Number(window[1].toPrecision(4)));
      }
      opacity.value = String(Math.round(app.settings.opacity * 100));
      shown.checked = app.visible;
      doubtful.hidden = !app.overlay.mayDoubt;
      doubt.checked = app.overlay.doubt;
      smooth.checked = app.settings.smooth;
      radius.value = String(Math.round(50 * Math.log10(app.settings.radius / 0.5)));
      size.textContent = `${app.settings.radius.toPrecision(2)} ${app.unit}`;
    },
  };
}

/** A slider of 0..100 as a radius of 0.5 to 50 mm. */
export function radiusOf(position: number): number {
  return Number((0.5 * 10 ** (position / 50)).toPrecision(2));
}

export function measurePanel(app: App): Part {
  const table = el("div");
  const root = section("Measures", table);
  return {
    root,
    draw() {
      const open = app.current;
      const flat = open?.grid.dims === 2;
      const stale = open !== null && open.measured !== open.saver.head;
      once(table, [open?.measures, open?.saver.unsaved, stale, app.project?.labels], () => {
        if (!open?.measures.length) return [el("p", { class: "quiet" }, "Nothing is outlined yet.")];
        const head = el("tr", {}, el("th", {}), el("th", {}, flat ? `${app.unit}²` : "mL"), el("th", { title: "Longest diameter in a slice" }, `long ${app.unit}`), el("th", { title: "At right angles to it" }, `short ${app.unit}`));
        const rows = open.measures.map((m) =>
          el(
            "tr",
            { title: `${m.voxels} voxels in ${m.components} ${m.components === 1 ? "piece" : "pieces"}` },
            el("td", {}, swatch(app.project.labels.find((l) => l.name === m.label)?.color), m.label),
            el("td", {}, flat ? (m.area_mm2 ?? 0).toFixed(0) : (m.volume_ml ?? 0).toFixed((m.volume_ml ?? 0) < 10 ? 2 : 1)),
            el("td", {}, m.long_axis_mm.toFixed(1)),
            el("td", {}, m.short_axis_mm.toFixed(1)),
          ),
        );
        return [el("table", { class: stale || open.saver.unsaved ? "stale" : "" }, el("thead", {}, head), el("tbody", {}, ...rows))];
      });
    },
  };
}

function swatch(colour: string | undefined): HTMLElement {
  const node = el("i", { class: "swatch" });
  if (colour && /^#[0-9a-f]{6}$/i.test(colour)) node.style.background = colour;
  return node;
}

const ORIGINS: Record<string, string> = { manual: "by hand", prompts: "prompts", model: "model", interpolated: "slices filled", propagated: "carried on", recovered: "recovered", file: "from file" };

export function versionPanel(app: App): Part {
  const list = el("div", { class: "versions" });
  const table = el("div", { class: "compared" });
  const compare = button("Compare", () => void app.overlay.compare(chosen[0], chosen[1]), { class: "small", id: "compare" });
  const stop = button("End comparison", () => app.overlay.stop(), { class: "small" });
  const actions = el("div", { class: "row" }, compare, stop);
  const file = el("input", { type: "file", accept: ".nii,.gz,.png", hidden: true, "aria-label": "Mask file", id: "mask-file" });
  file.addEventListener("change", () => {
    const chosen = file.files?.[0];
    file.value = "";
    if (chosen) void app.remote.openFile(chosen);
  });
  const reference = button("Start from the data set's label", () => void app.remote.startFromReference(), { class: "small", id: "reference" });
  const other = button("Open a mask file…", () => file.click(), { class: "small", title: "A NIfTI or PNG label map of this image", id: "open-mask" });
  const start = el("div", { class: "row wraps" }, reference, other, file);
  const root = section("Versions", list, actions, table, start);
  let chosen: string[] = [];
  let all = false;

  function origin(v: Version): string {
    const model = v.origin.model ? app.project.models.find((m) => m.id === v.origin.model)?.title ?? v.origin.model : "";
    const prompts = Array.isArray(v.origin.prompts) ? v.origin.prompts.length : v.origin.prompts;
    const what = v.origin.kind === "prompts" && prompts ? `${prompts} ${prompts === 1 ? "prompt" : "prompts"}` : (ORIGINS[v.origin.kind] ?? v.origin.kind);
    return [v.origin.file ? `${what} ${v.origin.file}` : what, model, v.user].filter(Boolean).join(", ");
  }

  function row(v: Version): HTMLElement {
    const head = app.current?.saver.head === v.id;
    const box = el("input", { type: "checkbox", "aria-label": "Compare this version", onchange: () => ((chosen = box.checked ? [...chosen, v.id].slice(-2) : chosen.filter((c) => c !== v.id)), draw()) });
    box.checked = chosen.includes(v.id);
    return el("div", { class: `version ${head ? "head" : ""}` }, box, el("div", {}, el("span", { class: "when" }, ago(v.at), head && el("em", {}, "shown")), el("span", { class: "from" }, origin(v))), head ? null : button("Restore", () => void app.remote.restore(v.id), { class: "link", title: "Show this version again and save it as the newest" }));
  }

  function draw(): void {
    const versions = [...(app.current?.record.versions ?? [])].reverse();
    chosen = chosen.filter((c) => versions.some((v) => v.id === c));
    once(list, [versions, chosen, app.current?.saver.head, all], () => {
      if (!versions.length) return [el("p", { class: "quiet" }, "No version was saved yet.")];
      const few = all ? versions : versions.slice(0, 6);
      return [...few.map(row), ...(versions.length > few.length ? [button(`Show all ${versions.length}`, () => ((all = true), draw()), { class: "link" })] : [])];
    });
    compare.disabled = chosen.length !== 2;
    compare.title = "Choose two versions";
    actions.hidden = versions.length < 2;
    stop.hidden = !app.overlay.comparison;
    start.hidden = !app.current;
    reference.hidden = !app.current?.record.reference;
    once(table, app.overlay.comparison, () => {
      const c = app.overlay.comparison;
      if (!c) return [];
      const when = (id: string) => ago(versions.find((v) => v.id === id)?.at ?? 0);
      const flat = app.current?.grid.dims === 2;
      const keys = [`only ${when(c.a)}`, `only ${when(c.b)}`, "both"].map((t, n) => el("span", {}, swatch(COMPARED[n]), t));
      const rows = c.rows.map((r) => el("tr", {}, el("td", {}, r.label), el("td", {}, r.dsc === null ? "-" : r.dsc.toFixed(3)), el("td", {}, r.hd95_mm === null ? "-" : r.hd95_mm.toFixed(1)), el("td", {}, r.volume_a.toFixed(1)), el("td", {}, r.volume_b.toFixed(1))));
      const head = el("tr", {}, ...["", "Dice", `HD95 ${app.unit}`, ...["a", "b"].map((v) => `${flat ? `${app.unit}²` : "mL"} ${v}`)].map((t) => el("th", {}, t)));
      return [el("div", { class: "keys" }, ...keys), el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))];
    });
  }
  return { root, draw };
}

export function commentPanel(app: App): Part {
  const list = el("div", { class: "comments" });
  const field = el("textarea", { rows: 2, maxlength: 4000, placeholder: "Write a comment", "aria-label": "Comment" });
  const send = button("Add", () => void app.comment(field.value).then(() => (field.value = "")), { class: "small" });
  field.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) send.click();
  });
  const root = section("Comments", list, el("div", { class: "row end" }, field, send));
  return {
    root,
    draw() {
      const comments = app.current?.record.comments ?? [];
      once(list, comments, () => comments.map((c) => el("div", { class: "comment" }, el("span", { class: "when" }, `${c.user}, ${ago(c.at)}`), el("p", {}, c.text))));
      send.disabled = field.disabled = !app.current;
    },
  };
}

// ----------------------------------------------------------------------------------------------------------------------------- top bar
export function topBar(app: App, dialogs: { export(): void; train(): void; jobs(): void; help(): void; person(): void }): Part {
  const project = el("span", { class: "project" });
  const name = el("span", { class: "case-name" });
  const status = el("div", { class: "segments status", role: "group", "aria-label": "Status of this case" });
  const save = el("button", { type: "button", class: "save", id: "save", title: "Save now (Ctrl+S)", onclick: () => void app.current?.saver.flush() });
  const people = el("span", { class: "people" });
  const jobs = button("Jobs", dialogs.jobs, { class: "quiet-button", id: "jobs" });
  const person = button("", dialogs.person, { class: "quiet-button", id: "person", title: "Your name, as others see it" });
  const root = el(
    "header",
    { class: "top" },
    el("span", { class: "brand" }, "Vesalius"),
    project,
    el("span", { class: "rule" }),
    name,
    status,
    save,
    el("span", { class: "gap" }),
    people,
    jobs,
    button("Export", dialogs.export, { id: "export" }),
    button("Improve the model", dialogs.train, { class: "primary", id: "train" }),
    person,
    button("Help", dialogs.help, { icon: "help", key: "?", class: "bare" }),
  );
  const words = { saved: "Saved", waiting: "Not saved yet", saving: "Saving", kept: "Kept here, not saved", refused: "Not saved", conflict: "Two versions" };
  return {
    root,
    draw() {
      project.textContent = app.project?.name ?? "";
      name.textContent = app.current?.record.name ?? "";
      name.title = name.textContent;
      const open = app.current;
      status.hidden = save.hidden = !open;
      once(status, open?.record.status, () => (app.project?.statuses ?? []).map((s, n) => el("button", { type: "button", class: s, "aria-pressed": String(open?.record.status === s), title: `(Shift+${n + 1})`, onclick: () => void app.setStatus(s) }, STATUS[s])));
      if (open) {
        const { kind } = open.saver.state;
        save.textContent = kind === "saved" && open.saver.head === null ? "Nothing drawn" : words[kind];
        save.dataset.state = kind === "saved" && open.saver.head === null ? "nothing" : kind;
      }
      people.textContent = app.people.length > 1 ? `${app.people.length} people here` : "";
      people.title = app.people.join(", ");
      const { busy } = app.jobs;
      jobs.textContent = busy.length ? `Jobs: ${Math.round(100 * (busy.find((j) => j.state === "running")?.fraction ?? 0))} %` : "Jobs";
      jobs.classList.toggle("busy", busy.length > 0);
      person.textContent = app.settings.user || app.project?.user || "";
    },
  };
}

export function bottomBar(app: App): Part {
  const hint = el("span", { class: "hint" });
  const place = el("span", { class: "place" });
  const slice = el("span", { class: "slice" });
  const root = el("footer", { class: "bottom" }, hint, slice, place);
  return {
    root,
    draw() {
      const open = app.current;
      const flat = app.tool === "navigate" && open?.grid.dims === 2;
      hint.textContent = !open ? "" : flat ? "Drag to move the picture, wheel to enlarge; right button: window" : (TOOLS.find((t) => t.id === app.tool)?.hint ?? "");
      place.textContent = app.hoverText;
      slice.textContent = open && open.grid.dims === 3 ? app.view.place.map((x, a) => `${x + 1}/${open.grid.shape[a]}`).join("   ") : "";
      slice.title = "Slice along each axis of the scan";
    },
  };
}

export function notices(app: App): Part {
  const root = el("div", { class: "notices", role: "alert" });
  return {
    root,
    draw() {
      once(root, app.teller.notices.map((n) => [n.id, n.text, n.tone, n.actions.map((a) => a.text)]), () =>
        app.teller.notices.map((n) => el("div", { class: `notice ${n.tone}`, "data-notice": n.id }, el("p", {}, n.text), el("div", { class: "row" }, ...n.actions.map((a) => button(a.text, a.run, { class: "small" }))))),
      );
    },
  };
}

export function toast(app: App): Part {
  const root = el("div", { class: "toast", role: "status", "aria-live": "polite" });
  return {
    root,
    draw() {
      root.hidden = !app.teller.toast;
      root.textContent = app.teller.toast?.text ?? "";
      root.classList.toggle("bad", app.teller.toast?.bad ?? false);
    },
  };
}

