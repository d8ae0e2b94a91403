"""Notes: what a reader did that the user should know of, but that is no mistake. They are Python warnings of one class."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class VesaliusNote(UserWarning):
    """Something in a file was unusual and was dealt with by a declared policy; the text says which."""


def note(text: str, where: str | Path | None = None) -> None:
    """Emit one note, attributed to the caller of the reader."""
    warnings.warn(f"{where}: {text}" if where is not None else text, VesaliusNote, stacklevel=3)


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
