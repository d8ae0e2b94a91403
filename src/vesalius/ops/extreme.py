"""Extreme points, and a first mask of an object of which nothing else is known.

An annotator clicks the outermost voxels of an object along every axis: six points in a volume, four in an image. Least-cost paths between
the opposite ones stay inside, a box around them holds the rest, and a random walker says what lies between.

Zhong and Wang, SimPLe: similarity-aware propagation learning for weakly-supervised breast cancer segmentation in DCE-MRI, MICCAI 2023,
https://arxiv.org/abs/2306.16714 (the procedure); Grady, Random walks for image segmentation, IEEE TPAMI 2006 (the walker, scikit-image's).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.case import IGNORE
from ..core.errors import DataError, GeometryError

SURE, OUT = 0.8, 0.1  # probability of the object from which (up to which) a voxel is a seed of the next walk, inside (outside)


def extreme_points(mask: np.ndarray) -> np.ndarray:
    """(2d, d) voxels of a mask (*s) bool: along each axis in turn the first and the last, of several the nearest to their mean.

    Raises DataError for an empty mask.
    """
    voxels = np.argwhere(np.asarray(mask, bool))
    if not len(voxels):
        raise DataError("an empty mask has no extreme points")
    found = []
    for axis in range(voxels.shape[1]):
        for end in (voxels[:, axis].min(), voxels[:, axis].max()):
            plane = voxels[voxels[:, axis] == end]
            found.append(plane[np.square(plane - plane.mean(0)).sum(1).argmin()])
    return np.stack(found)


def tight_box(points: np.ndarray) -> tuple[slice, ...]:
    """The smallest box of voxels that holds ``points`` (n, d)."""
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(points.min(0), points.max(0), strict=True))


def inner_paths(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(*s) bool: for each axis the cheapest way through ``image`` (*s) between the least and the greatest of ``points`` (n, d) along it, a
    step costing the gradient's magnitude (Sobel); diagonal steps count their length."""
    from scipy.ndimage import sobel
    from skimage.graph import route_through_array

    image = np.asarray(image, np.float64)
    steep = np.sqrt(sum(sobel(image, axis) ** 2 for axis in range(image.ndim)))
    cost = steep + 1e-3 * max(float(steep.mean()), 1e-6)  # where the image is flat, the shortest way
    out = np.zeros(image.shape, bool)
    for axis in range(image.ndim):
        ends = points[points[:, axis].argmin()], points[points[:, axis].argmax()]
        way, _ = route_through_array(cost, *(tuple(map(int, e)) for e in ends), fully_connected=True, geometric=True)
        out[tuple(np.asarray(way).T)] = True
    return out


def random_walk(image: np.ndarray, seeds: np.ndarray, spacing: Sequence[float], *, beta: float = 130.0, walks: int = 7) -> np.ndarray:
    """(*s) float32: the probability that a walker from a voxel meets a seed of 1 before one of 0; ``seeds`` (*s) int, ``IGNORE`` between.

    After each of ``walks`` voxels of p > 0.8 and p <= 0.1 become seeds of the next, until none is left or nothing changes. ``beta``: how
    much a step across an edge costs, in units of the image's spread (mm by ``spacing``). Raises DataError when either seed is missing.
    """
    import warnings

    from skimage.segmentation import random_walker

    seeds = np.array(seeds, np.int8)
    if not (seeds == 1).any() or not (seeds == 0).any():
        raise DataError("a random walker needs seeds inside and outside", found=f"values {np.unique(seeds).tolist()}", allowed="0 and 1")
    p = (seeds == 1).astype(np.float32)
    if np.ptp(image) == 0:  # no edge anywhere; the walker divides by the spread
        image, beta = np.arange(seeds.size).reshape(seeds.shape), 0.0
    for _ in range(walks):
        if not (seeds == IGNORE).any():
            break
        marks = np.where(seeds == 1, 1, np.where(seeds == 0, 2, 0)).astype(np.int32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # hints that name other solvers
            p = random_walker(np.asarray(image, np.float64), marks, beta, "cg_j", 1e-3, spacing=tuple(spacing), return_full_prob=True)[0]
        after = np.where(p > SURE, 1, np.where(p <= OUT, 0, IGNORE)).astype(np.int8)
        after = np.where(seeds == IGNORE, after, seeds)
        if (after == seeds).all():
            break
        seeds = after
    return p.astype(np.float32)


def mask_from_extremes(
    image: np.ndarray,
    points: np.ndarray,
    spacing: Sequence[float],
    *,
    beta: float = 130.0,
    walks: int = 7,
    margin_mm: float = 12.0,
    ring_mm: float = 3.0,
) -> np.ndarray:
    """(*s) int8 from the extreme ``points`` (n, d) voxels of one object in ``image`` (*s): 0 outside their box, inside it 1 where a random
    walker is sure (p > 0.8) and ``IGNORE`` elsewhere. The mask's own box is that of the points.

    Seeds inside are ``inner_paths``, one voxel wider; outside, whatever is more than ``ring_mm`` from the box. The walk is confined to the
    box and ``margin_mm`` around. Where the image ends too soon for a seed outside, the seeds inside are all that is known. Raises
    GeometryError for points outside the image.
    """
    from scipy.ndimage import binary_dilation

    image, points = np.asarray(image), np.rint(np.asarray(points, float)).astype(int)
    if points.ndim != 2 or points.shape[1] != image.ndim or not len(points):
        raise GeometryError("extreme points are voxels of the image", found=points.shape, allowed=f"(n, {image.ndim})")
    if (points < 0).any() or (points >= image.shape).any():
        bad = points[((points < 0) | (points >= image.shape)).any(1)][0]
        raise GeometryError("an extreme point lies outside the image", found=tuple(map(int, bad)), allowed=f"voxels of {image.shape}")
    box = tight_box(points)
    crop = _wider(box, margin_mm, spacing, image.shape)
    near = _wider(box, ring_mm, spacing, image.shape)
    part = image[crop].astype(np.float64)
    low = np.array([s.start for s in crop])
    inside = binary_dilation(inner_paths(part, points - low), np.ones((3,) * image.ndim, bool)) & _within(box, low, part.shape)
    seeds = np.where(_within(near, low, part.shape), IGNORE, 0).astype(np.int8)
    seeds[inside] = 1
    found = random_walk(part, seeds, spacing, beta=beta, walks=walks) > SURE if (seeds == 0).any() else inside
    out = np.zeros(image.shape, np.int8)
    out[box] = IGNORE
    out[crop][found & _within(box, low, part.shape)] = 1
    return out


def _wider(box: tuple[slice, ...], mm: float, spacing: Sequence[float], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box widened by at least a voxel on each side, cut at the image's border."""
    by = [max(1, round(mm / s)) for s in spacing]
    return tuple(slice(max(0, b.start - w), min(n, b.stop + w)) for b, w, n in zip(box, by, shape, strict=True))


def _within(box: tuple[slice, ...], low: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(*shape) bool: the box in the voxels of a crop that starts at ``low``."""
    out = np.zeros(shape, bool)
    out[tuple(slice(max(0, b.start - a), max(0, b.stop - a)) for b, a in zip(box, low, strict=True))] = True
    return out
