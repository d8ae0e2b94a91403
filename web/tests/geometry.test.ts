import { NVImage } from "@niivue/niivue";
import { describe, expect, it } from "vitest";
import * as g from "../src/geometry";

const imageOf = NVImage.new.bind(NVImage) as unknown as (file: ArrayBuffer, name: string) => Promise<NVImage>;

const turn = (degrees: number) => {
  const [c, s] = [Math.cos((degrees * Math.PI) / 180), Math.sin((degrees * Math.PI) / 180)];
  return { z: [[c, -s, 0], [s, c, 0], [0, 0, 1]], x: [[1, 0, 0], [0, c, -s], [0, s, c]] };
};
const times = (a: number[][], b: number[][]) => a.map((row) => b[0].map((_, c) => row.reduce((sum, x, k) => sum + x * b[k][c], 0)));
const affineOf = (m: number[][], at: number[]) => [...m.map((row, r) => [...row, at[r]]), [0, 0, 0, 1]];
const diagonal = (a: number, b: number, c: number) => [[a, 0, 0], [0, b, 0], [0, 0, c]];

const SHAPE = [5, 7, 4];
const AFFINES: Record<string, number[][]> = {
  RAS: affineOf(diagonal(1, 2, 3), [10, -20, 30]),
  LPS: affineOf(diagonal(-1.5, -1.5, 3), [10, 20, -30]),
  "sagittal, head first": affineOf([[0, 0, 2], [-1, 0, 0], [0, -1, 0]], [5, 6, 7]),
  oblique: affineOf(times(turn(25).z, diagonal(-1, 1.5, 2)), [1, 2, 3]),
  "oblique twice": affineOf(times(times(turn(20).x, turn(35).z), diagonal(1, 1, -4)), [-9, 4, 0]),
};

/** An object without symmetry: a hook of voxels. */
const HOOK: g.Vec3[] = [[1, 1, 0], [2, 1, 0], [3, 1, 0], [3, 2, 0], [3, 3, 1]];

/** The case's file as the server writes it (serve/wire.py): NIfTI-1, label voxels of HOOK. */
function nifti(grid: g.Grid): ArrayBuffer {
  const { affine, from } = g.shownAffine(grid);
  const sides = from.map((a) => grid.shape[a]);
  const file = new ArrayBuffer(352 + sides[0] * sides[1] * sides[2]);
  const head = new DataView(file);
  head.setInt32(0, 348, true);
  [3, ...sides, 1, 1, 1, 1].forEach((n, k) => head.setInt16(40 + 2 * k, n, true));
  head.setInt16(70, 2, true);
  head.setInt16(72, 8, true);
  const mm = [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]));
  [1, ...mm, 1, 1, 1, 1].forEach((x, k) => head.setFloat32(76 + 4 * k, x, true));
  head.setFloat32(108, 352, true);
  head.setFloat32(112, 1, true);
  head.setUint8(123, 2);
  head.setInt16(254, 1, true);
  affine.forEach((row, r) => row.forEach((x, c) => head.setFloat32(280 + 16 * r + 4 * c, x, true)));
  [0x6e, 0x2b, 0x31, 0].forEach((x, k) => head.setUint8(344 + k, x));
  const voxels = new Uint8Array(file, 352);
  for (const index of HOOK) {
    if (grid.dims === 2 && index[2]) continue;
    const [x, y, z] = from.map((a) => index[a]);
    voxels[x + sides[0] * (y + sides[1] * z)] = 1;
  }
  return file;
}

const grids = [
  ...Object.entries(AFFINES).map(([name, affine]) => ({ name, grid: g.gridOf({ shape: SHAPE, affine }) })),
  { name: "a picture", grid: g.gridOf({ shape: [5, 7], affine: [[0.5, 0, 3], [0, 0.25, -2], [0, 0, 1]] }) },
];

describe.each(grids)("$name", ({ grid }) => {
  const layout = g.layoutOf(grid);
  const close = (a: ArrayLike<number>, b: ArrayLike<number>, digits = 4) => Array.from(a).forEach((x, n) => expect(x).toBeCloseTo(b[n], digits));

  it("goes to the world and back, by the affine", () => {
    for (const index of HOOK) {
      const at: g.Vec3 = grid.dims === 2 ? [index[0], index[1], 0] : index;
      const world = g.toWorld(grid, at);
      expect(world).toHaveLength(grid.dims);
      close(g.toIndex(grid, world), at, 9);
      close(world, grid.affine.slice(0, grid.dims).map((row) => row.slice(0, -1).reduce((sum, x, c) => sum + x * at[c], row[grid.dims])), 9);
    }
  });

  it("has the axes that NiiVue shows", async () => {
    const image = await imageOf(nifti(grid), "mask.nii");
    const { from } = g.shownAffine(grid);
    expect(layout.axis).toEqual(image.permRAS!.map((p) => from[Math.abs(p) - 1]));
    expect(layout.flip).toEqual(image.permRAS!.map((p) => p < 0));
    expect([...layout.sides]).toEqual(Array.from(image.dimsRAS!).slice(1, 4));
    // every voxel of the object is where NiiVue reads it from, and its world place is NiiVue's
    for (const index of HOOK.filter((v) => grid.dims === 3 || !v[2])) {
      const display = g.toDisplay(layout, index);
      const file = [0, 1, 2].reduce((sum, d) => sum + image.img2RASstart![d] + display[d] * image.img2RASstep![d], 0);
      expect(image.img![file]).toBe(1);
      close(g.toFraction(layout, index), image.convertVox2Frac(display), 5);
      const mm = image.convertFrac2MM(new Float32Array(g.toFraction(layout, index)), true);
      const world = g.toWorld(grid, index);
      close(grid.dims === 3 ? world : [world[1], -world[0]], mm, 3);
    }
  });

  it("walks through the drawing bitmap as it is displayed", () => {
    const { start, step } = g.displaySteps(layout);
    const seen = new Set<number>();
    for (let i = 0; i < grid.shape[0]; i++)
      for (let j = 0; j < grid.shape[1]; j++)
        for (let k = 0; k < grid.shape[2]; k++) {
          const [x, y, z] = g.toDisplay(layout, [i, j, k]);
          const at = start + i * step[0] + j * step[1] + k * step[2];
          expect(at).toBe(x + layout.sides[0] * (y + layout.sides[1] * z));
          seen.add(at);
        }
    expect(seen.size).toBe(grid.shape[0] * grid.shape[1] * grid.shape[2]);
  });

  it.each([0, 1, 2] as const)("goes to the screen and back in the slice across display axis %i", (across) => {
    // as in radiology: what is right in the world is left on the screen; up is up
    const [p, q] = [0, 1, 2].filter((d) => d !== across);
    const at = (x: number, y: number) => {
      const f: g.Vec3 = [0, 0, 0];
      f[across] = (1 + 0.5) / layout.sides[across];
      f[p] = 1 - (x - 100) / 300;
      f[q] = 1 - (y - 50) / 200;
      return f;
    };
    const tile = g.tileOf(across, [100, 50, 300, 200], [150, 80], 100, 50, [at(150, 80), at(250, 80), at(150, 130)]);
    const wide = layout.sides[across] > 1;
    expect(g.sliceOf(tile, layout)).toEqual({ axis: layout.axis[across], index: wide ? (layout.flip[across] ? layout.sides[across] - 2 : 1) : 0 });
    const index = g.screenToIndex(tile, layout, 212, 119);
    close(g.indexToScreen(tile, layout, index), [212, 119], 6);
    close(g.toFraction(layout, index), at(212, 119), 6);
  });

  it("sends the box whose corners, seen in the image, are those that were drawn", () => {
    const seen = ({ low, high }: { low: number[]; high: number[] }) => {
      const corners = Array.from({ length: 1 << grid.dims }, (_, n) => g.toIndex(grid, low.map((x, w) => (n & (1 << w) ? high[w] : x))));
      return [0, 1].map((d) => [Math.min(...corners.map((c) => c[d])), Math.max(...corners.map((c) => c[d]))]);
    };
    const drawn = [[0.5, 3.4], [0.6, 2.5]];
    seen(g.boxPrompt(grid, [3.4, 0.6, 0], [0.5, 2.5, 0])).forEach((ends, d) => ends.forEach((x, n) => expect(Math.abs(x - drawn[d][n])).toBeLessThan(name(grid) === "steep" ? 0.15 : 1e-6)));
    if (name(grid) !== "steep") close(seen(g.boxPrompt(grid, [-9, -9, 0], [99, 99, 0])).flat(), [-0.5, 4.5, -0.5, 6.5], 6);
    const { low, high } = g.boxPrompt(grid, [3.4, 0.6, 0], [0.5, 2.5, 0]);
    low.forEach((x, w) => expect(x).toBeLessThanOrEqual(high[w]));
  });
});

/** Turned so far that no box along the world's axes has every drawn shape. */
const name = (grid: g.Grid) => (grid.affine === AFFINES["oblique twice"] ? "steep" : "");

it("makes a box as deep as it is wide for models of volumes", () => {
  const grid = g.gridOf({ shape: [20, 20, 20], affine: affineOf(diagonal(1, 1, 2), [0, 0, 0]) });
  expect(g.deepened(grid, 2, [2, 4, 9], [10, 12, 9])).toEqual([[2, 4, 7], [10, 12, 11]]);
});
