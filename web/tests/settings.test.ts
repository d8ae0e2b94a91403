import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { keepSettings, keptSettings } from "../src/settings";

const kept = new Map<string, string>();
beforeEach(() => {
  kept.clear();
  vi.stubGlobal("localStorage", { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => void kept.set(key, value) });
});
afterEach(() => void vi.unstubAllGlobals());

it("keeps what was chosen; what was not is as usual", () => {
  const usual = keptSettings();
  expect(usual).toMatchObject({ user: "", opacity: 0.4, radius: 4, plane: "all" });
  keepSettings({ ...usual, radius: 7, strategy: "diversity" });
  expect(keptSettings()).toEqual({ ...usual, radius: 7, strategy: "diversity" });
  kept.set("vesalius", '{"opacity": 0.9}'); // of an older page
  expect(keptSettings()).toEqual({ ...usual, opacity: 0.9 });
});

it("does without a browser that keeps, and without what is not its own", () => {
  const usual = keptSettings();
  kept.set("vesalius", "{not JSON");
  expect(keptSettings()).toEqual(usual);
  const no = () => {
    throw new Error("storage is off");
  };
  vi.stubGlobal("localStorage", { getItem: no, setItem: no });
  keepSettings({ ...usual, radius: 7 });
  expect(keptSettings()).toEqual(usual);
});
