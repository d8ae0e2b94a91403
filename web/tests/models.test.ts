import { expect, it } from "vitest";
import type { Kind, Model } from "../src/api";
import { carrierOf } from "../src/models";

const model = (id: string, kinds: Kind[], dims: number[]): Model => ({ id, title: id, kinds, dims, trained: false, carries: String(kinds) === "mask" });
const [flat, other, deep] = [model("flat", ["box", "point"], [2]), model("other", ["box"], [2]), model("deep", ["box", "point"], [2, 3])];
const [memory, words, net] = [model("memory", ["mask"], [3]), model("words", ["text"], [2]), model("net", [], [3])];

it("carries a mask on with the chosen model where it can, else with one made for it", () => {
  const all = [deep, words, net, flat, other, memory];
  expect(carrierOf(all, "other")?.id).toBe("other");
  expect(carrierOf(all, "memory")?.id).toBe("memory");
  expect(["deep", "words", "net", ""].map((id) => carrierOf(all, id)?.id)).toEqual(["memory", "memory", "memory", "memory"]);
  expect(carrierOf([deep, flat, other], "deep")?.id).toBe("flat");
  expect(carrierOf([deep, words, net], "deep")).toBeUndefined();
});
