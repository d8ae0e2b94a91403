"""Distances of landmarks, in mm.

``prediction`` and ``reference`` are (n, d) world coordinates in mm, row by row the same landmark (``paired`` makes them from named points);
NaN in the prediction is a landmark that was not found, NaN in the reference one that nobody marked, which is left out everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.case import Points
from ..core.errors import DataError, GeometryError, UsageError


def paired(prediction: Points, reference: Points) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(prediction (n, d), reference (n, d), names): matched by name, in the reference's order; NaN where the prediction has no such point.

    Points without names are matched by place and must be equally many. Predicted names the reference has not are left out. Raises
    DataError for names that stand twice and for sets that only one side names.
    """
    ours, theirs = np.asarray(prediction.xyz, float), np.asarray(reference.xyz, float)
    if not prediction.names and not reference.names:
        if len(ours) != len(theirs):
            raise DataError("landmarks without names differ in number", found=len(ours), allowed=len(theirs), fix="name them")
        return ours, theirs, tuple(str(n) for n in range(len(theirs)))
    for side, points in (("prediction", prediction), ("reference", reference)):
        if len(points.names) != len(points.xyz) or len(set(points.names)) != len(points.names):
            raise DataError(f"the {side}'s landmarks do not have one name each", found=points.names)
    place = {name: n for n, name in enumerate(prediction.names)}
    missing = np.full(theirs.shape[-1], np.nan)
    rows = [ours[place[name]] if name in place else missing for name in reference.names]
    if len({len(row) for row in rows}) > 1:
        raise GeometryError("prediction and reference differ in dimension", found=ours.shape, allowed=theirs.shape)
    return np.array(rows).reshape(theirs.shape), theirs, tuple(reference.names)


def distances(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(m,) Euclidean distances in mm of the m landmarks the reference has; NaN: the prediction has not. Raises DataError, GeometryError."""
    prediction, reference = np.asarray(prediction, float), np.asarray(reference, float)
    if prediction.shape != reference.shape or reference.ndim != 2:
        raise GeometryError("landmarks are (n, d) points, row by row the same", found=prediction.shape, allowed=reference.shape)
    if np.isinf(prediction).any() or np.isinf(reference).any():
        raise DataError("a landmark has infinite coordinates", fix="NaN says that it is missing")
    marked = ~np.isnan(reference).any(axis=1)
    return np.linalg.norm(prediction[marked] - reference[marked], axis=1)


def mre(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Mean radial error: the mean distance of the landmarks that were found, mm, lower is better; see ``missing`` beside it.

    Undefined (None) when none was found. Source: Wang et al. 2015, doi:10.1109/TMI.2015.2412951 (cephalometric challenge).
    """
    found = _found(distances(prediction, reference))
    return float(found.mean()) if found.size else None


def mre_sd(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """The standard deviation of the radial errors (of a sample, n - 1), mm. Undefined (None) for fewer than two landmarks found."""
    found = _found(distances(prediction, reference))
    return float(found.std(ddof=1)) if found.size > 1 else None


def sdr(prediction: np.ndarray, reference: np.ndarray, threshold: float = 2.0) -> float | None:
    """Successful detection rate: the share of the reference's landmarks within ``threshold`` mm, in [0, 1], higher is better.

    A missing landmark is a failure. Undefined (None) when the reference has none. Source: Wang et al. 2015 (2, 2.5, 3 and 4 mm).
    """
    if not (np.isfinite(threshold) and threshold >= 0):
        raise UsageError("the threshold of SDR is a distance in mm, 0 or more", found=threshold)
    error = distances(prediction, reference)
    return float(np.mean(error <= threshold)) if error.size else None


def missing(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """The share of the reference's landmarks that the prediction has not, in [0, 1], lower is better. None when the reference has none."""
    error = distances(prediction, reference)
    return float(np.isnan(error).mean()) if error.size else None


def by_landmark(
    cases: Sequence[tuple[np.ndarray, np.ndarray, Sequence[str]]], *, thresholds: Sequence[float] = (2.0, 2.5, 3.0, 4.0)
) -> Mapping[str, Mapping[str, float | int | None]]:
    """Over cases, as ``paired`` gives them: by landmark, and 'all' pooled: 'mre', 'sd' (mm), 'sdr@2'..., 'missing' (share), 'count'."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for prediction, reference, names in cases:
        for name, p, r in zip(names, prediction, reference, strict=True):
            if name == "all":
                raise DataError("a landmark is named 'all', as the pooled row is", fix="rename it")
            groups.setdefault(name, []).append((p, r))
    groups["all"] = [pair for pairs in groups.values() for pair in pairs]
    out = {}
    for name, pairs in groups.items():
        p, r = (np.array([pair[side] for pair in pairs]).reshape(len(pairs), -1) for side in (0, 1))
        rates = {f"sdr@{t:g}": sdr(p, r, t) for t in thresholds}
        out[name] = {"mre": mre(p, r), "sd": mre_sd(p, r), **rates, "missing": missing(p, r), "count": distances(p, r).size}
    return out


def _found(error: np.ndarray) -> np.ndarray:
    return error[~np.isnan(error)]
