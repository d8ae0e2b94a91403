// NiiVue behind a small surface: load an image, show the mask as NiiVue's drawing, say which voxel a pixel shows.

import { DRAG_MODE, MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { type Axis, fromFraction, type Grid, indexToScreen, isLarge, type Layout, screenToIndex, type Tile, tileOf, toFraction, type Vec3 } from "./geometry";
import type { Dirty, Mask } from "./mask";
import { thrifty } from "./thrift";

export type Plane = "all" | "axial" | "coronal" | "sagittal" | "render";
export const PLANES: readonly Plane[] = ["all", "axial", "coronal", "sagittal", "render"];
const TYPES = { all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, render: SLICE_TYPE.RENDER };
const ACROSS: Record<number, Axis> = { [SLICE_TYPE.AXIAL]: 2, [SLICE_TYPE.CORONAL]: 1, [SLICE_TYPE.SAGITTAL]: 0 };
const imageOf = NVImage.new.bind(NVImage) as unknown as (file: ArrayBuffer, name: string) => Promise<NVImage>; // the rest has defaults
const [BYTES, RGB] = [2, 128]; // NIfTI's types
const DRAW_UNIT = 33991; // TEXTURE7, where NiiVue's shaders look for the drawing

/** The least and greatest value of all voxels; NiiVue's own are those of the middle of the image. */
function extent(image: NVImage): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  const values = image.img ?? [];
  for (let n = 0; n < values.length; n++) {
    const value = values[n];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const { scl_slope: slope = 1, scl_inter: inter = 0 } = image.hdr ?? {};
  return low < high ? [low * (slope || 1) + inter, high * (slope || 1) + inter] : [0, 1];
}

/** An image that was read, and its grey values' usual and whole range; null of colours. */
export interface Picture {
  readonly image: NVImage;
  readonly range: Range | null;
}

export interface Range {
  readonly robust: [number, number];
  readonly full: [number, number];
}

function rangeOf(image: NVImage): Range | null {
  if (image.hdr?.datatypeCode === RGB) return null;
  if (image.hdr?.datatypeCode === BYTES) return { robust: [0, 255], full: [0, 255] }; // pictures: shown as they are
  return { robust: [image.robust_min ?? 0, image.robust_max ?? 1], full: extent(image) };
}

/** A byte-valued picture in display order that is shown instead of the mask, with a colour per value. */
export interface Shown {
  bytes: Uint8Array<ArrayBuffer>;
  colours: readonly string[];
}

export class View {
  readonly nv: Niivue;
  grid: Grid | null = null;
  layout: Layout | null = null;
  plane: Plane = "all";
  /** After every drawing of the scene, and when the place or the window changed. */
  onDraw: () => void = () => undefined;
  onPlace: () => void = () => undefined;
  onWindow: () => void = () => undefined;
  private mask: Mask | null = null;
  private shown: Shown | null = null;
  private colours: readonly string[] = [];
  private flat = false;
  private picture: Picture | null = null;
  private held = false;
  private software = false;

  constructor(readonly canvas: HTMLCanvasElement) {
    canvas.setAttribute("aria-label", "The image");
    this.nv = new Niivue({
      backColor: [0.055, 0.065, 0.08, 1],
      crosshairColor: [0.45, 0.78, 0.95, 0.55],
      crosshairWidth: 0.25,
      crosshairWidthUnit: "percent",
      crosshairGap: 6,
      fontColor: [0.72, 0.76, 0.82, 1],
      fontMinPx: 11,
      fontSizeScaling: 0.28,
      dragAndDropEnabled: false,
      show3Dcrosshair: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarPadPixels: 4,
      tileMargin: 4,
      isSliceMM: false, // slices are the voxels' own planes, also of oblique scans
      loadingText: "",
      logLevel: "error",
      selectionBoxColor: [0.45, 0.78, 0.95, 0.25],
    });
    const ignore = () => undefined;
    Object.assign(this.nv, { keyDownListener: ignore, keyUpListener: ignore, wheelListener: ignore, resetBriCon: ignore }); // the page has keys and a wheel of its own
    const draw = this.nv.drawScene.bind(this.nv);
    this.nv.drawScene = () => {
      if (this.held) return;
      const said = draw();
      this.onDraw();
      return said;
    };
    this.nv.onLocationChange = () => this.onPlace();
    this.nv.onIntensityChange = () => this.onWindow();
  }

  async start(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas, true);
    thrifty(this.nv, (image) => image.hdr?.datatypeCode !== RGB && this.grid !== null && this.slow(this.grid));
    const { gl } = this.nv;
    const named = gl.getExtension("WEBGL_debug_renderer_info");
    this.software = /swiftshader|llvmpipe|software|basic render/i.test(String(gl.getParameter(named?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER)));
  }

  get pixels(): number {
    return this.nv.uiData.dpr ?? 1;
  }

  /** Changes that are drawn when all are made. */
  together(run: () => void): void {
    this.held = true;
    try {
      run();
    } finally {
      this.held = false;
    }
    this.nv.drawScene();
  }

  /** The image of a case (.nii, unpacked). Throws where the graphics cannot hold it. */
  async read(file: ArrayBuffer, grid: Grid, layout: Layout): Promise<Picture> {
    const most = this.nv.uiData.max3D ?? 2048;
    if (Math.max(...grid.shape) > most) throw new Error(`This image has a side of ${Math.max(...grid.shape)} voxels; this browser's graphics show up to ${most}.`);
    const image = await imageOf(file, "image.nii");
    const same = layout.sides.every((n, d) => n === image.dimsRAS?.[d + 1] && layout.flip[d] === (image.permRAS?.[d] ?? 0) < 0);
    if (!same) throw new Error("This image lies on another grid than the case.");
    return { image, range: rangeOf(image) };
  }

  /** `window`: of grey values. */
  show(picture: Picture, grid: Grid, layout: Layout, window: [number, number] | null): void {
    this.clear();
    this.picture = picture;
    this.flat = grid.dims === 2;
    const { nv } = this;
    const { image } = picture;
    if (window) [image.cal_min, image.cal_max] = window;
    nv.opts.multiplanarShowRender = this.rendered(grid) ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
    nv.opts.isRadiologicalConvention = !this.flat;
    nv.opts.show3Dcrosshair = !this.flat;
    nv.opts.isOrientationTextVisible = !this.flat;
    nv.opts.crosshairWidth = this.flat ? 0 : 0.25;
    nv.setMouseEventConfig({
      leftButton: { primary: this.flat ? DRAG_MODE.pan : DRAG_MODE.crosshair },
      rightButton: DRAG_MODE.windowing,
      centerButton: DRAG_MODE.pan,
    });
    this.grid = grid;
    this.layout = layout;
    nv.addVolume(image);
    nv.drawBitmap = null;
    nv.drawTexture = nv.r8Tex(nv.drawTexture, DRAW_UNIT, [3, ...layout.sides]); // empty; NiiVue's own would keep three copies of it
    nv.scene.pan2Dxyzmm = new Float32Array([0, 0, 0, 1]);
    nv.scene.crosshairPos = new Float32Array(toFraction(layout, grid.shape.map((n) => Math.floor(n / 2)) as Vec3));
    this.setPlane(this.flat ? "axial" : this.plane);
  }

  /** Whether the planes have a 3D picture beside them: without a graphics card it takes a second at every step through a large image. */
  rendered(grid: Grid): boolean {
    return !this.slow(grid);
  }

  /** Whether it takes seconds to go over all voxels. */
  private slow(grid: Grid): boolean {
    return this.software && isLarge(grid);
  }

  clear(): void {
    this.mask = this.shown = this.picture = null;
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.grid = this.layout = null;
  }

  /** Show this mask; its picture is NiiVue's drawing from now on. */
  setMask(mask: Mask): void {
    this.mask = mask;
    this.nv.drawBitmap = mask.picture;
    mask.takeDirty();
    this.upload(null);
  }

  /** Bring what changed to the screen: only the box of voxels that was touched travels. */
  refresh(): void {
    const dirty = this.mask?.takeDirty();
    if (dirty && !this.shown) this.upload(dirty);
  }

  /** Another picture in place of the mask's (a comparison), or null for the mask again. */
  setShown(shown: Shown | null): void {
    this.shown = shown;
    this.nv.drawBitmap = shown ? shown.bytes : (this.mask?.picture ?? null);
    this.applyColours(shown ? shown.colours : this.colours);
    this.upload(null);
  }

  setColours(colours: readonly string[]): void {
    this.colours = colours;
    if (!this.shown) this.applyColours(colours);
  }

  private applyColours(colours: readonly string[]): void {
    const rgb = (n: number) => [1, 3, 5].map((k) => parseInt(colours[n].slice(k, k + 2), 16));
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    colours.slice(0, 254).forEach((_, n) => {
      const [r, g, b] = rgb(n);
      table.R.push(r), table.G.push(g), table.B.push(b), table.A.push(255), table.I.push(n + 1), table.labels.push("");
    });
    this.nv.setDrawColormap(table as unknown as string); // takes a table as well as a name
  }

  private upload(box: Dirty | null): void {
    const { nv, layout } = this;
    if (!layout || !nv.drawBitmap || !nv.drawTexture) return;
    const [nx, ny, nz] = layout.sides;
    const low = box?.low ?? [0, 0, 0];
    const size = box ? ([0, 1, 2].map((d) => box.high[d] - low[d] + 1) as Vec3) : [nx, ny, nz];
    const gl = nv.gl;
    gl.activeTexture(DRAW_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, nx);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, ny);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, low[0], low[1], low[2], size[0], size[1], size[2], gl.RED, gl.UNSIGNED_BYTE, nv.drawBitmap, low[0] + nx * (low[1] + ny * low[2]));
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, 0);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, 0);
    nv.drawScene();
  }

  setOpacity(opacity: number): void {
    this.nv.drawRimOpacity = Math.min(1, 2 * opacity); // outlines stand out of their filling
    this.nv.setDrawOpacity(opacity);
  }

  setPlane(plane: Plane): void {
    this.plane = this.flat ? this.plane : plane;
    this.nv.setSliceType(this.flat ? SLICE_TYPE.AXIAL : TYPES[plane]);
  }

  setSmooth(smooth: boolean): void {
    this.nv.setInterpolation(!smooth);
  }

  // -------------------------------------------------------------------------------------------------------------------- grey values
  /** Null of a colour image. */
  get window(): [number, number] | null {
    const image = this.nv.volumes[0];
    return !image || image.hdr?.datatypeCode === RGB ? null : [image.cal_min ?? 0, image.cal_max ?? 1];
  }

  get range(): Range | null {
    return this.picture?.range ?? null;
  }

  setWindow(low: number, high: number): void {
    const image = this.nv.volumes[0];
    if (!image || !(low < high) || (image.cal_min === low && image.cal_max === high)) return;
    image.cal_min = low;
    image.cal_max = high;
    this.nv.updateGLVolume();
  }

  /** The image's value in a voxel, as text. */
  valueAt(index: Readonly<Vec3>): string {
    const image = this.nv.volumes[0];
    if (!image || !this.layout) return "";
    const f = toFraction(this.layout, index);
    const [x, y, z] = f.map((v, d) => Math.floor(v * this.layout!.sides[d]));
    if (!this.window) return "";
    const value = image.getValue(x, y, z, 0);
    return Number.isInteger(value) ? String(value) : value.toPrecision(4);
  }

  // ---------------------------------------------------------------------------------------------------------------------- places
  /** The voxel at the crosshair. */
  get place(): Vec3 {
    if (!this.layout || !this.grid) return [0, 0, 0];
    return fromFraction(this.layout, this.nv.scene.crosshairPos).map((x, a) => Math.min(this.grid!.shape[a] - 1, Math.max(0, Math.round(x)))) as Vec3;
  }

  set place(index: Readonly<Vec3>) {
    if (!this.layout || !this.grid) return;
    const kept = index.map((x, a) => Math.min(this.grid!.shape[a] - 1, Math.max(0, Math.round(x)))) as Vec3;
    this.nv.scene.crosshairPos = new Float32Array(toFraction(this.layout, kept));
    this.nv.drawScene();
    this.onPlace();
  }

  get tiles(): Tile[] {
    const out: Tile[] = [];
    this.nv.screenSlices.forEach((slice, n) => {
      const across = ACROSS[slice.axCorSag];
      if (across === undefined || !this.layout) return;
      const [x, y, w, h] = slice.leftTopWidthHeight;
      const rect: [number, number, number, number] = [Math.min(x, x + w), y, Math.abs(w), h];
      const at: [number, number] = [rect[0] + rect[2] / 4, rect[1] + rect[3] / 4];
      const fraction = (dx: number, dy: number) => Float64Array.from(this.nv.screenXY2TextureFrac(at[0] + dx, at[1] + dy, n, false));
      const [sx, sy] = [rect[2] / 2, rect[3] / 2];
      out.push(tileOf(across, rect, at, sx, sy, [fraction(0, 0), fraction(sx, 0), fraction(0, sy)]));
    });
    return out;
  }

  /** The tile under a place of the canvas (canvas pixels), and the voxel there (between centres); null outside of all slices. */
  tileAt(x: number, y: number): Tile | null {
    return this.tiles.find(({ rect: [l, t, w, h] }) => x >= l && x <= l + w && y >= t && y <= t + h) ?? null;
  }

  indexAt(tile: Tile, x: number, y: number): Vec3 {
    return screenToIndex(tile, this.layout!, x, y);
  }

  screenAt(tile: Tile, index: Readonly<Vec3>): [number, number] {
    return indexToScreen(tile, this.layout!, index);
  }

  /** A slice further in a tile, or across the first axis shown. */
  scroll(tile: Tile | null, by: number): void {
    const across = tile?.across ?? this.tiles[0]?.across ?? 2;
    if (!this.layout) return;
    const axis = this.layout.axis[across];
    const place = this.place;
    place[axis] += this.layout.flip[across] ? -by : by;
    this.place = place;
  }

  /** Enlarge around a pixel. */
  zoom(factor: number, tile: Tile, x: number, y: number): void {
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.min(40, Math.max(0.5, pan[3] * factor));
    const f = toFraction(this.layout!, this.indexAt(tile, x, y));
    const mm = this.nv.frac2mm(new Float32Array(f));
    const change = zoom - pan[3];
    this.nv.scene.pan2Dxyzmm = new Float32Array([pan[0] - change * mm[0], pan[1] - change * mm[1], pan[2] - change * mm[2], zoom]);
    this.nv.drawScene();
  }

  resetZoom(): void {
    this.nv.scene.pan2Dxyzmm = new Float32Array([0, 0, 0, 1]);
    this.nv.drawScene();
  }
}
