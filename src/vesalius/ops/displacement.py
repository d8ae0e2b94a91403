"""Displacement fields in world mm between grids: from a network's voxels, onto another grid, and whether two grids meet at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import map_coordinates

from ..core.case import Image
from ..core.geometry import Geometry, index_map

_SAMPLED = 24  # voxels a side that are looked at to see how much two grids share
_SLAB = 1 << 20  # voxels read at a time


def in_world(flow: np.ndarray, fixed: Geometry, moving: Geometry) -> Image:
    """World mm on ``fixed`` of a ``flow`` (d, *fixed.shape) that takes voxel i of the fixed grid to voxel i + flow(i) of ``moving``:
    u(x) = world of that voxel - x, so that x + u(x) is a point of the moving image's world."""
    index = np.indices(fixed.shape, dtype=np.float64)
    there, here = (np.moveaxis(v, 0, -1) for v in (index + flow, index))
    u = moving.to_world(there) - fixed.to_world(here)
    return Image(np.moveaxis(u, -1, 0).astype(np.float32), fixed, normalise=False, name="displacement")


def on_grid(displacement: Image, grid: Geometry) -> Image:
    """The field (d, *spatial) read linearly on ``grid``; beyond its own grid the edge's displacement goes on (0 would be a jump)."""
    if displacement.geometry == grid:
        return displacement
    data, m, d = np.asarray(displacement.data), index_map(displacement.geometry, grid), grid.ndim
    out = np.empty((len(data), *grid.shape), np.float32)
    step = max(1, _SLAB // max(1, int(np.prod(grid.shape[1:]))))
    for start in range(0, grid.shape[0], step):
        axes = [np.arange(start, min(start + step, grid.shape[0])), *(np.arange(n) for n in grid.shape[1:])]
        index = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        at = np.moveaxis(index @ m[:d, :d].T + m[:d, d], -1, 0)
        for c, component in enumerate(data):
            out[c, start : start + len(axes[0])] = map_coordinates(component, at, order=1, mode="nearest")
    return replace(displacement, source=out, geometry=grid)


def shared(fixed: Geometry, moving: Geometry) -> float:
    """The share of the fixed grid's voxels, of an even sample with the corners, that lie inside the moving grid's outer voxel faces."""
    axes = [np.unique(np.linspace(0, n - 1, min(n, _SAMPLED))) for n in fixed.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.ndim)
    at = moving.to_index(fixed.to_world(index))
    return float(((at >= -0.5) & (at <= np.asarray(moving.shape) - 0.5)).all(1).mean())
