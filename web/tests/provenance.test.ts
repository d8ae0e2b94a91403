import { expect, it } from "vitest";
import { Provenance } from "../src/provenance";

it("keeps for the next version what came while one was saved", () => {
  const origin = new Provenance();
  origin.prompted("m", "s1");
  origin.prompted("m", "s1");
  expect(origin.take()).toEqual({ kind: "prompts", model: "m", session: "s1", prompts: 2 });
  origin.prompted("m", "s1"); // the save is still on its way
  expect(origin.take()).toEqual({ kind: "prompts", model: "m", session: "s1", prompts: 1 });
  expect(origin.take()).toEqual({ kind: "manual" });
});

it("forgets nothing of what could not be saved", () => {
  const origin = new Provenance();
  origin.prompted("m", "s1");
  origin.giveBack(origin.take());
  expect(origin.take()).toEqual({ kind: "prompts", model: "m", session: "s1", prompts: 1 });
  origin.prompted("m", "s1");
  const lost = origin.take();
  origin.prompted("n", "s2");
  origin.giveBack(lost);
  expect(origin.take()).toEqual({ kind: "prompts", model: "n", session: "s2", prompts: 2 });
});
