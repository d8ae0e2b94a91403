import { expect, it } from "vitest";
import { keyOf } from "../src/drafts";

it("keeps the drafts of two projects apart that are called alike, cases and all", () => {
  const record = { id: "c1", name: "scan" };
  expect(keyOf({ id: "4f" }, record)).not.toBe(keyOf({ id: "a0" }, record));
  expect(keyOf({ id: "4f" }, record)).toBe(keyOf({ id: "4f" }, { ...record }));
});
