import { describe, expect, it } from "vitest";
import { bodyOf, eachVoxel, gunzip, gzip, labelsOf } from "../src/codec";
import { gridOf, offsetOf } from "../src/geometry";
import { nifti } from "./nifti";

const VOLUME = gridOf({ shape: [3, 4, 5], affine: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] });
const PICTURE = gridOf({ shape: [3, 4], affine: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] });

/** numpy.packbits of the box's bits in C order, as serve/wire.packed does. */
async function packed(low: number[], size: number[], on: (at: number[]) => boolean) {
  const count = size.reduce((a, b) => a * b, 1);
  const bytes = new Uint8Array((count + 7) >> 3);
  for (let n = 0; n < count; n++) {
    const at: number[] = [];
    for (let rest = n, a = size.length - 1; a >= 0; a--) [at[a], rest] = [rest % size[a], Math.floor(rest / size[a])];
    if (on(at)) bytes[n >> 3] |= 0x80 >> (n & 7);
  }
  return { low, size, bits: Buffer.from(await gzip(bytes)).toString("base64") };
}

async function voxels(grid: typeof VOLUME, mask: { low: number[]; size: number[]; bits: string }) {
  const out: number[][] = [];
  await eachVoxel(grid, mask, (i, j, k) => out.push([i, j, k]));
  return out;
}

describe("packed masks", () => {
  it("are voxels of the box they lie in", async () => {
    const hook = [[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]];
    const mask = await packed([1, 1, 1], [2, 3, 4], (at) => hook.some((h) => h.every((x, a) => x === at[a])));
    expect(await voxels(VOLUME, mask)).toEqual(hook.map((h) => h.map((x) => x + 1)));
  });
  it("of pictures are rows and columns", async () => {
    const mask = await packed([1, 2], [2, 2], (at) => at[0] === 1 && at[1] === 0);
    expect(await voxels(PICTURE, mask)).toEqual([[2, 2, 0]]);
  });
  it("may be empty, and must fit", async () => {
    expect(await voxels(VOLUME, { low: [0, 0, 0], size: [0, 0, 0], bits: "" })).toEqual([]);
    expect(await voxels(PICTURE, { low: [0, 0], size: [0, 0], bits: "" })).toEqual([]);
    const mask = await packed([2, 0, 0], [2, 1, 1], () => true);
    await expect(voxels(VOLUME, mask)).rejects.toThrow("lie in the image");
    await expect(voxels(VOLUME, { ...mask, low: [0, 0, 0], size: [3, 4, 5] })).rejects.toThrow("complete");
  });
});

describe("label maps", () => {
  it("of volumes come in the file's order and leave in the array's", async () => {
    const file = new Uint16Array(60);
    file[2 + 3 * (1 + 4 * 3)] = 700; // i = 2, j = 1, k = 3
    const mask = labelsOf(nifti([3, 4, 5], 512, file), VOLUME);
    expect(mask).toBeInstanceOf(Uint16Array);
    expect([...mask].flatMap((v, n) => (v ? [n] : []))).toEqual([offsetOf(VOLUME, 2, 1, 3)]);
    const sent = await bodyOf(mask, VOLUME);
    expect(sent.headers).toEqual({ "X-Shape": "3,4,5", "X-Dtype": "uint16" });
    expect(new Uint16Array((await gunzip(sent.body)).buffer)).toEqual(mask);
  });
  it("of pictures are turned", async () => {
    const file = new Uint8Array(12);
    file[3 + 4 * 1] = 2; // column 3, row 1
    const mask = labelsOf(nifti([4, 3, 1], 2, file), PICTURE);
    expect(mask[offsetOf(PICTURE, 1, 3, 0)]).toBe(2);
    expect((await bodyOf(mask, PICTURE)).headers).toEqual({ "X-Shape": "3,4", "X-Dtype": "uint8" });
  });
  it("of another grid are refused", () => {
    expect(() => labelsOf(nifti([3, 4, 1], 2, new Uint8Array(12)), PICTURE)).toThrow("another size");
    expect(() => labelsOf(new Uint8Array(10), PICTURE)).toThrow("cannot be read");
  });
});
