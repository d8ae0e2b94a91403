"""Connected components of masks, in two and three dimensions (26- or 8-connected)."""

from __future__ import annotations

import cc3d
import numpy as np


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(labels, n): ids 1..n of the connected components of a boolean mask, 0 elsewhere."""
    mask = np.ascontiguousarray(mask, dtype=bool)
    labels, n = cc3d.connected_components(mask, connectivity=26 if mask.ndim == 3 else 8, return_N=True)
    return labels, int(n)


def sizes(labels: np.ndarray, n: int) -> np.ndarray:
    """(n,) voxels of components 1..n."""
    return np.bincount(labels.ravel(), minlength=n + 1)[1:]


def largest(mask: np.ndarray, n: int = 1) -> np.ndarray:
    """The ``n`` largest components of a boolean mask (ties: the one met first); an empty mask stays empty."""
    labels, found = components(mask)
    if found <= n:
        return np.asarray(mask, bool)
    keep = np.argsort(-sizes(labels, found), kind="stable")[:n] + 1
    return np.isin(labels, keep)
