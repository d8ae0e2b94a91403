"""Which label maps of a case are opinions, and opinions from votes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.errors import DataError, UsageError


def opinions(labels: Mapping[str, object]) -> tuple[str, ...]:
    """The raters among label maps: all of them, but 'reference' only where there is no other. Raises DataError for none."""
    names = tuple(n for n in labels if n != "reference") or tuple(labels)
    if not names:
        raise DataError("there is no rater to learn from", allowed="one label map a rater")
    return names


def from_votes(votes: np.ndarray, raters: int) -> tuple[np.ndarray, ...]:
    """Nested masks (*s) bool of a map (*s) of how many of ``raters`` said yes: the k-th, from 1 on, is where at least k did.

    Who said what is lost in a vote; these masks have its count at every voxel and make the opinions as coherent as it allows (the
    innermost drawn by a strict rater, the outermost by a generous one). Raises DataError for counts outside 0..raters.
    """
    if raters < 1:
        raise UsageError("votes are cast by a rater at least", where="raters", found=raters)
    votes = np.asarray(votes)
    if not np.issubdtype(votes.dtype, np.integer) or votes.size and (votes.min() < 0 or votes.max() > raters):
        found = votes.dtype if not np.issubdtype(votes.dtype, np.integer) else (int(votes.min()), int(votes.max()))
        raise DataError("these are no votes", found=found, allowed=f"whole numbers from 0 to {raters}")
    return tuple(votes >= k for k in range(1, raters + 1))
