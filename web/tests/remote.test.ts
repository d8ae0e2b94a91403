import { expect, it } from "vitest";
import { ApiError, type Job, type Model } from "../src/api";
import { gzip } from "../src/codec";
import { gridOf, layoutOf, type Vec3 } from "../src/geometry";
import { History, Mask } from "../src/mask";
import { Provenance } from "../src/provenance";
import { Remote } from "../src/remote";
import { Teller } from "../src/teller";
import { nifti } from "./nifti";

const GRID = gridOf({ shape: [2, 2, 5], affine: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] });
const MEMORY = { id: "memory", kinds: ["mask"], dims: [3], carries: true } as unknown as Model;

/** A page with a volume open whose mask is saved as v1, and a server whose versions are masks of one label: v2 of 2, v3 of 3. */
function page() {
  const did: string[] = [];
  const does = <T>(name: string, answer?: T) => async (...given: unknown[]) => (did.push([name, ...given].join(" ")), answer as T);
  const mask = new Mask(GRID, layoutOf(GRID));
  const saver = { head: "v1", unsaved: false, state: { kind: "saved" }, saves: true, flush: async () => saver.saves, touch: () => did.push("touch"), adopt: does("adopt"), rebase: does("rebase") };
  const open = { record: { id: "c1", latest: "v2" }, grid: GRID, mask, history: new History(), saver, prompter: null, origin: new Provenance(), mine: new Set<string>() };
  const fake = {
    api: {
      label: async (_: string, version: string) => new Blob([await gzip(nifti([2, 2, 5], 2, new Uint8Array(20).fill(Number(version.slice(1)))))]),
      maskFile: does("maskFile", { version: "v2" }) as (...given: unknown[]) => Promise<{ version: string }>,
      interpolate: does("interpolate", { version: "v2" }),
      propagate: does("propagate", { job: "j1" }),
      run: does("run", { job: "j1" }),
    },
    teller: new Teller(
      () => undefined,
      () => undefined,
    ),
    jobs: { follow: async () => ({ state: "done", result: { version: "v2" } }) as unknown as Job },
    overlay: { stop: () => did.push("stop") },
    view: { refresh: () => undefined, place: [0, 0, 3] as Vec3 },
    current: open as typeof open | null,
    models: [MEMORY],
    settings: { model: "" },
    label: 1,
    active: { name: "liver" },
    ownWindow: null,
    changed: () => undefined,
    reread: does("reread"),
    measure: does("measure"),
  };
  const draw = (...slices: number[]) => {
    const edit = mask.begin();
    for (const k of slices) for (const [i, j] of [[0, 0], [0, 1], [1, 0], [1, 1]]) edit.set(i, j, k, 1);
  };
  const remote = new Remote(fake as unknown as ConstructorParameters<typeof Remote>[0]);
  return { did, fake, open, saver, draw, remote, mask: () => [...new Set(mask.voxels)].join(), said: () => fake.teller.toast?.text, notices: () => fake.teller.notices };
}

it("goes on from a version, in one step that can be taken back", async () => {
  const { remote, open, did, mask } = page();
  open.origin.prompted("m", "s1");
  await remote.take("v2");
  expect([mask(), did]).toEqual(["2", ["stop", "reread", "adopt v2", "measure"]]);
  expect(open.origin.take()).toEqual({ kind: "manual" });
  open.history.undo(open.mask);
  expect(mask()).toBe("0");
});

it("saves a version again that is not the newest", async () => {
  const { remote, did, mask } = page();
  await remote.take("v3"); // the newest is v2
  expect([mask(), did]).toEqual(["3", ["stop", "reread", "rebase v2", "measure"]]);
  did.length = 0;
  await remote.restore("v2");
  expect([mask(), did]).toEqual(["2", ["stop", "touch"]]);
});

it("lays nothing of one case into another", async () => {
  const { remote, fake, open, mask } = page();
  const taking = remote.restore("v2");
  fake.current = null;
  await taking;
  expect([mask(), open.history.canUndo]).toEqual(["0", false]);
});

it("offers what others saved, unless it is known here", async () => {
  const { remote, open, saver, notices, mask } = page();
  open.mine.add("v5");
  remote.others("c2", "v2", "Anna");
  remote.others("c1", "v1", "Anna");
  remote.others("c1", "v5", "Anna");
  saver.state.kind = "conflict";
  remote.others("c1", "v2", "Anna");
  expect(notices()).toEqual([]);
  saver.state.kind = "saved";
  remote.others("c1", "v2", "Anna");
  expect(notices().map((n) => n.text)).toEqual(["Anna saved another version of this case."]);
  notices()[0].actions[0].run();
  await expect.poll(() => [mask(), notices().length], { timeout: 4000 }).toEqual(["2", 0]);
});

it("shows what the server made of the saved mask", async () => {
  const { remote, open, saver, did, said, mask } = page();
  const file = new File([new Uint8Array(3)], "mask.nii");
  saver.saves = false;
  await remote.openFile(file);
  expect([did, mask(), said()]).toEqual([[], "0", "This needs the mask to be saved first, which is not possible now."]);
  saver.saves = true;
  await remote.openFile(file);
  expect([did[0], mask(), said()]).toEqual(["maskFile c1 mask.nii 0,0,0 v1", "2", "Opening mask.nii: done."]);
  expect([...open.mine]).toEqual(["v2"]);
});

it.each(["drawn", "conflict"])("puts nothing over what came meanwhile: %s", async (what) => {
  const { remote, fake, saver, notices, mask } = page();
  fake.api.maskFile = async () => {
    if (what === "conflict") throw new ApiError(409, "saved meanwhile", null, { yours: "v3" });
    saver.unsaved = true;
    return { version: "v3" };
  };
  await remote.openFile(new File([], "mask.nii"));
  expect([mask(), notices().map((n) => n.id)]).toEqual(["0", ["others"]]);
  notices()[0].actions[0].run();
  await expect.poll(mask, { timeout: 4000 }).toBe("3");
});

it("fills and carries on along the axis that the label was drawn across", async () => {
  const { remote, fake, did, draw, said } = page();
  const asked = () => did.filter((d) => /^(interpolate|propagate)/.test(d));
  await remote.interpolate();
  expect(said()).toContain("with some between");
  await remote.propagate();
  expect(said()).toContain("in a slice first");
  draw(0, 4);
  await remote.interpolate();
  draw(4); // what the server made is another label
  await remote.propagate();
  expect(asked()).toEqual(["interpolate c1 liver 2 v1", "propagate c1 liver 4 2 v1 memory "]);
  fake.models = [];
  await remote.propagate();
  expect([asked().length, said()]).toEqual([2, "No model here carries a mask from slice to slice."]);
});

it("says why a job failed, and shows nothing of it", async () => {
  const { remote, fake, open, said, mask } = page();
  fake.jobs.follow = async () => ({ state: "failed", text: "out of memory" }) as Job;
  await remote.run("net");
  expect([said(), mask(), open.mine.size]).toEqual(["out of memory", "0", 0]);
  fake.jobs.follow = async () => ({ state: "done", result: { version: "v3", conflict: true } }) as unknown as Job;
  await remote.run("net");
  expect([mask(), [...open.mine]]).toEqual(["0", ["v3"]]);
});
