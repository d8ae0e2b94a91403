// Windows over the page: export, training, jobs, keys, the person's name.

import type { Job, Status } from "./api";
import type { App } from "./app";
import { button, el } from "./dom";
import { isBusy } from "./jobs";
import { STATUS } from "./panels";

function dialog(title: string, body: (Node | null)[], actions: HTMLElement[] = []): HTMLDialogElement {
  const close = button("Close", () => shown.close(), { class: "quiet-button" });
  const shown = el("dialog", { "aria-label": title }, el("h2", {}, title), ...body.filter((n): n is Node => n !== null), el("div", { class: "row actions" }, close, ...actions));
  shown.addEventListener("close", () => shown.remove());
  shown.addEventListener("click", (e) => {
    if (e.target === shown) shown.close();
  });
  document.body.append(shown);
  shown.showModal();
  return shown;
}

const FORMATS: { id: string; text: string; dims: (2 | 3)[] }[] = [
  { id: "nifti", text: "NIfTI label maps", dims: [2, 3] },
  { id: "dataset", text: "Dataset folder for vesalius train", dims: [2, 3] },
  { id: "png", text: "PNG pictures", dims: [2, 3] },
  { id: "coco", text: "COCO JSON", dims: [2] },
  { id: "dicomseg", text: "DICOM SEG", dims: [3] },
  { id: "rtstruct", text: "DICOM RTSTRUCT", dims: [3] },
];

export function exportDialog(app: App): void {
  const formats = FORMATS.filter((f) => f.dims.includes(app.project.dims));
  const format = el("div", { class: "choices", role: "radiogroup", "aria-label": "Format" }, ...formats.map((f, n) => el("label", { class: "check" }, el("input", { type: "radio", name: "format", value: f.id, checked: n === 0 }), f.text)));
  const which = el("select", { "aria-label": "Cases" }, el("option", { value: "all" }, "All saved cases"), ...(["done", "reviewed", "draft"] as Status[]).map((s) => el("option", { value: s }, `Cases that are ${STATUS[s].toLowerCase()}`)), el("option", { value: "this" }, "This case"));
  const go = button(
    "Export",
    () => {
      const chosen = format.querySelector<HTMLInputElement>("input:checked")!.value;
      shown.close();
      void app.remote.export(chosen, ["all", "this"].includes(which.value) ? null : (which.value as Status), which.value === "this");
    },
    { class: "primary", id: "export-go" },
  );
  const shown = dialog("Export", [format, el("div", { class: "row" }, el("span", { class: "what" }, "Cases"), which)], [go]);
}

export function trainDialog(app: App): void {
  const done = app.cases.filter((c) => c.latest && (c.status === "done" || c.status === "reviewed")).length;
  const method = el("input", { type: "text", value: "unet", "aria-label": "Method", spellcheck: "false" });
  const minutes = el("input", { type: "number", value: 10, min: 0.1, max: 1440, step: "any", "aria-label": "Minutes" });
  const go = button(
    "Train",
    () => {
      shown.close();
      void app.remote.train(method.value.trim(), Number(minutes.value));
    },
    { class: "primary", id: "train-go" },
  );
  go.disabled = done === 0;
  const words = done ? `A model is trained on the ${done} ${done === 1 ? "case" : "cases"} marked done or reviewed, beside your work. When it is ready, it proposes masks under Assistant.` : "Mark at least one saved case as done: the model learns from those.";
  const shown = dialog("Improve the model", [el("p", {}, words), el("div", { class: "row" }, el("span", { class: "what" }, "Method"), method), el("div", { class: "row" }, el("span", { class: "what" }, "Minutes"), minutes)], [go]);
}

const KINDS: Record<string, string> = { train: "Training", export: "Export", run: "Model", propagate: "Carrying a mask on", score: "Next case" };

export function jobsDialog(app: App): { draw(): void; open: boolean } {
  const list = el("div", { class: "jobs" });
  const shown = dialog("Jobs", [list]);
  const row = (job: Job) => {
    const bar = el("progress", { max: 1, value: job.fraction });
    bar.value = job.state === "done" ? 1 : job.fraction;
    return el("div", { class: `job ${job.state}` }, el("span", { class: "name" }, KINDS[job.kind] ?? job.kind), bar, el("span", { class: "from" }, [job.state, job.text].filter(Boolean).join(": ")), isBusy(job) ? button("Stop", () => void app.jobs.cancel(job.id), { class: "link" }) : job.file ? button("Download", () => app.jobs.download(job.id), { class: "link" }) : el("span"));
  };
  const draw = () => list.replaceChildren(...(app.jobs.list.length ? app.jobs.list.map(row) : [el("p", { class: "quiet" }, "Nothing was asked for yet.")]));
  draw();
  return {
    draw,
    get open() {
      return shown.open;
    },
  };
}

export function helpDialog(keys: { keys: string; text: string }[]): void {
  dialog("Keys", [el("div", { class: "keys-list" }, ...keys.map((k) => el("div", {}, el("span", {}, ...k.keys.split(" ").map((x) => el("kbd", {}, x))), el("span", {}, k.text))))]);
}

export function personDialog(app: App): void {
  const name = el("input", { type: "text", value: app.settings.user, maxlength: 60, placeholder: app.project?.user ?? "", "aria-label": "Your name" });
  const go = button(
    "Keep",
    () => {
      app.setUser(name.value.trim());
      shown.close();
    },
    { class: "primary" },
  );
  const shown = dialog("Your name", [el("p", {}, "Versions and comments carry it."), name], [go]);
}
