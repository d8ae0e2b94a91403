"""Landmarks along the contour of a mask: ordered, equally spaced, from a start that is the same place in every case.

Two outlines of like shape, sampled so, correspond point by point well enough for a landmark network to learn them (Gaggion et al., IEEE TMI
2023, doi:10.1109/TMI.2022.3224660, sample organ contours in the same spirit). All outlines are closed, (n, 2) in world mm, and go round as
a clock does on an image whose first axis points down and whose second points right.
"""

from __future__ import annotations

import numpy as np

from ..core.errors import GeometryError, UsageError
from ..core.geometry import Geometry
from .components import components


def landmarks(mask: np.ndarray, geometry: Geometry, n: int) -> np.ndarray:
    """(n, 2) world mm: equal steps of length along ``outline``; (0, 2) of an empty mask."""
    found = outline(mask, geometry)
    return resampled(found, n) if len(found) else found


def outline(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(m, 2) world mm: the longest outer contour of a 2D ``mask`` (*shape) bool, half a pixel outside its outermost pixel centres.

    It starts at its top, the least first world coordinate (in the middle of a flat top), and goes round clockwise. Empty masks give (0, 2).
    Raises GeometryError for a mask that is not 2D or not on its grid.
    """
    from skimage.measure import find_contours

    mask = np.asarray(mask, bool)
    if mask.ndim != 2 or mask.shape != geometry.shape:
        raise GeometryError("an outline is that of a 2D mask on its grid", found=mask.shape, allowed=geometry.shape)
    if not mask.any():
        return np.zeros((0, 2))
    found = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)  # padded, so that all of them are closed
    points = geometry.to_world(max(found, key=lambda c: abs(signed_area(c)))[:-1] - 1)
    if signed_area(points) < 0:
        points = points[::-1]
    top = np.flatnonzero(points[:, 0] <= points[:, 0].min() + 1e-6)
    across = points[top, 1]
    return np.roll(points, -int(top[np.abs(across - across.mean()).argmin()]), axis=0)


def resampled(outline: np.ndarray, n: int) -> np.ndarray:
    """(n, 2): the closed ``outline`` (m, 2) at n equal steps of its length, from its first point on. Raises UsageError for n < 3."""
    if n < 3:
        raise UsageError("a closed contour needs three points", found=n, allowed="3 or more")
    closed = np.concatenate([outline, outline[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, along[-1], n, endpoint=False)
    return np.stack([np.interp(at, along, axis) for axis in closed.T], 1)


def signed_area(outline: np.ndarray) -> float:
    """Area (mm^2) of a closed polygon (n, 2), positive where it goes round clockwise (first axis down, second right)."""
    down, right = np.asarray(outline, float).T
    return float(right @ np.roll(down, -1) - down @ np.roll(right, -1)) / 2


def side_by_side(mask: np.ndarray, geometry: Geometry, n: int, *, least: float = 0.1) -> list[np.ndarray]:
    """``n`` masks (*shape) bool: the connected parts of a structure that has several, from left to right (second world axis).

    The n largest parts count that have at least the share ``least`` of the largest. Where fewer are found (a lung is absent) each goes to
    the n-th of the image's width that holds its centre, and a place that none or several claim stays empty; so does everything where a part
    reaches so far into a neighbour's place (more than a quarter of it) that it may be two that touch.
    """
    labels, sizes = components(mask)
    order = np.argsort(-sizes, kind="stable")[:n]
    parts = [labels == k + 1 for k in order if sizes[k] >= least * sizes[order[0]]]
    places = [geometry.to_world(np.argwhere(p))[:, 1] for p in parts]
    if len(parts) == n:
        return [parts[i] for i in np.argsort([p.mean() for p in places], kind="stable")]
    empty = np.zeros(geometry.shape, bool)
    corners = geometry.to_world(np.array([[-0.5, -0.5], np.array(geometry.shape) - 0.5]))[:, 1]
    low, width = corners.min(), np.ptp(corners) / n
    out = [empty] * n
    claims = [np.bincount(np.clip((p - low) // width, 0, n - 1).astype(int), minlength=n) / len(p) for p in places]
    for part, share in zip(parts, claims, strict=True):
        k = int(share.argmax())
        alone = sum(int(other.argmax()) == k for other in claims) == 1
        if alone and share[k] >= 0.75:
            out[k] = part
    return out
