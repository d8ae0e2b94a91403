// The server's jobs: which there are, and who waits for the end of one.

import type { Api, Job } from "./api";
import type { Teller } from "./teller";

export function isBusy(job: Job): boolean {
  return job.state === "queued" || job.state === "running";
}

export class Jobs {
  list: Job[] = [];
  private followers = new Map<string, (job: Job) => void>();

  constructor(
    private readonly api: Pick<Api, "job" | "jobs" | "cancel">,
    private readonly teller: Teller,
    private readonly changed: () => void,
  ) {}

  get busy(): Job[] {
    return this.list.filter(isBusy);
  }

  /** A job as it is now. */
  heard(job: Job): void {
    const before = this.list.find((j) => j.id === job.id);
    this.list = before ? this.list.map((j) => (j.id === job.id ? job : j)) : [job, ...this.list];
    this.tell(job);
    this.changed();
  }

  /** All jobs as they are now. */
  heardAll(jobs: Job[]): void {
    this.list = jobs;
    jobs.forEach((job) => this.tell(job));
    this.changed();
  }

  private tell(job: Job): void {
    const follow = isBusy(job) ? undefined : this.followers.get(job.id);
    if (!follow) return;
    this.followers.delete(job.id);
    follow(job);
  }

  /** Jobs are told by events; where those do not come, they are asked for. */
  async poll(): Promise<void> {
    if (this.busy.length) await this.teller.attempt(async () => this.heardAll(await this.api.jobs()));
  }

  /** The job when it is over. */
  async follow(id: string): Promise<Job> {
    const over = new Promise<Job>((resolve) => this.followers.set(id, resolve));
    await this.teller.attempt(async () => this.heard(await this.api.job(id)));
    return over;
  }

  async cancel(id: string): Promise<void> {
    await this.teller.attempt(async () => this.heard(await this.api.cancel(id)));
  }

  download(id: string): void {
    const link = document.createElement("a");
    link.href = `/api/jobs/${id}/file`;
    link.download = "";
    link.click();
  }
}
