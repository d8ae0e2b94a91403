/** A label map as the server sends it, unpacked; `type`: NIfTI's number for that of `data`. */
export function nifti(sides: number[], type: number, data: Uint8Array | Uint16Array): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(352 + data.byteLength);
  const head = new DataView(file.buffer);
  head.setInt32(0, 348, true);
  [sides.length, ...sides].forEach((n, k) => head.setInt16(40 + 2 * k, n, true));
  head.setInt16(70, type, true);
  head.setFloat32(108, 352, true);
  file.set(new Uint8Array(data.buffer), 352);
  return file;
}
