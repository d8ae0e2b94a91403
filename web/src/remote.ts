// What the server does for the page: it gives versions and draws new ones, trains and exports. What it drew is a step that can be taken back.

import { ApiError, type Job, type Status } from "./api";
import type { App, Open } from "./app";
import { gunzip, labelsOf } from "./codec";
import { carrierOf } from "./models";
import { axisToFill, sliceToCarry, slicesWith } from "./slices";

/** A version that the server made; `conflict`: it stands beside one that was saved meanwhile. */
interface Made {
  version: string;
  conflict?: boolean;
}

function beside(error: unknown): Made {
  if (error instanceof ApiError && error.status === 409 && error.body.yours) return { version: String(error.body.yours), conflict: true };
  throw error;
}

type Page = Pick<App, "api" | "teller" | "jobs" | "overlay" | "view" | "current" | "models" | "settings" | "label" | "active" | "ownWindow" | "change" | "changed" | "refresh" | "reread" | "measure">;

export class Remote {
  constructor(private readonly page: Page) {}

  /** Somebody, or a job, saved a version of the case that is open here. */
  others(id: string, version: string, user: string): void {
    const open = this.page.current;
    if (!open || open.record.id !== id || open.mine.has(version) || open.saver.head === version || open.saver.state.kind === "conflict") return;
    void this.page.reread();
    this.page.teller.notice({
      id: "others",
      tone: "info",
      text: `${user || "Someone"} saved another version of this case.`,
      actions: [
        { text: "Show theirs", run: () => void this.take(version) },
        { text: "Stay", run: () => this.page.teller.dismiss("others") },
      ],
    });
  }

  /** A version of the server as a step in the page: it can be taken back. */
  private async lay(version: string): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    const voxels = labelsOf(await gunzip(await this.page.api.label(open.record.id, version)), open.grid);
    if (this.page.current !== open) return;
    const edit = open.mask.begin();
    edit.replace(voxels);
    const change = edit.end();
    if (change) open.history.add({ change });
    open.prompter?.finish();
    this.page.view.refresh();
  }

  /** Go on from a version. Where it stands beside the newest one, it is saved again on top of that. */
  async take(version: string): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    this.page.overlay.stop();
    await this.page.teller.attempt(async () => {
      await this.lay(version);
      await this.page.reread();
      open.origin.take(); // it came from where the version did
      if (open.record.latest === version) await open.saver.adopt(version);
      else await open.saver.rebase(open.record.latest);
      this.page.teller.dismiss("others", "conflict");
      void this.page.measure();
    });
  }

  /** Show an older version again; it becomes the newest by being saved. */
  async restore(version: string): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    this.page.overlay.stop();
    await this.page.teller.attempt(async () => {
      await this.lay(version);
      open.saver.touch();
    });
    this.page.changed();
  }

  /** Begin with the label that the data set brings, as a step that can be taken back. */
  async startFromReference(): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    await this.page.teller.attempt(async () => {
      const voxels = labelsOf(await gunzip(await this.page.api.reference(open.record.id)), open.grid);
      if (this.page.current !== open) return;
      open.prompter?.finish();
      if (!this.page.change((edit) => edit.replace(voxels))) this.page.teller.say("The mask is the data set's label already.");
    });
  }

  /** A label map of another program becomes a version, and is shown. */
  async openFile(file: File): Promise<void> {
    const body = new Uint8Array(await file.arrayBuffer());
    await this.work(`Opening ${file.name}`, (open, head) => this.page.api.maskFile(open.record.id, file.name, body, head));
  }

  /** Work of the server that needs the mask to be saved first, and whose result is a new version. */
  private async work(name: string, ask: (open: Open, head: string | null) => Promise<Made | null>): Promise<void> {
    const { current: open, teller } = this.page;
    if (!open) return;
    await teller.attempt(async () => {
      if (!(await open.saver.flush())) throw new Error("This needs the mask to be saved first, which is not possible now.");
      teller.say(`${name}...`);
      const made = await ask(open, open.saver.head).catch((error: unknown) => beside(error));
      if (!made || this.page.current !== open) return;
      open.mine.add(made.version);
      if (made.conflict || open.saver.unsaved) {
        teller.notice({ id: "others", tone: "info", text: `${name}: done, beside what was drawn meanwhile.`, actions: [{ text: "Show it", run: () => void this.take(made.version) }] });
        await this.page.reread();
      } else {
        await this.take(made.version);
        teller.say(`${name}: done.`);
      }
    });
  }

  /** Fill the slices between those that the active label was drawn in. */
  async interpolate(): Promise<void> {
    const { current, label, teller } = this.page;
    if (current?.grid.dims !== 3) return teller.say("Slices are filled in volumes.", true);
    const axis = axisToFill(slicesWith(current.mask, label));
    if (axis === null) return teller.say("Draw this label in two slices with some between them first.", true);
    await this.work("Filling slices", (open, head) => this.page.api.interpolate(open.record.id, this.page.active.name, axis, head!));
  }

  /** Carry the active label on from a slice that it was drawn in. */
  async propagate(): Promise<void> {
    const { current, label, models, settings, teller, view } = this.page;
    if (current?.grid.dims !== 3) return teller.say("Masks are carried on in volumes.", true);
    const model = carrierOf(models, settings.model);
    if (!model) return teller.say("No model here carries a mask from slice to slice.", true);
    const from = sliceToCarry(slicesWith(current.mask, label), view.place);
    if (!from) return teller.say("Draw this label in a slice first.", true);
    await this.work("Carrying the mask on", async (open, head) => {
      const { job } = await this.page.api.propagate(open.record.id, this.page.active.name, from.index, from.axis, head!, model.id, this.page.ownWindow);
      return this.made(await this.page.jobs.follow(job));
    });
  }

  async run(model: string): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    await this.page.teller.attempt(async () => {
      await open.saver.flush();
      const { job } = await this.page.api.run(open.record.id, model);
      this.page.teller.say("The model is at work...");
      const made = this.made(await this.page.jobs.follow(job));
      if (made && this.page.current === open) {
        open.mine.add(made.version);
        if (!made.conflict && !open.saver.unsaved) await this.take(made.version);
        else await this.page.reread();
      }
    });
  }

  private made(job: Job): Made | null {
    if (job.state === "done" && job.result) return job.result as unknown as Made;
    if (job.state === "failed") this.page.teller.say(job.text || "The job failed.", true);
    return null;
  }

  async train(method: string, minutes: number): Promise<void> {
    await this.page.teller.attempt(async () => {
      await this.page.current?.saver.flush();
      const { job } = await this.page.api.train(method, minutes);
      this.page.teller.say("Training has begun. You can go on working.");
      const done = await this.page.jobs.follow(job);
      if (done.state === "done") {
        await this.page.refresh();
        this.page.teller.say("The new model is ready: run it on a case.");
      } else if (done.state === "failed") this.page.teller.say(done.text, true);
    });
  }

  async export(format: string, status: Status | null, onlyThis: boolean): Promise<void> {
    await this.page.teller.attempt(async () => {
      await this.page.current?.saver.flush();
      const { job } = await this.page.api.export(format, status, onlyThis && this.page.current ? [this.page.current.record.id] : null);
      const done = await this.page.jobs.follow(job);
      if (done.state === "done") {
        this.page.jobs.download(done.id);
        this.page.teller.say("The export is ready.");
      } else if (done.state === "failed") this.page.teller.say(done.text, true);
    });
  }
}
