import { expect, it } from "vitest";
import { presetsOf, windowOf } from "../src/windows";

const CT = { robust: [-90, 310] as [number, number], full: [-1024, 2000] as [number, number] };
const MR = { robust: [3, 190] as [number, number], full: [0, 255] as [number, number] };

it("offers windows in Hounsfield units only where the values look like them", () => {
  expect(presetsOf(CT)).toEqual(["Auto", "Full range", "CT soft tissue", "CT liver", "CT lung", "CT bone", "CT brain"]);
  const usual = ["Auto", "Full range"];
  expect([MR, { ...CT, full: [-1024, 100] as [number, number] }, { ...CT, full: [-199, 2000] as [number, number] }, null].map(presetsOf)).toEqual([usual, usual, usual, usual]);
});

it("takes a window from its name or from the image", () => {
  expect(["Auto", "Full range", "CT lung"].map((name) => windowOf(name, CT))).toEqual([CT.robust, CT.full, [-1350, 150]]);
  expect([windowOf("Own", CT), windowOf("Auto", null)]).toEqual([null, null]); // a picture in colours has none
});
