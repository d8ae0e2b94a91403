"""Guidance channels: how near each voxel is to what somebody or something pointed at (markers, clicks, a prior's mask).

Distances are in mm on the grid's own spacing, so that a channel means the same on thick slices. Nothing to be near to gives a channel of
exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numba import njit

from ..core.errors import GeometryError, UsageError

MODES = ("kernel", "filter")


def distance_to_mask(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(*s) float32: mm from each voxel centre to the nearest voxel centre of ``mask`` (*s); 0 on it, inf everywhere when it is empty."""
    import edt

    mask = np.asarray(mask, bool)
    if len(spacing) != mask.ndim:
        raise GeometryError("one spacing a side", found=tuple(spacing), allowed=f"{mask.ndim} numbers")
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return edt.edt(np.ascontiguousarray(~mask), anisotropy=tuple(float(s) for s in spacing), parallel=1)


def distance_to_points(points: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """(*shape) float32: mm from each voxel centre to the nearest of ``points`` (n, d), which are fractional voxels and may lie outside the
    grid; inf everywhere when there is none. Exact, by brute force: made for up to a few thousand points on a patch."""
    shape, d = tuple(int(n) for n in shape), len(shape)
    points = np.asarray(points, float).reshape(-1, d)
    if d not in (2, 3) or len(spacing) != d:
        raise GeometryError("a grid has two or three sides, each with a spacing", found=(shape, tuple(spacing)))
    lift = 3 - d  # a plane is a volume of one slice
    out = np.full((1,) * lift + shape, np.inf, np.float32)
    mm = np.array([1.0] * lift + list(spacing))
    _nearest(np.ascontiguousarray(np.pad(points, ((0, 0), (lift, 0))) * mm), mm, out)
    return np.sqrt(out, out=out).reshape(shape)


def guidance(
    distance: np.ndarray, spacing: Sequence[float], *, sigma_mm: float, mode: Literal["kernel", "filter"] = "kernel"
) -> np.ndarray:
    """(*s) float32 in 0..1 from ``distance`` (*s) in mm.

    'kernel': exp(-d^2 / (2 sigma^2)), 1 at distance 0 and falling with it. 'filter': the inverse distance 1 / (1 + d / sigma) smoothed by
    a Gaussian of sd sigma (mm); its peak stays below 1, and beyond the grid the edge value is assumed.
    """
    if not sigma_mm > 0:
        raise UsageError("a guidance channel needs a width above 0", where="sigma_mm", found=sigma_mm)
    if mode == "kernel":
        return np.exp(-0.5 * np.square(distance / np.float32(sigma_mm))).astype(np.float32, copy=False)
    if mode != "filter":
        raise UsageError("unknown kind of guidance channel", where="mode", found=mode, allowed=", ".join(MODES))
    from scipy.ndimage import gaussian_filter

    near = 1 / (1 + np.asarray(distance, np.float32) / np.float32(sigma_mm))
    return gaussian_filter(near, [sigma_mm / s for s in spacing], mode="nearest")


@njit(cache=True, nogil=True, fastmath=True)
def _nearest(points, mm, out):
    """Squared distance to the nearest of ``points`` (n, 3) in mm, into ``out`` (a, b, c), which holds the largest value allowed."""
    row = np.arange(out.shape[2]).astype(np.float32) * np.float32(mm[2])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            best = out[i, j]
            for p in range(len(points)):
                across = np.float32((i * mm[0] - points[p, 0]) ** 2 + (j * mm[1] - points[p, 1]) ** 2)
                along = np.float32(points[p, 2])
                for k in range(len(row)):
                    best[k] = min(best[k], across + (row[k] - along) ** 2)
