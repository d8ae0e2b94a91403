"""Which case to open next: in order, the one that a model was most unsure of, or the one least like those that are done.

Small pictures of the cases, by which they are compared, are made in the background: whoever asks is answered from those there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

import numpy as np

from ..core.case import Case
from ..core.errors import UsageError
from .records import Entry

STRATEGIES = ("order", "uncertainty", "diversity")
_SIDE = 8
_MOST_READ = 256  # cases that are read at once


class Pictures(dict[str, np.ndarray | None]):
    """Case id -> its small picture; None of one that cannot be read."""

    def __init__(self):
        super().__init__()
        self.reading = threading.Lock()

    def look(self, case: str, read: Callable[[], Case]) -> None:
        """Make a case's picture where there is none."""
        if case not in self:
            try:
                self[case] = picture(read())
            except Exception:  # noqa: BLE001 - nobody asked for it: an image is shown without one, and whoever opens a damaged one is told
                self[case] = None

    def fill(self, cases: Sequence[str], read: Callable[[str], Case]) -> None:
        """Make the first pictures that are missing, in the background; nothing while that still goes on."""
        missing = [c for c in cases if c not in self][:_MOST_READ]
        if missing and self.reading.acquire(blocking=False):
            threading.Thread(target=self._fill, args=(missing, read), name="pictures", daemon=True).start()

    def _fill(self, cases: Sequence[str], read: Callable[[str], Case]) -> None:
        try:
            for case in cases:
                self.look(case, partial(read, case))
        finally:
            self.reading.release()


def next_case(entries: Sequence[Entry], strategy: str, read: Callable[[str], Case], seen: Pictures) -> str | None:
    """The id of a case that is not done, or None. 'uncertainty': highest ``priority`` first, cases that no model has seen last;
    'diversity': the farthest, by their pictures, from those done; in order where there are no pictures yet. Raises UsageError."""
    if strategy not in STRATEGIES:
        raise UsageError("no such strategy", found=strategy[:20], allowed=", ".join(STRATEGIES))
    left = [e for e in entries if e.status in ("todo", "draft")]
    if not left:
        return None
    if strategy == "uncertainty":
        return max(left, key=lambda e: e.priority if e.priority is not None else -1.0).id
    done = [e for e in entries if e.status in ("done", "reviewed")]
    if strategy == "order" or not done:
        return left[0].id
    seen.fill([e.id for pair in zip_longest(done, left) for e in pair if e is not None], read)
    known = [p for e in done if (p := seen.get(e.id)) is not None]
    there = [(e.id, p) for e in left if (p := seen.get(e.id)) is not None]
    if not known or not there:
        return left[0].id
    return max(there, key=lambda pair: float(np.linalg.norm(np.array(known) - pair[1], axis=1).min()))[0]


def picture(case: Case) -> np.ndarray:
    """A case in a few numbers: its first image on a coarse grid, standardised, and the log of its size in mm."""
    image = next(iter(case.images.values()))
    image = image.every([max(1, n // (4 * _SIDE)) for n in image.geometry.shape])
    grid = image.geometry.canonical().resized((_SIDE,) * image.geometry.ndim)
    coarse = image.on(grid, "nearest").data.astype(np.float32).mean(0).ravel()
    size = np.log(np.multiply(image.geometry.canonical().shape, image.geometry.canonical().spacing))
    return np.concatenate([(coarse - coarse.mean()) / (coarse.std() + 1e-6) / np.sqrt(coarse.size), size])


def overall(doubt: np.ndarray) -> float:
    """A map of doubt (0 to 1) in one number: its mean where the answer is not certain."""
    doubtful = doubt > 0.05
    return float(doubt[doubtful].mean()) if doubtful.any() else 0.0
