// What the next version will have come from. A save takes it together with its copy of the mask; what happens while it saves belongs to the
// version after.

import type { Origin } from "./api";

export class Provenance {
  private now: Origin = { kind: "manual" };

  prompted(model: string, session: string): void {
    this.now = { kind: "prompts", model, session, prompts: (this.now.prompts ?? 0) + 1 };
  }

  take(): Origin {
    const taken = this.now;
    this.now = { kind: "manual" };
    return taken;
  }

  /** It was not saved: the next version will have come from it too. */
  giveBack(taken: Origin): void {
    if (this.now.kind === "manual") this.now = taken;
    else if (taken.prompts) this.now = { ...this.now, prompts: (this.now.prompts ?? 0) + taken.prompts };
  }
}
