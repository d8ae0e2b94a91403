"""Which case to open next: in order, the one that a model was most unsure of, or the one least like those that are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.case import Case
from ..core.errors import UsageError
from .store import Entry

STRATEGIES = ("order", "uncertainty", "diversity")
_SIDE = 8
_MOST_READ = 64  # cases that are looked at


def next_case(entries: Sequence[Entry], strategy: str, read: Callable[[str], Case], seen: dict[str, np.ndarray]) -> str | None:
    """The id of a case that is not done, or None. 'uncertainty': highest ``priority`` first, cases that no model has seen last;
    'diversity': the farthest, in a small picture of the case, from those done (``seen`` keeps the pictures). Raises UsageError."""
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
    for entry in [*done[:_MOST_READ], *left[:_MOST_READ]]:
        if entry.id not in seen:
            seen[entry.id] = picture(read(entry.id))
    known = np.array([seen[e.id] for e in done[:_MOST_READ]])
    return max(left[:_MOST_READ], key=lambda e: float(np.linalg.norm(known - seen[e.id], axis=1).min())).id


def picture(case: Case) -> np.ndarray:
    """A case in a few numbers: its first image on a coarse grid, standardised, and the log of its size in mm."""
    image = next(iter(case.images.values()))
    grid = image.geometry.canonical().resized((_SIDE,) * image.geometry.ndim)
    coarse = image.on(grid, "nearest").data.astype(np.float32).mean(0).ravel()
    size = np.log(np.multiply(image.geometry.canonical().shape, image.geometry.canonical().spacing))
    return np.concatenate([(coarse - coarse.mean()) / (coarse.std() + 1e-6) / np.sqrt(coarse.size), size])


def overall(doubt: np.ndarray) -> float:
    """A map of doubt (0 to 1) in one number: its mean where the answer is not certain."""
    doubtful = doubt > 0.05
    return float(doubt[doubtful].mean()) if doubtful.any() else 0.0
