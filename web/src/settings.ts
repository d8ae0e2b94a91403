// What a person chose, kept in this browser.

import type { Plane } from "./view";

export interface Settings {
  user: string;
  model: string;
  /** The model that was listed first when `model` was chosen. */
  first: string;
  opacity: number;
  radius: number;
  keepOthers: boolean;
  smooth: boolean;
  plane: Plane;
  strategy: "order" | "uncertainty" | "diversity";
}

const KEPT = "vesalius";

export function keptSettings(): Settings {
  const usual: Settings = { user: "", model: "", first: "", opacity: 0.4, radius: 4, keepOthers: false, smooth: true, plane: "all", strategy: "order" };
  try {
    return { ...usual, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return usual; // a browser that keeps nothing, or something else under our name
  }
}

export function keepSettings(settings: Settings): void {
  try {
    localStorage.setItem(KEPT, JSON.stringify(settings));
  } catch {
    // nothing is kept then
  }
}
