import { beforeEach, expect, it, vi } from "vitest";
import { ApiError, type Case, type Origin } from "../src/api";
import { draftOf } from "../src/drafts";
import { gridOf, layoutOf } from "../src/geometry";
import { type Edit, Mask } from "../src/mask";
import { Provenance } from "../src/provenance";
import { Saving } from "../src/saving";
import { ANOTHER, Teller } from "../src/teller";

const store = vi.hoisted(() => new Map<string, unknown>());
vi.mock("../src/drafts", async (original) => ({
  ...(await original<object>()),
  draftKeys: async () => [...store.keys()],
  draftOf: async (key: string) => store.get(key) ?? null,
  keepDraft: async (key: string, voxels: unknown, parent: string | null) => void store.set(key, { voxels, parent, at: 0 }),
  dropDraft: async (key: string) => void store.delete(key),
}));
beforeEach(() => store.clear());

const GRID = gridOf({ shape: [3, 4], affine: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] });
const RECORD = { id: "c1", name: "scan" } as Case;

/** A page with a case open, and a server that takes what it is sent or throws `error`. */
function page() {
  const did: string[] = [];
  const does = (name: string) => async (...given: string[]) => void did.push([name, ...given].join(" "));
  const mask = new Mask(GRID, layoutOf(GRID));
  const saver = { head: "v1" as string | null, unsaved: false, touch: () => did.push("touch"), adopt: does("adopt"), flush: does("flush"), insist: does("insist") };
  const sent: { parent: string | null; origin: Origin }[] = [];
  const fake = {
    error: null as Error | null,
    api: {
      project: async () => ({ id: "p" }),
      save: async (_: string, parent: string | null, __: Uint8Array, ___: object, origin: Origin) => {
        if (fake.error) throw fake.error;
        sent.push({ parent, origin });
        return { version: "v2" };
      },
    },
    teller: new Teller(
      () => undefined,
      () => undefined,
    ),
    overlay: { stop: () => did.push("stop"), compare: does("compare") },
    remote: { take: does("take") },
    project: { id: "p" },
    current: { mask, saver, mine: new Set<string>() } as { mask: Mask; mine: Set<string> } | null,
    stamp: 0,
    same: vi.fn(),
    change: (work: (edit: Edit) => void) => work(mask.begin()),
    changed: () => undefined,
    refresh: does("refresh"),
    reread: does("reread"),
    measure: does("measure"),
  };
  const saving = new Saving(fake as unknown as ConstructorParameters<typeof Saving>[0]);
  const origin = new Provenance();
  return { did, fake, mask, saver, sent, saving, origin, desk: saving.desk(RECORD, GRID, mask, origin), notices: () => fake.teller.notices };
}

it("sends a copy of the mask and what it came from, once", async () => {
  const { desk, mask, origin, sent, fake } = page();
  const copy = desk.copy();
  mask.begin().set(0, 0, 0, 1);
  expect([copy[0], mask.voxels[0]]).toEqual([0, 1]);
  origin.prompted("m", "s1");
  expect(await desk.put(copy, "v1")).toBe("v2");
  await desk.put(copy, "v2");
  expect(sent).toEqual([{ parent: "v1", origin: { kind: "prompts", model: "m", session: "s1", prompts: 1 } }, { parent: "v2", origin: { kind: "manual" } }]);
  expect([...fake.current!.mine]).toEqual(["v2"]);
});

it("remembers what a mask came from that could not be sent, and asks whose server it is when that is back", async () => {
  const { desk, origin, sent, fake } = page();
  origin.prompted("m", "s1");
  fake.error = new ApiError(0, "away");
  await expect(desk.put(desk.copy(), null)).rejects.toThrow("away");
  expect(fake.same).not.toHaveBeenCalled();
  fake.teller.setOnline(false);
  fake.same.mockImplementation(() => {
    throw new ApiError(ANOTHER, "another project");
  });
  fake.error = null;
  await expect(desk.put(desk.copy(), null)).rejects.toThrow("another project");
  expect(sent).toEqual([]);
  fake.same.mockReset();
  await desk.put(desk.copy(), null);
  expect([sent[0].origin.session, fake.teller.online]).toEqual(["s1", true]);
});

it("knows which cases have a draft", async () => {
  const { desk, saving, fake } = page();
  await desk.keep(desk.copy(), "v1");
  expect([saving.hasDraft(RECORD), saving.hasDraft({ ...RECORD, id: "c2" }), fake.stamp]).toEqual([true, false, 1]);
  const later = page().saving;
  await later.start();
  expect([later.hasDraft(RECORD), (await later.draft(RECORD))?.parent]).toEqual([true, "v1"]);
  await desk.drop();
  expect([saving.hasDraft(RECORD), fake.stamp, await draftOf("p/c1/scan")]).toEqual([false, 2, null]);
});

it("lets the person choose between two versions", () => {
  const { desk, did, fake, notices } = page();
  desk.changed({ kind: "conflict", theirs: "v8", mine: "v9" });
  expect([[...fake.current!.mine], notices().map((n) => n.id), did]).toEqual([["v9"], ["conflict"], ["reread"]]);
  const [both, mine, theirs] = notices()[0].actions;
  both.run();
  theirs.run();
  mine.run();
  expect(did.slice(1)).toEqual(["compare v8 v9", "take v8", "stop", "insist"]);
  expect(notices()).toEqual([]);
});

it("says what became of a save, of the open case alone", () => {
  const { desk, did, fake, notices } = page();
  const after = (state: Parameters<typeof desk.changed>[0]) => (desk.changed(state), notices().map((n) => `${n.id} ${n.tone}`));
  expect(after({ kind: "kept", why: "The disk is full.", status: 507 })).toEqual(["kept bad"]);
  expect(after({ kind: "refused", why: "No such label.", status: 400 })).toEqual(["kept bad"]);
  expect(notices()[0].text).toContain("does not take this mask; it is kept in this page. No such label.");
  notices()[0].actions[0].run();
  expect(after({ kind: "saved" })).toEqual([]);
  expect(did).toEqual(["flush", "reread", "refresh"]);
  expect(after({ kind: "kept", why: "", status: 0 })).toEqual(["offline warn"]);
  expect(after({ kind: "kept", why: "", status: 401 })).toEqual(["signin bad"]);
  fake.teller.setOnline(true);
  expect(after({ kind: "refused", why: "Another project.", status: ANOTHER })).toEqual(["offline bad"]);
  fake.teller.setOnline(true);
  fake.current = null;
  expect(after({ kind: "kept", why: "", status: 507 })).toEqual([]);
});

it("brings a draft back, made from the version it was made from, or discards it", () => {
  const { saving, saver, mask, did, notices } = page();
  const voxels = new Uint8Array(12).fill(1);
  saving.offer({ voxels, parent: null, at: 0 });
  notices()[0].actions[0].run();
  expect([[...mask.voxels], saver.head, did, notices()]).toEqual([[...voxels], null, ["touch"], []]);
  saver.head = "v1";
  saving.offer({ voxels, parent: null, at: 0 });
  notices()[0].actions[1].run();
  expect([did.slice(1), notices()]).toEqual([["adopt v1"], []]);
});

it("does not bring a draft back into another image, or another case", () => {
  const { saving, saver, mask, did, fake, notices } = page();
  saving.offer({ voxels: new Uint8Array(5), parent: null, at: 0 });
  notices()[0].actions[0].run();
  expect([fake.teller.toast?.text, saver.head, did]).toEqual(["This mask was drawn on an image of another size.", "v1", []]);
  saving.offer({ voxels: new Uint8Array(12).fill(1), parent: null, at: 0 });
  fake.current = null;
  notices()[0].actions[0].run();
  expect([mask.voxels.includes(1), notices()]).toEqual([false, []]);
});
