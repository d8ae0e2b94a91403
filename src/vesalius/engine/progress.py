"""Progress on stderr only: a bar on a terminal, one line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """``with progress.task("training", 500) as advance: advance(1, "loss 0.31")``."""

    def __init__(self, quiet: bool = False, every: float = 15.0):
        self.quiet, self.every = quiet, every

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator:
        if self.quiet:
            yield lambda n=1, text="", total=None: None
        elif sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            yield from self._bar(name, total, done)
        else:
            yield from self._lines(name, total, done)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def _bar(self, name: str, total: int, done: int) -> Iterator:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total, completed=done, note="")
            yield lambda n=1, text="", total=None: bar.update(task, advance=n, note=text, total=total)

    def _lines(self, name: str, total: int, done: int) -> Iterator:
        state = {"n": done, "of": total, "last": time.monotonic(), "note": ""}
        start = time.monotonic()

        def advance(n: int = 1, text: str = "", total: int | None = None) -> None:
            state["n"] += n
            state["of"] = total or state["of"]
            state["note"] = text or state["note"]
            now = time.monotonic()
            if now - state["last"] >= self.every or state["n"] == state["of"]:
                state["last"] = now
                left = (now - start) / max(1, state["n"] - done) * (state["of"] - state["n"])
                print(f"{name} {state['n']}/{state['of']}, {left:.0f} s left {state['note']}", file=sys.stderr, flush=True)

        yield advance
