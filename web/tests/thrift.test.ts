import { describe, expect, it } from "vitest";
import { colours } from "../src/thrift";

const table = Uint32Array.from({ length: 256 }, (_, n) => 1000 + n);
const image = {
  img: Int16Array.from([-2000, -101, -100, -99, 0, 60, 99, 3000]),
  hdr: { scl_slope: 2, scl_inter: 40 },
  dimsRAS: [3, 2, 1, 4],
  img2RASstart: [4, 0, 3],
  img2RASstep: [-4, 8, -1], // the file's second axis is shown first, its first one last, both reversed
  cal_min: -160,
  cal_max: 240,
};

describe("colours of a grey image", () => {
  it("are the window's, of scaled values, in the order they are shown", () => {
    const out = new Uint32Array(8);
    colours(image, table, 0, 4, out);
    const shade = (raw: number) => ((raw * 2 + 40 + 160) / 400) * 256;
    expect([...out]).toEqual([3000, -99, 99, -100, 60, -101, 0, -2000].map((raw) => 1000 + (shade(raw) <= 0 ? 0 : Math.min(255, Math.max(2, Math.floor(shade(raw)))))));
  });

  it("come slab by slab, and are there for values that are none", () => {
    const out = new Uint32Array(4);
    colours({ ...image, img: Float32Array.from(image.img, (v, n) => (n === 1 ? NaN : v)) }, table, 2, 4, out);
    expect([...out]).toEqual([1000 + 204, 1000, 1000 + 128, 1000]);
  });

  it("do not fail where all is one value", () => {
    const out = new Uint32Array(8);
    colours({ ...image, cal_min: 40, cal_max: 40 }, table, 0, 4, out);
    expect(out[0]).toBe(1255);
    expect(out[6]).toBe(1000);
  });
});
