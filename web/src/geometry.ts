// Where things are. Pure functions, no DOM, no NiiVue: everything that turns one kind of coordinate into another is here.
//
//   index    voxel (i, j, k) of the case's own array as the server has it, centres at whole numbers; a picture is (row, column, 0)
//   world    mm as prompts carry them: RAS+ (x, y, z) of a volume, (row, column) of a picture
//   display  voxel of NiiVue's textures: the same voxels with axes permuted and flipped to run right, front, up
//   fraction NiiVue's texture coordinates, 0..1 over the outer faces: (display + 0.5) / sides
//   screen   pixels of the canvas; within one tile an affine function of the fraction
//
// A picture travels as a volume of one slice whose NIfTI axes are (column, row, 1), world x = column mm, y = -row mm (serve/wire.py).

export type Vec3 = [number, number, number];
export type Axis = 0 | 1 | 2;

/** A case's grid: `shape` has three sides (a picture's third is 1), `affine` is the server's ((d+1) x (d+1), index -> world). */
export interface Grid {
  readonly dims: 2 | 3;
  readonly shape: Readonly<Vec3>;
  readonly affine: readonly (readonly number[])[];
  readonly inverse: readonly (readonly number[])[];
  readonly spacing: Readonly<Vec3>;
}

/** How index axes become display axes: display axis d runs along index axis `axis[d]`, backwards where `flip[d]`. */
export interface Layout {
  readonly sides: Readonly<Vec3>;
  readonly axis: readonly [Axis, Axis, Axis];
  readonly flip: readonly [boolean, boolean, boolean];
}

/** One slice on the screen: fraction = origin + x * right + y * down, for screen pixels x, y; `across` is the display axis it cuts. */
export interface Tile {
  readonly across: Axis;
  readonly rect: readonly [number, number, number, number];
  readonly origin: Readonly<Vec3>;
  readonly right: Readonly<Vec3>;
  readonly down: Readonly<Vec3>;
}

/** As the server says it: `affine` (d+1) x (d+1) from indices to mm. */
export interface Geometry {
  readonly shape: readonly number[];
  readonly affine: readonly (readonly number[])[];
}

export function gridOf(geometry: Geometry): Grid {
  const dims = geometry.shape.length === 2 ? 2 : 3;
  const a = geometry.affine;
  const shape: Vec3 = [geometry.shape[0], geometry.shape[1], dims === 3 ? geometry.shape[2] : 1];
  const spacing: Vec3 = [1, 1, 1];
  for (let c = 0; c < dims; c++) spacing[c] = Math.hypot(...Array.from({ length: dims }, (_, r) => a[r][c]));
  return { dims, shape, affine: a, inverse: inverseOf(a, dims), spacing };
}

const LARGE = 2 ** 24; // voxels

/** Whether an image takes so long to come that a coarse one is shown before. */
export function isLarge(grid: Grid): boolean {
  return grid.shape[0] * grid.shape[1] * grid.shape[2] > LARGE;
}

/** The grid of every n-th voxel, from the first one on. */
export function everyNth(geometry: Geometry, every: readonly number[]): Geometry {
  const last = geometry.shape.length;
  return {
    shape: geometry.shape.map((n, a) => Math.ceil(n / every[a])),
    affine: geometry.affine.map((row, r) => row.map((x, c) => (r < last && c < last ? x * every[c] : x))),
  };
}

/** World mm of an index, which may lie between voxels. */
export function toWorld(grid: Grid, index: Readonly<Vec3>): number[] {
  return Array.from({ length: grid.dims }, (_, r) => {
    let sum = grid.affine[r][grid.dims];
    for (let c = 0; c < grid.dims; c++) sum += grid.affine[r][c] * index[c];
    return sum;
  });
}

/** Index of a place in world mm. */
export function toIndex(grid: Grid, world: readonly number[]): Vec3 {
  const out: Vec3 = [0, 0, 0];
  for (let r = 0; r < grid.dims; r++)
    for (let c = 0; c < grid.dims; c++) out[r] += grid.inverse[r][c] * (world[c] - grid.affine[c][grid.dims]);
  return out;
}

/** Position in the mask array (C order: the last index runs fastest). */
export function offsetOf(grid: Grid, i: number, j: number, k: number): number {
  return (i * grid.shape[1] + j) * grid.shape[2] + k;
}

/** The affine that the case's NIfTI file carries, rows x columns (3 x 4), and the index axis behind each NIfTI axis. */
export function shownAffine(grid: Grid): { affine: number[][]; from: [Axis, Axis, Axis] } {
  const a = grid.affine;
  if (grid.dims === 3) return { affine: [0, 1, 2].map((r) => [...a[r]]), from: [0, 1, 2] };
  return {
    affine: [
      [a[1][1], a[1][0], 0, a[1][2]],
      [-a[0][1], -a[0][0], 0, -a[0][2]],
      [0, 0, 1, 0],
    ],
    from: [1, 0, 2],
  };
}

/** NiiVue's own choice of axes (NVImage.calculateRAS) for the case's file, in terms of index axes. */
export function layoutOf(grid: Grid): Layout {
  const { affine, from } = shownAffine(grid);
  const size = (row: number, column: number) => Math.abs(affine[row][column]);
  // the world axis of the first NIfTI axis, then of the second among those left; the third has what remains
  let first = 0;
  if (size(1, 0) > size(0, 0)) first = 1;
  if (size(2, 0) > size(0, 0) && size(2, 0) > size(1, 0)) first = 2;
  const left = [0, 1, 2].filter((w) => w !== first);
  const second = size(left[0], 1) > size(left[1], 1) ? left[0] : left[1];
  const along = [first, second, 3 - first - second];
  const nifti = [0, 1, 2].map((w) => along.indexOf(w)); // the NIfTI axis that runs along world axis w
  const axis = nifti.map((n) => from[n]) as [Axis, Axis, Axis];
  const flip = nifti.map((n, w) => affine[w][n] < 0) as [boolean, boolean, boolean];
  return { axis, flip, sides: axis.map((a) => grid.shape[a]) as Vec3 };
}

export function toDisplay(layout: Layout, index: Readonly<Vec3>): Vec3 {
  return [0, 1, 2].map((d) => (layout.flip[d] ? layout.sides[d] - 1 - index[layout.axis[d]] : index[layout.axis[d]])) as Vec3;
}

export function fromDisplay(layout: Layout, display: Readonly<Vec3>): Vec3 {
  const out: Vec3 = [0, 0, 0];
  for (let d = 0; d < 3; d++) out[layout.axis[d]] = layout.flip[d] ? layout.sides[d] - 1 - display[d] : display[d];
  return out;
}

export function toFraction(layout: Layout, index: Readonly<Vec3>): Vec3 {
  return toDisplay(layout, index).map((x, d) => (x + 0.5) / layout.sides[d]) as Vec3;
}

export function fromFraction(layout: Layout, fraction: ArrayLike<number>): Vec3 {
  return fromDisplay(layout, [0, 1, 2].map((d) => fraction[d] * layout.sides[d] - 0.5) as Vec3);
}

/** Start and steps with which an index walks through NiiVue's drawing bitmap (its first display axis runs fastest). */
export function displaySteps(layout: Layout): { start: number; step: Vec3 } {
  const stride = [1, layout.sides[0], layout.sides[0] * layout.sides[1]];
  const step: Vec3 = [0, 0, 0];
  let start = 0;
  for (let d = 0; d < 3; d++) {
    step[layout.axis[d]] = layout.flip[d] ? -stride[d] : stride[d];
    if (layout.flip[d]) start += stride[d] * (layout.sides[d] - 1);
  }
  return { start, step };
}

/** A tile from the fractions that three of its pixels have: `at`, `w` pixels to its right, `h` pixels below it. */
export function tileOf(
  across: Axis,
  rect: readonly [number, number, number, number],
  at: readonly [number, number],
  w: number,
  h: number,
  fractions: readonly [ArrayLike<number>, ArrayLike<number>, ArrayLike<number>],
): Tile {
  const [f, fx, fy] = fractions;
  const right = [0, 1, 2].map((d) => (fx[d] - f[d]) / w) as Vec3;
  const down = [0, 1, 2].map((d) => (fy[d] - f[d]) / h) as Vec3;
  const origin = [0, 1, 2].map((d) => f[d] - at[0] * right[d] - at[1] * down[d]) as Vec3;
  return { across, rect, origin, right, down };
}

export function screenToIndex(tile: Tile, layout: Layout, x: number, y: number): Vec3 {
  return fromFraction(layout, [0, 1, 2].map((d) => tile.origin[d] + x * tile.right[d] + y * tile.down[d]));
}

/** Pixels of an index in a tile, wherever its slice is. */
export function indexToScreen(tile: Tile, layout: Layout, index: Readonly<Vec3>): [number, number] {
  const f = toFraction(layout, index);
  const [p, q] = [0, 1, 2].filter((d) => d !== tile.across);
  const [a, b, c, e] = [tile.right[p], tile.down[p], tile.right[q], tile.down[q]];
  const [u, v] = [f[p] - tile.origin[p], f[q] - tile.origin[q]];
  const det = a * e - b * c;
  return [(e * u - b * v) / det, (a * v - c * u) / det];
}

/** The slice that a tile shows, as the index axis it cuts and the number of its voxels there. */
export function sliceOf(tile: Tile, layout: Layout): { axis: Axis; index: number } {
  const axis = layout.axis[tile.across];
  const at = screenToIndex(tile, layout, tile.rect[0] + tile.rect[2] / 2, tile.rect[1] + tile.rect[3] / 2)[axis];
  const sides = layout.sides[tile.across];
  return { axis, index: Math.min(sides - 1, Math.max(0, Math.round(at))) };
}

/** The two index axes within a slice. */
export function inPlane(axis: Axis): [Axis, Axis] {
  return axis === 0 ? [1, 2] : axis === 1 ? [0, 2] : [0, 1];
}

/** The box prompt for what was drawn between two corners (index). A box is given in world mm along the world's axes, and a model sees the
 * box around its corners in the image; on an oblique grid that would be larger than what was drawn. So the world box is the one whose corners,
 * seen in the image, lie just in the drawn box: with c the inverse affine's absolute values, c * extent = drawn sides, extent >= 0 (least
 * squares by coordinates where no box does it exactly). Sides of no length, those across the slice, are free. */
export function boxPrompt(grid: Grid, a: Readonly<Vec3>, b: Readonly<Vec3>): { low: number[]; high: number[] } {
  const clamp = (x: number, d: number) => Math.min(grid.shape[d] - 0.5, Math.max(-0.5, x));
  const low = a.map((x, d) => clamp(Math.min(x, b[d]), d));
  const high = a.map((x, d) => clamp(Math.max(x, b[d]), d));
  const rows = grid.inverse.map((row, d) => ({ row: row.map(Math.abs), side: high[d] - low[d] })).filter(({ side }) => side > 0);
  const extent = new Array<number>(grid.dims).fill(0);
  for (let turn = 0; turn < 400; turn++)
    for (let w = 0; w < grid.dims; w++) {
      const weight = rows.reduce((sum, { row }) => sum + row[w] ** 2, 0);
      const miss = rows.reduce((sum, { row, side }) => sum + row[w] * (side - row.reduce((s, c, k) => s + c * extent[k], 0)), 0);
      if (weight > 0) extent[w] = Math.max(0, extent[w] + miss / weight);
    }
  const middle = toWorld(grid, low.map((x, d) => (x + high[d]) / 2) as Vec3);
  return { low: middle.map((x, w) => x - extent[w] / 2), high: middle.map((x, w) => x + extent[w] / 2) };
}

/** A drawn rectangle as deep as it is wide on average, for models that look at volumes: centred on its slice. */
export function deepened(grid: Grid, axis: Axis, a: Readonly<Vec3>, b: Readonly<Vec3>): [Vec3, Vec3] {
  const mm = inPlane(axis).map((d) => Math.abs(a[d] - b[d]) * grid.spacing[d]);
  const half = Math.max(0.5, (mm[0] + mm[1]) / 4 / grid.spacing[axis]);
  const [low, high]: [Vec3, Vec3] = [[...a], [...b]];
  low[axis] = Math.max(-0.5, a[axis] - half);
  high[axis] = Math.min(grid.shape[axis] - 0.5, a[axis] + half);
  return [low, high];
}

function inverseOf(affine: readonly (readonly number[])[], d: number): number[][] {
  if (d === 2) {
    const [[a, b], [c, e]] = affine;
    const det = a * e - b * c;
    return [
      [e / det, -b / det],
      [-c / det, a / det],
    ];
  }
  const m = affine;
  const minor = (r: number, c: number) => {
    const [r0, r1] = [0, 1, 2].filter((x) => x !== r);
    const [c0, c1] = [0, 1, 2].filter((x) => x !== c);
    return ((r + c) % 2 ? -1 : 1) * (m[r0][c0] * m[r1][c1] - m[r0][c1] * m[r1][c0]);
  };
  const det = [0, 1, 2].reduce((sum, c) => sum + m[0][c] * minor(0, c), 0);
  return [0, 1, 2].map((r) => [0, 1, 2].map((c) => minor(c, r) / det));
}
