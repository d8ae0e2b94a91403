import { expect, it } from "vitest";
import { ApiError, type Label, type Table } from "../src/api";
import { added, changed, removed, saveLabels } from "../src/labels";

const LIVER = { name: "liver", value: 1, color: "#e6194b" };
const SPLEEN = { name: "spleen", value: 2, color: "#3cb44b" };
const mine: Table = { labels: [LIVER, SPLEEN], labels_version: "a" };

/** A server whose table is `labels`, saved `version` times. */
function server(labels: Label[], version = "b") {
  const asked: string[] = [];
  return {
    asked,
    labels: async (wanted: Label[], known: string) => {
      asked.push(`${known}: ${wanted.map((l) => l.name).join(", ")}`);
      if (known !== version) throw new ApiError(409, "someone changed the labels meanwhile", null, { labels, labels_version: version });
      if (new Set(wanted.map((l) => l.name)).size < wanted.length) throw new ApiError(400, "labels have different names");
      return { labels: wanted, labels_version: "c" };
    },
  };
}

it("saves a table that nobody else changed", async () => {
  const api = server(mine.labels, "a");
  expect(await saveLabels(api, mine, added)).toEqual({ table: { labels: [LIVER, SPLEEN, { name: "label 3", value: 3, color: "#4363d8" }], labels_version: "c" }, theirs: false, kept: true });
});

it("lays what is wished onto the table that somebody else saved", async () => {
  const theirs = [LIVER, SPLEEN, { name: "kidney", value: 3, color: "#123456" }];
  const api = server(theirs);
  const more = await saveLabels(api, mine, added);
  expect(more).toMatchObject({ theirs: true, kept: true });
  expect(more.table.labels.map((l) => `${l.value} ${l.name}`)).toEqual(["1 liver", "2 spleen", "3 kidney", "4 label 4"]);
  const named = await saveLabels(server(theirs), mine, changed(LIVER, { name: "Leber" }));
  expect(named.table.labels.map((l) => l.name)).toEqual(["Leber", "spleen", "kidney"]);
  const fewer = await saveLabels(server(theirs), mine, removed(SPLEEN));
  expect(fewer.table.labels.map((l) => l.name)).toEqual(["liver", "kidney"]);
  expect(api.asked).toEqual(["a: liver, spleen, label 3", "b: liver, spleen, kidney, label 4"]);
});

it("takes theirs where the two clash", async () => {
  const renamed = [{ ...LIVER, name: "hepar" }, SPLEEN];
  expect(await saveLabels(server(renamed), mine, changed(LIVER, { name: "Leber" }))).toEqual({ table: { labels: renamed, labels_version: "b" }, theirs: true, kept: false });
  expect(await saveLabels(server(renamed), mine, changed(LIVER, { color: "#000000" }))).toMatchObject({ kept: true });
  expect(await saveLabels(server([SPLEEN]), mine, changed(LIVER, { name: "Leber" }))).toMatchObject({ theirs: true, kept: false });
  expect(await saveLabels(server(renamed), mine, changed(SPLEEN, { name: "hepar" }))).toEqual({ table: { labels: renamed, labels_version: "b" }, theirs: true, kept: false });
});

it("hands on what the server refuses of one's own table", async () => {
  await expect(saveLabels(server(mine.labels, "a"), mine, changed(SPLEEN, { name: "liver" }))).rejects.toThrow("different names");
});
