// The server's REST interface (src/vesalius/serve/rest_*.py), typed. Every failure is an `ApiError`; status 0 is a server that cannot be reached.

import type { Packed } from "./codec";
import type { Vec3 } from "./geometry";

export type Status = "todo" | "draft" | "done" | "reviewed";
export type Kind = "box" | "point" | "scribble" | "lasso" | "mask" | "text";

export interface Label {
  name: string;
  value: number;
  color: string;
}

export interface Model {
  id: string;
  title: string;
  kinds: Kind[];
  dims: number[];
  trained: boolean;
  /** It understands nothing but a mask of one slice, which it carries to the others. */
  carries?: boolean;
}

/** All labels, and which saving of them it is. */
export interface Table {
  labels: Label[];
  labels_version: string;
}

export interface Project extends Table {
  /** Random: no two projects have the same. */
  id: string;
  name: string;
  version: string;
  dims: 2 | 3;
  models: Model[];
  statuses: Status[];
  user: string;
  cases: number;
  counts: Record<Status, number>;
}

export interface Summary {
  id: string;
  name: string;
  status: Status;
  latest: string | null;
  updated: number | null;
  priority: number | null;
  channels: string[];
  dims: 2 | 3;
  shape: number[] | null;
  spacing: number[] | null;
}

export interface Version {
  id: string;
  parent: string | null;
  user: string;
  at: number;
  origin: { kind: string; model?: string; prompts?: number | unknown[]; file?: string };
  note: string;
}

export interface Comment {
  user: string;
  at: number;
  text: string;
}

export interface Case extends Summary {
  geometry: { shape: number[]; affine: number[][] };
  /** Whether the data set brings a label of its own. */
  reference: boolean;
  versions: Version[];
  comments: Comment[];
}

export type Prompt =
  | { kind: "box"; low: number[]; high: number[]; drawn: [Vec3, Vec3] } // drawn: for the page alone
  | { kind: "point"; xyz: number[]; positive: boolean }
  | { kind: "scribble"; xyz: number[][]; positive: boolean }
  | { kind: "lasso"; xyz: number[][] }
  | { kind: "text"; text: string };

export interface Slice {
  axis: number;
  index: number;
}

export interface Answer extends Packed {
  object: string;
  quality: number | null;
  notes: string[];
  ms: number;
  slice?: Slice;
}

export interface Job {
  id: string;
  kind: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  fraction: number;
  text: string;
  result: Record<string, unknown> | null;
  file: boolean;
}

export interface Measure {
  label: string;
  voxels: number;
  components: number;
  long_axis_mm: number;
  short_axis_mm: number;
  volume_ml: number | null;
  area_mm2: number | null;
}

export interface Compared {
  label: string;
  dsc: number | null;
  hd95_mm: number | null;
  volume_a: number;
  volume_b: number;
}

export interface Origin {
  kind: "manual" | "model" | "prompts" | "interpolated" | "propagated";
  model?: string;
  prompts?: number;
  /** The session that was told the prompts: the server knows them. */
  session?: string;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly fix: string | null = null,
    readonly body: Record<string, unknown> = {},
  ) {
    super(fix ? `${message.replace(/\.$/, "")}. ${fix[0].toUpperCase()}${fix.slice(1)}.` : message);
  }
}

interface Sent {
  json?: unknown;
  body?: Uint8Array<ArrayBuffer>;
  headers?: Record<string, string>;
  query?: Record<string, string | null | undefined>;
  signal?: AbortSignal;
}

export class Api {
  /** Who works here; empty: the account that the server runs under. */
  user = "";

  async fetch(method: string, path: string, sent: Sent = {}): Promise<Response> {
    const query = new URLSearchParams(Object.entries(sent.query ?? {}).flatMap(([k, v]) => (v == null ? [] : [[k, v]]))).toString();
    const headers: Record<string, string> = { ...sent.headers };
    if (this.user) headers["X-User"] = encodeURIComponent(this.user);
    if (sent.json !== undefined) headers["Content-Type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(query ? `${path}?${query}` : path, { method, headers, body: sent.json !== undefined ? JSON.stringify(sent.json) : sent.body, signal: sent.signal });
    } catch (error) {
      if (sent.signal?.aborted) throw error;
      throw new ApiError(0, "The server cannot be reached.", null);
    }
    if (answer.ok) return answer;
    const body = (await answer.json().catch(() => ({}))) as Record<string, unknown>;
    throw new ApiError(answer.status, String(body.error ?? `The server answered ${answer.status}.`), (body.fix as string | null) ?? null, body);
  }

  async json<T>(method: string, path: string, sent: Sent = {}): Promise<T> {
    return (await this.fetch(method, path, sent)).json() as Promise<T>;
  }

  project = () => this.json<Project>("GET", "/api/project");
  cases = () => this.json<Summary[]>("GET", "/api/cases");
  case = (id: string) => this.json<Case>("GET", `/api/cases/${id}`);
  image = (id: string, channel: string, signal?: AbortSignal) => this.fetch("GET", `/api/cases/${id}/image/${encodeURIComponent(channel)}`, { signal });
  coarse = (id: string, channel: string) => this.fetch("GET", `/api/cases/${id}/image/${encodeURIComponent(channel)}/coarse`);
  label = async (id: string, version: string) => (await this.fetch("GET", `/api/cases/${id}/label`, { query: { version } })).blob();
  save = (id: string, parent: string | null, body: Uint8Array<ArrayBuffer>, headers: Record<string, string>, origin: Origin) =>
    this.json<{ version: string }>("PUT", `/api/cases/${id}/label`, {
      query: { parent: parent ?? "none" },
      body,
      headers: {
        ...headers,
        "Content-Type": "application/gzip",
        "X-Origin-Kind": origin.kind,
        ...(origin.model ? { "X-Origin-Model": origin.model } : {}),
        ...(origin.prompts ? { "X-Origin-Prompts": String(origin.prompts) } : {}),
        ...(origin.session ? { "X-Session": origin.session } : {}),
      },
    });
  reference = async (id: string) => (await this.fetch("GET", `/api/cases/${id}/reference`)).blob();
  maskFile = (id: string, name: string, body: Uint8Array<ArrayBuffer>, parent: string | null) =>
    this.json<{ version: string }>("POST", `/api/cases/${id}/mask-file`, { query: { name, parent: parent ?? "none" }, body, headers: { "Content-Type": "application/octet-stream" } });
  status = (id: string, status: Status) => this.json<{ status: Status }>("PUT", `/api/cases/${id}/status`, { json: { status } });
  comment = (id: string, text: string) => this.json<Comment[]>("POST", `/api/cases/${id}/comments`, { json: { text } });
  labels = (labels: Label[], version: Table["labels_version"]) => this.json<Table>("PUT", "/api/labels", { json: labels, headers: { "If-Match": version } });
  session = (id: string, model: string, window: [number, number] | null, slice: Slice | null) =>
    this.json<{ session: string; kinds: Kind[]; sliced: boolean }>("POST", "/api/sessions", { json: { case: id, model, window, slice } });
  sessionState = (session: string) => this.json<{ state: "embedding" | "ready" | "failed"; error: string | null }>("GET", `/api/sessions/${session}`);
  ask = (session: string, object: string, label: string, prompts: Prompt[], slice: Slice | null) =>
    this.json<Answer>("POST", `/api/sessions/${session}/prompts`, { json: { object, label, prompts: prompts.map((p) => (p.kind === "box" ? { ...p, drawn: undefined } : p)), slice } });
  step = (session: string, way: "undo" | "redo") => this.fetch("POST", `/api/sessions/${session}/${way}`);
  endSession = (session: string) => this.fetch("DELETE", `/api/sessions/${session}`);
  measure = (id: string, version: string) => this.json<Measure[]>("GET", `/api/cases/${id}/measure`, { query: { version } });
  compare = (id: string, a: string, b: string) => this.json<Compared[]>("GET", `/api/cases/${id}/compare`, { query: { a, b } });
  compareMap = async (id: string, a: string, b: string) => (await this.fetch("GET", `/api/cases/${id}/compare/map`, { query: { a, b } })).blob();
  uncertainty = async (id: string, version: string) => (await this.fetch("GET", `/api/cases/${id}/uncertainty`, { query: { version } })).blob();
  next = (strategy: string) => this.json<{ case: string | null }>("GET", "/api/next", { query: { strategy } });
  interpolate = (id: string, label: string, axis: number, version: string) =>
    this.json<{ version: string }>("POST", `/api/cases/${id}/interpolate`, { json: { label, axis, version } });
  propagate = (id: string, object: string, from: number, axis: number, version: string, model: string, window: [number, number] | null) =>
    this.json<{ job: string }>("POST", `/api/cases/${id}/propagate`, { json: { object, from, axis, version, model, window } });
  run = (id: string, model: string) => this.json<{ job: string }>("POST", `/api/cases/${id}/run`, { json: { model } });
  train = (method: string, minutes: number) => this.json<{ job: string }>("POST", "/api/train", { json: { method, minutes } });
  export = (format: string, status: Status | null, cases: string[] | null) => this.json<{ job: string }>("POST", "/api/export", { json: { format, status, cases } });
  jobs = () => this.json<Job[]>("GET", "/api/jobs");
  job = (id: string) => this.json<Job>("GET", `/api/jobs/${id}`);
  cancel = (id: string) => this.json<Job>("DELETE", `/api/jobs/${id}`);
}
