"""Connected components of a mask, in two and three dimensions; neighbours touch by a face, an edge or a corner (8 or 26); and its box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import DataError, UsageError


def bounding_box(mask: np.ndarray, margin: int | Sequence[int] = 0) -> tuple[slice, ...] | None:
    """The smallest box that holds the foreground of a mask (*spatial), ``margin`` voxels wider on every side (one number, or one an axis)
    within the array; None for an empty mask."""
    wide = [margin] * mask.ndim if isinstance(margin, int) else margin
    box = []
    for axis, w in enumerate(wide):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if hit.size == 0:
            return None
        box.append(slice(max(0, int(hit[0]) - int(w)), min(mask.shape[axis], int(hit[-1]) + 1 + int(w))))
    return tuple(box)


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels, sizes) of a bool mask (*spatial): ``labels`` int32, 0 outside and 1..n inside; ``sizes`` (n,) voxels of component 1..n.

    Raises DataError when the mask is not 2D or 3D.
    """
    from cc3d import connected_components

    mask = np.asarray(mask)
    if mask.ndim not in (2, 3):
        raise DataError("components are found in two or three dimensions", found=f"shape {mask.shape}")
    inside = np.ascontiguousarray(mask != 0)
    labels = connected_components(inside, connectivity=8 if mask.ndim == 2 else 26).astype(np.int32)
    return labels, np.bincount(labels.ravel(), minlength=1)[1:]


def largest(mask: np.ndarray, n: int = 1) -> np.ndarray:
    """The ``n`` largest components of a mask, bool (*spatial); fewer when there are fewer, the first in scan order of equal ones.

    Raises UsageError when ``n`` is not positive, DataError when the mask is not 2D or 3D.
    """
    if n < 1:
        raise UsageError("at least one component is kept", found=n, allowed="1 or more")
    labels, sizes = components(mask)
    if len(sizes) <= n:
        return labels > 0
    keep = np.zeros(len(sizes) + 1, bool)
    keep[1 + np.argsort(-sizes, kind="stable")[:n]] = True
    return keep[labels]
