"""Metrics as pure functions, one table of them, and ``score_case``: the rows of one case.

Definitions follow Metrics Reloaded; every docstring has its formula and its empty-mask rule. A value that is undefined is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..core.case import IGNORE, LabelMap
from ..core.errors import DataError, GeometryError, UsageError, nearest
from ..core.prediction import Score
from . import overlap, surface
from .overlap import Counts, counts
from .surface import SurfaceDistances, surfaces

TOLERANCE = 2.0  # mm, of NSD where none is given: Nikolov et al. 2021 found organ-wise rater disagreements of about 1 to 2.5 mm


@dataclass(frozen=True)
class Metric:
    """One metric: ``function`` of what it ``needs`` ('counts' or 'surfaces'; NSD also takes the tolerance in mm), as ``label`` in tables.

    ``better`` is 'higher', 'lower' or 'zero' (a signed error); ``range`` its least and greatest value; ``unit`` '' has none; ``kind``
    quality or cost; ``pooled``: computed over cases together rather than case by case; ``spacing``: depends on the voxel size.
    """

    label: str
    function: Callable[..., float | None]
    needs: Literal["counts", "surfaces"]
    better: Literal["higher", "lower", "zero"]
    range: tuple[float, float]
    unit: str = ""
    kind: Literal["quality", "cost"] = "quality"
    tolerance: bool = False
    pooled: bool = False

    @property
    def spacing(self) -> bool:
        return self.needs == "surfaces"


_UNIT, _ANY = (0.0, 1.0), (0.0, float("inf"))

METRICS: Mapping[str, Metric] = {
    "dsc": Metric("DSC", overlap.dsc, "counts", "higher", _UNIT),
    "iou": Metric("IoU", overlap.iou, "counts", "higher", _UNIT),
    "hd95": Metric("HD95", surface.hd95, "surfaces", "lower", _ANY, "mm"),
    "hd": Metric("HD", surface.hd, "surfaces", "lower", _ANY, "mm"),
    "assd": Metric("ASSD", surface.assd, "surfaces", "lower", _ANY, "mm"),
    "masd": Metric("MASD", surface.masd, "surfaces", "lower", _ANY, "mm"),
    "nsd": Metric("NSD", surface.nsd, "surfaces", "higher", _UNIT, tolerance=True),
    "rve": Metric("RVE", overlap.relative_volume_error, "counts", "lower", _ANY),
    "rvd": Metric("RVD", overlap.relative_volume_difference, "counts", "zero", (-1.0, float("inf"))),
    "vs": Metric("VS", overlap.volumetric_similarity, "counts", "higher", _UNIT),
    "sensitivity": Metric("Sensitivity", overlap.sensitivity, "counts", "higher", _UNIT),
    "precision": Metric("Precision", overlap.precision, "counts", "higher", _UNIT),
    "specificity": Metric("Specificity", overlap.specificity, "counts", "higher", _UNIT),
    "accuracy": Metric("Accuracy", overlap.accuracy, "counts", "higher", _UNIT),
}
DEFAULT = ("dsc", "iou", "hd95", "assd", "nsd", "rve")


def metric(name: str) -> Metric:
    """The metric of that name; raises UsageError with the nearest name."""
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'", fix=nearest(name, METRICS))
    return METRICS[name]


def score_case(
    prediction: LabelMap,
    reference: LabelMap,
    *,
    case_id: str,
    patient: str = "",
    metrics: Sequence[str] = DEFAULT,
    tolerances: float | Mapping[str, float] = TOLERANCE,
    rater: str = "reference",
) -> list[Score]:
    """One row per structure and metric, on the reference's (original) grid, distances in mm.

    Structures are the reference's names without background, and only those its ``annotated`` speaks for. Voxels with the ignore index in
    the reference count for nothing. ``tolerances`` of NSD (mm): one for all structures, or by structure (others: ``TOLERANCE``); it stands
    in the row, as do the unit and which way is better. Raises GeometryError when the grids differ, DataError when the classes do.
    """
    chosen = {name: metric(name) for name in metrics}
    if not prediction.geometry.close(reference.geometry):
        raise GeometryError(
            "prediction and reference lie on different grids",
            where=f"case {case_id}",
            found=prediction.geometry.describe(),
            allowed=reference.geometry.describe(),
            fix="restore the prediction to the original grid before scoring",
        )
    rows = []
    for structure, masks, ignored in _structures(prediction, reference, case_id):
        tolerance = tolerances.get(structure, TOLERANCE) if isinstance(tolerances, Mapping) else float(tolerances)
        c = counts(*masks)
        measured = {"counts": replace(c, tn=c.tn - ignored)}
        if any(m.needs == "surfaces" for m in chosen.values()):
            measured["surfaces"] = surfaces(*masks, reference.geometry.spacing)
        for name, m in chosen.items():
            value = m.function(measured[m.needs], tolerance) if m.tolerance else m.function(measured[m.needs])
            extra = {"unit": m.unit, "better": m.better, **({"tolerance_mm": tolerance} if m.tolerance else {})}
            note = _why_undefined(c) if value is None else ""
            rows.append(Score(case_id, name, value, structure, patient, rater=rater, kind=m.kind, note=note, extra=extra))
    return rows


def _structures(prediction: LabelMap, reference: LabelMap, case: str) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray], int]]:
    """(name, (prediction mask, reference mask), ignored voxels: False in both) of every structure the reference speaks for."""
    if prediction.instances or reference.instances:
        raise DataError("instance maps have no classes to compare", where=f"case {case}", fix="score instances with detection metrics")
    if prediction.names != reference.names:
        raise DataError(
            "prediction and reference name different classes", where=f"case {case}", found=prediction.names, allowed=reference.names
        )
    (_, ours), (labels, theirs) = _channels(prediction, case), _channels(reference, case)
    ignored = np.zeros((), bool) if reference.overlapping else labels == IGNORE
    hidden = int(np.count_nonzero(ignored))
    for index, name in enumerate(reference.names):
        if name == "background" or (index == 0 and not reference.overlapping):
            continue
        if reference.annotated is not None and name not in reference.annotated:
            continue
        p = ours(index)
        yield name, (p & ~ignored if hidden else p, theirs(index)), hidden


def _channels(labels: LabelMap, case: str) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """The data, read once, and the mask of a class by its index in ``names``; overlapping maps may leave out the background's channel."""
    data = np.asarray(labels.data)
    if not labels.overlapping:
        if data.shape != labels.geometry.shape:
            raise GeometryError("labels do not lie on their grid", where=f"case {case}", found=data.shape, allowed=labels.geometry.shape)
        return data, lambda index: data == index
    missing = len(labels.names) - data.shape[0]
    if data.shape[1:] != labels.geometry.shape or missing not in (0, 1) or (missing and labels.names[0] != "background"):
        raise GeometryError("overlapping labels are one mask a class", where=f"case {case}", found=data.shape, allowed=labels.names)
    return data, lambda index: data[index - missing] > 0


def _why_undefined(c: Counts) -> str:
    empty = [name for name, n in (("prediction", c.prediction), ("reference", c.reference)) if n == 0]
    return f"empty {' and '.join(empty)}" if empty else "nothing to divide by"


__all__ = ["DEFAULT", "METRICS", "TOLERANCE", "Counts", "Metric", "SurfaceDistances", "counts", "metric", "score_case", "surfaces"]
