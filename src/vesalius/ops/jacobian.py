"""Displacement fields in world mm: reading one at a point, and how it stretches space there.

A field ``displacement`` (d, *spatial) on a ``Geometry`` says that the world point x of its grid goes to x + u(x), mm. Derivatives are
taken in world coordinates, so spacing, direction and oblique grids make no difference to the answer.
"""

from __future__ import annotations

import numpy as np

from ..core.errors import DataError, GeometryError
from ..core.geometry import Geometry

_SLAB = 1 << 19  # voxels at a time, so that the matrix never exists for a whole volume


def jacobian(displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(*spatial) float64 |J|, J = I + du/dx: the local change of volume, 1 for none, 0 or less where space folds.

    Differences are central between voxels and one-sided at the border, exact for affine maps. Raises GeometryError, and DataError for a
    field that is not finite.
    """
    u = as_field(displacement, geometry)
    if min(geometry.shape) < 2:
        raise GeometryError("a Jacobian needs two voxels along every axis", found=geometry.shape)
    to_index = np.linalg.inv(geometry.affine[:-1, :-1])  # d index / d world
    n, out = geometry.shape[0], np.empty(geometry.shape)
    planes = max(1, _SLAB * n // out.size)
    for start in range(0, n, planes):
        low, high = max(0, start - 1), min(n, start + planes + 1)  # a neighbour more on each side
        out[start : start + planes] = _determinant(_matrix(u[:, low:high], to_index))[start - low :][:planes]
    return out


def _matrix(u: np.ndarray, to_index: np.ndarray) -> list[list[np.ndarray]]:
    """I + du/dx (world), entry by entry (*spatial)."""
    d = len(u)
    j = [[np.full(u.shape[1:], float(row == column)) for column in range(d)] for row in range(d)]
    for row, axis in np.ndindex(d, d):
        slope = np.gradient(u[row], axis=axis)
        for column in np.flatnonzero(to_index[axis]):
            j[row][column] += slope * to_index[axis, column]
    return j


def displacement_at(displacement: np.ndarray, geometry: Geometry, points: np.ndarray) -> np.ndarray:
    """(n, d) mm: the field, linear between voxels, at ``points`` (n, d) world mm; NaN beyond the grid's outer voxel centres."""
    from scipy.ndimage import map_coordinates

    u = as_field(displacement, geometry)
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != geometry.ndim:
        raise GeometryError("points are (n, d) world mm", found=points.shape, allowed=("n", geometry.ndim))
    at = geometry.to_index(points).T
    last = np.array(geometry.shape)[:, None] - 1
    outside = ~((at >= -1e-6) & (at <= last + 1e-6)).all(axis=0)
    at = np.clip(np.where(np.isfinite(at), at, 0), 0, last)
    out = np.stack([map_coordinates(component, at, order=1, mode="nearest") for component in u], axis=1)
    out[outside] = np.nan
    return out


def as_field(displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The field as float64 (d, *spatial); GeometryError when it does not lie on the grid, DataError when it is not finite."""
    u = np.asarray(displacement, np.float64)
    if u.shape != (geometry.ndim, *geometry.shape):
        raise GeometryError(
            "a displacement has one component an axis, on its grid", found=u.shape, allowed=(geometry.ndim, *geometry.shape)
        )
    if not np.isfinite(u).all():
        raise DataError("the displacement is not finite", found=f"{np.count_nonzero(~np.isfinite(u))} of {u.size} numbers")
    return u


def _determinant(j: list[list[np.ndarray]]) -> np.ndarray:
    if len(j) == 1:
        return j[0][0]
    minors = (_determinant([[v for n, v in enumerate(row) if n != k] for row in j[1:]]) for k in range(len(j)))
    return sum((-1) ** k * j[0][k] * minor for k, minor in enumerate(minors))
