"""Registration: where points end up, and whether space folds.

A displacement (d, *spatial) in world mm on the fixed image's ``Geometry`` takes the fixed point x to x + u(x) in the moving image. Nothing
depends on the grid's spacing, direction or obliqueness. |J| is that of ``ops.jacobian``: above 1 the moving image's tissue is larger.
"""

from __future__ import annotations

import numpy as np

from ..core.errors import GeometryError
from ..core.geometry import Geometry
from ..ops.jacobian import as_field, displacement_at, jacobian
from .landmark import distances


def moved(points: np.ndarray, displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(n, d) where the fixed image's ``points`` (n, d) go, world mm; NaN for points outside the field's grid."""
    return np.asarray(points, float) + displacement_at(displacement, geometry, points)


def tre(points: np.ndarray, target: np.ndarray) -> float | None:
    """Target registration error: the mean distance of ``points`` (n, d), as ``moved``, to their ``target`` (n, d), mm, lower is better.

    Without any registration it is that of the points as they are. NaN points (outside the field) are left out; none left is undefined
    (None). Source: Fitzpatrick, West and Maurer 1998, doi:10.1109/42.736021.
    """
    error = distances(points, target)
    error = error[~np.isnan(error)]
    return float(error.mean()) if error.size else None


def folding(displacement: np.ndarray, geometry: Geometry, *, roi: np.ndarray | None = None) -> float | None:
    """The share of voxels with |J| <= 0, in [0, 1], lower is better; ``roi`` (*spatial, bool) restricts it. None for an empty roi.

    Source: Learn2Reg (Hering et al. 2023, doi:10.1109/TMI.2022.3213983).
    """
    j = _inside(jacobian(displacement, geometry), roi)
    return float(np.mean(j <= 0)) if j.size else None


def log_jacobian_sd(displacement: np.ndarray, geometry: Geometry, *, roi: np.ndarray | None = None) -> float | None:
    """Standard deviation of ln |J|, at least 0, lower is smoother; 0 for any rigid or affine map.

    Folded voxels (|J| <= 0) have no logarithm and are left out: read it beside ``folding``. None when none is left. Source: Learn2Reg,
    which clips them instead (Leow et al. 2007, doi:10.1109/TMI.2007.892646).
    """
    j = _inside(jacobian(displacement, geometry), roi)
    j = j[j > 0]
    return float(np.log(j).std()) if j.size else None


def volume_change(displacement: np.ndarray, geometry: Geometry, structure: np.ndarray) -> float | None:
    """Relative change of a structure's volume: mean |J| over its voxels in the fixed image - 1, best at 0 where tissue must keep its size.

    0.2: the moving image's part is a fifth larger. Undefined (None) for an empty mask (*spatial, bool). Source: the change of variables.
    """
    j = _inside(jacobian(displacement, geometry), structure)
    return float(j.mean()) - 1 if j.size else None


def inverse_error(forward: np.ndarray, forward_geometry: Geometry, backward: np.ndarray, backward_geometry: Geometry) -> np.ndarray:
    """(*spatial) mm on the forward grid: |u(x) + v(x + u(x))|, how far a point lands from where it started; NaN where x + u(x) leaves v's
    grid. ``backward`` lies on the moving image's grid."""
    if forward_geometry.ndim != backward_geometry.ndim:
        raise GeometryError("forward and backward differ in dimension", found=backward_geometry.ndim, allowed=forward_geometry.ndim)
    u = as_field(forward, forward_geometry).reshape(forward_geometry.ndim, -1).T
    index = np.indices(forward_geometry.shape).reshape(forward_geometry.ndim, -1).T
    there = forward_geometry.to_world(index) + u
    return np.linalg.norm(u + displacement_at(backward, backward_geometry, there), axis=1).reshape(forward_geometry.shape)


def inverse_consistency(
    forward: np.ndarray,
    forward_geometry: Geometry,
    backward: np.ndarray,
    backward_geometry: Geometry,
    *,
    roi: np.ndarray | None = None,
) -> float | None:
    """Inverse consistency error: the mean of ``inverse_error`` over the voxels (in ``roi``) that stay inside, mm, lower is better.

    Undefined (None) when none does. Source: Christensen and Johnson 2001, doi:10.1109/42.932742.
    """
    error = _inside(inverse_error(forward, forward_geometry, backward, backward_geometry), roi)
    error = error[~np.isnan(error)]
    return float(error.mean()) if error.size else None


def _inside(values: np.ndarray, roi: np.ndarray | None) -> np.ndarray:
    if roi is None:
        return values.ravel()
    roi = np.asarray(roi)
    if roi.dtype != bool or roi.shape != values.shape:
        raise GeometryError("a region is a boolean mask on the field's grid", found=(roi.dtype, roi.shape), allowed=values.shape)
    return values[roi]
