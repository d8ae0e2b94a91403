// Which slices of a volume show a label, and what can be done with them (pure).

import type { Slice } from "./api";
import type { Vec3 } from "./geometry";
import type { Mask } from "./mask";

/** For each axis, 1 for those of its slices that show the label. */
export function slicesWith(mask: Mask, label: number): Uint8Array[] {
  const [a, b, c] = mask.grid.shape;
  const seen = [a, b, c].map((n) => new Uint8Array(n));
  for (let i = 0, n = 0; i < a; i++) for (let j = 0; j < b; j++) for (let k = 0; k < c; k++, n++) if (mask.voxels[n] === label) seen[0][i] = seen[1][j] = seen[2][k] = 1;
  return seen;
}

const counted = (seen: Uint8Array) => seen.reduce((x, y) => x + y, 0);

/** The axis with most slices between those that show the label; null where there are none between. */
export function axisToFill(seen: readonly Uint8Array[]): number | null {
  const gaps = seen.map((s) => (s.includes(1) ? s.lastIndexOf(1) - s.indexOf(1) + 1 - counted(s) : 0));
  const most = Math.max(...gaps);
  return most ? gaps.indexOf(most) : null;
}

/** Where to carry the label on from: across the axis with fewest of its slices, that at `place` or else the nearest; null where it is in none. */
export function sliceToCarry(seen: readonly Uint8Array[], place: Readonly<Vec3>): Slice | null {
  const counts = seen.map(counted);
  const fewest = Math.min(...counts);
  if (!fewest) return null;
  const axis = counts.indexOf(fewest);
  const at = place[axis];
  const index = [...seen[axis].keys()].filter((n) => seen[axis][n]).reduce((x, y) => (Math.abs(y - at) < Math.abs(x - at) ? y : x));
  return { axis, index };
}
