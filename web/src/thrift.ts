// NiiVue passes over all voxels more often than this page needs. It works out the gradient of every image, at every change of its window
// too, for a lighting of the 3D picture that is off here: two passes, and eight bytes a voxel of the graphics' memory. And it gives a grey
// image its colours in a shader, to which the voxels travel first: without a graphics card the processor has them sooner by a table.

import type { NVImage, Niivue } from "@niivue/niivue";

const [GRADIENT, BLURRED] = [33990, 33992]; // TEXTURE6, TEXTURE8: where NiiVue puts the gradient, and first the image that it blurs for it
const SLAB = 2 ** 21; // voxels that travel to the graphics at once

/** What ``colours`` reads of an image: its voxels, in what order they are shown, and its window. */
export interface Grey {
  readonly img?: ArrayLike<number>;
  readonly hdr?: { readonly scl_slope: number; readonly scl_inter: number } | null;
  readonly dimsRAS?: readonly number[];
  readonly img2RASstart?: readonly number[];
  readonly img2RASstep?: readonly number[];
  readonly cal_min?: number;
  readonly cal_max?: number;
}

/** Display slices from..to (exclusive) of an image in the colours of `table` (256 of them), into `out`; as NiiVue's shader, but not blended. */
export function colours(image: Grey, table: Uint32Array, from: number, to: number, out: Uint32Array): void {
  const { img, hdr, dimsRAS, img2RASstart: start, img2RASstep: step, cal_min: low, cal_max: high } = image as Required<Grey>;
  const [, nx, ny] = dimsRAS;
  const width = Math.max(1e-5, high - low);
  const scale = (256 * hdr!.scl_slope) / width;
  const shift = (256 * (hdr!.scl_inter - low)) / width;
  const across = step[0];
  for (let z = from, n = 0; z < to; z++)
    for (let y = 0; y < ny; y++) {
      let at = start[0] + start[1] + start[2] + y * step[1] + z * step[2];
      for (let x = 0; x < nx; x++, n++, at += across) {
        const value = img[at] * scale + shift;
        out[n] = table[value > 0 ? (value < 2 ? 2 : value < 255 ? value | 0 : 255) : 0]; // what is in the window at all is not its darkest
      }
    }
}

/** Spare NiiVue its gradients (the textures are there, of one voxel) and, of images that are `tabled`, its shader. Call it when it is attached to its canvas. */
export function thrifty(nv: Niivue, tabled: (image: NVImage) => boolean): void {
  const { gl } = nv;
  let refreshing = false;
  let off = false; // draws nothing
  let table = false; // keeps no voxels
  const refresh = nv.refreshLayers.bind(nv);
  nv.refreshLayers = (image, layer) => {
    refreshing = true;
    off = table = layer === 0 && tabled(image);
    try {
      refresh(image, layer);
      if (table) fill(image);
    } finally {
      refreshing = off = table = false; // the gradient comes last
    }
  };
  const texture = nv.rgbaTex.bind(nv);
  nv.rgbaTex = (id, unit, sides, first) => {
    if (refreshing && unit === BLURRED && first) off = true;
    return texture(id, unit, off && (unit === BLURRED || unit === GRADIENT) ? [3, 1, 1, 1] : sides, first);
  };
  const store = gl.texStorage3D.bind(gl);
  gl.texStorage3D = (target, levels, format, ...sides) => void (table && format !== gl.RGBA8 ? store(target, levels, format, 1, 1, 1) : store(target, levels, format, ...sides));
  const send = gl.texSubImage3D.bind(gl) as (...given: unknown[]) => void;
  gl.texSubImage3D = (...given: unknown[]) => void (table || send(...given));
  const draw = gl.drawArrays.bind(gl);
  gl.drawArrays = (...given) => void (off || draw(...given));
  const attach = gl.framebufferTextureLayer.bind(gl);
  gl.framebufferTextureLayer = (...given) => void (off || attach(...given));
  const check = gl.checkFramebufferStatus.bind(gl);
  gl.checkFramebufferStatus = (target) => (off ? gl.FRAMEBUFFER_COMPLETE : check(target));

  function fill(image: NVImage): void {
    const [, nx, ny, nz] = image.dimsRAS!;
    const deep = Math.max(1, Math.floor(SLAB / (nx * ny)));
    const out = new Uint32Array(nx * ny * deep);
    const colour = new Uint32Array(new Uint8Array(nv.colormap(image.colormap)).buffer);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_3D, nv.volumeTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 4);
    for (let z = 0; z < nz; z += deep) {
      const most = Math.min(nz, z + deep);
      colours(image as Grey, colour, z, most, out);
      send(gl.TEXTURE_3D, 0, 0, 0, z, nx, ny, most - z, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(out.buffer));
    }
  }
}
