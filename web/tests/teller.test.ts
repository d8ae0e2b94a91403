import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { ApiError } from "../src/api";
import { ANOTHER, Teller } from "../src/teller";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function fresh() {
  const heard: string[] = [];
  const teller: Teller = new Teller(
    () => undefined,
    () => heard.push(`back, ${teller.notices.map((n) => n.id).join()}`),
  );
  return { teller, heard, ids: () => teller.notices.map((n) => n.id) };
}

const failing = (status: number, message = "") => async () => Promise.reject(new ApiError(status, message));

it("says a word for a while, what went wrong for longer, and the newest of them in full", async () => {
  const { teller } = fresh();
  teller.say("Done.");
  await vi.advanceTimersByTimeAsync(3000);
  teller.wrong(new Error("It burnt."));
  await vi.advanceTimersByTimeAsync(8900);
  expect(teller.toast).toEqual({ text: "It burnt.", bad: true });
  await vi.advanceTimersByTimeAsync(200);
  expect(teller.toast).toBeNull();
});

it("knows from what is asked whether the server is there", async () => {
  const { teller, heard, ids } = fresh();
  expect(await teller.attempt(async () => 7)).toBe(7);
  expect(heard).toEqual([]); // it was never away
  expect(await teller.attempt(failing(0))).toBeUndefined();
  await teller.attempt(failing(0));
  expect([teller.online, ids(), teller.toast]).toEqual([false, ["offline"], null]);
  await teller.attempt(async () => undefined);
  expect([teller.online, ids(), heard]).toEqual([true, [], ["back, "]]);
});

it.each([401, 429])("asks to sign in again: %i", async (status) => {
  const { teller, heard, ids } = fresh();
  await teller.attempt(failing(0));
  await teller.attempt(failing(status));
  expect([teller.online, teller.signedOut, ids()]).toEqual([false, true, ["signin"]]);
  teller.setOnline(false);
  expect(ids()).toEqual(["signin"]);
  teller.setOnline(true);
  expect([teller.signedOut, ids(), heard.length]).toEqual([false, [], 1]);
});

it("is not online with another project's server", async () => {
  const { teller } = fresh();
  await teller.attempt(failing(ANOTHER, "Another project."));
  expect([teller.online, teller.signedOut]).toEqual([false, false]);
  expect(teller.notices).toEqual([{ id: "offline", tone: "bad", text: "Another project.", actions: [] }]);
});

it("has one notice of a kind, and keeps of a case that is left only what is true without it", () => {
  const { teller, ids } = fresh();
  const notice = (id: string, text: string) => teller.notice({ id, tone: "info", text, actions: [] });
  for (const [id, text] of [["draft", "1"], ["others", "2"], ["draft", "3"], ["compare", "4"]]) notice(id, text);
  expect(teller.notices.map((n) => n.text)).toEqual(["2", "3", "4"]);
  teller.dismiss("others", "conflict");
  expect(ids()).toEqual(["draft", "compare"]);
  teller.setOnline(false);
  teller.dismissCase();
  expect(ids()).toEqual(["offline"]);
});
