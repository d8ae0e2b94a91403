"""What a mask measures: volume, long and short axis, components; two versions against each other; slices filled in between drawn ones."""

from __future__ import annotations

import numpy as np

from ..core.case import Case, LabelMap
from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry, coarsest
from ..core.prediction import Prediction
from ..engine.evaluate import score
from ..ops.components import components


def measure(label: LabelMap) -> list[dict]:
    """A row a structure that is there: ``voxels``, ``volume_ml`` (``area_mm2`` in 2D), ``components``, and ``long_axis_mm`` and
    ``short_axis_mm``: the longest distance between two voxel corners within one slice (across the coarsest axis, as radiologists measure),
    and the extent at right angles to it in the same slice."""
    data, geometry = np.asarray(label.data), label.geometry
    rows = []
    for k, name in enumerate(label.names[1:], 1):
        mask = data == k
        voxels = int(mask.sum())
        if not voxels:
            continue
        size = voxels * geometry.voxel_volume
        long, short = axes(mask, geometry)
        row = {"label": name, "voxels": voxels, "components": len(components(mask)[1]), "long_axis_mm": long, "short_axis_mm": short}
        rows.append(row | ({"volume_ml": size / 1000, "area_mm2": None} if geometry.ndim == 3 else {"volume_ml": None, "area_mm2": size}))
    return rows


def axes(mask: np.ndarray, geometry: Geometry) -> tuple[float, float]:
    """(long, short) mm of a mask (*spatial) bool, see ``measure``; (0, 0) of an empty one."""
    best = (0.0, 0.0)
    if geometry.ndim == 2:
        return _flat_axes(mask, geometry.spacing)
    across = coarsest(geometry.spacing)
    spacing = [s for a, s in enumerate(geometry.spacing) if a != across]
    for k in np.flatnonzero(mask.any(tuple(a for a in range(3) if a != across))):
        best = max(best, _flat_axes(np.take(mask, k, across), spacing))
    return best


def _flat_axes(mask: np.ndarray, spacing) -> tuple[float, float]:
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0.0, 0.0
    ends = [(r, np.flatnonzero(mask[r])[[0, -1]]) for r in rows]  # the hull of a mask is the hull of its rows' ends
    corners = [(r + dr, c + dc) for r, (a, b) in ends for dr in (-0.5, 0.5) for c, dc in ((a, -0.5), (b, 0.5))]
    points = np.array(corners) * np.asarray(spacing)
    hull = points[ConvexHull(points).vertices]
    apart = hull[:, None] - hull[None]
    length = np.linalg.norm(apart, axis=-1)
    i, j = np.unravel_index(int(length.argmax()), length.shape)
    way = apart[i, j] / length[i, j]
    beside = hull @ np.array([-way[1], way[0]])
    return float(length[i, j]), float(beside.max() - beside.min())


def compare(a: LabelMap, b: LabelMap) -> list[dict]:
    """A row a structure of either version: DSC and HD95 (mm; None where one is empty), and the volumes (ml, in 2D mm^2)."""
    case = Case("case", labels={"reference": a})
    rows = score(Prediction(labels={"prediction": b}), case, metrics=("dsc", "hd95"))
    factor = a.geometry.voxel_volume / (1000 if a.geometry.ndim == 3 else 1)
    first, second, out = np.asarray(a.data), np.asarray(b.data), []
    for k, name in enumerate(a.names[1:], 1):
        sizes = [int((data == k).sum()) for data in (first, second)]
        if not any(sizes):
            continue
        by = {r.metric: r.value for r in rows if r.structure == name}
        dsc = by.get("dsc") if all(sizes) else 0.0
        row = {"label": name, "dsc": dsc, "hd95_mm": by.get("hd95") if all(sizes) else None}
        out.append(row | {"volume_a": sizes[0] * factor, "volume_b": sizes[1] * factor})
    return out


def difference(a: np.ndarray, b: np.ndarray, value: int | None = None) -> np.ndarray:
    """(*spatial) uint8: 1 only a, 2 only b, 3 both; of one label, or of all together (differing labels count as one each, 1 over 2)."""
    on, other = (a > 0, b > 0) if value is None else (a == value, b == value)
    both = on & other & (a == b)
    return np.where(both, 3, np.where(on, 1, np.where(other, 2, 0))).astype(np.uint8)


def interpolate(mask: np.ndarray, axis: int, spacing: tuple[float, ...]) -> np.ndarray:
    """(*volume) bool with the slices between drawn ones filled: the signed distances of two neighbouring drawn slices, mixed by how near
    each is (Raya and Udupa, Shape-based interpolation, 1990). Drawn slices stay. Raises DataError where fewer than two are drawn."""
    from edt import edt

    if mask.ndim != 3 or axis not in (0, 1, 2):
        raise UsageError("slices are interpolated in volumes", found=f"{mask.ndim}D, axis {axis}", allowed="axis 0 to 2")
    drawn = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    if len(drawn) < 2:
        raise DataError("there is nothing to interpolate between", found=f"{len(drawn)} drawn slices", allowed="2 or more")
    flat = [s for a, s in enumerate(spacing) if a != axis]
    out = np.moveaxis(mask.copy(), axis, 0)

    def signed(on: np.ndarray) -> np.ndarray:
        inside, outside = (edt(np.ascontiguousarray(m, np.uint8), anisotropy=flat, black_border=b) for m, b in ((on, True), (~on, False)))
        return inside - outside

    for low, high in zip(drawn[:-1], drawn[1:]):
        if high - low > 1:
            before, after = signed(out[low]), signed(out[high])
            for k in range(low + 1, high):
                share = (k - low) / (high - low)
                out[k] = (1 - share) * before + share * after > 0
    return np.moveaxis(out, 0, axis)
