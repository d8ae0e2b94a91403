// Masks on their way: gzip, packed bits, label maps as NIfTI. Pure but for the platform's compression streams.

import type { Grid } from "./geometry";

export type Voxels = Uint8Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;

/** An object's mask as the server packs it: bits fill the box low..low+size in C order; a picture's box has two sides. */
export interface Packed {
  low: number[];
  size: number[];
  bits: string;
}

/** An answer of the server is unpacked while it comes. */
export async function gunzip(data: Uint8Array<ArrayBuffer> | Blob | Response): Promise<Uint8Array<ArrayBuffer>> {
  return through(data, new DecompressionStream("gzip"));
}

export async function gzip(data: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  return through(data, new CompressionStream("gzip"));
}

async function through(data: Uint8Array<ArrayBuffer> | Blob | Response, stream: CompressionStream | DecompressionStream): Promise<Uint8Array<ArrayBuffer>> {
  const source = data instanceof Response ? data.body! : (data instanceof Blob ? data : new Blob([data])).stream();
  return new Uint8Array(await new Response(source.pipeThrough(stream)).arrayBuffer());
}

/** Calls `each(i, j, k)` for every voxel of a packed mask. Throws where the box does not lie in the grid or the bits do not fill it. */
export async function eachVoxel(grid: Grid, mask: Packed, each: (i: number, j: number, k: number) => void): Promise<void> {
  const low = [...mask.low, 0].slice(0, 3);
  const size = grid.dims === 2 ? [...mask.size, 1] : mask.size;
  if (size.length !== 3 || size.some((n, a) => n < 0 || low[a] < 0 || low[a] + n > grid.shape[a])) throw new Error("the answer does not lie in the image");
  const count = size[0] * size[1] * size[2];
  if (!count) return;
  const bytes = await gunzip(fromBase64(mask.bits));
  if (bytes.length !== (count + 7) >> 3) throw new Error("the answer is not complete");
  let n = 0;
  for (let i = 0; i < size[0]; i++)
    for (let j = 0; j < size[1]; j++)
      for (let k = 0; k < size[2]; k++, n++) if (bytes[n >> 3] & (0x80 >> (n & 7))) each(low[0] + i, low[1] + j, low[2] + k);
}

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let n = 0; n < raw.length; n++) out[n] = raw.charCodeAt(n);
  return out;
}

const READERS: Record<number, (buffer: ArrayBuffer) => ArrayLike<number>> = {
  2: (b) => new Uint8Array(b),
  4: (b) => new Int16Array(b),
  8: (b) => new Int32Array(b),
  256: (b) => new Int8Array(b),
  512: (b) => new Uint16Array(b),
  768: (b) => new Uint32Array(b),
};

/** A label map (.nii, unpacked) on the case's grid, in the mask's own order. Throws for another size or type. */
export function labelsOf(file: Uint8Array<ArrayBuffer>, grid: Grid): Voxels {
  const head = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.byteLength < 352 || head.getInt32(0, true) !== 348) throw new Error("the saved mask cannot be read");
  const sides = [1, 2, 3].map((n) => (n <= head.getInt16(40, true) ? head.getInt16(40 + 2 * n, true) : 1));
  const wanted = grid.dims === 2 ? [grid.shape[1], grid.shape[0], 1] : grid.shape;
  if (sides.some((n, a) => n !== wanted[a])) throw new Error("the saved mask is of another size than the image");
  const read = READERS[head.getInt16(70, true)];
  if (!read) throw new Error("the saved mask is of a type that masks are not saved as");
  const flat = read(file.buffer.slice(file.byteOffset + head.getFloat32(108, true), file.byteOffset + file.byteLength));
  const [a, b, c] = grid.shape;
  if (flat.length < a * b * c) throw new Error("the saved mask is not complete");
  let most = 0;
  for (let n = 0; n < a * b * c; n++) if (flat[n] > most) most = flat[n];
  const out = most < 256 ? new Uint8Array(a * b * c) : new Uint16Array(a * b * c);
  if (grid.dims === 2) {
    for (let n = 0; n < out.length; n++) out[n] = flat[n]; // (column, row) with columns fastest is (row, column) in C order
    return out;
  }
  for (let k = 0, n = 0; k < c; k++) for (let j = 0; j < b; j++) for (let i = 0; i < a; i++, n++) if (flat[n]) out[(i * b + j) * c + k] = flat[n];
  return out;
}

/** A mask as the server takes it: gzipped little-endian voxels with their shape and type in headers. */
export async function bodyOf(voxels: Voxels, grid: Grid): Promise<{ body: Uint8Array<ArrayBuffer>; headers: Record<string, string> }> {
  const bytes = new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength);
  const shape = grid.shape.slice(0, grid.dims).join(",");
  return { body: await gzip(bytes), headers: { "X-Shape": shape, "X-Dtype": voxels instanceof Uint8Array ? "uint8" : "uint16" } };
}
