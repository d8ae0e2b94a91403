// Which of the models can do what.

import type { Model } from "./api";

/** What carries a mask through the slices of a volume: the chosen model where it can, else one that was made for it. */
export function carrierOf(models: readonly Model[], chosen: string): Model | undefined {
  const can = models.filter((m) => m.carries || (m.kinds.includes("box") && m.dims.includes(2) && !m.dims.includes(3)));
  return can.find((m) => m.id === chosen) ?? can.find((m) => m.carries) ?? can[0];
}
