// Saving the open case: its mask goes to the server, what is unsaved stays in this browser, and the person is asked what only a person can say.

import { ApiError, type Case } from "./api";
import type { App } from "./app";
import { bodyOf, type Voxels } from "./codec";
import { draftKeys, draftOf, dropDraft, keepDraft, keyOf } from "./drafts";
import type { Grid } from "./geometry";
import type { Mask } from "./mask";
import type { Provenance } from "./provenance";
import type { Desk, SaveState } from "./saver";
import { ANOTHER, SIGNED_OUT } from "./teller";

type Page = Pick<App, "api" | "teller" | "overlay" | "remote" | "project" | "current" | "stamp" | "same" | "change" | "changed" | "refresh" | "reread" | "measure">;
type Draft = NonNullable<Awaited<ReturnType<typeof draftOf>>>;

export class Saving {
  /** Keys of the drafts in this browser. */
  drafts = new Set<string>();

  constructor(private readonly page: Page) {}

  async start(): Promise<void> {
    this.drafts = new Set(await draftKeys().catch(() => []));
  }

  hasDraft(record: { id: string; name: string }): boolean {
    return this.drafts.has(keyOf(this.page.project, record));
  }

  async draft(record: Case): Promise<Draft | null> {
    return draftOf(keyOf(this.page.project, record)).catch(() => null);
  }

  desk(record: Case, grid: Grid, mask: Mask, origin: Provenance): Desk<Voxels> {
    const key = keyOf(this.page.project, record);
    const mine = () => this.page.current?.mask === mask;
    return {
      copy: () => mask.voxels.slice() as Voxels,
      put: async (voxels, parent) => {
        const from = origin.take();
        try {
          if (!this.page.teller.online) this.page.same(await this.page.api.project());
          const { body, headers } = await bodyOf(voxels, grid);
          const { version } = await this.page.api.save(record.id, parent, body, headers, from);
          this.page.teller.setOnline(true);
          if (mine()) this.page.current!.mine.add(version);
          return version;
        } catch (error) {
          origin.giveBack(from);
          throw error;
        }
      },
      keep: async (voxels, parent) => {
        await keepDraft(key, voxels, parent);
        this.drafts.add(key);
        this.page.stamp++;
      },
      drop: async () => {
        await dropDraft(key);
        this.drafts.delete(key);
        this.page.stamp++;
      },
      changed: (state) => {
        if (mine()) this.saved(state);
      },
    };
  }

  private saved(state: SaveState): void {
    const { teller } = this.page;
    const open = this.page.current!;
    if (state.kind === "saved") {
      void this.page.reread().then(() => this.page.measure());
      void this.page.refresh();
      teller.dismiss("kept");
    } else if (state.kind === "kept") {
      if (SIGNED_OUT.includes(state.status)) teller.wrong(new ApiError(state.status, state.why));
      else if (state.status !== 0) teller.notice({ id: "kept", tone: "bad", text: `Not saved on the server, kept in this page: ${state.why} It is tried again by itself.`, actions: [{ text: "Try now", run: () => void open.saver.flush() }] });
      else teller.setOnline(false);
    } else if (state.kind === "refused" && state.status === ANOTHER) {
      teller.wrong(new ApiError(ANOTHER, state.why));
    } else if (state.kind === "refused") {
      teller.notice({ id: "kept", tone: "bad", text: `The server does not take this mask; it is kept in this page. ${state.why}`, actions: [{ text: "Try now", run: () => void open.saver.flush() }] });
    } else if (state.kind === "conflict") {
      open.mine.add(state.mine);
      void this.page.reread();
      teller.notice({
        id: "conflict",
        tone: "bad",
        text: "Someone saved another version of this case while you worked on it. Both are kept. Which one goes on?",
        actions: [
          { text: "Compare both", run: () => void this.page.overlay.compare(state.theirs, state.mine) },
          { text: "Go on with mine", run: () => void this.insist() },
          { text: "Go on with theirs", run: () => void this.page.remote.take(state.theirs) },
        ],
      });
    }
    this.page.changed();
  }

  private async insist(): Promise<void> {
    this.page.overlay.stop();
    this.page.teller.dismiss("conflict");
    await this.page.current?.saver.insist();
  }

  /** Edits of another time, for the case that is open now. */
  offer(draft: Draft): void {
    const { teller } = this.page;
    const open = this.page.current!;
    const when = new Date(draft.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    teller.notice({
      id: "draft",
      tone: "warn",
      text: `There are edits of ${when} in this browser that were not saved.`,
      actions: [
        {
          text: "Bring them back",
          run: () => {
            if (this.page.current !== open) return teller.dismiss("draft");
            try {
              this.page.change((edit) => edit.replace(draft.voxels));
            } catch (error) {
              return teller.wrong(error);
            }
            teller.dismiss("draft");
            open.saver.head = draft.parent ?? null;
            if (!open.saver.unsaved) open.saver.touch();
          },
        },
        {
          text: "Discard",
          run: () => {
            teller.dismiss("draft");
            void open.saver.adopt(open.saver.head);
          },
        },
      ],
    });
  }
}
