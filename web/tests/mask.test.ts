import { describe, expect, it } from "vitest";
import { gridOf, layoutOf, offsetOf, toDisplay, type Vec3 } from "../src/geometry";
import { brush, type Edit, History, Mask, polygon } from "../src/mask";

const LPS = gridOf({ shape: [6, 7, 5], affine: [[-2, 0, 0, 0], [0, -2, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]] });

function fresh(): Mask {
  const mask = new Mask(LPS, layoutOf(LPS));
  mask.setSlots([3, 7]);
  mask.takeDirty();
  return mask;
}

function step(mask: Mask, history: History, work: (edit: Edit) => void, keepOthers = false): void {
  const edit = mask.begin(keepOthers);
  work(edit);
  const change = edit.end();
  if (change) history.add({ change });
}

const at = (mask: Mask, i: number, j: number, k: number) => mask.voxels[offsetOf(LPS, i, j, k)];

describe("a mask", () => {
  it("is shown where NiiVue shows its voxels, and only what changed is sent", () => {
    const mask = fresh();
    const edit = mask.begin();
    edit.set(1, 2, 3, 7);
    edit.set(2, 2, 3, 3);
    const [x, y, z] = toDisplay(mask.layout, [1, 2, 3]);
    expect([x, y, z]).toEqual([4, 4, 3]);
    expect(mask.picture[x + 6 * (y + 7 * z)]).toBe(2);
    expect(mask.takeDirty()).toEqual({ low: [3, 4, 3], high: [4, 4, 3] });
    expect(mask.takeDirty()).toBeNull();
  });

  it("is not replaced by one of another image", () => {
    const [mask, history] = [fresh(), new History()];
    step(mask, history, (e) => e.set(1, 1, 1, 3));
    expect(() => step(mask, history, (e) => e.replace(new Uint8Array(mask.voxels.length - 1)))).toThrow("another size");
    expect(at(mask, 1, 1, 1)).toBe(3);
  });

  it("goes back and comes again, also over voxels that were drawn twice", () => {
    const [mask, history] = [fresh(), new History()];
    step(mask, history, (e) => (e.set(1, 1, 1, 3), e.set(1, 1, 1, 7), e.set(0, 0, 0, 3)));
    step(mask, history, (e) => e.clear(1, 1, 1, 7));
    expect(at(mask, 1, 1, 1)).toBe(0);
    expect(history.undo(mask)).toBe(true);
    expect([at(mask, 1, 1, 1), at(mask, 0, 0, 0)]).toEqual([7, 3]);
    history.undo(mask);
    expect(mask.voxels.every((v) => v === 0)).toBe(true);
    expect(mask.picture.every((v) => v === 0)).toBe(true);
    expect(history.undo(mask)).toBe(false);
    history.redo(mask);
    history.redo(mask);
    expect([at(mask, 1, 1, 1), at(mask, 0, 0, 0)]).toEqual([0, 3]);
    step(mask, history, (e) => e.set(5, 5, 4, 3));
    expect(history.canRedo).toBe(false);
  });

  it("keeps other labels where it is asked to", () => {
    const [mask, history] = [fresh(), new History()];
    step(mask, history, (e) => e.set(1, 1, 1, 3));
    step(mask, history, (e) => (e.set(1, 1, 1, 7), e.set(1, 1, 2, 7)), true);
    expect([at(mask, 1, 1, 1), at(mask, 1, 1, 2)]).toEqual([3, 7]);
    step(mask, history, (e) => (e.clear(1, 1, 1, 7), e.clear(1, 1, 2, 7)), true);
    expect([at(mask, 1, 1, 1), at(mask, 1, 1, 2)]).toEqual([3, 0]);
  });

  it("withdraws an answer for a better one, but not what was drawn over it", () => {
    const [mask, history] = [fresh(), new History()];
    step(mask, history, (e) => e.set(0, 0, 0, 3));
    const first = mask.begin();
    for (const i of [0, 1, 2]) first.set(i, 0, 0, 7);
    const answer = first.end()!;
    history.add({ change: answer });
    step(mask, history, (e) => e.set(2, 0, 0, 3));
    step(mask, history, (e) => (e.withdraw(answer), e.set(3, 0, 0, 7)));
    expect([0, 1, 2, 3].map((i) => at(mask, i, 0, 0))).toEqual([3, 0, 3, 7]);
    history.undo(mask);
    expect([0, 1, 2, 3].map((i) => at(mask, i, 0, 0))).toEqual([7, 7, 3, 0]);
  });

  it("widens for large values and takes whole masks as one step", () => {
    const [mask, history] = [fresh(), new History()];
    const other = new Uint16Array(210);
    other[17] = 700;
    step(mask, history, (e) => e.replace(other));
    expect(mask.voxels).toBeInstanceOf(Uint16Array);
    expect(mask.voxels[17]).toBe(700);
    history.undo(mask);
    expect(mask.voxels[17]).toBe(0);
    expect(() => mask.load(new Uint8Array(3))).toThrow();
  });

  it("forgets the oldest steps when there are too many voxels in them", () => {
    const [mask, history] = [fresh(), new History(500)];
    for (const value of [1, 2, 3, 4, 5]) step(mask, history, (e) => e.replace(new Uint8Array(210).fill(value)));
    let steps = 0;
    while (history.undo(mask)) steps++;
    expect(steps).toBe(3);
    expect(mask.voxels[0]).toBe(2);
  });
});

describe("the brush", () => {
  const drawn = (axis: 0 | 1 | 2, index: number, p: Vec3, q: Vec3, mm: number) => {
    const out: string[] = [];
    brush(LPS, axis, index, p, q, mm, (i, j, k) => out.push(`${i}${j}${k}`));
    return out.sort();
  };
  it("is round in mm, not in voxels", () => {
    expect(drawn(2, 1, [2, 3, 1], [2, 3, 1], 2)).toEqual(["131", "221", "231", "241", "331"]);
    expect(drawn(1, 3, [2, 3, 2], [2, 3, 2], 4)).toEqual(["032", "132", "231", "232", "233", "332", "432"]);
  });
  it("draws lines without gaps, and at least the voxel under it", () => {
    const line = drawn(2, 0, [0, 0, 0], [5, 6, 0], 0.1);
    expect(line.length).toBeGreaterThanOrEqual(6);
    expect(drawn(2, 0, [1.4, 2.4, 0], [1.4, 2.4, 0], 0.1)).toEqual(["120"]);
    expect(drawn(2, 0, [-9, -9, 0], [-9, -9, 0], 3)).toEqual([]);
  });
});

it("outlines are filled where centres lie inside", () => {
  const out: string[] = [];
  polygon(LPS, 0, 4, [[4, 0.5, 0.5], [4, 3.5, 0.5], [4, 3.5, 2.5], [4, 2.5, 2.5], [4, 2.5, 1.5], [4, 0.5, 1.5]], (i, j, k) => out.push(`${i}${j}${k}`));
  expect(out.sort()).toEqual(["411", "421", "431", "432"]);
});
