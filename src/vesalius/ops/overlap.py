"""Where two crops of one case show the same voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import GeometryError

Box = tuple[slice, ...]


def overlap(first: np.ndarray, second: np.ndarray, size: Sequence[int]) -> list[tuple[Box, Box]]:
    """Per sample the box both crops of ``size`` show, as slices into the first and into the second crop.

    ``first``, ``second`` (B, d+1, d+1): patch voxels -> case voxels (``Batch.to_case``). Crops that do not meet have slices of length 0.
    GeometryError: the crops are turned, scaled or shifted by parts of a voxel against each other, so that no box indexes equal voxels;
    ``Sampling(views=2, spatial='exact')`` draws crops that fit.
    """
    size = np.asarray(size)
    d, boxes = len(size), []
    for a, b in zip(np.asarray(first, float), np.asarray(second, float), strict=True):
        between = np.linalg.solve(a, b)  # voxels of the second -> voxels of the first
        shift = np.rint(between[:d, d]).astype(int)
        if np.abs(between[:d, :d] - np.eye(d)).max() > 1e-6 or np.abs(between[:d, d] - shift).max() > 1e-3:
            raise GeometryError("two crops are not whole-voxel shifts of each other", found=between.round(3).tolist())
        low, high = np.maximum(shift, 0), np.minimum(size, size + shift)
        high = np.maximum(low, high)
        boxes.append((_box(low, high), _box(low - shift, high - shift)))
    return boxes


def _box(low: np.ndarray, high: np.ndarray) -> Box:
    """Slices from ``low`` to ``high``."""
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
