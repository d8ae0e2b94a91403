// What the server tells by itself: one stream of events. The browser begins it again when the connection broke, but gives it up for ever when
// it was refused (a server that was started anew wants a new sign-in); then it is begun again from here.

const CLOSED = 2; // EventSource.CLOSED

export interface Listener {
  /** Who is shown to the others as being here. */
  user(): string;
  opened(): void;
  lost(): void;
  /** What to do with each kind of event. */
  on: Record<string, (data: never) => void>;
}

export class Events {
  private source: EventSource | null = null;
  private readonly tab = [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join("");

  constructor(
    private readonly listener: Listener,
    private readonly make: (url: string) => EventSource = (url) => new EventSource(url),
  ) {}

  listen(): void {
    this.source?.close();
    const { user, on } = this.listener;
    const source = (this.source = this.make(`/api/events?${new URLSearchParams({ ...(user() ? { user: user() } : {}), tab: this.tab })}`));
    source.onopen = () => this.listener.opened();
    source.onerror = () => this.listener.lost();
    for (const [name, run] of Object.entries(on)) source.addEventListener(name, (e) => run(JSON.parse((e as MessageEvent<string>).data) as never));
  }

  /** Listen again, where the browser gave up. */
  again(): void {
    if (this.source?.readyState === CLOSED) this.listen();
  }
}
