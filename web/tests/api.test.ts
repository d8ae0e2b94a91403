import { afterEach, expect, it, vi } from "vitest";
import { Api } from "../src/api";

function sent(): { url: string; method: string; headers: Record<string, string> }[] {
  const calls: { url: string; method: string; headers: Record<string, string> }[] = [];
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => (calls.push({ url, method: init.method!, headers: init.headers as Record<string, string> }), new Response("{}")));
  return calls;
}
afterEach(() => void vi.unstubAllGlobals());

it("names the session that a mask came from, and the table that labels were made from", async () => {
  const [api, calls] = [new Api(), sent()];
  const body = new Uint8Array(1);
  await api.save("c1", "v1", body, { "X-Shape": "1" }, { kind: "prompts", model: "m", prompts: 2, session: "s1" });
  await api.save("c1", "v1", body, {}, { kind: "manual" });
  await api.labels([], "t1");
  expect(calls[0].headers).toMatchObject({ "X-Session": "s1", "X-Origin-Kind": "prompts", "X-Origin-Model": "m", "X-Shape": "1" });
  expect(calls[1].headers).not.toHaveProperty("X-Session");
  expect(calls[2].headers).toMatchObject({ "If-Match": "t1" });
});

it("sends a mask file as it is, with its name", async () => {
  const [api, calls] = [new Api(), sent()];
  await api.maskFile("c1", "liver & more.nii.gz", new Uint8Array(3), null);
  expect(calls[0]).toMatchObject({ method: "POST", url: "/api/cases/c1/mask-file?name=liver+%26+more.nii.gz&parent=none" });
});
