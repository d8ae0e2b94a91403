// The case's mask: label values on the case's own grid, the bitmap NiiVue shows of it, and edits that can be taken back.

import type { Voxels } from "./codec";
import { displaySteps, inPlane, offsetOf, type Axis, type Grid, type Layout, type Vec3 } from "./geometry";

/** Voxels that an edit changed, in the order it changed them. */
export interface Change {
  readonly at: Uint32Array;
  readonly before: Uint16Array;
  readonly after: Uint16Array;
}

/** Display voxels low..high (inclusive) whose picture changed. */
export interface Dirty {
  low: Vec3;
  high: Vec3;
}

/** `values`: as of `setSlots`. */
export class Mask {
  voxels: Voxels;
  /** One byte a display voxel: the colour slot of its label. */
  readonly picture: Uint8Array<ArrayBuffer>;
  readonly steps: { start: number; step: Vec3 };
  private slots = new Uint8Array(65536);
  private dirty: Dirty | null = null;

  constructor(
    readonly grid: Grid,
    readonly layout: Layout,
    values: readonly number[] = [],
  ) {
    const count = grid.shape[0] * grid.shape[1] * grid.shape[2];
    this.voxels = new Uint8Array(count);
    this.picture = new Uint8Array(count);
    this.steps = displaySteps(layout);
    this.assign(values);
  }

  /** Label values in the order of their colour slots, which start at 1; what has no slot is shown in the last one. */
  setSlots(values: readonly number[]): void {
    this.assign(values);
    this.repaint();
  }

  private assign(values: readonly number[]): void {
    this.slots.fill(255, 1);
    values.slice(0, 254).forEach((value, n) => (this.slots[value] = n + 1));
  }

  /** All voxels anew, without a change that could be taken back. */
  load(voxels: Voxels): void {
    if (voxels.length !== this.voxels.length) throw new Error("a mask of another size");
    this.voxels = voxels;
    this.repaint();
  }

  private repaint(): void {
    const [a, b, c] = this.grid.shape;
    const { start, step } = this.steps;
    this.picture.fill(0);
    for (let i = 0, n = 0; i < a; i++)
      for (let j = 0; j < b; j++)
        for (let k = 0, at = start + i * step[0] + j * step[1]; k < c; k++, n++, at += step[2]) {
          const value = this.voxels[n];
          if (value) this.picture[at] = this.slots[value]; // most is background, and the picture's order is another
        }
    this.dirty = { low: [0, 0, 0], high: this.layout.sides.map((s) => s - 1) as Vec3 };
  }

  /** What was touched since the last call, for the screen. */
  takeDirty(): Dirty | null {
    const dirty = this.dirty;
    this.dirty = null;
    return dirty;
  }

  put(i: number, j: number, k: number, n: number, value: number): void {
    if (value > 255 && this.voxels instanceof Uint8Array) this.voxels = new Uint16Array(this.voxels);
    this.voxels[n] = value;
    const { start, step } = this.steps;
    this.picture[start + i * step[0] + j * step[1] + k * step[2]] = this.slots[value];
    const { axis, flip, sides } = this.layout;
    const d = (this.dirty ??= { low: [Infinity, Infinity, Infinity], high: [-1, -1, -1] });
    for (let a = 0; a < 3; a++) {
      const x = axis[a] === 0 ? i : axis[a] === 1 ? j : k;
      const at = flip[a] ? sides[a] - 1 - x : x;
      if (at < d.low[a]) d.low[a] = at;
      if (at > d.high[a]) d.high[a] = at;
    }
  }

  /** Take a change back, or make it again. */
  apply(change: Change, back: boolean): void {
    const [, b, c] = this.grid.shape;
    const values = back ? change.before : change.after;
    for (let m = 0; m < change.at.length; m++) {
      const n = back ? change.at.length - 1 - m : m;
      const at = change.at[n];
      this.put(Math.floor(at / (b * c)), Math.floor(at / c) % b, at % c, at, values[n]);
    }
  }

  begin(keepOthers = false): Edit {
    return new Edit(this, keepOthers);
  }
}

/** One stroke, answer or replacement in the making. With `keepOthers`, voxels of other labels than the one drawn stay. */
export class Edit {
  private at = new Uint32Array(1024);
  private before = new Uint16Array(1024);
  private after = new Uint16Array(1024);
  private size = 0;

  constructor(
    private readonly mask: Mask,
    private readonly keepOthers: boolean,
  ) {}

  set(i: number, j: number, k: number, value: number): void {
    const n = offsetOf(this.mask.grid, i, j, k);
    const old = this.mask.voxels[n];
    if (old === value || (this.keepOthers && value !== 0 && old !== 0)) return;
    this.record(i, j, k, n, old, value);
  }

  /** Remove a label; others stay where `keepOthers`. */
  clear(i: number, j: number, k: number, label: number): void {
    const n = offsetOf(this.mask.grid, i, j, k);
    const old = this.mask.voxels[n];
    if (old === 0 || (this.keepOthers && old !== label)) return;
    this.record(i, j, k, n, old, 0);
  }

  private record(i: number, j: number, k: number, n: number, old: number, value: number): void {
    if (this.size === this.at.length) {
      for (const name of ["at", "before", "after"] as const) {
        const grown = name === "at" ? new Uint32Array(2 * this.size) : new Uint16Array(2 * this.size);
        grown.set(this[name]);
        (this[name] as Uint32Array | Uint16Array) = grown;
      }
    }
    this.at[this.size] = n;
    this.before[this.size] = old;
    this.after[this.size++] = value;
    this.mask.put(i, j, k, n, value);
  }

  /** Undo an earlier change within this one, where nothing was drawn over it since. */
  withdraw(change: Change): void {
    const [, b, c] = this.mask.grid.shape;
    for (let n = change.at.length - 1; n >= 0; n--) {
      const at = change.at[n];
      if (this.mask.voxels[at] !== change.after[n]) continue;
      if (change.before[n] !== change.after[n]) this.record(Math.floor(at / (b * c)), Math.floor(at / c) % b, at % c, at, change.after[n], change.before[n]);
    }
  }

  /** All voxels anew. Throws, and changes nothing, where they are of another image. */
  replace(voxels: ArrayLike<number>): void {
    if (voxels.length !== this.mask.voxels.length) throw new Error("This mask was drawn on an image of another size.");
    const [a, b, c] = this.mask.grid.shape;
    for (let i = 0, n = 0; i < a; i++)
      for (let j = 0; j < b; j++) for (let k = 0; k < c; k++, n++) if (this.mask.voxels[n] !== voxels[n]) this.record(i, j, k, n, this.mask.voxels[n], voxels[n]);
  }

  /** The part of this edit from `start` on, to withdraw later; `length` says where it is now. */
  slice(start: number): Change {
    return { at: this.at.slice(start, this.size), before: this.before.slice(start, this.size), after: this.after.slice(start, this.size) };
  }

  get length(): number {
    return this.size;
  }

  end(): Change | null {
    return this.size ? this.slice(0) : null;
  }
}

/** Voxels of slice `index` across `axis` within `radius` mm of the line from p to q (index coordinates), and those the line runs through. */
export function brush(grid: Grid, axis: Axis, index: number, p: Readonly<Vec3>, q: Readonly<Vec3>, radius: number, each: (i: number, j: number, k: number) => void): void {
  const [u, v] = inPlane(axis);
  const [su, sv] = [grid.spacing[u], grid.spacing[v]];
  const span = (a: Axis, s: number) => [Math.max(0, Math.ceil(Math.min(p[a], q[a]) - radius / s - 0.5)), Math.min(grid.shape[a] - 1, Math.floor(Math.max(p[a], q[a]) + radius / s + 0.5))];
  const [u0, u1] = span(u, su);
  const [v0, v1] = span(v, sv);
  const [du, dv] = [(q[u] - p[u]) * su, (q[v] - p[v]) * sv];
  const length = du * du + dv * dv;
  const at: Vec3 = [0, 0, 0];
  at[axis] = index;
  for (let a = u0; a <= u1; a++)
    for (let b = v0; b <= v1; b++) {
      const [x, y] = [(a - p[u]) * su, (b - p[v]) * sv];
      const t = length ? Math.min(1, Math.max(0, (x * du + y * dv) / length)) : 0;
      const [dx, dy] = [Math.abs(x - t * du), Math.abs(y - t * dv)];
      if (Math.hypot(dx, dy) <= radius || (dx <= su / 2 && dy <= sv / 2)) {
        at[u] = a;
        at[v] = b;
        each(at[0], at[1], at[2]);
      }
    }
}

/** Voxels of a slice whose centres lie inside a closed outline (even-odd). */
export function polygon(grid: Grid, axis: Axis, index: number, outline: readonly Readonly<Vec3>[], each: (i: number, j: number, k: number) => void): void {
  const [u, v] = inPlane(axis);
  const at: Vec3 = [0, 0, 0];
  at[axis] = index;
  for (let a = 0; a < grid.shape[u]; a++) {
    const cuts: number[] = [];
    outline.forEach((p, n) => {
      const q = outline[(n + 1) % outline.length];
      if (p[u] <= a !== q[u] <= a) cuts.push(p[v] + ((a - p[u]) / (q[u] - p[u])) * (q[v] - p[v]));
    });
    cuts.sort((x, y) => x - y);
    for (let c = 0; c + 1 < cuts.length; c += 2)
      for (let b = Math.max(0, Math.ceil(cuts[c])); b <= Math.min(grid.shape[v] - 1, Math.floor(cuts[c + 1])); b++) {
        at[u] = a;
        at[v] = b;
        each(at[0], at[1], at[2]);
      }
  }
}

export interface Step {
  readonly change: Change;
  /** What else goes back and comes again with it: the session's own history. */
  readonly back?: () => void;
  readonly again?: () => void;
}

const MOST_VOXELS = 40e6; // of changes that are kept

/** What can be taken back; the oldest steps are forgotten when there are too many voxels in it. */
export class History {
  private steps: Step[] = [];
  private at = 0;

  constructor(private readonly most = MOST_VOXELS) {}

  add(step: Step): void {
    this.steps.splice(this.at, Infinity, step);
    let sum = 0;
    let from = this.steps.length - 1;
    while (from > 0 && (sum += this.steps[from].change.at.length) < this.most) from--;
    if (sum >= this.most) this.steps.splice(0, from);
    this.at = this.steps.length;
  }

  undo(mask: Mask): boolean {
    if (!this.at) return false;
    const step = this.steps[--this.at];
    mask.apply(step.change, true);
    step.back?.();
    return true;
  }

  redo(mask: Mask): boolean {
    if (this.at === this.steps.length) return false;
    const step = this.steps[this.at++];
    mask.apply(step.change, false);
    step.again?.();
    return true;
  }

  get canUndo(): boolean {
    return this.at > 0;
  }

  get canRedo(): boolean {
    return this.at < this.steps.length;
  }
}
