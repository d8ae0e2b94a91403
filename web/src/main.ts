// The annotator's page.
//
//   geometry.ts   where things are: index, world mm, NiiVue's display voxels and fractions, screen pixels (pure)
//   codec.ts      masks on their way: gzip, packed bits, NIfTI label maps (pure)
//   mask.ts       the mask on the case's own grid, edits with undo, brush and outline (pure)
//   saver.ts      every change becomes a version; offline, conflict, disk full (pure; told what to do by a `Desk`)
//   drafts.ts     unsaved masks in IndexedDB
//   prompter.ts   a prompt session of the server, made again when it is forgotten
//   provenance.ts what the next version will have come from (pure)
//   labels.ts     the table of labels, which others change too (pure)
//   models.ts     which model can do what (pure)
//   slices.ts     which slices show a label, to fill or to carry on from (pure)
//   windows.ts    windows of grey values by name (pure)
//   settings.ts   what a person chose, kept in this browser
//   events.ts     what the server tells by itself
//   api.ts        the REST interface, typed
//   view.ts       NiiVue: image, mask as its drawing, tiles
//   thrift.ts     what NiiVue need not compute
//   stage.ts      gestures over the picture, and what was pointed at
//   app.ts        the page's state, cases, labels, drawing and prompts; panels.ts, dialogs.ts, keys.ts show it and call it and its parts:
//   teller.ts     words in passing, notices, whether the server is there
//   saving.ts     the `Desk` of the open case, its drafts, and what is asked when a save fails
//   remote.ts     versions and what the server draws, trains and exports
//   jobs.ts       the server's jobs, and who waits for them
//   overlay.ts    what is shown instead of the mask: a comparison, the model's uncertainty
//
// The mask in memory is the truth while a case is open. NiiVue shows a bitmap of it (only the box of voxels that changed is sent to the
// graphics); the server gets whole masks as versions, each made from the one before. Nothing is sent anywhere but to the server that the page
// came from, and no name from a data set or a person ever becomes markup.

import { App } from "./app";
import { exportDialog, helpDialog, jobsDialog, personDialog, trainDialog } from "./dialogs";
import { el } from "./dom";
import { keyTable, listen } from "./keys";
import { bottomBar, caseList, commentPanel, labelPanel, measurePanel, modelPanel, notices, toast, toolRail, topBar, versionPanel, viewPanel } from "./panels";
import { Stage } from "./stage";

const app = new App();
let jobs: ReturnType<typeof jobsDialog> | null = null;
const dialogs = {
  export: () => exportDialog(app),
  train: () => trainDialog(app),
  jobs: () => (jobs = jobsDialog(app)),
  person: () => personDialog(app),
  help: () => helpDialog(table),
};
const table = keyTable(app, dialogs);

const stage = new Stage(app.view, app);
const foot = bottomBar(app);
const parts = [topBar(app, dialogs), caseList(app), toolRail(app), labelPanel(app), modelPanel(app), viewPanel(app), measurePanel(app), versionPanel(app), commentPanel(app), foot, notices(app), toast(app)];
const [top, left, rail, labels, model, view, measures, versions, comments, bottom, notes, toasts] = parts.map((p) => p.root);
const loading = el("div", { class: "loading", role: "status" });
document.body.append(
  el(
    "div",
    { class: "app" },
    top,
    left,
    el("main", { class: "middle" }, notes, el("div", { class: "bench" }, rail, stage.root, loading), bottom),
    el("aside", { class: "right", "aria-label": "This case" }, labels, model, view, measures, versions, comments),
  ),
  toasts,
);

let waiting = false;
app.changed = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    loading.hidden = !app.loading;
    loading.textContent = app.loading;
    loading.classList.toggle("seen", app.view.grid !== null);
    for (const part of parts) part.draw();
    stage.draw();
    if (jobs?.open) jobs.draw();
  });
};
app.moved = () => foot.draw();
listen(table, app);
addEventListener("blur", () => stage.cancel());
addEventListener("pagehide", () => void app.current?.saver.keep());
document.addEventListener("visibilitychange", () => document.hidden && void app.current?.saver.flush());
addEventListener("beforeunload", (e) => {
  if (app.current?.saver.unsaved) e.preventDefault(); // the draft is in the browser; the person is asked all the same
});
addEventListener("resize", () => stage.draw());

app.start().catch((error: unknown) => {
  app.teller.wrong(error);
  if (!app.teller.notices.length) app.teller.notice({ id: "start", tone: "bad", text: `The annotator could not start. ${(error as Error).message}`, actions: [{ text: "Load the page again", run: () => location.reload() }] });
});
// the tests' way to see that the page is at rest and what it holds
Object.assign(window, { vesalius: app });
