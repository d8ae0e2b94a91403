// The picture under the pointer: gestures of the tools become voxels, and what was pointed at is drawn over the slices.

import { el } from "./dom";
import { inPlane, sliceOf, toIndex, type Axis, type Tile, type Vec3 } from "./geometry";
import type { Prompt } from "./api";
import type { View } from "./view";

export type Tool = "navigate" | "box" | "plus" | "minus" | "scribble" | "lasso" | "brush" | "eraser";

export interface Place {
  axis: Axis;
  index: number;
}

/** What the stage asks of the page. Points are indices between voxel centres. */
export interface Host {
  readonly tool: Tool;
  readonly radius: number;
  readonly colour: string;
  readonly ready: boolean;
  marks(): readonly Prompt[];
  box(place: Place, a: Vec3, b: Vec3): void;
  click(place: Place, at: Vec3, positive: boolean): void;
  scribble(place: Place, points: Vec3[], positive: boolean): void;
  lasso(place: Place, points: Vec3[]): void;
  stroke(place: Place, from: Vec3, to: Vec3, erase: boolean, first: boolean): void;
  strokeEnd(): void;
  hover(at: Vec3 | null): void;
}

interface Gesture {
  tile: Tile;
  place: Place;
  screen: [number, number][];
  points: Vec3[];
  positive: boolean;
  erase: boolean;
}

export class Stage {
  readonly root: HTMLElement;
  private readonly ink = el("canvas", { class: "ink" });
  private gesture: Gesture | null = null;
  private cursor: [number, number] | null = null;

  constructor(
    private readonly view: View,
    private readonly host: Host,
  ) {
    const canvasBox = el("div", { class: "canvas-box" }, view.canvas);
    this.root = el("div", { class: "stage" }, canvasBox, this.ink);
    const listen = (name: string, run: (event: never) => void) => canvasBox.addEventListener(name, run as EventListener, { capture: true, passive: false });
    listen("pointerdown", (e: PointerEvent) => this.down(e));
    listen("pointermove", (e: PointerEvent) => this.move(e));
    listen("pointerup", (e: PointerEvent) => this.up(e));
    listen("pointercancel", () => this.cancel());
    listen("pointerleave", () => this.leave());
    listen("wheel", (e: WheelEvent) => this.wheel(e));
    for (const name of ["mousedown", "mouseup", "mousemove", "touchstart", "touchmove", "touchend"])
      listen(name, (e: Event) => {
        if (this.gesture || (name === "mouseup" && this.justEnded)) e.stopPropagation(); // NiiVue does not hear of it
      });
    listen("contextmenu", (e: Event) => e.preventDefault());
    view.onDraw = () => this.draw();
  }

  private justEnded = false;

  private at(e: MouseEvent): [number, number] {
    const box = this.view.canvas.getBoundingClientRect();
    return [(e.clientX - box.left) * this.view.pixels, (e.clientY - box.top) * this.view.pixels];
  }

  private down(e: PointerEvent): void {
    this.justEnded = false;
    const { tool, ready } = this.host;
    if (!ready || tool === "navigate" || this.gesture || e.button === 1) return;
    if (e.button === 2 && !["plus", "minus", "scribble", "brush"].includes(tool)) return;
    const [x, y] = this.at(e);
    const tile = this.view.tileAt(x, y);
    if (!tile || !this.view.layout) return;
    e.preventDefault();
    (document.activeElement as HTMLElement | null)?.blur?.();
    (e.target as HTMLElement).setPointerCapture(e.pointerId);
    const other = e.button === 2 || e.shiftKey;
    const point = this.inside(tile, x, y);
    this.gesture = { tile, place: sliceOf(tile, this.view.layout), screen: [[x, y]], points: [point], positive: (tool !== "minus") !== other, erase: tool === "eraser" || other };
    if (tool === "brush" || tool === "eraser") this.host.stroke(this.gesture.place, point, point, this.gesture.erase, true);
  }

  private inside(tile: Tile, x: number, y: number): Vec3 {
    const [l, t, w, h] = tile.rect;
    const grid = this.view.grid!;
    const place = sliceOf(tile, this.view.layout!);
    const at = this.view.indexAt(tile, Math.min(l + w, Math.max(l, x)), Math.min(t + h, Math.max(t, y)));
    const kept = at.map((v, a) => Math.min(grid.shape[a] - 0.5, Math.max(-0.5, v))) as Vec3;
    kept[place.axis] = place.index;
    return kept;
  }

  private move(e: PointerEvent): void {
    const [x, y] = (this.cursor = this.at(e));
    const tile = this.gesture?.tile ?? this.view.tileAt(x, y);
    this.host.hover(tile && this.host.ready ? this.view.indexAt(tile, x, y) : null);
    const g = this.gesture;
    if (g) {
      for (const event of e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e]) {
        const [px, py] = this.at(event);
        const point = this.inside(g.tile, px, py);
        if (this.host.tool === "brush" || this.host.tool === "eraser") this.host.stroke(g.place, g.points[g.points.length - 1], point, g.erase, false);
        g.points.push(point);
        g.screen.push([px, py]);
      }
    }
    this.draw();
  }

  private up(e: PointerEvent): void {
    const g = this.gesture;
    if (!g) return;
    this.move(e);
    this.gesture = null;
    this.justEnded = true;
    const { host } = this;
    const [first, last] = [g.points[0], g.points[g.points.length - 1]];
    const [a, b] = [g.screen[0], g.screen[g.screen.length - 1]];
    const far = Math.hypot(a[0] - b[0], a[1] - b[1]) / this.view.pixels;
    const long = g.screen.some(([x, y]) => Math.hypot(x - a[0], y - a[1]) > 6 * this.view.pixels);
    if (host.tool === "box" && far > 5) host.box(g.place, first, last);
    else if (host.tool === "plus" || host.tool === "minus") host.click(g.place, last, g.positive);
    else if (host.tool === "scribble") long ? host.scribble(g.place, thinned(g.points), g.positive) : host.click(g.place, last, g.positive);
    else if (host.tool === "lasso" && long) host.lasso(g.place, thinned(g.points));
    else if (host.tool === "brush" || host.tool === "eraser") host.strokeEnd();
    this.draw();
  }

  cancel(): void {
    if (this.gesture && (this.host.tool === "brush" || this.host.tool === "eraser")) this.host.strokeEnd();
    this.gesture = null;
    this.draw();
  }

  private leave(): void {
    this.cursor = null;
    this.host.hover(null);
    this.draw();
  }

  private wheel(e: WheelEvent): void {
    if (!this.host.ready) return;
    e.preventDefault();
    e.stopPropagation();
    const [x, y] = this.at(e);
    const tile = this.view.tileAt(x, y);
    if (!tile) {
      this.view.nv.setScale(Math.min(4, Math.max(0.4, this.view.nv.scene.volScaleMultiplier * (e.deltaY < 0 ? 1.08 : 1 / 1.08))));
      return;
    }
    if (e.ctrlKey || this.view.grid?.dims === 2) this.view.zoom(Math.exp(-Math.sign(e.deltaY) * 0.14), tile, x, y);
    else this.view.scroll(tile, e.deltaY > 0 ? -1 : 1);
  }

  // ------------------------------------------------------------------------------------------------------------------------- ink
  draw(): void {
    const { canvas } = this.view;
    this.ink.width = canvas.width; // forgets every clip
    this.ink.height = canvas.height;
    const pen = this.ink.getContext("2d")!;
    pen.clearRect(0, 0, canvas.width, canvas.height); // Chromium may go on showing what a mere change of size has cleared
    const marks = this.host.marks();
    const brush = this.host.tool === "brush" || this.host.tool === "eraser" ? this.cursor : null;
    this.ink.hidden = !this.host.ready || !this.view.layout || !(marks.length || this.gesture || brush);
    if (this.ink.hidden) return;
    const px = this.view.pixels;
    for (const tile of this.view.tiles) {
      pen.save();
      pen.beginPath();
      pen.rect(...tile.rect);
      pen.clip();
      for (const mark of marks) this.mark(pen, tile, mark, px);
      pen.restore();
    }
    if (this.gesture) this.inProgress(pen, this.gesture, px);
    if (brush) this.brushAt(pen, brush, px);
  }

  private mark(pen: CanvasRenderingContext2D, tile: Tile, mark: Prompt, px: number): void {
    const { grid, layout } = this.view;
    const here = sliceOf(tile, layout!);
    const shown = (at: Vec3) => Math.abs(at[here.axis] - here.index) <= 0.75;
    if (mark.kind === "box") {
      const [a, b] = mark.drawn;
      if (here.index < Math.min(a[here.axis], b[here.axis]) - 0.6 || here.index > Math.max(a[here.axis], b[here.axis]) + 0.6) return;
      const flat = Math.abs(a[here.axis] - b[here.axis]) < 0.01;
      if (!flat && !inPlane(here.axis).every((d) => Math.abs(a[d] - b[d]) > 0.01)) return;
      this.rectangle(pen, this.view.screenAt(tile, a), this.view.screenAt(tile, b), px);
    } else if (mark.kind === "point") {
      const at = toIndex(grid!, mark.xyz);
      if (shown(at)) this.dot(pen, this.view.screenAt(tile, at), mark.positive, px);
    } else if (mark.kind === "scribble" || mark.kind === "lasso") {
      const points = mark.xyz.map((p) => toIndex(grid!, p));
      if (!points.every(shown)) return;
      this.line(pen, points.map((p) => this.view.screenAt(tile, p)), mark.kind === "lasso", mark.kind === "lasso" || mark.positive, px);
    }
  }

  private inProgress(pen: CanvasRenderingContext2D, g: Gesture, px: number): void {
    if (this.host.tool === "box") this.rectangle(pen, g.screen[0], g.screen[g.screen.length - 1], px);
    else if (this.host.tool === "lasso" || this.host.tool === "scribble") this.line(pen, g.screen, this.host.tool === "lasso", g.positive, px);
  }

  private rectangle(pen: CanvasRenderingContext2D, a: readonly [number, number], b: readonly [number, number], px: number): void {
    const sides: [number, number, number, number] = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
    pen.setLineDash([]);
    pen.lineWidth = 3 * px;
    pen.strokeStyle = "rgba(8, 11, 15, .55)";
    pen.strokeRect(...sides);
    pen.lineWidth = 1.5 * px;
    pen.strokeStyle = "#f4f7fa";
    pen.setLineDash([6 * px, 4 * px]);
    pen.strokeRect(...sides);
    pen.setLineDash([]);
  }

  private dot(pen: CanvasRenderingContext2D, at: readonly [number, number], positive: boolean, px: number): void {
    pen.beginPath();
    pen.arc(at[0], at[1], 6 * px, 0, 7);
    pen.fillStyle = positive ? "#2fb67a" : "#e05656";
    pen.fill();
    pen.lineWidth = 1.5 * px;
    pen.strokeStyle = "#ffffff";
    pen.stroke();
    pen.beginPath();
    pen.moveTo(at[0] - 3 * px, at[1]);
    pen.lineTo(at[0] + 3 * px, at[1]);
    if (positive) {
      pen.moveTo(at[0], at[1] - 3 * px);
      pen.lineTo(at[0], at[1] + 3 * px);
    }
    pen.stroke();
  }

  private line(pen: CanvasRenderingContext2D, points: readonly (readonly [number, number])[], closed: boolean, positive: boolean, px: number): void {
    pen.beginPath();
    points.forEach(([x, y], n) => (n ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (closed) pen.closePath();
    pen.lineJoin = pen.lineCap = "round";
    pen.lineWidth = 4 * px;
    pen.strokeStyle = "rgba(8, 11, 15, .55)";
    pen.stroke();
    pen.lineWidth = 2 * px;
    pen.strokeStyle = closed ? "#f4f7fa" : positive ? "#43d295" : "#f07070";
    pen.stroke();
  }

  private brushAt(pen: CanvasRenderingContext2D, [x, y]: [number, number], px: number): void {
    const tile = this.gesture?.tile ?? this.view.tileAt(x, y);
    if (!tile) return;
    const grid = this.view.grid!;
    const at = this.view.indexAt(tile, x, y);
    const [u, v] = inPlane(sliceOf(tile, this.view.layout!).axis);
    const length = (a: Axis) => {
      const moved = [...at] as Vec3;
      moved[a] += this.host.radius / grid.spacing[a];
      const [sx, sy] = this.view.screenAt(tile, moved);
      return [Math.abs(sx - x), Math.abs(sy - y)];
    };
    const [du, dv] = [length(u), length(v)];
    pen.beginPath();
    pen.ellipse(x, y, Math.max(du[0], dv[0], 2 * px), Math.max(du[1], dv[1], 2 * px), 0, 0, 7);
    pen.lineWidth = 3 * px;
    pen.strokeStyle = "rgba(8, 11, 15, .5)";
    pen.stroke();
    pen.lineWidth = 1.5 * px;
    pen.strokeStyle = this.host.tool === "eraser" ? "#ffffff" : this.host.colour;
    pen.stroke();
  }
}

/** At most 300 points of a line, ends kept. */
function thinned(points: Vec3[]): Vec3[] {
  const step = Math.max(1, points.length / 300);
  const out: Vec3[] = [];
  for (let n = 0; n < points.length; n += step) out.push(points[Math.floor(n)]);
  out.push(points[points.length - 1]);
  return out;
}
