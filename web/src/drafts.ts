// Unsaved masks in this browser (IndexedDB), one a case: they outlive a reload, a crash and a server that is away.

import { gunzip, gzip, type Voxels } from "./codec";

export interface Draft {
  key: string;
  parent: string | null;
  at: number;
  wide: boolean;
  mask: Uint8Array<ArrayBuffer>;
}

const STORE = "drafts";

function opened(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("vesalius", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "key" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function using<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const db = await opened();
  try {
    return await new Promise<T>((resolve, reject) => {
      const transaction = db.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    db.close();
  }
}

export async function keepDraft(key: string, voxels: Voxels, parent: string | null): Promise<void> {
  const mask = await gzip(new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength));
  await using("readwrite", (store) => store.put({ key, parent, at: Date.now(), wide: voxels instanceof Uint16Array, mask } satisfies Draft));
}

export async function dropDraft(key: string): Promise<void> {
  await using("readwrite", (store) => store.delete(key) as IDBRequest<unknown>);
}

export async function draftOf(key: string): Promise<{ voxels: Voxels; parent: string | null; at: number } | null> {
  const found = (await using("readonly", (store) => store.get(key))) as Draft | undefined;
  if (!found) return null;
  const raw = await gunzip(found.mask);
  return { voxels: found.wide ? new Uint16Array(raw.buffer) : raw, parent: found.parent, at: found.at };
}

/** Where a case's draft lies. All projects that were ever served at this address share the store: names do not tell them apart. */
export function keyOf(project: { id: string }, record: { id: string; name: string }): string {
  return `${project.id}/${record.id}/${record.name}`;
}

/** Keys of all drafts. */
export async function draftKeys(): Promise<string[]> {
  return (await using("readonly", (store) => store.getAllKeys())) as string[];
}
