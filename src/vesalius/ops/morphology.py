"""Binary morphology with Euclidean discs and balls of any radius, by distance transforms; and the clean-up of a mask after a network.

Outside the image nothing is known: erosion ignores it, so that an object cut by the border keeps its cut. Opening then only removes and
closing only adds, also along the border, and both are idempotent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes

from ..core.errors import UsageError
from .components import largest

_SLACK = 1e-4  # relative, of squared distances: the transform is float32


def erode(mask: np.ndarray, radius: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Voxels further than ``radius`` from the background (*spatial); voxels, or mm with ``spacing``."""
    return ~dilate(~np.asarray(mask, bool), radius, spacing)


def dilate(mask: np.ndarray, radius: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Voxels within ``radius`` of the mask (*spatial); voxels, or mm with ``spacing``."""
    from edt import edtsq

    mask = np.asarray(mask, bool)
    if not radius > 0 or not mask.any():
        return mask.copy()
    away = edtsq(np.ascontiguousarray(~mask), anisotropy=tuple(float(s) for s in spacing or (1.0,) * mask.ndim), parallel=1)
    return away <= radius**2 * (1 + _SLACK)


def opened(mask: np.ndarray, radius: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """The union of all discs of ``radius`` that fit inside: specks and thin bridges go."""
    return dilate(erode(mask, radius, spacing), radius, spacing)


def closed(mask: np.ndarray, radius: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """What no disc of ``radius`` can reach from outside: gaps and notches are filled."""
    return erode(dilate(mask, radius, spacing), radius, spacing)


def clean(
    mask: np.ndarray,
    *,
    opening: float = 0.0,
    closing: float = 0.0,
    fill_holes: bool = True,
    keep: int | None = None,
    spacing: Sequence[float] | None = None,
) -> np.ndarray:
    """Opening, closing, hole filling, and only the ``keep`` largest components (None: all), in this order; bool (*spatial), 2D or 3D.

    ``opening`` and ``closing`` are radii in voxels, or in mm with ``spacing`` (mm, one an axis); 0 leaves the step out. A hole is
    background that no path of faces joins to the image border. An empty mask stays empty. Raises UsageError for a negative radius.
    """
    for name, radius in (("opening", opening), ("closing", closing)):
        if radius < 0:
            raise UsageError("a radius is not negative", where=name, found=radius, allowed="0 (no such step) or more")
    out = np.asarray(mask) != 0
    out = opened(out, opening, spacing)
    out = closed(out, closing, spacing)
    if fill_holes:
        out = binary_fill_holes(out)
    return out if keep is None else largest(out, keep)
