import { expect, it } from "vitest";
import { type Api, ApiError, type Prompt } from "../src/api";
import { gzip } from "../src/codec";
import { gridOf, layoutOf } from "../src/geometry";
import { History, Mask } from "../src/mask";
import { Prompter, tryInstead } from "../src/prompter";

const GRID = gridOf({ shape: [4, 6], affine: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] });

/** A server that answers with the pixels clicked on so far, row by row of one column each; and forgets a session when told to. */
function server() {
  const sessions = new Map<string, Map<string, number[]>>();
  const calls: string[] = [];
  let count = 0;
  const api = {
    session: async () => {
      const session = `s${++count}`;
      sessions.set(session, new Map());
      return { session, kinds: ["point", "box"], sliced: false };
    },
    sessionState: async () => ({ state: "ready", error: null }),
    ask: async (session: string, object: string, label: string, prompts: Prompt[]) => {
      const objects = sessions.get(session);
      if (!objects) throw new ApiError(404, "the session has ended");
      const columns = objects.get(object) ?? [];
      for (const p of prompts) columns.push(Math.round((p as { xyz: number[] }).xyz?.[1] ?? 5));
      objects.set(object, columns);
      calls.push(`${session} ${object} ${label} ${columns.join("")}`);
      let bits = 0;
      for (const c of columns) bits |= 0x80 >> c;
      return { object, low: [0, 0], size: [1, 6], bits: Buffer.from(await gzip(new Uint8Array([bits]))).toString("base64"), quality: 1, ms: 1 };
    },
    step: async (session: string, way: string) => {
      calls.push(`${session} ${way}`);
      for (const columns of sessions.get(session)?.values() ?? []) if (way === "undo") columns.pop();
    },
    endSession: async () => undefined,
  };
  return { api: api as unknown as Api, sessions, calls };
}

const click = (column: number): Prompt => ({ kind: "point", xyz: [0, column], positive: true });
const row = (mask: Mask) => [...mask.voxels.slice(0, 6)].join("");

it("lays answers into the mask, corrects the same object, and begins another", async () => {
  const { api, calls } = server();
  const [mask, history] = [new Mask(GRID, layoutOf(GRID)), new History()];
  const prompter = new Prompter(api, "c1", "m", ["point", "box"], false, () => null);
  const asked = { mask, history, value: 2, label: "liver", keepOthers: false };
  const outcomes = await Promise.all([prompter.ask(click(1), null, asked), prompter.ask(click(3), null, asked)]);
  expect(outcomes.map((o) => o?.session)).toEqual(["s1", "s1"]);
  expect(row(mask)).toBe("020200");
  prompter.finish();
  await prompter.ask(click(4), null, asked);
  expect(row(mask)).toBe("020220");
  expect(calls).toEqual(["s1 object 1 liver 1", "s1 object 1 liver 13", "s1 object 2 liver 4"]);
});

it("goes back in the session as in the mask", async () => {
  const { api, calls } = server();
  const [mask, history] = [new Mask(GRID, layoutOf(GRID)), new History()];
  const prompter = new Prompter(api, "c1", "m", ["point"], false, () => null);
  const asked = { mask, history, value: 1, label: "liver", keepOthers: false };
  await prompter.ask(click(1), null, asked);
  await prompter.ask(click(3), null, asked);
  history.undo(mask);
  expect(row(mask)).toBe("010000");
  await prompter.ask(click(5), null, asked);
  expect(row(mask)).toBe("010001");
  expect(calls.slice(2)).toEqual(["s1 undo", "s1 object 1 liver 15"]);
});

it("makes a forgotten session again and tells it what was said about the object", async () => {
  const { api, sessions, calls } = server();
  const [mask, history] = [new Mask(GRID, layoutOf(GRID)), new History()];
  const prompter = new Prompter(api, "c1", "m", ["point"], false, () => null);
  const asked = { mask, history, value: 1, label: "liver", keepOthers: false };
  await prompter.ask(click(1), null, asked);
  await prompter.ask(click(2), null, asked);
  sessions.clear(); // the server was started anew
  await prompter.ask(click(4), null, asked);
  expect(row(mask)).toBe("011010");
  expect(calls.slice(2)).toEqual(["s2 object 1 liver 1", "s2 object 1 liver 12", "s2 object 1 liver 124"]);
  history.undo(mask);
  history.undo(mask); // of the session that is gone
  await prompter.ask(click(5), null, asked);
  expect(row(mask)).toBe("010001");
  expect(calls.at(-1)).toBe("s3 object 1 liver 15");
});

it("leaves everything as it was when it is refused", async () => {
  const { api } = server();
  const [mask, history] = [new Mask(GRID, layoutOf(GRID)), new History()];
  const prompter = new Prompter({ ...api, ask: async () => Promise.reject(new ApiError(400, "outside")) } as unknown as Api, "c1", "m", ["point"], false, () => null);
  await expect(prompter.ask(click(1), null, { mask, history, value: 1, label: "liver", keepOthers: false })).rejects.toThrow("outside");
  expect([history.canUndo, prompter.target]).toEqual([false, null]);
});

it("advises a box where nothing was found without one", () => {
  const box: Prompt = { kind: "box", low: [0, 0], high: [1, 1], drawn: [[0, 0, 0], [1, 1, 0]] };
  expect(tryInstead(["point", "box"], [click(1)])).toContain("Draw a box around it first");
  expect(tryInstead(["point", "box"], [box, click(1)])).toContain("another prompt");
  expect(tryInstead(["point"], [click(1)])).toContain("another prompt");
});
