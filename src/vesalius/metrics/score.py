"""Score rows of one case: ``score_case`` of two label maps, ``score_prediction`` of everything a prediction and a case hold.

Both are pure and hold no state, so that worker processes can call them as they are. A metric that a prediction or case cannot give is a row
without a value and with the reason; ``check_metrics`` refuses beforehand what a whole data set cannot give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.case import IGNORE, Case, LabelMap
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.prediction import Prediction, Score
from .detection import Matching
from .gather import GATHER, Given, Missing, label_of, object_ids
from .structures import Structure, mask_of, structures
from .table import DEFAULT, FROM_LABELS, IMAGELESS, TOLERANCE, Metric, metric

EVIDENCE = "evidence"  # the key of ``Score.extra`` under which a carrier row of a pooled metric holds what is pooled


def score_case(
    prediction: LabelMap,
    reference: LabelMap,
    *,
    case_id: str,
    patient: str = "",
    metrics: Sequence[str] = DEFAULT,
    tolerances: float | Mapping[str, float] = TOLERANCE,
    matching: Matching = Matching(),
    rater: str = "reference",
) -> list[Score]:
    """One row per structure and metric, on the reference's (original) grid, distances in mm.

    Structures are the reference's names without background, and only those its ``annotated`` speaks for. Voxels with the ignore index in
    the reference count for nothing. ``tolerances`` of NSD (mm): one for all structures, or by structure (others: ``TOLERANCE``); it stands
    in the row, as do the unit and which way is better. ``matching`` pairs objects. Metrics that need more than label maps have no value.
    Raises GeometryError when the grids differ, DataError when the classes do.
    """
    chosen = {name: metric(name) for name in metrics}
    rows = []
    for s in structures(prediction, reference, case_id, matching):
        row = _Row(case_id, patient, s.name, rater, tolerances)
        rows += [_of_structure(row, name, m, s) for name, m in chosen.items()]
    return rows


def score_prediction(
    prediction: Prediction,
    case: Case,
    *,
    metrics: Sequence[str] = DEFAULT,
    tolerances: float | Mapping[str, float] = TOLERANCE,
    matching: Matching = Matching(),
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    patient: str = "",
    step: int | None = None,
) -> list[Score]:
    """The rows of one case for any metrics of the table.

    Label maps are compared rater by rater, expressions query by query, everything else once (metrics of several raters take all of them).
    ``targets`` are ``Manifest.targets``, ``matching`` pairs objects, ``step`` is an interaction's turn. Pooled metrics give carrier rows:
    no value, the evidence in ``extra``; ``pool`` turns those of many cases into values. Raises UsageError for an unknown metric, and
    GeometryError or DataError for label maps that do not fit the reference.
    """
    chosen = {name: metric(name) for name in metrics}
    given = Given(prediction, case, tolerances, matching, targets or {}, patient or case.patient)
    from_labels = {name: m for name, m in chosen.items() if m.needs in FROM_LABELS}
    rows = list(_label_rows(given, from_labels)) if from_labels else []
    for need in dict.fromkeys(m.needs for m in chosen.values() if m.needs not in FROM_LABELS):
        rows += _other_rows(given, need, {name: m for name, m in chosen.items() if m.needs == need})
    return rows if step is None else [replace(r, step=step) for r in rows]


@dataclass(frozen=True)
class _Row:
    """The part of a row that metrics share."""

    case: str
    patient: str
    structure: str = ""
    rater: str = ""
    tolerances: float | Mapping[str, float] = TOLERANCE

    def score(self, name: str, m: Metric, value: float | None, note: str = "", **extra: Any) -> Score:
        facts = {"unit": m.unit, "better": m.better, **({"tolerance_mm": self.tolerance} if m.tolerance else {}), **extra}
        return Score(self.case, name, value, self.structure, self.patient, rater=self.rater, kind=m.kind, note=note, extra=facts)

    @property
    def tolerance(self) -> float:
        mm = self.tolerances
        return mm.get(self.structure, TOLERANCE) if isinstance(mm, Mapping) else float(mm)


def _row(given: Given, structure: str = "", rater: str = "") -> _Row:
    return _Row(given.case.id, given.patient, structure, rater, given.tolerances)


# ------------------------------------------------------------------------------------------------------------------------- label maps
def _of_structure(row: _Row, name: str, m: Metric, s: Structure) -> Score:
    if m.needs not in FROM_LABELS:
        return row.score(name, m, None, "label maps alone do not hold what this needs")
    if len(s.spacing) not in m.dims:
        return row.score(name, m, None, f"defined for {' and '.join(map(str, m.dims))} axes")
    arguments = s.arguments(m.needs)
    value = m.function(*arguments, row.tolerance) if m.tolerance else m.function(*arguments)
    extra = {"matching": f"{s.matching.rule} {s.matching.threshold:g}, {s.matching.assignment}"} if m.needs == "instances" else {}
    return row.score(name, m, value, s.why_undefined if value is None else "", **extra)


def _label_rows(given: Given, chosen: Mapping[str, Metric]) -> Iterator[Score]:
    prediction, case = given.prediction, given.case
    queries = [q for q in case.queries if q.target is not None]
    answered = prediction.label is not None and any(q.id in prediction.label.names for q in queries)
    if not case.labels and not queries:
        yield from _none(given, chosen, "the case has no reference label map")
    for rater, reference in case.labels.items() if not answered else ():
        label = label_of(prediction, reference)
        if label is None:
            yield from _none(given, chosen, "the prediction has no label map", rater)
            continue
        for s in structures(label.semantic, reference.semantic, case.id, given.matching):
            s.ids = object_ids(prediction, label, reference)
            row = _row(given, s.name, rater)
            yield from (_of_structure(row, name, m, s) for name, m in chosen.items())
    for query in queries if answered or not case.labels else ():
        yield from _query_rows(given, chosen, query)


def _none(given: Given, chosen: Mapping[str, Metric], why: str, rater: str = "") -> Iterator[Score]:
    yield from (_row(given, rater=rater).score(name, m, None, why) for name, m in chosen.items())


def _query_rows(given: Given, chosen: Mapping[str, Metric], query: Any) -> Iterator[Score]:
    """The mask a prediction names by the expression's id against the expression's target, all of its classes together."""
    label, target = given.prediction.label, query.target.semantic
    if label is None or query.id not in label.names:
        rows = _none(given, chosen, "the prediction does not answer this expression")
    else:
        data = np.asarray(target.data)
        pointed = (data > 0).any(0) if target.overlapping else np.where(data == IGNORE, IGNORE, data > 0)
        names = ("background", "target")
        found = mask_of(label, np.asarray(label.data), label.names.index(query.id))
        pair = (LabelMap(found.astype(np.int16), label.geometry, names), LabelMap(pointed.astype(np.int16), target.geometry, names))
        s = next(structures(*pair, given.case.id, given.matching))
        rows = (_of_structure(_row(given), name, m, s) for name, m in chosen.items())
    yield from (replace(r, query=query.id) for r in rows)


# ------------------------------------------------------------------------------------------------------------------- everything else
def _other_rows(given: Given, need: str, chosen: Mapping[str, Metric]) -> Iterator[Score]:
    """Rows of the metrics of one need; its gatherer yields (structure, rater, arguments, evidence or a reason) one at a time."""
    found = False
    try:
        for structure, rater, arguments in GATHER[need](given):
            found = True
            yield from (_of_arguments(_row(given, structure, rater), name, m, arguments, given.case) for name, m in chosen.items())
    except Missing as e:
        yield from _none(given, chosen, str(e))
    else:
        if not found:
            yield from _none(given, chosen, "prediction and case have no structure in common")


def _of_arguments(row: _Row, name: str, m: Metric, arguments: Any, case: Case) -> Score:
    if isinstance(arguments, str):
        return row.score(name, m, None, arguments)
    if m.pooled:
        return row.score(name, m, None, "pooled over cases", **{EVIDENCE: arguments})
    if m.dims != (2, 3) and case.geometry.ndim not in m.dims:
        return row.score(name, m, None, f"defined for {' and '.join(map(str, m.dims))} axes")
    value = m.function(*arguments)
    return row.score(name, m, value, "" if value is not None else "undefined for this case")


# -------------------------------------------------------------------------------------------------------------------- before any case
def check_metrics(metrics: Sequence[str], manifest: Manifest) -> None:
    """Raises UsageError for an unknown metric and for one that no case of the data set can give, saying what it would need."""
    cases, built_in = manifest.cases, manifest.built_in is not None
    raters = max((len(c.labels) for c in cases), default=0)
    held = {
        "labels": built_in or raters > 0,
        "raters": built_in or raters > 1,
        "points": built_in or any(c.points for c in cases),
        "boxes": built_in or raters > 0 or any(c.boxes for c in cases),
        "text": built_in or any(c.text for c in cases),
        "targets": bool(manifest.targets),
    }
    wanted = {
        "labels": ("reference label maps", FROM_LABELS | {"probability", "probabilities", "saliency", "uncertainty", "samples", "volumes"}),
        "raters": ("label maps of two or more raters", {"raters alone"}),
        "points": ("reference points", {"points", "warped points"}),
        "boxes": ("reference boxes or label maps", {"candidates"}),
        "text": ("reference texts", {"text"}),
        "targets": ("target columns ([targets] in dataset.toml)", {"column", "record"}),
    }
    for name in metrics:
        m = metric(name)
        if min(manifest.dims, 3) not in m.dims and not (manifest.dims == 0 and m.needs in IMAGELESS):
            axes = " and ".join(map(str, m.dims))
            raise UsageError(f"'{name}' is defined for {axes} axes", where=manifest.name, found=f"{manifest.dims} axes")
        for key, (words, needs) in wanted.items():
            if m.needs in needs and not held[key]:
                raise UsageError(f"'{name}' needs {words}", where=manifest.name, found="none in this data set", fix="leave it out")
