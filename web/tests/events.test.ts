import { expect, it } from "vitest";
import { Events } from "../src/events";

/** Streams as a browser has them: `refuse` is what an answer like 401 does to one. */
function browser() {
  const made: { url: string; readyState: number; heard: Record<string, (e: unknown) => void>; refuse(): void; tell(name: string, data: unknown): void }[] = [];
  const said: string[] = [];
  const person = { name: "" };
  const make = (url: string) => {
    const source = {
      url,
      readyState: 1,
      heard: {} as Record<string, (e: unknown) => void>,
      onopen: () => undefined,
      onerror: () => undefined,
      addEventListener: (name: string, run: (e: unknown) => void) => (source.heard[name] = run),
      close: () => (source.readyState = 2),
      refuse: () => ((source.readyState = 2), source.onerror()),
      tell: (name: string, data: unknown) => source.heard[name]({ data: JSON.stringify(data) }),
    };
    made.push(source);
    return source as unknown as EventSource;
  };
  const on = { job: (job: { id: string }) => said.push(`job ${job.id}`) };
  return { made, said, person, events: new Events({ user: () => person.name, opened: () => said.push("opened"), lost: () => said.push("lost"), on }, make) };
}

it("listens again where the browser gave up, and only there", () => {
  const { events, made, said } = browser();
  events.listen();
  events.again();
  expect(made.length).toBe(1);
  made[0].refuse();
  expect(said).toEqual(["lost"]);
  events.again();
  expect(made.length).toBe(2);
  made[1].tell("job", { id: "j1" });
  expect(said).toEqual(["lost", "job j1"]);
});

it("says who listens, and which tab it is", () => {
  const { events, made, person } = browser();
  events.listen();
  person.name = "Anna & Co";
  events.listen();
  expect(made[0].readyState).toBe(2);
  const [first, second] = made.map(({ url }) => new URL(url, "http://here").searchParams);
  expect([first.get("user"), second.get("user")]).toEqual([null, "Anna & Co"]);
  expect(first.get("tab")).toMatch(/^[0-9a-f]{16}$/);
  expect(second.get("tab")).toBe(first.get("tab"));
  const other = browser();
  other.events.listen();
  expect(new URL(other.made[0].url, "http://here").searchParams.get("tab")).not.toBe(first.get("tab"));
});
