// What is shown instead of the mask: how two versions differ, or how unsure the model was.

import type { Api, Compared } from "./api";
import type { App, Open } from "./app";
import { gunzip, labelsOf, type Voxels } from "./codec";
import { Mask } from "./mask";
import type { View } from "./view";

export interface Comparison {
  a: string;
  b: string;
  rows: Compared[];
}

/** Only the first version, only the second, both. */
export const COMPARED = ["#e9b44c", "#5aa9e6", "#5b8f6b"];

/** From a little unsure to wholly. */
const DOUBT = Array.from({ length: 20 }, (_, n) => {
  const t = n / 19;
  return `#${[60 + 195 * t, 30 + 190 * t * t, 120 * (1 - t) + 20].map((x) => Math.round(x).toString(16).padStart(2, "0")).join("")}`;
});

interface Page extends Pick<App, "teller" | "current" | "settings" | "opacity" | "changed"> {
  readonly api: Pick<Api, "compare" | "compareMap" | "uncertainty">;
  readonly view: Pick<View, "setShown" | "setOpacity">;
}

export class Overlay {
  comparison: Comparison | null = null;
  doubt = false; // the model's uncertainty is shown

  constructor(private readonly page: Page) {}

  get on(): boolean {
    return this.comparison !== null || this.doubt;
  }

  async compare(a: string, b: string): Promise<void> {
    const open = this.page.current;
    if (!open) return;
    await this.page.teller.attempt(async () => {
      const [rows, map] = await Promise.all([this.page.api.compare(open.record.id, a, b), this.page.api.compareMap(open.record.id, a, b).then(gunzip)]);
      if (this.page.current !== open) return;
      this.doubt = false;
      this.comparison = { a, b, rows };
      this.show(open, labelsOf(map, open.grid), COMPARED, 0.5);
      const when = [a, b].map((id) => new Date((open.record.versions.find((v) => v.id === id)?.at ?? 0) * 1000).toLocaleTimeString());
      this.page.teller.notice({
        id: "compare",
        tone: "info",
        text: `Comparison. Amber: only in ${when[0]}. Blue: only in ${when[1]}. Green: in both.`,
        actions: [{ text: "End comparison", run: () => this.stop() }],
      });
    });
    this.page.changed();
  }

  /** Whether some version began with a model's answer, whose uncertainty the server may have kept. */
  get mayDoubt(): boolean {
    return this.page.current?.record.versions.some((v) => v.origin.kind === "model") ?? false;
  }

  async showDoubt(): Promise<void> {
    const open = this.page.current;
    if (this.doubt) return this.stop();
    if (!open?.saver.head) return;
    await this.page.teller.attempt(async () => {
      const percent = labelsOf(await gunzip(await this.page.api.uncertainty(open.record.id, open.saver.head!)), open.grid);
      if (this.page.current !== open) return;
      this.stop();
      this.doubt = true;
      this.show(open, percent.map((p) => (p < 5 ? 0 : Math.min(DOUBT.length, Math.ceil((p * DOUBT.length) / 100)))) as Voxels, DOUBT, 0.6);
    });
    this.page.changed();
  }

  /** Values of 1 and more in these colours, at least so opaque. */
  private show(open: Open, voxels: Voxels, colours: readonly string[], opacity: number): void {
    const shown = new Mask(open.grid, open.layout, colours.map((_, n) => n + 1));
    shown.load(voxels);
    this.page.view.setShown({ bytes: shown.picture, colours });
    this.page.view.setOpacity(Math.max(opacity, this.page.settings.opacity));
  }

  /** The mask again. */
  stop(): void {
    if (!this.on) return;
    this.comparison = null;
    this.doubt = false;
    this.page.teller.dismiss("compare");
    this.page.view.setShown(null);
    this.page.view.setOpacity(this.page.opacity);
    this.page.changed();
  }
}
