// NiiVue works out the gradient of every image, at every change of its window too, for a lighting of the 3D picture that this page does not
// use: two more passes over all voxels, and eight bytes a voxel of the graphics' memory.

import type { Niivue } from "@niivue/niivue";

const GRADIENTS = [33990, 33992]; // TEXTURE6, TEXTURE8: where NiiVue puts them

/** Spare NiiVue its gradients; the textures are there, of one voxel. Call it when it is attached to its canvas. */
export function withoutGradients(nv: Niivue): void {
  let off = false;
  const { gl } = nv;
  const texture = nv.rgbaTex.bind(nv);
  nv.rgbaTex = (id, unit, dims, first) => {
    if (!GRADIENTS.includes(unit)) return texture(id, unit, dims, first);
    off = true;
    return texture(id, unit, [3, 1, 1, 1], first);
  };
  const refresh = nv.refreshLayers.bind(nv);
  nv.refreshLayers = (image, layer) => {
    try {
      refresh(image, layer);
    } finally {
      off = false; // the gradients come last
    }
  };
  const draw = gl.drawArrays.bind(gl);
  gl.drawArrays = (...given) => void (off || draw(...given));
  const attach = gl.framebufferTextureLayer.bind(gl);
  gl.framebufferTextureLayer = (...given) => void (off || attach(...given));
  const check = gl.checkFramebufferStatus.bind(gl);
  gl.checkFramebufferStatus = (target) => (off ? gl.FRAMEBUFFER_COMPLETE : check(target));
}
