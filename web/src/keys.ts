// Everything that has a key. The table is what is listened to and what '?' shows.

import type { App } from "./app";
import { TOOLS } from "./panels";

interface Key {
  keys: string; // as shown
  text: string;
  hit: (e: KeyboardEvent) => boolean;
  run: (e: KeyboardEvent) => void;
}

export function keyTable(app: App, dialogs: { help(): void; export(): void; jobs(): void }): Key[] {
  const plain = (e: KeyboardEvent) => !e.ctrlKey && !e.metaKey && !e.altKey;
  const key = (letter: string) => (e: KeyboardEvent) => plain(e) && !e.shiftKey && e.key.toLowerCase() === letter;
  const ctrl = (letter: string, shift = false) => (e: KeyboardEvent) => (e.ctrlKey || e.metaKey) && e.shiftKey === shift && e.key.toLowerCase() === letter;
  const digit = (shift: boolean) => (e: KeyboardEvent) => plain(e) && e.shiftKey === shift && /^Digit[1-9]$/.test(e.code);
  const number = (e: KeyboardEvent) => Number(e.code.slice(5)) - 1;
  return [
    ...TOOLS.map((t) => ({ keys: t.key, text: t.text, hit: key(t.key.toLowerCase()), run: () => app.setTool(t.id) })),
    { keys: "Esc", text: "Look around", hit: (e) => e.key === "Escape", run: () => (app.overlay.on ? app.overlay.stop() : app.setTool("navigate")) },
    { keys: "1-9", text: "Choose a label", hit: digit(false), run: (e) => app.project.labels[number(e)] && app.choose(app.project.labels[number(e)].value) },
    { keys: "N", text: "Begin another object", hit: key("n"), run: () => app.finishObject() },
    { keys: "[ ]", text: "Smaller, larger brush", hit: (e) => plain(e) && (e.key === "[" || e.key === "]"), run: (e) => app.keep({ radius: Math.min(50, Math.max(0.5, Number((app.settings.radius * (e.key === "]" ? 1.25 : 0.8)).toPrecision(2)))) }) },
    { keys: "Ctrl Z", text: "Take back", hit: ctrl("z"), run: () => app.undo() },
    { keys: "Ctrl Y", text: "Do again", hit: (e) => ctrl("y")(e) || ctrl("z", true)(e), run: () => app.redo() },
    { keys: "Ctrl S", text: "Save now", hit: ctrl("s"), run: () => void app.current?.saver.flush() },
    { keys: "I", text: "Fill the slices between drawn ones", hit: key("i"), run: () => void app.remote.interpolate() },
    { keys: "P", text: "Carry the mask on through the slices", hit: key("p"), run: () => void app.remote.propagate() },
    { keys: "R", text: "Run the newest model on this case", hit: key("r"), run: () => app.automatic.length && void app.remote.run(app.automatic[app.automatic.length - 1].id) },
    { keys: "O", text: "Hide and show the mask", hit: key("o"), run: () => app.toggleVisible() },
    { keys: "U", text: "The model's uncertainty", hit: key("u"), run: () => void app.overlay.showDoubt() },
    { keys: "- +", text: "Opacity of the mask", hit: (e) => plain(e) && ["-", "+", "="].includes(e.key), run: (e) => app.setOpacity(app.settings.opacity + (e.key === "-" ? -0.1 : 0.1)) },
    { keys: "W", text: "Next window preset", hit: key("w"), run: () => app.cyclePreset() },
    { keys: "A", text: "Next arrangement of planes", hit: key("a"), run: () => app.cyclePlane() },
    { keys: "0", text: "Whole picture", hit: key("0"), run: () => app.view.resetZoom() },
    { keys: "Up Down", text: "Next, previous slice", hit: (e) => plain(e) && (e.key === "ArrowUp" || e.key === "ArrowDown"), run: (e) => app.view.scroll(null, (e.key === "ArrowUp" ? 1 : -1) * (e.shiftKey ? 5 : 1)) },
    { keys: "J K", text: "Next, previous case", hit: (e) => key("j")(e) || key("k")(e), run: (e) => void app.step(e.key.toLowerCase() === "j" ? 1 : -1) },
    { keys: "G", text: "Next most useful case", hit: key("g"), run: () => void app.next() },
    { keys: "Shift 1-4", text: "To do, draft, done, reviewed", hit: digit(true), run: (e) => app.project.statuses[number(e)] && void app.setStatus(app.project.statuses[number(e)]) },
    { keys: "/", text: "Find a case", hit: (e) => plain(e) && e.key === "/", run: () => document.getElementById("find")?.focus() },
    { keys: "?", text: "These keys", hit: (e) => plain(e) && e.key === "?", run: () => dialogs.help() },
  ];
}

export function listen(table: Key[], app: App): void {
  window.addEventListener(
    "keydown",
    (e) => {
      const target = e.target as HTMLElement;
      const typing = target.matches("textarea, select, input:not([type=checkbox]):not([type=radio]):not([type=range]):not([type=color])");
      const saving = (e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "s";
      if (document.querySelector("dialog[open]") || (typing && !saving)) {
        if (e.key === "Escape" && typing) target.blur();
        return;
      }
      if (target.matches("input[type=range]") && e.key.startsWith("Arrow")) return;
      if (!app.project) return;
      const found = table.find((k) => k.hit(e));
      if (!found) return;
      e.preventDefault();
      e.stopPropagation();
      found.run(e);
    },
    { capture: true },
  );
}
