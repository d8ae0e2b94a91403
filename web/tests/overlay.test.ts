import { expect, it } from "vitest";
import type { Compared } from "../src/api";
import { gzip } from "../src/codec";
import { gridOf, layoutOf, toDisplay } from "../src/geometry";
import { COMPARED, Overlay } from "../src/overlay";
import { Teller } from "../src/teller";
import type { Shown } from "../src/view";
import { nifti } from "./nifti";

const GRID = gridOf({ shape: [3, 4], affine: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] });
const LAYOUT = layoutOf(GRID);
const ROWS: Compared[] = [{ label: "liver", dsc: 0.5, hd95_mm: 1, volume_a: 1, volume_b: 2 }];

/** A page with a picture open, whose server answers with these values, row by row. */
function page(values: number[]) {
  const answer = async () => new Blob([await gzip(nifti([4, 3, 1], 2, Uint8Array.from(values)))]);
  const seen = { shown: null as Shown | null, opacity: 0.3 };
  const fake = {
    teller: new Teller(
      () => undefined,
      () => undefined,
    ),
    current: { record: { id: "c1", versions: [{ id: "v1", at: 1, origin: { kind: "manual" } }, { id: "v2", at: 2, origin: { kind: "model" } }] }, grid: GRID, layout: LAYOUT, saver: { head: "v2" } } as object | null,
    settings: { opacity: 0.3 },
    opacity: 0.3,
    changed: () => undefined,
    api: { compare: async () => ROWS, compareMap: answer, uncertainty: answer },
    view: { setShown: (shown: Shown | null) => (seen.shown = shown), setOpacity: (opacity: number) => (seen.opacity = opacity) },
  };
  const overlay = new Overlay(fake as unknown as ConstructorParameters<typeof Overlay>[0]);
  return { fake, seen, overlay, ids: () => fake.teller.notices.map((n) => n.id) };
}

/** The bytes that are shown, row by row. */
const rows = ({ bytes }: Shown) =>
  Array.from({ length: 12 }, (_, n) => {
    const [x, y] = toDisplay(LAYOUT, [Math.floor(n / 4), n % 4, 0]);
    return bytes[x + 4 * y];
  });

it("shows two versions in three colours instead of the mask, until it is told to stop", async () => {
  const map = [0, 1, 2, 3, 0, 0, 1, 1, 2, 0, 0, 3];
  const { overlay, seen, fake, ids } = page(map);
  await overlay.compare("v1", "v2");
  expect(overlay.comparison).toEqual({ a: "v1", b: "v2", rows: ROWS });
  expect([rows(seen.shown!), seen.shown!.colours, seen.opacity]).toEqual([map, COMPARED, 0.5]);
  expect([overlay.on, ids()]).toEqual([true, ["compare"]]);
  fake.opacity = 0; // the mask is hidden
  fake.teller.notices[0].actions[0].run();
  expect([overlay.on, overlay.comparison, seen.shown, seen.opacity, ids()]).toEqual([false, null, null, 0, []]);
});

it("shows how unsure the model was, the more the brighter, and nothing where it was sure", async () => {
  const { overlay, seen } = page([0, 4, 5, 6, 10, 11, 49, 50, 51, 95, 96, 100]);
  await overlay.showDoubt();
  expect([overlay.on, overlay.doubt, seen.opacity]).toEqual([true, true, 0.6]);
  expect(rows(seen.shown!)).toEqual([0, 0, 1, 2, 2, 3, 10, 10, 11, 19, 20, 20]);
  const bright = seen.shown!.colours.map((c) => parseInt(c.slice(1, 3), 16));
  expect([bright.length, bright, bright[0], bright[19]]).toEqual([20, [...bright].sort((x, y) => x - y), 60, 255]);
  await overlay.showDoubt();
  expect([overlay.on, seen.shown, seen.opacity]).toEqual([false, null, 0.3]);
});

it("shows one thing at a time", async () => {
  const { overlay, ids } = page(new Array(12).fill(1));
  await overlay.compare("v1", "v2");
  await overlay.showDoubt();
  expect([overlay.comparison, overlay.doubt, ids()]).toEqual([null, true, []]);
  await overlay.compare("v1", "v2");
  expect([overlay.comparison?.b, overlay.doubt]).toEqual(["v2", false]);
});

it("does not show over another case what was asked about this one", async () => {
  const { overlay, seen, fake } = page(new Array(12).fill(1));
  const asked = [overlay.compare("v1", "v2"), overlay.showDoubt()];
  fake.current = null;
  await Promise.all(asked);
  expect([overlay.on, seen.shown]).toEqual([false, null]);
});

it("may be asked for doubt where a version began with a model's answer", () => {
  const { overlay, fake } = page([]);
  expect(overlay.mayDoubt).toBe(true);
  (fake.current as { record: { versions: unknown[] } }).record.versions.pop();
  expect(overlay.mayDoubt).toBe(false);
});
