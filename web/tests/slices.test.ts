import { expect, it } from "vitest";
import { gridOf, layoutOf, type Vec3 } from "../src/geometry";
import { Mask } from "../src/mask";
import { axisToFill, sliceToCarry, slicesWith } from "../src/slices";

const GRID = gridOf({ shape: [6, 7, 9], affine: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]] });

/** Label 2 in a rectangle of slices `at` across the last axis, and label 1 where it is not looked for. */
function drawn(...at: number[]): Uint8Array[] {
  const mask = new Mask(GRID, layoutOf(GRID));
  const edit = mask.begin();
  for (const k of at) for (let i = 1; i < 4; i++) for (let j = 2; j < 6; j++) edit.set(i, j, k, 2);
  edit.set(5, 0, 8, 1);
  return slicesWith(mask, 2);
}

it("sees in which slices a label is, and in no others", () => {
  expect(drawn(3, 6).map((seen) => [...seen].join(""))).toEqual(["011100", "0011110", "000100100"]);
});

it("fills along the axis with most slices between the drawn ones", () => {
  expect(axisToFill(drawn(3, 6))).toBe(2);
  expect([drawn(), drawn(3), drawn(3, 4, 5)].map(axisToFill)).toEqual([null, null, null]);
  expect(axisToFill(["101", "1001", "111"].map((s) => Uint8Array.from(s, Number)))).toBe(1);
});

it("carries on across the axis with fewest drawn slices, from the one that is shown or lies nearest", () => {
  const from = (place: Vec3, ...at: number[]) => sliceToCarry(drawn(...at), place);
  expect([from([0, 0, 6], 3, 6), from([0, 0, 8], 3, 6), from([0, 0, 4], 3, 6)]).toEqual([6, 6, 3].map((index) => ({ axis: 2, index })));
  expect(from([5, 0, 0], 1, 2, 3, 4)).toEqual({ axis: 0, index: 3 });
  expect(from([0, 0, 0])).toBeNull();
});
