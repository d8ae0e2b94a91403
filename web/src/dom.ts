// Elements by hand. Text is only ever set as text: names from data sets and people are inert.

type Attributes = Record<string, string | number | boolean | null | undefined | ((event: never) => void)>;
type Child = Node | string | null | undefined | false;

/** An element: `on...` attributes become listeners, true ones are set without a value, null and false ones left out. */
export function el<K extends keyof HTMLElementTagNameMap>(name: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (typeof value === "function") node.addEventListener(key.slice(2), value as unknown as EventListener);
    else if (key === "value") (node as HTMLInputElement).value = String(value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.filter((c): c is Node | string => c != null && c !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const PATHS: Record<string, string> = {
  navigate: "M12 3v18M3 12h18M12 3l-2.5 2.5M12 3l2.5 2.5M12 21l-2.5-2.5M12 21l2.5-2.5M3 12l2.5-2.5M3 12l2.5 2.5M21 12l-2.5-2.5M21 12l-2.5 2.5",
  box: "M5 6h14v12H5zM5 6v0M3.5 6h3M17.5 6h3M3.5 18h3M17.5 18h3M5 4.5v3M19 4.5v3M5 16.5v3M19 16.5v3",
  plus: "M12 4a8 8 0 1 0 0 16a8 8 0 1 0 0-16M12 8.5v7M8.5 12h7",
  minus: "M12 4a8 8 0 1 0 0 16a8 8 0 1 0 0-16M8.5 12h7",
  scribble: "M4 16c2-7 5-9 6-6s-2 8 1 8 4-10 7-10 2 4 2 6",
  lasso: "M12 5c-5 0-8 2.4-8 5.2S7 15.5 12 15.5s8-2.5 8-5.3S17 5 12 5M8 15c-1.5 1-1.8 2.6-.6 3.4s2.8 0 2.4-1.6",
  brush: "M19.5 4.5c-3 1-8 5.5-9.5 8l1.8 1.8c2.5-1.5 7-6.3 7.7-9.8M9 13.5c-2.200 0-3 1.5-3.200 3-.2 1.3-1 2-2 2.3 3 1.4 7 .6 7-3.3",
  eraser: "M9 19h11M6 16l8.5-9.5 4.5 4L11 19H8zM10.5 11l4.5 4.200",
  undo: "M8 5L4 9l4 4M4 9h9.5a5.5 5.5 0 0 1 0 11H9",
  redo: "M16 5l4 4-4 4M20 9h-9.5a5.5 5.5 0 0 0 0 11H15",
  between: "M5 5h14M5 19h14M8 9.5h8M8 14.5h8",
  carry: "M4 17c4-9 9-11 15-11M15 3l4.5 3L16.5 10.5M4 21h5M12 21h8",
  next: "M5 12h13M13 6l6 6-6 6",
  help: "M9 9.5a3 3 0 1 1 4.200 2.7c-.9.4-1.200 1-1.200 2M12 17.5v.5",
  more: "M5 12h.01M12 12h.01M19 12h.01",
};

export function icon(name: string): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name] ?? "");
  svg.append(path);
  return svg;
}

/** A button with words, an icon or both; `key` is shown in its tooltip. */
export function button(text: string, run: () => void, more: { icon?: string; key?: string; class?: string; title?: string; id?: string } = {}): HTMLButtonElement {
  const title = [more.title ?? (more.icon ? text : ""), more.key ? `(${more.key})` : ""].filter(Boolean).join(" ");
  const shown = el("button", { type: "button", class: more.class ?? null, title: title || null, id: more.id ?? null, onclick: () => run() });
  if (more.icon) shown.append(icon(more.icon));
  if (more.icon && more.class?.includes("bare")) shown.setAttribute("aria-label", text);
  else shown.append(text);
  return shown;
}

export function ago(seconds: number): string {
  const then = new Date(seconds * 1000);
  const today = new Date().toDateString() === then.toDateString();
  return then.toLocaleString([], today ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { dateStyle: "medium", timeStyle: "short" });
}
