// NiiVue works out the gradient of every image, at every change of its window too, for a lighting of the 3D picture that this page does not
// use: two more passes over all voxels, and eight bytes a voxel of the graphics' memory.

import type { Niivue } from "@niivue/niivue";

const [GRADIENT, BLURRED] = [33990, 33992]; // TEXTURE6, TEXTURE8: where NiiVue puts the gradient, and first the image that it blurs for it

/** Spare NiiVue its gradients: the textures are there, of one voxel. Call it when it is attached to its canvas. */
export function withoutGradients(nv: Niivue): void {
  const { gl } = nv;
  let refreshing = false;
  let off = false;
  const refresh = nv.refreshLayers.bind(nv);
  nv.refreshLayers = (image, layer) => {
    refreshing = true;
    try {
      refresh(image, layer);
    } finally {
      refreshing = off = false; // the gradient comes last
    }
  };
  const texture = nv.rgbaTex.bind(nv);
  nv.rgbaTex = (id, unit, sides, first) => {
    if (refreshing && unit === BLURRED && first) off = true;
    return texture(id, unit, off && (unit === BLURRED || unit === GRADIENT) ? [3, 1, 1, 1] : sides, first);
  };
  const draw = gl.drawArrays.bind(gl);
  gl.drawArrays = (...given) => void (off || draw(...given));
  const attach = gl.framebufferTextureLayer.bind(gl);
  gl.framebufferTextureLayer = (...given) => void (off || attach(...given));
  const check = gl.checkFramebufferStatus.bind(gl);
  gl.checkFramebufferStatus = (target) => (off ? gl.FRAMEBUFFER_COMPLETE : check(target));
}
