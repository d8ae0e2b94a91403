"""Geodesic distances through an image: a step costs its length and the change of intensity along it.

Criminisi et al., GeoS (ECCV 2008), in the linear form of FastGeodis (Asad et al., JOSS 2022, doi:10.21105/joss.04532): a step between
neighbours (8 in 2D, 26 in 3D) costs (1 - w) |dx| + w |dI|. Raster sweeps forth and back are repeated until nothing changes, so that the
result is that of Dijkstra on the same graph, and not of a number of sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from ..core.errors import GeometryError, UsageError
from .warp import compiled


def geodesic_distance(seeds: np.ndarray, image: np.ndarray, spacing: Sequence[float], *, weight: float = 0.5) -> np.ndarray:
    """(*s) float32: least cost from each voxel to ``seeds`` (*s) bool through ``image`` (*s); 0 on seeds, inf without any.

    ``weight`` w: 0 counts lengths (mm by ``spacing``) alone, which is the chamfer distance (at most 8.3 % above the Euclidean one in 2D,
    12.8 % in 3D on equal spacings), 1 intensities alone. Raises GeometryError for arrays that do not fit and UsageError for a weight
    outside 0..1.
    """
    seeds, image = np.asarray(seeds, bool), np.asarray(image, np.float32)
    if seeds.shape != image.shape or seeds.ndim not in (2, 3) or len(spacing) != seeds.ndim:
        found = (seeds.shape, image.shape, tuple(spacing))
        raise GeometryError("seeds and image lie on one grid of two or three sides, each with a spacing", found=found)
    if not 0 <= weight <= 1:
        raise UsageError("a weight between length and intensity", where="weight", found=weight, allowed="0 to 1")
    lift = (1,) * (3 - seeds.ndim)
    out = np.where(seeds, np.float32(0), np.float32(np.inf)).reshape(lift + seeds.shape)
    if seeds.any():
        before = np.array([o for o in product((-1, 0, 1), repeat=3) if o < (0, 0, 0)])  # the half that a forward sweep has seen
        before = before[(np.abs(before[:, : len(lift)]) == 0).all(1)]
        mm = np.array([1.0] * len(lift) + [float(s) for s in spacing])
        lengths = ((1 - weight) * np.linalg.norm(before * mm, axis=1)).astype(np.float32)
        _settle(out, np.ascontiguousarray(image).reshape(out.shape), before, lengths, np.float32(weight))
    return out.reshape(seeds.shape)


@compiled
def _settle(out, image, before, lengths, weight):
    """Sweeps forth and back over ``out`` (a, b, c) in place, until one changes nothing."""
    changed, sign = True, 1
    quiet = 0
    while quiet < 2:
        changed = _sweep(out, image, before, lengths, weight, sign)
        quiet = 0 if changed else quiet + 1
        sign = -sign


@compiled
def _sweep(out, image, before, lengths, weight, sign):
    a, b, c = out.shape
    changed = False
    for i0 in range(a):
        i = i0 if sign > 0 else a - 1 - i0
        for j0 in range(b):
            j = j0 if sign > 0 else b - 1 - j0
            for k0 in range(c):
                k = k0 if sign > 0 else c - 1 - k0
                best, here = out[i, j, k], image[i, j, k]
                for n in range(len(before)):
                    x, y, z = i + sign * before[n, 0], j + sign * before[n, 1], k + sign * before[n, 2]
                    if 0 <= x < a and 0 <= y < b and 0 <= z < c:
                        cost = out[x, y, z] + lengths[n] + weight * abs(here - image[x, y, z])
                        if cost < best:
                            best = cost
                if best < out[i, j, k]:
                    out[i, j, k] = best
                    changed = True
    return changed
