// Windows of grey values, and which of them suit an image (pure).

import type { Range } from "./view";

export const PRESETS: Record<string, [number, number] | "auto" | "full"> = {
  Auto: "auto",
  "Full range": "full",
  "CT soft tissue": [-160, 240],
  "CT liver": [-20, 180],
  "CT lung": [-1350, 150],
  "CT bone": [-500, 1300],
  "CT brain": [0, 80],
};

/** Presets in Hounsfield units only where the values look like them. */
export function presetsOf(range: Range | null): string[] {
  const hounsfield = range !== null && range.full[0] <= -200 && range.full[1] > 100;
  return Object.keys(PRESETS).filter((name) => hounsfield || !name.startsWith("CT"));
}

export function windowOf(name: string, range: Range | null): [number, number] | null {
  const preset = PRESETS[name];
  if (!range || !preset) return null;
  return preset === "auto" ? range.robust : preset === "full" ? range.full : preset;
}
