// The page's state and what can be done with it. Panels read it and call it; it tells them with `changed` when to look again.

import { Api, ApiError, type Case, type Job, type Label, type Measure, type Model, type Project, type Prompt, type Status, type Summary } from "./api";
import { gunzip, labelsOf, type Voxels } from "./codec";
import { Events } from "./events";
import { boxPrompt, deepened, everyNth, gridOf, isLarge, layoutOf, offsetOf, sliceOf, toWorld, type Grid, type Layout, type Vec3 } from "./geometry";
import { Jobs } from "./jobs";
import { removed, saveLabels, type Wish } from "./labels";
import { brush, type Edit, History, Mask, polygon } from "./mask";
import { Overlay } from "./overlay";
import { Prompter, tryInstead } from "./prompter";
import { Provenance } from "./provenance";
import { Remote } from "./remote";
import { Saver } from "./saver";
import { Saving } from "./saving";
import { keepSettings, keptSettings, type Settings } from "./settings";
import type { Host, Place, Tool } from "./stage";
import { ANOTHER, Teller } from "./teller";
import { type Picture, PLANES, type Plane, View } from "./view";
import { presetsOf, windowOf } from "./windows";

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

export class App implements Host {
  readonly api = new Api();
  readonly view = new View(document.createElement("canvas"));
  readonly teller = new Teller(
    () => this.changed(),
    () => {
      void this.refresh();
      if (this.current?.saver.unsaved) void this.current.saver.flush();
    },
  );
  readonly jobs = new Jobs(this.api, this.teller, () => this.changed());
  readonly overlay = new Overlay(this);
  readonly remote = new Remote(this);
  readonly saving = new Saving(this);
  project!: Project;
  cases: Summary[] = [];
  current: Open | null = null;
  loading = "";
  label = 0; // value of the active label
  tool: Tool = "navigate";
  preset = "Auto";
  channel = "";
  visible = true;
  people: string[] = [];
  hoverText = "";
  lastAnswer = "";
  settings = keptSettings();
  /** Counts what the case list shows: cases and drafts. */
  stamp = 0;
  changed: () => void = () => undefined;
  /** Only the place under the pointer or the crosshair changed. */
  moved: () => void = () => undefined;
  private edit: Edit | null = null;
  private opening = 0;
  private rereads = 0;
  private polls = 0;
  private readonly events = new Events({
    user: () => this.settings.user,
    opened: () => void this.refresh(),
    lost: () => this.teller.setOnline(false),
    on: {
      job: (job: Job) => this.jobs.heard(job),
      presence: ({ users }: { users: string[] }) => {
        this.people = users;
        this.changed();
      },
      status: () => void this.refresh(),
      labels: () => void this.refresh(),
      version: ({ case: id, version, user }: { case: string; version: string; user: string }) => {
        void this.refresh();
        if (this.current?.record.id === id) setTimeout(() => this.remote.others(id, version, user), 800);
      },
    },
  });

  // --------------------------------------------------------------------------------------------------------------------- starting
  async start(): Promise<void> {
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
    await this.saving.start();
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
    keepSettings(this.settings);
    this.changed();
  }

  // ------------------------------------------------------------------------------------------------------------------------- events
  /** Who works here, as the others see it. */
  setUser(user: string): void {
    this.api.user = user;
    this.keep({ user });
    this.events.listen();
  }

  /** What no event may tell: whether the server is back, and how its jobs go. */
  private async poll(): Promise<void> {
    const { teller } = this;
    const patient = teller.signedOut && ++this.polls % 3 !== 0; // a server counts those who ask without a token
    if (!teller.online && !patient) await teller.attempt(async () => this.same(await this.api.project()));
    if (!teller.online) return;
    this.events.again();
    await this.jobs.poll();
  }

  /** Throws where another project is served at this address by now: nothing of this page belongs there. */
  same(project: Project): Project {
    if (project.id === this.project.id) return project;
    throw new ApiError(ANOTHER, "Another project is served at this address now. What is not saved is kept in this browser until this one is opened again.");
  }

  async refresh(): Promise<void> {
    await this.teller.attempt(async () => {
      const labels = JSON.stringify(this.project.labels);
      const [project, cases, jobs] = await Promise.all([this.api.project(), this.api.cases(), this.api.jobs()]);
      this.project = this.same(project);
      this.cases = cases;
      this.jobs.heardAll(jobs);
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
    await this.teller.attempt(async () => {
      const record = await this.api.case(open.record.id);
      if (this.current === open && turn === this.rereads) open.record = record;
    });
    this.changed();
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

  // -------------------------------------------------------------------------------------------------------------------------- cases
  async open(id: string): Promise<void> {
    const turn = ++this.opening;
    await this.leave();
    if (turn !== this.opening) return;
    this.loading = "Loading";
    this.teller.dismissCase();
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
        this.saving.draft(record),
      ]);
      if (turn !== this.opening) return;
      this.channel = channel;
      const mask = new Mask(grid, layout, this.project.labels.map((l) => l.value));
      if (saved) mask.load(labelsOf(saved, grid));
      this.show(picture, grid, layout, mask, this.preset);
      const origin = new Provenance();
      const saver = new Saver<Voxels>(this.saving.desk(record, grid, mask, origin), record.latest);
      this.current = { record, grid, layout, mask, saver, history: new History(), prompter: null, measures: [], measured: null, origin, mine: new Set() };
      this.loading = "";
      this.startPrompter();
      if (draft) this.saving.offer(draft);
      void this.measure();
    } catch (error) {
      if (turn !== this.opening) return;
      this.loading = "";
      this.view.clear();
      this.teller.notice({
        id: "open",
        tone: "bad",
        text: `This case cannot be shown. ${(error as Error).message}`,
        actions: [{ text: "Try again", run: () => void this.open(id) }],
      });
      if (error instanceof ApiError && [0, 401].includes(error.status)) this.teller.wrong(error);
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
      this.view.setOpacity(this.opacity);
      this.view.setSmooth(this.settings.smooth);
    });
    if (mask) this.preset = name;
  }

  /** Another image of the same case under the same mask. */
  async setChannel(channel: string): Promise<void> {
    const open = this.current;
    if (!open || channel === this.channel) return;
    this.overlay.stop();
    await this.teller.attempt(async () => {
      const picture = await this.picture(open.record.id, channel, open.grid, open.layout);
      if (this.current !== open) return;
      const place = this.view.place;
      this.channel = channel;
      this.show(picture, open.grid, open.layout, open.mask, "Auto");
      this.view.place = place;
    });
    this.changed();
  }

  /** Save and put away what is open. */
  private async leave(): Promise<void> {
    const open = this.current;
    if (!open) return;
    this.overlay.stop();
    this.strokeEnd();
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
    await this.teller.attempt(async () => {
      await this.current?.saver.flush();
      const { case: id } = await this.api.next(this.settings.strategy);
      if (!id) this.teller.say("Every case is done.");
      else if (id === this.current?.record.id) this.teller.say("This is the case to do next. Mark it done to go on.");
      else await this.open(id);
    });
  }

  async setStatus(status: Status): Promise<void> {
    const open = this.current;
    if (!open) return;
    await this.teller.attempt(async () => {
      await open.saver.flush();
      await this.api.status(open.record.id, status);
      await this.reread();
      await this.refresh();
    });
  }

  async comment(text: string): Promise<void> {
    const open = this.current;
    if (!open || !text.trim()) return;
    await this.teller.attempt(async () => {
      await this.api.comment(open.record.id, text);
      await this.reread();
    });
  }

  // ------------------------------------------------------------------------------------------------------------------------- labels
  /** What is wished is done to the table of labels, also where somebody else changed it meanwhile. */
  async setLabels(wish: Wish): Promise<boolean> {
    const saved = await this.teller.attempt(() => saveLabels(this.api, this.project, wish));
    if (saved) {
      Object.assign(this.project, saved.table);
      this.showLabels();
      if (saved.theirs) this.teller.say(saved.kept ? "Someone else changed the labels too: you see their table with your change in it." : "Someone else changed the labels: you see their table, with which your change clashes.", !saved.kept);
    }
    this.changed();
    return saved?.kept ?? false;
  }

  /** A label that nothing was drawn with. */
  async removeLabel(label: Label): Promise<void> {
    if (this.current?.mask.voxels.includes(label.value)) this.teller.say(`${label.name} is drawn in this case: rename it, or erase it first.`, true);
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
    this.overlay.stop();
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
    this.overlay.stop();
    if (open.history.undo(open.mask)) this.touched();
    else this.teller.say("There is nothing to take back.");
  }

  redo(): void {
    const open = this.current;
    if (!open || this.edit) return;
    if (open.history.redo(open.mask)) this.touched();
    else this.teller.say("There is nothing to do again.");
  }

  stroke(place: Place, from: Vec3, to: Vec3, erase: boolean, first: boolean): void {
    const open = this.current;
    if (!open) return;
    if (first) {
      this.overlay.stop();
      this.edit = open.mask.begin(this.settings.keepOthers);
      open.prompter?.finish();
    }
    const edit = this.edit;
    if (!edit) return;
    brush(open.grid, place.axis, place.index, from, to, this.settings.radius, (i, j, k) => (erase ? edit.clear(i, j, k, this.label) : edit.set(i, j, k, this.label)));
    this.view.refresh();
  }

  strokeEnd(): void {
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
        if (open.prompter?.state === "failed") this.teller.say(open.prompter.error || "The model could not be prepared.", true);
        this.changed();
      };
      void open.prompter.warm(this.shownSlice());
    }
    this.changed();
  }

  /** The window that models of slices look through: the person's, unless that is the usual one. */
  get ownWindow(): [number, number] | null {
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
      this.teller.say("Choose a model that takes prompts, or draw with the brush.", true);
      return;
    }
    if (!prompter.takes(prompt.kind)) {
      this.teller.say(`${prompter.model} does not understand a ${prompt.kind}.`, true);
      return;
    }
    this.overlay.stop();
    this.lastAnswer = "...";
    this.changed();
    try {
      const outcome = await prompter.ask(prompt, place, { mask: open.mask, history: open.history, value: this.label, label: this.active.name, keepOthers: this.settings.keepOthers });
      if (!outcome || this.current !== open) return;
      this.teller.setOnline(true);
      open.origin.prompted(prompter.model, outcome.session);
      this.lastAnswer = `${Math.round(outcome.seen)} ms${outcome.quality === null || !outcome.voxels ? "" : `, sure to ${Math.round(100 * outcome.quality)} %`}`;
      const notes = outcome.notes.join("; ");
      if (!outcome.voxels) this.teller.say(notes ? `The model found nothing: ${notes}.` : tryInstead(prompter.kinds, prompter.target?.prompts ?? []));
      else if (notes) this.teller.say(`The model says: ${notes}.`);
      this.touched();
    } catch (error) {
      this.lastAnswer = "";
      this.teller.wrong(error);
    }
    this.changed();
  }

  marks(): readonly Prompt[] {
    return this.overlay.on ? [] : (this.current?.prompter?.target?.prompts ?? []);
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
    this.teller.say("The next prompt begins another object.");
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

  /** Of the mask, as it is shown. */
  get opacity(): number {
    return this.visible ? this.settings.opacity : 0;
  }

  toggleVisible(): void {
    this.visible = !this.visible;
    this.view.setOpacity(this.opacity);
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
