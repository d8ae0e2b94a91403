// The table of labels, which everybody here may change. What a person wants is said as a wish, a function of the table, so that it can be laid
// onto the table that somebody else saved meanwhile.

import { type Api, ApiError, type Label, type Table } from "./api";

/** The table as wanted; null where the wish clashes with this table. */
export type Wish = (labels: readonly Label[]) => Label[] | null;

const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990", "#dcbeff", "#9a6324"];
const TRIES = 5;

/** One label more, the last one. */
export const added: Wish = (labels) => {
  const value = Math.max(0, ...labels.map((l) => l.value)) + 1;
  const names = new Set(labels.map((l) => l.name));
  let name = `label ${value}`;
  for (let n = value; names.has(name); n++) name = `label ${n + 1}`;
  return [...labels, { name, value, color: COLOURS.find((c) => labels.every((l) => l.color !== c)) ?? COLOURS[value % COLOURS.length] }];
};

/** `label`, as the person saw it, with another name or colour: null where it is gone or somebody changed the same of it. */
export function changed(label: Label, to: Partial<Omit<Label, "value">>): Wish {
  const same = (l: Label) => l.value === label.value && Object.keys(to).every((k) => l[k as "name"] === label[k as "name"]);
  return (labels) => (labels.some(same) ? labels.map((l) => (same(l) ? { ...l, ...to } : l)) : null);
}

/** The table without `label`. */
export function removed(label: Label): Wish {
  return (labels) => (labels.length > 1 ? labels.filter((l) => l.value !== label.value) : null);
}

/** The table as it is now; whether somebody else had saved one meanwhile (`theirs`), and whether the wish is in it (`kept`). */
export interface Saved {
  table: Table;
  theirs: boolean;
  kept: boolean;
}

/** Save what is wished of `table`, or of the newer one that the server has. Throws what the server refuses of one's own table. */
export async function saveLabels(api: Pick<Api, "labels">, table: Table, wish: Wish): Promise<Saved> {
  for (let tries = 1, theirs = false; ; tries++) {
    const wanted = wish(table.labels);
    if (!wanted) return { table, theirs, kept: false };
    try {
      return { table: await api.labels(wanted, table.labels_version), theirs, kept: true };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 409 && error.body.labels && tries < TRIES) {
        table = { labels: error.body.labels as Label[], labels_version: error.body.labels_version as string };
        theirs = true;
      } else if (error.status === 400 && theirs) return { table, theirs, kept: false };
      else throw error;
    }
  }
}
