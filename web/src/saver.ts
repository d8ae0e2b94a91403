// Saving by itself: every change becomes a version a moment later, made from the version before it. What cannot be saved now is kept in this
// browser and tried again; what somebody else saved meanwhile is never overwritten.

import { ApiError } from "./api";

export type SaveState =
  | { kind: "saved" }
  | { kind: "waiting" }
  | { kind: "saving" }
  | { kind: "kept"; why: string; status: number } // here, not on the server; tried again
  | { kind: "refused"; why: string; status: number } // the server will not take it as it is; kept here
  | { kind: "conflict"; theirs: string; mine: string };

/** What a saver needs of the page. `T` is a frozen copy of the mask. */
export interface Desk<T> {
  copy(): T;
  put(mask: T, parent: string | null): Promise<string>;
  keep(mask: T, parent: string | null): Promise<void>;
  drop(): Promise<void>;
  changed(state: SaveState): void;
}

const AFTER = 1200; // ms of quiet before a save
const AT_MOST = 4000; // ms that a change waits while others follow it
const KEEP_AFTER = 250;
const RETRIES = [3000, 5000, 10000, 20000, 30000];

export class Saver<T> {
  state: SaveState = { kind: "saved" };
  /** Counts changes; `done` is the one that the server last took. */
  private edit = 0;
  private done = 0;
  private since = 0;
  private tries = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private keepTimer: ReturnType<typeof setTimeout> | undefined;
  private running: Promise<void> | null = null;
  private closed = false;

  constructor(
    private readonly desk: Desk<T>,
    public head: string | null,
  ) {}

  get unsaved(): boolean {
    return this.edit > this.done;
  }

  /** Something was drawn. */
  touch(): void {
    if (!this.unsaved) this.since = Date.now();
    this.edit++;
    clearTimeout(this.keepTimer);
    this.keepTimer = setTimeout(() => void this.keep(), KEEP_AFTER);
    if (this.state.kind === "conflict") return; // waits for the person's choice; kept here
    if (this.state.kind !== "saving" && this.state.kind !== "kept") this.say({ kind: "waiting" });
    if (this.state.kind !== "kept") this.plan(Math.max(0, Math.min(AFTER, this.since + AT_MOST - Date.now())));
  }

  /** Save what is unsaved, now. True where everything is on the server. */
  async flush(): Promise<boolean> {
    clearTimeout(this.timer);
    while (this.running) await this.running; // whoever waited first may have begun the next one
    if (this.unsaved && this.state.kind !== "conflict") {
      this.running = this.save().finally(() => (this.running = null));
      await this.running;
    }
    return !this.unsaved;
  }

  /** After a conflict: mine is saved again, made from theirs. */
  async insist(): Promise<boolean> {
    return this.state.kind === "conflict" ? this.rebase(this.state.theirs) : true;
  }

  /** What the page shows is saved again, made from `head`. */
  async rebase(head: string | null): Promise<boolean> {
    this.head = head;
    this.edit++;
    this.say({ kind: "waiting" });
    return this.flush();
  }

  /** The page shows this version now, whatever was drawn before. */
  async adopt(head: string | null): Promise<void> {
    clearTimeout(this.timer);
    clearTimeout(this.keepTimer);
    this.head = head;
    this.done = ++this.edit;
    this.say({ kind: "saved" });
    await this.desk.drop();
  }

  /** No more timers; what is unsaved was kept. */
  async close(): Promise<void> {
    clearTimeout(this.timer);
    clearTimeout(this.keepTimer);
    if (this.unsaved) await this.keep();
    this.closed = true;
  }

  private plan(ms: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.flush(), ms);
  }

  /** Keep what is unsaved in this browser, now. */
  async keep(): Promise<void> {
    if (this.unsaved && !this.closed) await this.desk.keep(this.desk.copy(), this.head).catch(() => undefined);
  }

  private async save(): Promise<void> {
    const edit = this.edit;
    this.say({ kind: "saving" });
    try {
      this.head = await this.desk.put(this.desk.copy(), this.head);
      this.tries = 0;
      this.done = edit;
      if (this.edit > edit) {
        this.since = Date.now();
        this.say({ kind: "waiting" });
        this.plan(AFTER);
      } else {
        clearTimeout(this.keepTimer);
        await this.desk.drop().catch(() => undefined);
        this.say({ kind: "saved" });
      }
    } catch (error) {
      this.failed(error, edit);
    }
  }

  private failed(error: unknown, edit: number): void {
    const status = error instanceof ApiError ? error.status : -1;
    const why = error instanceof Error ? error.message : String(error);
    if (status === 409 && error instanceof ApiError && error.body.yours) {
      this.done = edit; // the server has mine too, beside theirs
      this.say({ kind: "conflict", theirs: String(error.body.version), mine: String(error.body.yours) });
      return;
    }
    void this.keep();
    if (status >= 400 && status < 500 && ![401, 403, 408, 429].includes(status)) {
      this.say({ kind: "refused", why, status });
      return;
    }
    this.say({ kind: "kept", why, status });
    this.plan(RETRIES[Math.min(this.tries++, RETRIES.length - 1)]);
  }

  private say(state: SaveState): void {
    this.state = state;
    if (!this.closed) this.desk.changed(state);
  }
}
