// What a person points at, as a session of the server: prompts of one object after another, each answer laid into the mask.
//
// A session that the server forgot is made again and told the object's prompts anew. Going back in the mask goes back in the session too, so
// that the next click corrects what is shown.

import { type Answer, type Api, ApiError, type Kind, type Prompt, type Slice } from "./api";
import { eachVoxel } from "./codec";
import type { Change, History, Mask } from "./mask";

export interface Asked {
  mask: Mask;
  history: History;
  value: number;
  /** The label's name, for the record. */
  label: string;
  keepOthers: boolean;
}

/** One thing that is being outlined: its prompts so far, and what its last answer drew. */
export interface Target {
  readonly name: string;
  readonly value: number;
  readonly label: string;
  readonly slice: Slice | null;
  prompts: Prompt[];
  drawn: Change | null;
  /** The session that was told these prompts. */
  told: Opened | null;
}

type Opened = Promise<{ session: string; kinds: Kind[]; sliced: boolean }>;

export interface Outcome {
  quality: number | null;
  notes: string[];
  ms: number;
  /** Milliseconds on the page from the gesture to the picture. */
  seen: number;
  voxels: number;
  /** The session that answered. */
  session: string;
}

/** What to say where a model found nothing: most were made for boxes, and clicks correct what a box found. */
export function tryInstead(kinds: readonly Kind[], prompts: readonly Prompt[]): string {
  const box = kinds.includes("box") && !prompts.some((p) => p.kind === "box");
  return box ? "The model found nothing there. Draw a box around it first (B)." : "The model found nothing there. Try another prompt.";
}

export class Prompter {
  target: Target | null = null;
  /** 'off' without a model; 'embedding' while the server looks at the image. */
  state: "off" | "starting" | "embedding" | "ready" | "failed" = "off";
  error = "";
  prompts = 0;
  onState: () => void = () => undefined;
  private session: Opened | null = null;
  private through: [number, number] | null = null;
  private queue: Promise<unknown> = Promise.resolve();
  private count = 0;
  private ended = false;

  constructor(
    private readonly api: Api,
    private readonly caseId: string,
    readonly model: string,
    readonly kinds: readonly Kind[],
    /** Whether the model sees this case slice by slice. */
    readonly sliced: boolean,
    private readonly window: () => [number, number] | null,
  ) {}

  takes(kind: Kind): boolean {
    return this.kinds.includes(kind);
  }

  /** Begin before the first prompt, so that the image is embedded when it comes. */
  async warm(slice: Slice | null): Promise<void> {
    if (this.session) return;
    this.say("starting");
    try {
      const { session } = await this.open(this.sliced ? slice : null);
      this.say("embedding");
      while (!this.ended && this.state === "embedding") {
        const { state, error } = await this.api.sessionState(session);
        if (state !== "embedding") this.say(state, error ?? "");
        else await new Promise((r) => setTimeout(r, 250));
      }
    } catch (error) {
      this.say("failed", (error as Error).message);
    }
  }

  private say(state: Prompter["state"], error = ""): void {
    this.state = state;
    this.error = error;
    if (!this.ended) this.onState();
  }

  private open(slice: Slice | null): Opened {
    if (!this.session) {
      this.through = this.window();
      const starting = this.api.session(this.caseId, this.model, this.through, slice);
      this.session = starting;
      starting.catch(() => {
        if (this.session === starting) this.session = null;
      });
    }
    return this.session;
  }

  /** The next prompt begins another object. */
  finish(): void {
    this.target = null;
  }

  /** Ask, and lay the answer into the mask as one step of the history. Null where the answer changed nothing or came too late. */
  ask(prompt: Prompt, slice: Slice | null, asked: Asked): Promise<Outcome | null> {
    const work = this.queue.then(() => this.answered(prompt, this.sliced ? slice : null, asked));
    this.queue = work.catch(() => undefined);
    return work;
  }

  private async answered(prompt: Prompt, slice: Slice | null, asked: Asked): Promise<Outcome | null> {
    const started = performance.now();
    const target = this.aim(prompt, slice, asked);
    const { session, answer } = await this.sent(target, prompt, slice);
    if (this.ended) return null;
    const edit = asked.mask.begin(asked.keepOthers);
    if (target.drawn) edit.withdraw(target.drawn);
    const from = edit.length;
    let voxels = 0;
    await eachVoxel(asked.mask.grid, answer, (i, j, k) => {
      voxels++;
      edit.set(i, j, k, asked.value);
    });
    const before = target.drawn;
    const after = edit.slice(from);
    target.drawn = after;
    target.prompts.push(prompt);
    this.target = target;
    this.prompts++;
    const change = edit.end() ?? { at: new Uint32Array(), before: new Uint16Array(), after: new Uint16Array() };
    const opened = this.session;
    asked.history.add({
      change,
      back: () => {
        target.drawn = before;
        target.prompts.pop();
        if (this.target === target && !target.prompts.length) this.target = null;
        this.step(opened, "undo");
      },
      again: () => {
        target.drawn = after;
        target.prompts.push(prompt);
        this.target = target;
        this.step(opened, "redo");
      },
    });
    return { quality: answer.quality, notes: answer.notes, ms: answer.ms, seen: performance.now() - started, voxels, session };
  }

  /** The object that a prompt is about: the current one, unless the prompt starts another. */
  private aim(prompt: Prompt, slice: Slice | null, { value, label }: Asked): Target {
    const now = this.target;
    const same = now && now.value === value && now.slice?.axis === slice?.axis && now.slice?.index === slice?.index;
    const begins = prompt.kind === "box" || prompt.kind === "lasso" || prompt.kind === "text";
    if (now && same && !(begins && now.prompts.length)) return now;
    return { name: `object ${++this.count}`, value, label, slice, prompts: [], drawn: null, told: null };
  }

  private async sent(target: Target, prompt: Prompt, slice: Slice | null): Promise<{ session: string; answer: Answer }> {
    try {
      return await this.told(target, prompt, slice);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
      this.session = null; // it ended, or the server was started anew
      return this.told(target, prompt, slice);
    }
  }

  /** The answer of the session there is now, which first hears what was said about this object to another one. */
  private async told(target: Target, prompt: Prompt, slice: Slice | null): Promise<{ session: string; answer: Answer }> {
    if (this.sliced && String(this.window()) !== String(this.through)) this.session = null; // a slice is seen through the window that the person looks through
    const opened = this.open(slice);
    const { session } = await opened;
    if (target.told !== opened) for (const earlier of target.prompts) await this.api.ask(session, target.name, target.label, [earlier], slice);
    target.told = opened;
    const answer = await this.api.ask(session, target.name, target.label, [prompt], slice);
    if (this.state !== "ready") this.say("ready");
    return { session, answer };
  }

  private step(opened: Opened | null, way: "undo" | "redo"): void {
    if (opened === null) return;
    if (opened === this.session) this.queue = this.queue.then(async () => this.api.step((await opened).session, way)).catch(() => undefined);
    else this.session = null; // this one heard of the object another way; the next prompt starts one that hears what is left
  }

  end(): void {
    this.ended = true;
    void this.session?.then(({ session }) => this.api.endSession(session)).catch(() => undefined);
    this.session = null;
  }
}
