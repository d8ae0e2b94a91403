// The page's state and what can be done with it. Panels read it and call it; it tells them with `changed` when to look again.

import { Api, ApiError, type Case, type Compared, type Job, type Label, type Measure, type Model, type Project, type Prompt, type Status, type Summary } from "./api";
import { bodyOf, gunzip, labelsOf, type Voxels } from "./codec";
import { draftKeys, draftOf, dropDraft, keepDraft, keyOf } from "./drafts";
import { Events } from "./events";
import { boxPrompt, deepened, everyNth, gridOf, isLarge, layoutOf, offsetOf, sliceOf, toWorld, type Grid, type Layout, type Vec3 } from "./geometry";
import { removed, saveLabels, type Wish } from "./labels";
import { brush, type Edit, History, Mask, polygon } from "./mask";
import { carrierOf } from "./models";
import { Prompter, tryInstead } from "./prompter";
import { Provenance } from "./provenance";
import { Saver, type SaveState } from "./saver";
import type { Host, Place, Tool } from "./stage";
import { type Picture, PLANES, type Plane, type Range, View } from "./view";

export interface Open {
  record: Case;
  grid: Grid;
  layout: Layout;
  mask: Mask;
  history: History;
  saver: Saver<Voxels>;
  prompter: Prompter | null;
  measures: Measure[];
  measured: string | null;
  origin: Provenance;
  mine: Set<string>;
}

export interface Notice {
  id: string;
  tone: "info" | "warn" | "bad";
  text: string;
  actions: { text: string; run: () => void }[];
}

export interface Comparison {
  a: string;
  b: string;
  rows: Compared[];
}

export interface Settings {
  user: string;
  model: string;
  /** The model that was listed first when `model` was chosen. */
  first: string;
  opacity: number;
  radius: number;
  keepOthers: boolean;
  smooth: boolean;
  plane: Plane;
  strategy: "order" | "uncertainty" | "diversity";
}

export const PRESETS: Record<string, [number, number] | "auto" | "full"> = {
  Auto: "auto",
  "Full range": "full",
  "CT soft tissue": [-160, 240],
  "CT liver": [-20, 180],
  "CT lung": [-1350, 150],
  "CT bone": [-500, 1300],
  "CT brain": [0, 80],
};

/** Presets in Hounsfield units only where the values look like them. */
function presetsOf(range: Range | null): string[] {
  const hounsfield = range !== null && range.full[0] <= -200 && range.full[1] > 100;
  return Object.keys(PRESETS).filter((name) => hounsfield || !name.startsWith("CT"));
}

function windowOf(name: string, range: Range | null): [number, number] | null {
  const preset = PRESETS[name];
  if (!range || !preset) return null;
  return preset === "auto" ? range.robust : preset === "full" ? range.full : preset;
}

/** A version that the server made; `conflict`: it stands beside one that was saved meanwhile. */
interface Made {
  version: string;
  conflict?: boolean;
}

function beside(error: unknown): Made {
  if (error instanceof ApiError && error.status === 409 && error.body.yours) return { version: String(error.body.yours), conflict: true };
  throw error;
}

const KEPT = "vesalius";
const SIGNED_OUT = [401, 429]; // 429: too many asked without the token
const ANOTHER = 410; // of the page's own: another project is served here

export class App implements Host {
  readonly api = new Api();
  readonly view = new View(document.createElement("canvas"));
  project!: Project;
  cases: Summary[] = [];
  current: Open | null = null;
  loading = "";
  label = 0; // value of the active label
  tool: Tool = "navigate";
  preset = "Auto";
  channel = "";
  visible = true;
  jobs: Job[] = [];
  notices: Notice[] = [];
  toast: { text: string; bad: boolean } | null = null;
  comparison: Comparison | null = null;
  doubt = false; // the model's uncertainty is shown instead of the mask
  people: string[] = [];
  online = true;
  hoverText = "";
  lastAnswer = "";
  drafts = new Set<string>();
  settings: Settings = { user: "", model: "", first: "", opacity: 0.4, radius: 4, keepOthers: false, smooth: true, plane: "all", strategy: "order" };
  /** Counts what the case list shows: cases and drafts. */
  stamp = 0;
  changed: () => void = () => undefined;
  /** Only the place under the pointer or the crosshair changed. */
  moved: () => void = () => undefined;
  private edit: Edit | null = null;
  private opening = 0;
  private rereads = 0;
  private toastTimer: ReturnType<typeof setTimeout> | undefined;
  private followers = new Map<string, (job: Job) => void>();
  private polls = 0;
  private readonly events = new Events({
    user: () => this.settings.user,
    opened: () => void this.refresh(),
    lost: () => this.setOnline(false),
    on: {
      job: (job: Job) => this.jobChanged(job),
      presence: ({ users }: { users: string[] }) => {
        this.people = users;
        this.changed();
      },
      status: () => void this.refresh(),
      labels: () => void this.refresh(),
      version: ({ case: id, version, user }: { case: string; version: string; user: string }) => {
        void this.refresh();
        if (this.current?.record.id === id) setTimeout(() => this.others(id, version, user), 800);
      },
    },
  });

  // --------------------------------------------------------------------------------------------------------------------- starting
  async start(): Promise<void> {
    try {
      Object.assign(this.settings, JSON.parse(localStorage.getItem(KEPT) ?? "{}"));
    } catch {
      // a browser that keeps nothing, or something else under our name: the defaults
    }
    this.api.user = this.settings.user;
    this.view.plane = PLANES.includes(this.settings.plane) ? this.settings.plane : "all";
    await this.view.start();
    this.view.onPlace = () => this.moved();
    this.view.onWindow = () => this.windowChanged(null);
    this.project = await this.api.project();
    this.label = this.project.labels[0].value;
    document.title = `${this.project.name} - Vesalius`;
    this.cases = await this.api.cases();
    this.stamp++;
    this.drafts = new Set(await draftKeys().catch(() => []));
    const first = this.promptable[0]?.id ?? ""; // the server lists first what it was started with
    if (first !== this.settings.first || !this.assistants.some((m) => m.id === this.settings.model)) this.keep({ model: first, first });
    this.events.listen();
    setInterval(() => void this.poll(), 2000);
    this.changed();
    const asked = new URLSearchParams(location.hash.slice(1)).get("case");
    const shown = this.cases.find((c) => c.id === asked) ?? this.cases[0];
    if (shown) await this.open(shown.id);
  }

  get models(): Model[] {
    return (this.project?.models ?? []).filter((m) => m.dims.some((d) => d <= this.project.dims));
  }

  get promptable(): Model[] {
    return this.models.filter((m) => m.kinds.length && !m.carries);
  }

  get automatic(): Model[] {
    return this.models.filter((m) => !m.kinds.length);
  }

  /** What can be chosen to help: to answer to prompts, or to carry masks on. */
  get assistants(): Model[] {
    return this.models.filter((m) => m.kinds.length);
  }

  /** What lengths are in. Pictures without a pixel size have sides of 1, and then it is pixels that are counted. */
  get unit(): "mm" | "px" {
    const grid = this.current?.grid;
    return grid?.dims === 2 && grid.spacing[0] === 1 && grid.spacing[1] === 1 ? "px" : "mm";
  }

  get active(): Label {
    return this.project.labels.find((l) => l.value === this.label) ?? this.project.labels[0];
  }

  keep(change: Partial<Settings>): void {
    Object.assign(this.settings, change);
    try {
      localStorage.setItem(KEPT, JSON.stringify(this.settings));
    } catch {
      // nothing is kept then
    }
    this.changed();
  }

  // ----------------------------------------------------------------------------------------------------------------- telling people
  say(text: string, bad = false): void {
    this.toast = { text, bad };
    clearTimeout(this.toastTimer);
    this.toastTimer = setTimeout(() => {
      this.toast = null;
      this.changed();
    }, bad ? 9000 : 3500);
    this.changed();
  }

  wrong(error: unknown): void {
    if (error instanceof ApiError && error.status === ANOTHER) {
      this.online = false;
      this.notice({ id: "offline", tone: "bad", text: error.message, actions: [] });
    } else if (error instanceof ApiError && SIGNED_OUT.includes(error.status)) {
      this.online = false; // it is asked now and then, until the person has signed in again
      this.dismiss("offline");
      this.notice({ id: "signin", tone: "bad", text: "You are signed out. Open the link that the server printed when it was started; nothing that you drew is lost.", actions: [] });
    } else if (error instanceof ApiError && error.status === 0) this.setOnline(false);
    else this.say((error as Error).message ?? String(error), true);
  }

  notice(notice: Notice): void {
    this.notices = [...this.notices.filter((n) => n.id !== notice.id), notice];
    this.changed();
  }

  dismiss(id: string): void {
    this.notices = this.notices.filter((n) => n.id !== id);
    this.changed();
  }

  private setOnline(online: boolean): void {
    if (online === this.online) return;
    this.online = online;
    if (online) {
      this.notices = this.notices.filter((n) => !["offline", "signin"].includes(n.id));
      void this.refresh();
      if (this.current?.saver.unsaved) void this.current.saver.flush();
    } else {
      this.notice({ id: "offline", tone: "warn", text: "The server cannot be reached. You can go on drawing: it is kept in this page and saved when the server is back.", actions: [] });
    }
  }

  /** Throws where another project is served at this address by now: nothing of this page belongs there. */
  private same(project: Project): Project {
    if (project.id === this.project.id) return project;
    throw new ApiError(ANOTHER, "Another project is served at this address now. What is not saved is kept in this browser until this one is opened again.");
  }

  /** Run something that asks the server; what goes wrong is said. */
  async attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      const done = await work();
      this.setOnline(true);
      return done;
    } catch (error) {
      this.wrong(error);
      return undefined;
    }
  }

  // ------------------------------------------------------------------------------------------------------------------------- events
  /** Who works here, as the others see it. */
  setUser(user: string): void {
    this.api.user = user;
    this.keep({ user });
    this.events.listen();
  }

  /** Somebody, or a job, saved a version of the case that is open here. */
  private others(id: string, version: string, user: string): void {
    const open = this.current;
    if (!open || open.record.id !== id || open.mine.has(version) || open.saver.head === version || open.saver.state.kind === "conflict") return;
    void this.reread();
    this.notice({
      id: "others",
      tone: "info",
      text: `${user || "Someone"} saved another version of this case.`,
      actions: [
        { text: "Show theirs", run: () => void this.take(version) },
        { text: "Stay", run: () => this.dismiss("others") },
      ],
    });
  }

  /** Jobs are told by events; where those do not come, they are asked for. */
  private async poll(): Promise<void> {
    if (!this.online) {
      const signedOut = this.notices.some((n) => n.id === "signin");
      if (!signedOut || ++this.polls % 3 === 0) await this.attempt(async () => this.same(await this.api.project())); // a server counts those who ask without a token
    }
    if (this.online) this.events.again();
    if (this.online && this.jobs.some((j) => j.state === "queued" || j.state === "running")) await this.attempt(async () => (await this.api.jobs()).forEach((job) => this.jobChanged(job)));
  }

  private jobChanged(job: Job): void {
    const before = this.jobs.find((j) => j.id === job.id);
    this.jobs = before ? this.jobs.map((j) => (j.id === job.id ? job : j)) : [job, ...this.jobs];
    if (!["queued", "running"].includes(job.state)) {
      const follow = this.followers.get(job.id);
      if (follow) {
        this.followers.delete(job.id);
        follow(job);
      }
    }
    this.changed();
  }

  /** The job when it is over. */
  private async follow(id: string): Promise<Job> {
    const over = new Promise<Job>((resolve) => this.followers.set(id, resolve));
    await this.attempt(async () => this.jobChanged(await this.api.job(id)));
    return over;
  }

  async refresh(): Promise<void> {
    await this.attempt(async () => {
      const labels = JSON.stringify(this.project.labels);
      const [project, ...rest] = await Promise.all([this.api.project(), this.api.cases(), this.api.jobs()]);
      this.project = this.same(project);
      [this.cases, this.jobs] = rest;
      this.stamp++;
      if (JSON.stringify(this.project.labels) !== labels) this.showLabels();
    });
    this.changed();
  }

  /** The open case's record anew: versions, comments, status. An answer to an earlier question, which comes late, is older. */
  async reread(): Promise<void> {
    const open = this.current;
    if (!open) return;
    const turn = ++this.rereads;
    await this.attempt(async () => {
      const record = await this.api.case(open.record.id);
      if (this.current === open && turn === this.rereads) open.record = record;
    });
    this.changed();
  }

  // -------------------------------------------------------------------------------------------------------------------------- cases
  async open(id: string): Promise<void> {
    const turn = ++this.opening;
    await this.leave();
    if (turn !== this.opening) return;
    this.loading = "Loading";
    this.notices = this.notices.filter((n) => ["offline", "signin"].includes(n.id));
    this.changed();
    try {
      const record = await this.api.case(id);
      history.replaceState(null, "", `#case=${id}`);
      const grid = gridOf(record.geometry);
      const layout = layoutOf(grid);
      const channel = record.channels.includes(this.channel) ? this.channel : record.channels[0];
      if (isLarge(grid)) await this.glimpse(record, channel, () => turn === this.opening);
      const [picture, saved, draft] = await Promise.all([
        this.picture(id, channel, grid, layout),
        record.latest ? this.api.label(id, record.latest).then(gunzip) : null,
        draftOf(keyOf(this.project, record)).catch(() => null),
      ]);
      if (turn !== this.opening) return;
      this.channel = channel;
      const mask = new Mask(grid, layout);
      if (saved) mask.load(labelsOf(saved, grid));
      mask.setSlots(this.project.labels.map((l) => l.value));
      this.show(picture, grid, layout, mask, this.preset);
      const origin = new Provenance();
      const saver = new Saver<Voxels>(this.desk(record, grid, mask, origin), record.latest);
      this.current = { record, grid, layout, mask, saver, history: new History(), prompter: null, measures: [], measured: null, origin, mine: new Set() };
      this.loading = "";
      this.startPrompter();
      if (draft) this.offer(draft);
      void this.measure();
    } catch (error) {
      if (turn !== this.opening) return;
      this.loading = "";
      this.view.clear();
      this.notice({
        id: "open",
        tone: "bad",
        text: `This case cannot be shown. ${(error as Error).message}`,
        actions: [{ text: "Try again", run: () => void this.open(id) }],
      });
      if (error instanceof ApiError && [0, 401].includes(error.status)) this.wrong(error);
    }
    this.changed();
  }

  private async picture(id: string, channel: string, grid: Grid, layout: Layout): Promise<Picture> {
    return this.view.read((await gunzip(await this.api.image(id, channel))).buffer, grid, layout);
  }

  /** A coarse picture of a large image, to look at while the whole one comes; nothing where it cannot be had. */
  private async glimpse(record: Case, channel: string, wanted: () => boolean): Promise<void> {
    try {
      const answer = await this.api.coarse(record.id, channel);
      const grid = gridOf(everyNth(record.geometry, (answer.headers.get("X-Every") ?? "").split(",").map(Number)));
      const layout = layoutOf(grid);
      const picture = await this.view.read((await gunzip(answer)).buffer, grid, layout);
      if (!wanted()) return;
      this.show(picture, grid, layout, null, this.preset);
      this.loading = "A coarse picture, while the whole one comes";
      this.changed();
    } catch {
      // whoever asks for the whole one is told what is wrong
    }
  }

  private show(picture: Picture, grid: Grid, layout: Layout, mask: Mask | null, preset: string): void {
    const name = presetsOf(picture.range).includes(preset) ? preset : "Auto";
    this.view.together(() => {
      this.view.setColours(this.project.labels.map((l) => l.color));
      this.view.show(picture, grid, layout, windowOf(name, picture.range));
      if (mask) this.view.setMask(mask);
      this.view.setOpacity(this.visible ? this.settings.opacity : 0);
      this.view.setSmooth(this.settings.smooth);
    });
    if (mask) this.preset = name;
  }

  /** Another image of the same case under the same mask. */
  async setChannel(channel: string): Promise<void> {
    const open = this.current;
    if (!open || channel === this.channel) return;
    this.stopComparing();
    await this.attempt(async () => {
      const picture = await this.picture(open.record.id, channel, open.grid, open.layout);
      if (this.current !== open) return;
      const place = this.view.place;
      this.channel = channel;
      this.show(picture, open.grid, open.layout, open.mask, "Auto");
      this.view.place = place;
    });
    this.changed();
  }

  hasDraft(summary: Summary): boolean {
    return this.drafts.has(keyOf(this.project, summary));
  }

  private desk(record: Case, grid: Grid, mask: Mask, origin: Provenance) {
    const key = keyOf(this.project, record);
    const mine = () => this.current?.mask === mask;
    return {
      copy: () => mask.voxels.slice() as Voxels,
      put: async (voxels: Voxels, parent: string | null) => {
        const from = origin.take();
        try {
          if (!this.online) this.same(await this.api.project());
          const { body, headers } = await bodyOf(voxels, grid);
          const { version } = await this.api.save(record.id, parent, body, headers, from);
          this.setOnline(true);
          if (mine()) this.current!.mine.add(version);
          return version;
        } catch (error) {
          origin.giveBack(from);
          throw error;
        }
      },
      keep: async (voxels: Voxels, parent: string | null) => {
        await keepDraft(key, voxels, parent);
        this.drafts.add(key);
        this.stamp++;
      },
      drop: async () => {
        await dropDraft(key);
        this.drafts.delete(key);
        this.stamp++;
      },
      changed: (state: SaveState) => {
        if (mine()) this.saved(state);
      },
    };
  }

  private saved(state: SaveState): void {
    const open = this.current!;
    if (state.kind === "saved") {
      void this.reread().then(() => this.measure());
      void this.refresh();
    } else if (state.kind === "kept") {
      if (SIGNED_OUT.includes(state.status)) this.wrong(new ApiError(state.status, state.why));
      else if (state.status !== 0) this.notice({ id: "kept", tone: "bad", text: `Not saved on the server, kept in this page: ${state.why} It is tried again by itself.`, actions: [{ text: "Try now", run: () => void open.saver.flush() }] });
      else this.setOnline(false);
    } else if (state.kind === "refused" && state.status === ANOTHER) {
      this.wrong(new ApiError(ANOTHER, state.why));
    } else if (state.kind === "refused") {
      this.notice({ id: "kept", tone: "bad", text: `The server does not take this mask; it is kept in this page. ${state.why}`, actions: [{ text: "Try now", run: () => void open.saver.flush() }] });
    } else if (state.kind === "conflict") {
      open.mine.add(state.mine);
      void this.reread();
      this.notice({
        id: "conflict",
        tone: "bad",
        text: "Someone saved another version of this case while you worked on it. Both are kept. Which one goes on?",
        actions: [
          { text: "Compare both", run: () => void this.compare(state.theirs, state.mine) },
          { text: "Go on with mine", run: () => void this.insist() },
          { text: "Go on with theirs", run: () => void this.take(state.theirs) },
        ],
      });
    }
    if (state.kind === "saved") this.notices = this.notices.filter((n) => n.id !== "kept");
    this.changed();
  }

  private async insist(): Promise<void> {
    this.stopComparing();
    this.dismiss("conflict");
    await this.current?.saver.insist();
  }

  private offer(draft: { voxels: Voxels; parent: string | null; at: number }): void {
    const open = this.current!;
    const when = new Date(draft.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    this.notice({
      id: "draft",
      tone: "warn",
      text: `There are edits of ${when} in this browser that were not saved.`,
      actions: [
        {
          text: "Bring them back",
          run: () => {
            if (this.current !== open) return this.dismiss("draft");
            try {
              this.change((edit) => edit.replace(draft.voxels));
            } catch (error) {
              return this.wrong(error);
            }
            this.dismiss("draft");
            open.saver.head = draft.parent ?? null;
            if (!open.saver.unsaved) open.saver.touch();
          },
        },
        {
          text: "Discard",
          run: () => {
            this.dismiss("draft");
            void open.saver.adopt(open.saver.head);
          },
        },
      ],
    });
  }

  /** Save and put away what is open. */
  private async leave(): Promise<void> {
    const open = this.current;
    if (!open) return;
    this.stopComparing();
    this.finishStroke();
    await open.saver.flush();
    await open.saver.close();
    open.prompter?.end();
    this.current = null;
    this.view.clear();
  }

  async step(by: number): Promise<void> {
    const at = this.cases.findIndex((c) => c.id === this.current?.record.id);
    const next = this.cases[at + by];
    if (next) await this.open(next.id);
  }

  /** The case that is most worth the work. */
  async next(): Promise<void> {
    await this.attempt(async () => {
      await this.current?.saver.flush();
      const { case: id } = await this.api.next(this.settings.strategy);
      if (!id) this.say("Every case is done.");
      else if (id === this.current?.record.id) this.say("This is the case to do next. Mark it done to go on.");
      else await this.open(id);
    });
  }

  async setStatus(status: Status): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.attempt(async () => {
      await open.saver.flush();
      await this.api.status(open.record.id, status);
      await this.reread();
      await this.refresh();
    });
  }

  async comment(text: string): Promise<void> {
    const open = this.current;
    if (!open || !text.trim()) return;
    await this.attempt(async () => {
      await this.api.comment(open.record.id, text);
      await this.reread();
    });
  }

  // ------------------------------------------------------------------------------------------------------------------------- labels
  /** What is wished is done to the table of labels, also where somebody else changed it meanwhile. */
  async setLabels(wish: Wish): Promise<boolean> {
    const saved = await this.attempt(() => saveLabels(this.api, this.project, wish));
    if (saved) {
      Object.assign(this.project, saved.table);
      this.showLabels();
      if (saved.theirs) this.say(saved.kept ? "Someone else changed the labels too: you see their table with your change in it." : "Someone else changed the labels: you see their table, with which your change clashes.", !saved.kept);
    }
    this.changed();
    return saved?.kept ?? false;
  }

  /** A label that nothing was drawn with. */
  async removeLabel(label: Label): Promise<void> {
    if (this.current?.mask.voxels.includes(label.value)) this.say(`${label.name} is drawn in this case: rename it, or erase it first.`, true);
    else await this.setLabels(removed(label));
  }

  private showLabels(): void {
    if (!this.project.labels.some((l) => l.value === this.label)) this.choose(this.project.labels[0].value);
    this.current?.mask.setSlots(this.project.labels.map((l) => l.value));
    this.view.setColours(this.project.labels.map((l) => l.color));
    this.view.refresh();
  }

  choose(value: number): void {
    if (value !== this.label) this.current?.prompter?.finish();
    this.label = value;
    this.view.nv.drawScene();
    this.changed();
  }

  // ------------------------------------------------------------------------------------------------------------------------ drawing
  /** One step that can be taken back. */
  change(work: (edit: Edit) => void, keepOthers = false): boolean {
    const open = this.current;
    if (!open) return false;
    this.stopComparing();
    const edit = open.mask.begin(keepOthers);
    work(edit);
    const change = edit.end();
    if (change) {
      open.history.add({ change });
      this.touched();
    }
    return change !== null;
  }

  private touched(): void {
    this.view.refresh();
    this.current?.saver.touch();
    this.changed();
  }

  undo(): void {
    const open = this.current;
    if (!open || this.edit) return;
    this.stopComparing();
    if (open.history.undo(open.mask)) this.touched();
    else this.say("There is nothing to take back.");
  }

  redo(): void {
    const open = this.current;
    if (!open || this.edit) return;
    if (open.history.redo(open.mask)) this.touched();
    else this.say("There is nothing to do again.");
  }

  stroke(place: Place, from: Vec3, to: Vec3, erase: boolean, first: boolean): void {
    const open = this.current;
    if (!open) return;
    if (first) {
      this.stopComparing();
      this.edit = open.mask.begin(this.settings.keepOthers);
      open.prompter?.finish();
    }
    const edit = this.edit;
    if (!edit) return;
    brush(open.grid, place.axis, place.index, from, to, this.settings.radius, (i, j, k) => (erase ? edit.clear(i, j, k, this.label) : edit.set(i, j, k, this.label)));
    this.view.refresh();
  }

  strokeEnd(): void {
    this.finishStroke();
  }

  private finishStroke(): void {
    const change = this.edit?.end();
    this.edit = null;
    if (!change || !this.current) return;
    this.current.history.add({ change });
    this.touched();
  }

  // ------------------------------------------------------------------------------------------------------------------------ prompts
  /** Begin a session with the chosen model, if it takes prompts. */
  startPrompter(): void {
    const open = this.current;
    if (!open) return;
    open.prompter?.end();
    const model = this.promptable.find((m) => m.id === this.settings.model);
    open.prompter = null;
    if (model) {
      const sliced = open.grid.dims === 3 && !model.dims.includes(3);
      open.prompter = new Prompter(this.api, open.record.id, model.id, model.kinds, sliced, () => this.ownWindow);
      open.prompter.onState = () => {
        if (open.prompter?.state === "failed") this.say(open.prompter.error || "The model could not be prepared.", true);
        this.changed();
      };
      void open.prompter.warm(this.shownSlice());
    }
    this.changed();
  }

  /** The window that models of slices look through: the person's, unless that is the usual one. */
  private get ownWindow(): [number, number] | null {
    return this.preset === "Auto" ? null : this.view.window;
  }

  private shownSlice(): Place | null {
    const tile = this.view.tiles.find((t) => t.across === 2) ?? this.view.tiles[0];
    return tile && this.current ? sliceOf(tile, this.current.layout) : null;
  }

  useModel(id: string): void {
    this.keep({ model: id });
    this.startPrompter();
  }

  private async ask(prompt: Prompt, place: Place | null): Promise<void> {
    const open = this.current;
    const prompter = open?.prompter;
    if (!open || !prompter) {
      this.say("Choose a model that takes prompts, or draw with the brush.", true);
      return;
    }
    if (!prompter.takes(prompt.kind)) {
      this.say(`${prompter.model} does not understand a ${prompt.kind}.`, true);
      return;
    }
    this.stopComparing();
    this.lastAnswer = "...";
    this.changed();
    try {
      const outcome = await prompter.ask(prompt, place, { mask: open.mask, history: open.history, value: this.label, label: this.active.name, keepOthers: this.settings.keepOthers });
      if (!outcome || this.current !== open) return;
      this.setOnline(true);
      open.origin.prompted(prompter.model, outcome.session);
      this.lastAnswer = `${Math.round(outcome.seen)} ms${outcome.quality === null || !outcome.voxels ? "" : `, sure to ${Math.round(100 * outcome.quality)} %`}`;
      const notes = outcome.notes.join("; ");
      if (!outcome.voxels) this.say(notes ? `The model found nothing: ${notes}.` : tryInstead(prompter.kinds, prompter.target?.prompts ?? []));
      else if (notes) this.say(`The model says: ${notes}.`);
      this.touched();
    } catch (error) {
      this.lastAnswer = "";
      this.wrong(error);
    }
    this.changed();
  }

  marks(): readonly Prompt[] {
    return this.comparison || this.doubt ? [] : (this.current?.prompter?.target?.prompts ?? []);
  }

  box(place: Place, a: Vec3, b: Vec3): void {
    const open = this.current!;
    const deep = open.grid.dims === 3 && open.prompter && !open.prompter.sliced;
    const [low, high] = deep ? deepened(open.grid, place.axis, a, b) : [a, b];
    this.follow3d([0, 1, 2].map((d) => (a[d] + b[d]) / 2) as Vec3);
    void this.ask({ kind: "box", ...boxPrompt(open.grid, low, high), drawn: [low, high] }, place);
  }

  click(place: Place, at: Vec3, positive: boolean): void {
    this.follow3d(at);
    void this.ask({ kind: "point", xyz: toWorld(this.current!.grid, at), positive }, place);
  }

  scribble(place: Place, points: Vec3[], positive: boolean): void {
    void this.ask({ kind: "scribble", xyz: points.map((p) => toWorld(this.current!.grid, p)), positive }, place);
  }

  /** With a model that takes one, a prompt; without, the outline is filled. */
  lasso(place: Place, points: Vec3[]): void {
    const open = this.current!;
    if (open.prompter?.takes("lasso") && (open.grid.dims === 2 || open.prompter.sliced)) {
      void this.ask({ kind: "lasso", xyz: points.map((p) => toWorld(open.grid, p)) }, place);
      return;
    }
    this.change((edit) => polygon(open.grid, place.axis, place.index, points, (i, j, k) => edit.set(i, j, k, this.label)), this.settings.keepOthers);
  }

  askText(text: string): void {
    if (text.trim()) void this.ask({ kind: "text", text: text.trim() }, this.shownSlice());
  }

  finishObject(): void {
    this.current?.prompter?.finish();
    this.view.nv.drawScene();
    this.say("The next prompt begins another object.");
  }

  /** In volumes, the other slices go where something was pointed at. */
  private follow3d(at: Vec3): void {
    if (this.current?.grid.dims === 3) this.view.place = at;
  }

  hover(at: Vec3 | null): void {
    const open = this.current;
    let text = "";
    if (open && at) {
      const index = at.map((x, a) => Math.min(open.grid.shape[a] - 1, Math.max(0, Math.round(x)))) as Vec3;
      const mm = toWorld(open.grid, index).map((x) => x.toFixed(1));
      const value = this.view.valueAt(index);
      const label = this.project.labels.find((l) => l.value === open.mask.voxels[offsetOf(open.grid, ...index)]);
      text = `${index.slice(0, open.grid.dims).join(", ")}   ${mm.join(", ")} ${this.unit}${value ? `   ${value}` : ""}${label ? `   ${label.name}` : ""}`;
    }
    if (text === this.hoverText) return;
    this.hoverText = text;
    this.moved();
  }

  // --------------------------------------------------------------------------------------------------------- what the server draws
  /** A version of the server as a step in the page: it can be taken back. */
  private async lay(version: string): Promise<void> {
    const open = this.current;
    if (!open) return;
    const voxels = labelsOf(await gunzip(await this.api.label(open.record.id, version)), open.grid);
    if (this.current !== open) return;
    const edit = open.mask.begin();
    edit.replace(voxels);
    const change = edit.end();
    if (change) open.history.add({ change });
    open.prompter?.finish();
    this.view.refresh();
  }

  /** Go on from a version. Where it stands beside the newest one, it is saved again on top of that. */
  async take(version: string): Promise<void> {
    const open = this.current;
    if (!open) return;
    this.stopComparing();
    await this.attempt(async () => {
      await this.lay(version);
      await this.reread();
      open.origin.take(); // it came from where the version did
      if (open.record.latest === version) await open.saver.adopt(version);
      else await open.saver.rebase(open.record.latest);
      this.notices = this.notices.filter((n) => !["others", "conflict"].includes(n.id));
      void this.measure();
    });
  }

  /** Show an older version again; it becomes the newest by being saved. */
  async restore(version: string): Promise<void> {
    const open = this.current;
    if (!open) return;
    this.stopComparing();
    await this.attempt(async () => {
      await this.lay(version);
      open.saver.touch();
    });
    this.changed();
  }

  /** Begin with the label that the data set brings, as a step that can be taken back. */
  async startFromReference(): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.attempt(async () => {
      const voxels = labelsOf(await gunzip(await this.api.reference(open.record.id)), open.grid);
      if (this.current !== open) return;
      open.prompter?.finish();
      if (!this.change((edit) => edit.replace(voxels))) this.say("The mask is the data set's label already.");
    });
  }

  /** A label map of another program becomes a version, and is shown. */
  async openFile(file: File): Promise<void> {
    const body = new Uint8Array(await file.arrayBuffer());
    await this.remote(`Opening ${file.name}`, (open, head) => this.api.maskFile(open.record.id, file.name, body, head));
  }

  /** Work of the server that needs the mask to be saved first, and whose result is a new version. */
  private async remote(name: string, work: (open: Open, head: string | null) => Promise<Made | null>): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.attempt(async () => {
      if (!(await open.saver.flush())) throw new Error("This needs the mask to be saved first, which is not possible now.");
      this.say(`${name}...`);
      const made = await work(open, open.saver.head).catch((error: unknown) => beside(error));
      if (!made || this.current !== open) return;
      open.mine.add(made.version);
      if (made.conflict || open.saver.unsaved) {
        this.notice({ id: "others", tone: "info", text: `${name}: done, beside what was drawn meanwhile.`, actions: [{ text: "Show it", run: () => void this.take(made.version) }] });
        await this.reread();
      } else {
        await this.take(made.version);
        this.say(`${name}: done.`);
      }
    });
  }

  /** Fill the slices between those that the active label was drawn in. */
  async interpolate(): Promise<void> {
    if (this.current?.grid.dims !== 3) return this.say("Slices are filled in volumes.", true);
    const gaps = this.drawn(this.current).map((seen) => (seen.includes(1) ? seen.lastIndexOf(1) - seen.indexOf(1) + 1 - seen.reduce((x, y) => x + y, 0) : 0));
    const most = Math.max(...gaps);
    if (!most) return this.say("Draw this label in two slices with some between them first.", true);
    await this.remote("Filling slices", (open, head) => this.api.interpolate(open.record.id, this.active.name, gaps.indexOf(most), head!));
  }

  /** For each axis, which of its slices show the active label. */
  private drawn(open: Open): Uint8Array[] {
    const seen = open.grid.shape.map((n) => new Uint8Array(n));
    const [a, b, c] = open.grid.shape;
    for (let i = 0, n = 0; i < a; i++) for (let j = 0; j < b; j++) for (let k = 0; k < c; k++, n++) if (open.mask.voxels[n] === this.label) seen[0][i] = seen[1][j] = seen[2][k] = 1;
    return seen;
  }

  /** Carry the active label on from the slice it was drawn in: the shown one, or else the nearest to it, across the axis with fewest. */
  async propagate(): Promise<void> {
    if (this.current?.grid.dims !== 3) return this.say("Masks are carried on in volumes.", true);
    const model = carrierOf(this.models, this.settings.model);
    if (!model) return this.say("No model here carries a mask from slice to slice.", true);
    const seen = this.drawn(this.current);
    const counts = seen.map((s) => s.reduce((x, y) => x + y, 0));
    const fewest = Math.min(...counts);
    if (!fewest) return this.say("Draw this label in a slice first.", true);
    const axis = counts.indexOf(fewest);
    const at = this.view.place[axis];
    const from = [...seen[axis].keys()].filter((n) => seen[axis][n]).reduce((x, y) => (Math.abs(y - at) < Math.abs(x - at) ? y : x));
    await this.remote("Carrying the mask on", async (open, head) => {
      const { job } = await this.api.propagate(open.record.id, this.active.name, from, axis, head!, model.id, this.ownWindow);
      return this.made(await this.follow(job));
    });
  }

  async runModel(id: string): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.attempt(async () => {
      await open.saver.flush();
      const { job } = await this.api.run(open.record.id, id);
      this.say("The model is at work...");
      const made = this.made(await this.follow(job));
      if (made && this.current === open) {
        open.mine.add(made.version);
        if (!made.conflict && !open.saver.unsaved) await this.take(made.version);
        else await this.reread();
      }
    });
  }

  private made(job: Job): Made | null {
    if (job.state === "done" && job.result) return job.result as unknown as Made;
    if (job.state === "failed") this.say(job.text || "The job failed.", true);
    return null;
  }

  async train(method: string, minutes: number): Promise<void> {
    await this.attempt(async () => {
      await this.current?.saver.flush();
      const { job } = await this.api.train(method, minutes);
      this.say("Training has begun. You can go on working.");
      const done = await this.follow(job);
      if (done.state === "done") {
        await this.refresh();
        this.say("The new model is ready: run it on a case.");
      } else if (done.state === "failed") this.say(done.text, true);
    });
  }

  async export(format: string, status: Status | null, onlyThis: boolean): Promise<void> {
    await this.attempt(async () => {
      await this.current?.saver.flush();
      const { job } = await this.api.export(format, status, onlyThis && this.current ? [this.current.record.id] : null);
      const done = await this.follow(job);
      if (done.state === "done") {
        this.download(done.id);
        this.say("The export is ready.");
      } else if (done.state === "failed") this.say(done.text, true);
    });
  }

  download(job: string): void {
    const link = document.createElement("a");
    link.href = `/api/jobs/${job}/file`;
    link.download = "";
    link.click();
  }

  async cancel(job: string): Promise<void> {
    await this.attempt(async () => this.jobChanged(await this.api.cancel(job)));
  }

  async measure(): Promise<void> {
    const open = this.current;
    const version = open?.saver.head;
    if (!open || !version) return;
    const rows = await this.api.measure(open.record.id, version).catch(() => null);
    if (rows && this.current === open) {
      open.measures = rows;
      open.measured = version;
      this.changed();
    }
  }

  // --------------------------------------------------------------------------------------------------------------------- comparing
  async compare(a: string, b: string): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.attempt(async () => {
      const [rows, map] = await Promise.all([this.api.compare(open.record.id, a, b), this.api.compareMap(open.record.id, a, b).then(gunzip)]);
      if (this.current !== open) return;
      const shown = new Mask(open.grid, open.layout);
      shown.load(labelsOf(map, open.grid));
      shown.setSlots([1, 2, 3]);
      this.doubt = false;
      this.comparison = { a, b, rows };
      this.view.setShown({ bytes: shown.picture, colours: COMPARED });
      this.view.setOpacity(Math.max(0.5, this.settings.opacity));
      const when = [a, b].map((id) => new Date((open.record.versions.find((v) => v.id === id)?.at ?? 0) * 1000).toLocaleTimeString());
      this.notice({
        id: "compare",
        tone: "info",
        text: `Comparison. Amber: only in ${when[0]}. Blue: only in ${when[1]}. Green: in both.`,
        actions: [{ text: "End comparison", run: () => this.stopComparing() }],
      });
    });
    this.changed();
  }

  /** Whether some version began with a model's answer, whose uncertainty the server may have kept. */
  get mayDoubt(): boolean {
    return this.current?.record.versions.some((v) => v.origin.kind === "model") ?? false;
  }

  async showDoubt(): Promise<void> {
    const open = this.current;
    if (this.doubt) return this.stopComparing();
    if (!open?.saver.head) return;
    await this.attempt(async () => {
      const percent = labelsOf(await gunzip(await this.api.uncertainty(open.record.id, open.saver.head!)), open.grid);
      if (this.current !== open) return;
      this.stopComparing();
      const shown = new Mask(open.grid, open.layout);
      shown.load(percent.map((p) => (p < 5 ? 0 : Math.min(DOUBT.length, Math.ceil((p * DOUBT.length) / 100)))) as Voxels);
      shown.setSlots(DOUBT.map((_, n) => n + 1));
      this.doubt = true;
      this.view.setShown({ bytes: shown.picture, colours: DOUBT });
      this.view.setOpacity(Math.max(0.6, this.settings.opacity));
    });
    this.changed();
  }

  /** The mask again, after a comparison or the uncertainty. */
  stopComparing(): void {
    if (!this.comparison && !this.doubt) return;
    this.comparison = null;
    this.doubt = false;
    this.notices = this.notices.filter((n) => n.id !== "compare");
    this.view.setShown(null);
    this.view.setOpacity(this.visible ? this.settings.opacity : 0);
    this.changed();
  }

  // ----------------------------------------------------------------------------------------------------------------------- the view
  setTool(tool: Tool): void {
    this.tool = tool;
    this.view.nv.drawScene();
    this.changed();
  }

  setOpacity(opacity: number): void {
    this.keep({ opacity: Math.min(1, Math.max(0.05, opacity)) });
    this.visible = true;
    this.view.setOpacity(this.settings.opacity);
  }

  toggleVisible(): void {
    this.visible = !this.visible;
    this.view.setOpacity(this.visible ? this.settings.opacity : 0);
    this.changed();
  }

  setPlane(plane: Plane): void {
    this.view.setPlane(plane);
    this.keep({ plane });
  }

  cyclePlane(): void {
    if (this.current?.grid.dims === 3) this.setPlane(PLANES[(PLANES.indexOf(this.view.plane) + 1) % PLANES.length]);
  }

  setSmooth(smooth: boolean): void {
    this.view.setSmooth(smooth);
    this.keep({ smooth });
  }

  applyPreset(name: string): void {
    const window = windowOf(name, this.view.range);
    if (!window) return;
    this.view.setWindow(...window);
    this.windowChanged(name);
  }

  cyclePreset(): void {
    const names = this.presets;
    this.applyPreset(names[(names.indexOf(this.preset) + 1) % names.length] ?? "Auto");
  }

  get presets(): string[] {
    return presetsOf(this.view.range);
  }

  windowChanged(preset: string | null): void {
    this.preset = preset ?? "Own";
    this.changed();
  }

  // ---------------------------------------------------------------------------------------------------------- what the stage asks
  get ready(): boolean {
    return this.current !== null;
  }

  get radius(): number {
    return this.settings.radius;
  }

  get colour(): string {
    return this.active.color;
  }
}

/** Only the first version, only the second, both. */
export const COMPARED = ["#e9b44c", "#5aa9e6", "#5b8f6b"];

/** From a little unsure to wholly. */
const DOUBT = Array.from({ length: 20 }, (_, n) => {
  const t = n / 19;
  return `#${[60 + 195 * t, 30 + 190 * t * t, 120 * (1 - t) + 20].map((x) => Math.round(x).toString(16).padStart(2, "0")).join("")}`;
});
