import { expect, it } from "vitest";
import { type Api, ApiError, type Job } from "../src/api";
import { Jobs } from "../src/jobs";
import { Teller } from "../src/teller";

const job = (id: string, state: Job["state"], fraction = 0): Job => ({ id, kind: "run", state, fraction, text: "", result: null, file: false });

/** A server whose jobs are `there`. */
function server() {
  const there = new Map<string, Job>();
  const asked: string[] = [];
  const get = async (id: string) => {
    asked.push(id);
    const found = there.get(id);
    if (!found) throw new ApiError(0, "The server cannot be reached.");
    return found;
  };
  const api = {
    job: get,
    jobs: async () => (asked.push("all"), [...there.values()]),
    cancel: async (id: string) => (there.set(id, job(id, "cancelled")), get(id)),
  } satisfies Pick<Api, "job" | "jobs" | "cancel">;
  const teller = new Teller(
    () => undefined,
    () => undefined,
  );
  const set = (...jobs: Job[]) => jobs.forEach((j) => there.set(j.id, j));
  return { asked, set, teller, jobs: new Jobs(api, teller, () => undefined) };
}

/** What a promise came to so far. */
const soFar = (job: Promise<Job>) => Promise.race([job.then((j) => j.state), new Promise<string>((r) => setTimeout(() => r("waiting"), 5))]);

it("keeps the newest state of each job, the last one begun first", () => {
  const { jobs } = server();
  for (const j of [job("a", "queued"), job("b", "running", 0.1), job("a", "running", 0.5), job("b", "done", 1)]) jobs.heard(j);
  expect(jobs.list.map((j) => [j.id, j.state, j.fraction])).toEqual([["b", "done", 1], ["a", "running", 0.5]]);
  expect(jobs.busy.map((j) => j.id)).toEqual(["a"]);
});

it.each(["done", "failed", "cancelled"] as const)("tells who follows a job when it is %s, and not before", async (end) => {
  const { jobs, set } = server();
  set(job("a", "queued"), job("b", "running"));
  const [a, b] = [jobs.follow("a"), jobs.follow("b")];
  expect(await soFar(a)).toBe("waiting");
  jobs.heard(job("a", "running", 0.9));
  expect(await soFar(a)).toBe("waiting");
  jobs.heard(job("a", end, 1));
  expect([await soFar(a), await soFar(b)]).toEqual([end, "waiting"]);
});

it("sees that a job was over before anybody followed it", async () => {
  const { jobs, set } = server();
  set(job("a", "done"));
  expect(await soFar(jobs.follow("a"))).toBe("done");
});

it("follows on through a server that is away, and asks it where no event comes", async () => {
  const { jobs, set, asked, teller } = server();
  const followed = jobs.follow("a");
  expect([await soFar(followed), teller.online]).toEqual(["waiting", false]);
  set(job("a", "running"));
  await jobs.poll();
  expect(asked).toEqual(["a"]); // none is known to be at work
  jobs.heard(job("a", "running"));
  set(job("a", "done"));
  await jobs.poll();
  expect([await soFar(followed), asked, teller.online]).toEqual(["done", ["a", "all"], true]);
  await jobs.poll();
  expect(asked).toEqual(["a", "all"]);
});

it("ends a job that is stopped for who follows it", async () => {
  const { jobs, set } = server();
  set(job("a", "running"));
  const followed = jobs.follow("a");
  await jobs.cancel("a");
  expect([await soFar(followed), jobs.busy]).toEqual(["cancelled", []]);
});

it("tells who follows a job also where its end is first seen in the list of all", async () => {
  const { jobs, set } = server();
  set(job("a", "running"), job("b", "running"));
  const [a, b] = [jobs.follow("a"), jobs.follow("b")];
  jobs.heardAll([job("b", "running"), job("a", "failed")]);
  expect([await soFar(a), await soFar(b)]).toEqual(["failed", "waiting"]);
  expect(jobs.list.map((j) => j.id)).toEqual(["b", "a"]);
});
