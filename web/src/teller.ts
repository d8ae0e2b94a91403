// What a person is told: a word in passing, notices that stay, and whether the server can be reached.

import { ApiError } from "./api";

export interface Notice {
  id: string;
  tone: "info" | "warn" | "bad";
  text: string;
  actions: { text: string; run: () => void }[];
}

export const SIGNED_OUT = [401, 429]; // 429: too many asked without the token
export const ANOTHER = 410; // of the page's own: another project is served here
const OF_THE_SERVER = ["offline", "signin"];

export class Teller {
  notices: Notice[] = [];
  toast: { text: string; bad: boolean } | null = null;
  online = true;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly changed: () => void,
    /** The server can be reached again. */
    private readonly back: () => void,
  ) {}

  say(text: string, bad = false): void {
    this.toast = { text, bad };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.toast = null;
      this.changed();
    }, bad ? 9000 : 3500);
    this.changed();
  }

  wrong(error: unknown): void {
    if (error instanceof ApiError && error.status === ANOTHER) {
      this.online = false;
      this.notice({ id: "offline", tone: "bad", text: error.message, actions: [] });
    } else if (error instanceof ApiError && SIGNED_OUT.includes(error.status)) {
      this.online = false; // it is asked now and then, until the person has signed in again
      this.dismiss("offline");
      this.notice({ id: "signin", tone: "bad", text: "You are signed out. Open the link that the server printed when it was started; nothing that you drew is lost.", actions: [] });
    } else if (error instanceof ApiError && error.status === 0) this.setOnline(false);
    else this.say((error as Error).message ?? String(error), true);
  }

  notice(notice: Notice): void {
    this.notices = [...this.notices.filter((n) => n.id !== notice.id), notice];
    this.changed();
  }

  dismiss(...ids: string[]): void {
    this.notices = this.notices.filter((n) => !ids.includes(n.id));
    this.changed();
  }

  /** What was said of one case ends with it. */
  dismissCase(): void {
    this.notices = this.notices.filter((n) => OF_THE_SERVER.includes(n.id));
    this.changed();
  }

  get signedOut(): boolean {
    return this.notices.some((n) => n.id === "signin");
  }

  setOnline(online: boolean): void {
    if (online === this.online) return;
    this.online = online;
    if (online) {
      this.dismiss(...OF_THE_SERVER);
      this.back();
    } else {
      this.notice({ id: "offline", tone: "warn", text: "The server cannot be reached. You can go on drawing: it is kept in this page and saved when the server is back.", actions: [] });
    }
  }

  /** Run something that asks the server; what goes wrong is said. */
  async attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      const done = await work();
      this.setOnline(true);
      return done;
    } catch (error) {
      this.wrong(error);
      return undefined;
    }
  }
}
