import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/api";
import { type Desk, Saver } from "../src/saver";

/** A page whose mask is a number, and a server that answers as it is told. */
function page() {
  const said: string[] = [];
  const puts: [number, string | null][] = [];
  const desk = {
    mask: 0,
    kept: null as { mask: number; parent: string | null } | null,
    answers: [] as (string | ApiError)[],
    copy: () => desk.mask,
    put: async (mask: number, parent: string | null) => {
      puts.push([mask, parent]);
      const answer = desk.answers.shift() ?? `v${puts.length}`;
      await new Promise((r) => setTimeout(r, 50));
      if (answer instanceof ApiError) throw answer;
      return answer;
    },
    keep: async (mask: number, parent: string | null) => void (desk.kept = { mask, parent }),
    drop: async () => void (desk.kept = null),
    changed: (state: { kind: string }) => said.push(state.kind),
  };
  const saver = new Saver<number>(desk satisfies Desk<number>, null);
  const draw = (mask: number) => ((desk.mask = mask), saver.touch());
  return { desk, saver, draw, said, puts };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());
const wait = (ms: number) => vi.advanceTimersByTimeAsync(ms);

describe("saving", () => {
  it("follows a change, and each version is made from the one before", async () => {
    const { draw, puts, desk, said, saver } = page();
    draw(1);
    await wait(300);
    expect(desk.kept).toEqual({ mask: 1, parent: null });
    await wait(2000);
    draw(2);
    await wait(2000);
    expect(puts).toEqual([[1, null], [2, "v1"]]);
    expect(said).toEqual(["waiting", "saving", "saved", "waiting", "saving", "saved"]);
    expect(desk.kept).toBeNull();
    expect(saver.unsaved).toBe(false);
  });

  it("does not wait for an end of many changes", async () => {
    const { draw, puts } = page();
    for (let n = 1; n <= 60; n++) {
      draw(n);
      await wait(100);
    }
    expect(puts.length).toBeGreaterThanOrEqual(1);
    expect(puts[0][0]).toBeLessThan(45);
  });

  it("saves again what was drawn while it saved", async () => {
    const { draw, puts, saver } = page();
    draw(1);
    await wait(1220);
    draw(2);
    await wait(100);
    expect(saver.unsaved).toBe(true);
    await wait(2000);
    expect(puts).toEqual([[1, null], [2, "v1"]]);
    expect(saver.state.kind).toBe("saved");
  });

  it("is not in its own way when two ask for it while it saves", async () => {
    const { draw, puts, saver } = page();
    draw(1);
    void saver.flush();
    draw(2);
    const both = Promise.all([saver.flush(), saver.flush()]);
    await wait(5000);
    expect(await both).toEqual([true, true]);
    expect(puts).toEqual([[1, null], [2, "v1"]]);
    expect(saver.head).toBe("v2");
  });

  it.each([new ApiError(0, "The server cannot be reached."), new ApiError(507, "The disk is full."), new ApiError(401, "Sign in.")])("keeps the mask here and tries again: %s", async (error) => {
    const { draw, puts, desk, saver } = page();
    desk.answers = [error, error];
    draw(1);
    await wait(1500);
    expect(saver.state).toEqual({ kind: "kept", why: error.message, status: error.status });
    expect(desk.kept).toEqual({ mask: 1, parent: null });
    draw(2);
    await wait(4000);
    expect(puts.length).toBe(2);
    await wait(10000);
    expect(puts[2]).toEqual([2, null]);
    expect(saver.state.kind).toBe("saved");
    expect(desk.kept).toBeNull();
  });

  it("says so where the server will never take it", async () => {
    const { draw, puts, desk, saver } = page();
    desk.answers = [new ApiError(400, "values that are no label")];
    draw(1);
    await wait(60000);
    expect(puts.length).toBe(1);
    expect(saver.state.kind).toBe("refused");
    expect(desk.kept).toEqual({ mask: 1, parent: null });
  });
});

describe("a conflict", () => {
  const conflict = () => new ApiError(409, "someone saved first", null, { version: "theirs", yours: "mine" });

  it("waits for the person; what is drawn meanwhile stays here", async () => {
    const { draw, puts, desk, saver } = page();
    desk.answers = [conflict()];
    draw(1);
    await wait(1500);
    expect(saver.state).toEqual({ kind: "conflict", theirs: "theirs", mine: "mine" });
    draw(2);
    await wait(60000);
    expect(puts.length).toBe(1);
    expect(desk.kept?.mask).toBe(2);
    expect(await saver.flush()).toBe(false);
    const insisted = saver.insist();
    await wait(100);
    expect(await insisted).toBe(true);
    expect(puts[1]).toEqual([2, "theirs"]);
    expect(saver.head).toBe("v2");
  });

  it("is over when theirs is taken", async () => {
    const { draw, desk, saver } = page();
    desk.answers = [conflict()];
    draw(1);
    await wait(1500);
    await saver.adopt("theirs");
    expect(saver.state.kind).toBe("saved");
    expect([saver.head, saver.unsaved, desk.kept]).toEqual(["theirs", false, null]);
  });
});

it("keeps what is unsaved when the page goes", async () => {
  const { draw, desk, saver, puts } = page();
  draw(5);
  await saver.close();
  expect(desk.kept).toEqual({ mask: 5, parent: null });
  await wait(10000);
  expect(puts).toEqual([]);
});
