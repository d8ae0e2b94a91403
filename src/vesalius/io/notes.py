"""Notes: what a reader did that the user should know of, but that is no mistake. They are Python warnings of one class."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class VesaliusNote(UserWarning):
    """Something in a file was unusual and was dealt with by a declared policy; ``text`` says which, ``where`` it was."""

    def __init__(self, text: str, where: str | Path | None = None):
        super().__init__(f"{where}: {text}" if where is not None else text)
        self.text = text


class Summary:
    """In place of ``warnings.showwarning`` (a context manager): the first note of each text is printed at once, and at the end how many
    more there were of it; other warnings are shown as ever."""

    def __init__(self):
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> Summary:
        self.plain, warnings.showwarning = warnings.showwarning, self._show
        return self

    def __exit__(self, *_: object) -> None:
        warnings.showwarning = self.plain
        for text, number in self.seen.items():
            if number > 1:
                print(f"note: {text} ({number - 1} more)", file=sys.stderr)

    def _show(self, message, category, *rest) -> None:
        if not isinstance(message, VesaliusNote):
            self.plain(message, category, *rest)
            return
        self.seen[message.text] += 1
        if self.seen[message.text] == 1:
            print(f"note: {message}", file=sys.stderr)


def note(text: str, where: str | Path | None = None) -> None:
    """Emit one note, attributed to the caller of the reader."""
    warnings.warn(VesaliusNote(text, where), stacklevel=3)


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes with one decimal, or as bytes when there are few."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{int(count)} bytes"


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep a library from logging what is reported as an error or a note here."""
    log = logging.getLogger(logger)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
