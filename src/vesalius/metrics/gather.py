"""What a metric beyond label maps is computed from: read from a prediction and a case, one generator a need.

A gatherer yields (structure, rater, arguments of the metric's function); for pooled metrics the evidence of the case, plain JSON; a
sentence where this structure cannot be measured. ``Missing`` says that nothing can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.case import IGNORE, Boxes, Case, Image, LabelMap
from ..core.errors import DataError, GeometryError
from ..core.prediction import Prediction, Score
from . import columns, curvas, tdsc_abus
from .detection import Matching, box_overlaps, marks
from .landmark import paired
from .registration import moved
from .structures import Structure, asked, mask_of, structures

Rows = Iterator[tuple[str, str, Any]]


class Missing(Exception):
    """What a metric needs is not there; the reason becomes the row's note."""


@dataclass
class Given:
    """A prediction and a case, and what was already read from them."""

    prediction: Prediction
    case: Case
    tolerances: float | Mapping[str, float]
    matching: Matching
    targets: Mapping[str, Mapping[str, Any]]
    patient: str
    read: dict[str, Any] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.read:
            self.read[key] = make()
        return self.read[key]


def label_of(prediction: Prediction, reference: LabelMap) -> LabelMap | None:
    """The prediction's label map, decided from its probability where it gives none."""
    return prediction.label or prediction.decide(reference.names).label


def object_ids(prediction: Prediction, label: LabelMap, reference: LabelMap) -> Callable[[], tuple[np.ndarray, np.ndarray]] | None:
    """Reads the object ids where either side gives ids of the one class; None: the components of the masks are the objects."""
    ours = prediction.instances or (label if label.instances else None)
    if len(reference.names) > 2 or (ours is None and not reference.instances):
        return None

    def read() -> tuple[np.ndarray, np.ndarray]:
        theirs = np.asarray(reference.data) if reference.instances else _components(reference)
        mine = np.asarray(ours.data) if ours is not None else _components(label)
        spoken = np.ones(mine.shape, bool) if reference.overlapping else np.asarray(reference.data) != IGNORE
        return np.where(spoken, mine, 0), theirs

    return read


def _components(labels: LabelMap) -> np.ndarray:
    from ..ops.components import components

    return components(mask_of(labels, np.asarray(labels.data), len(labels.names) - 1))[0]


def _references(given: Given) -> Mapping[str, LabelMap]:
    if not given.case.labels:
        raise Missing("the case has no reference label map")
    return given.case.labels


# ----------------------------------------------------------------------------------------------------------------------- probabilities
def _probability(given: Given) -> tuple[np.ndarray, tuple[str, ...]]:
    """The probability map (K, *spatial) and the names of its channels."""
    return given.once("probability map", lambda: _read_probability(given))


def _read_probability(given: Given) -> tuple[np.ndarray, tuple[str, ...]]:
    p, threshold = given.prediction.probability, given.prediction.threshold
    if p is None:
        raise Missing("the prediction has no probability map")
    reference = next(iter(_references(given).values()))
    _same_grid(p, reference, "probability map")
    names = given.prediction.names or (reference.names if threshold is None else reference.names[1:])
    data = np.asarray(p.data)
    if len(names) != len(data):
        raise DataError("the probability map has other channels than names", where=given.case.id, found=len(data), allowed=names)
    return data, names


def _same_grid(image: Image, reference: LabelMap, what: str) -> None:
    if not image.geometry.close(reference.geometry):
        raise Missing(f"the {what} does not lie on the reference's grid")


def _channels(given: Given) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]]:
    """(structure, rater, probability, reference mask, spoken voxels), (*spatial) each."""
    data, names = _probability(given)
    for rater, reference in _references(given).items():
        labels = reference.semantic
        there = np.asarray(labels.data)
        spoken = np.ones(labels.geometry.shape, bool) if labels.overlapping else there != IGNORE
        for index, name in asked(labels):
            if name in names:
                yield name, rater, data[names.index(name)], mask_of(labels, there, index), spoken


def _by_structure(given: Given) -> Rows:
    for name, rater, p, r, spoken in _channels(given):
        yield name, rater, (p[spoken], r[spoken])


def _saliency(given: Given) -> Rows:
    for name, rater, p, r, spoken in _channels(given):
        yield name, rater, (np.where(spoken, p, 0.0), r & spoken)


def _all_classes(given: Given) -> Rows:
    """All channels at once where they exclude each other, else structure by structure."""
    data, names = _probability(given)
    for rater, reference in _references(given).items():
        labels = reference.semantic
        whole = labels.annotated is None or labels.annotated >= set(labels.names) - {"background"}
        if given.prediction.threshold is not None or labels.overlapping or names != labels.names or not whole:
            yield from _by_structure(given)
            return
        yield "", rater, (data, np.asarray(labels.data))


def _uncertainty(given: Given) -> Rows:
    u = given.prediction.uncertainty
    if u is None:
        raise Missing("the prediction has no uncertainty map")
    for rater, reference in _references(given).items():
        _same_grid(u, reference, "uncertainty map")
        label, labels = label_of(given.prediction, reference), reference.semantic
        if label is None or label.overlapping or labels.overlapping or label.names != labels.names:
            raise Missing("errors need label maps of the same exclusive classes")
        there = np.asarray(labels.data)
        spoken = there != IGNORE
        yield "", rater, (np.asarray(u.data)[0][spoken], (np.asarray(label.semantic.data) != there)[spoken])


# ------------------------------------------------------------------------------------------------------------------ samples and raters
def _sampled(given: Given) -> Iterator[tuple[str, np.ndarray]]:
    """Per structure the masks of the method's samples, (S, *spatial) bool."""
    image = given.prediction.samples
    if image is None:
        raise Missing("the prediction has no samples")
    reference = next(iter(_references(given).values()))
    _same_grid(image, reference, "samples")
    data = np.asarray(image.source() if callable(image.source) else image.source)  # (S, K, *spatial): Image.data is for (C, *spatial)
    threshold = given.prediction.threshold
    names = given.prediction.names or (reference.names if threshold is None else reference.names[1:])
    chosen = data.argmax(1) if threshold is None else None
    for _, name in asked(reference):
        if name in names:
            k = names.index(name)
            yield name, (data[:, k] >= threshold if chosen is None else chosen == k)


def _of_raters(given: Given) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Per structure every rater's map: 1 inside, 0 outside, ``IGNORE`` where nobody spoke; structures all of them speak for."""
    every = [r.semantic for r in _references(given).values()]
    read = [np.asarray(r.data) for r in every]
    spoken = [dict((name, index) for index, name in asked(r)) for r in every]
    for name in spoken[0]:
        if all(name in s for s in spoken):
            maps = [mask_of(r, d, s[name]).astype(np.int8) for r, d, s in zip(every, read, spoken, strict=True)]
            yield (
                name,
                [np.where(d == IGNORE, np.int8(IGNORE), m) if not r.overlapping else m for r, d, m in zip(every, read, maps, strict=True)],
            )


def _samples(given: Given) -> Rows:
    masks = dict(_sampled(given))
    for name, maps in _of_raters(given):
        if name in masks:
            yield name, "", (masks[name], np.stack([m == 1 for m in maps]))


def _raters(given: Given) -> Rows:
    reference = next(iter(_references(given).values()))
    label = label_of(given.prediction, reference)
    if label is None:
        raise Missing("the prediction has no label map")
    labels, data = label.semantic, np.asarray(label.data)
    for name, maps in _of_raters(given):
        if name in labels.names:
            yield name, "", (mask_of(labels, np.asarray(labels.data) if label.instances else data, labels.names.index(name)), maps)


def _raters_alone(given: Given) -> Rows:
    if len(_references(given)) < 2:
        raise Missing("one rater only")
    for name, maps in _of_raters(given):
        yield name, "", (maps,)


def _raters_probability(given: Given) -> Rows:
    data, names = _probability(given)
    for name, maps in _of_raters(given):
        if name in names:
            yield name, "", (data[names.index(name)], maps)


def _volumes(given: Given) -> Rows:
    """mL: of the samples, else the sum of probabilities, else of the label map; and of every rater."""
    reference = next(iter(_references(given).values()))
    ml = reference.geometry.voxel_volume / 1000
    if given.prediction.samples is not None:
        ours = {name: masks.reshape(len(masks), -1).sum(1) * ml for name, masks in _sampled(given)}
    elif given.prediction.probability is not None:
        data, names = _probability(given)
        ours = {name: data[k].sum(dtype=np.float64)[None] * ml for k, name in enumerate(names)}
    else:
        ours = {name: np.array([mask.sum() * ml]) for name, _, (mask, _) in _raters(given)}
    for name, maps in _of_raters(given):
        if name in ours:
            yield name, "", (ours[name], np.array([(m == 1).sum() * ml for m in maps]))


# --------------------------------------------------------------------------------------------------------------------------- detection
def _candidates(given: Given) -> Rows:
    """The marks of detection: boxes where the case has boxes, else objects of the label maps, each scored by the largest probability
    inside, or 1 where there is no probability."""
    prediction, case, rule = given.prediction, given.case, given.matching
    for name, theirs in case.boxes.items():
        ours = prediction.boxes.get(name)
        yield name, "", "the prediction has no boxes" if ours is None else _box_marks(ours, theirs, rule)
    if case.boxes:
        return
    for rater, reference in _references(given).items():
        label = label_of(prediction, reference)
        if label is None:
            raise Missing("the prediction has no label map and no boxes")
        chances = {n: p for n, of, p, _, _ in _channels(given) if of == rater} if prediction.probability is not None else {}
        for s in structures(label.semantic, reference.semantic, case.id, rule):
            s.ids = object_ids(prediction, label, reference)
            yield s.name, rater, marks(s.objects.affinity(rule)[1], _object_scores(s, chances.get(s.name)))


def _object_scores(s: Structure, probability: np.ndarray | None) -> np.ndarray:
    n = len(s.objects.size_prediction)
    if probability is None or n == 0:
        return np.ones(n)
    if s.ids is not None:
        ids = s.ids()[0]
    else:
        from ..ops.components import components

        probability, ids = probability[s.box], components(s.cropped[0])[0]
    inside = ids > 0
    found, place = np.unique(ids[inside], return_inverse=True)
    best = np.zeros(found.size)
    np.maximum.at(best, place, probability[inside])
    return best


def _box_marks(ours: Boxes, theirs: Boxes, rule: Matching) -> dict:
    d = max(np.shape(ours.low)[-1:] + np.shape(theirs.low)[-1:])
    low, high, low_r, high_r = (np.asarray(x, float).reshape(-1, d) for x in (ours.low, ours.high, theirs.low, theirs.high))
    centre = (low + high) / 2
    if rule.rule == "centre":
        hits = ((centre[:, None] >= low_r) & (centre[:, None] <= high_r)).all(-1)
    elif rule.rule == "distance":
        hits = np.linalg.norm(centre[:, None] - (low_r + high_r) / 2, axis=-1) <= rule.threshold
    else:
        shared = box_overlaps(low, high, low_r, high_r)
        hits = (shared if rule.rule == "iou" else 2 * shared / (1 + shared)) >= rule.threshold
    return marks(hits, np.ones(len(low)) if ours.scores is None else ours.scores)


# ----------------------------------------------------------------------------------------------------------- points and displacements
def _points(given: Given) -> Rows:
    references = {k: p for k, p in given.case.points.items() if not k.startswith(("fixed:", "moving:"))}
    if not references:
        raise Missing("the case has no reference points")
    for name, theirs in references.items():
        ours = given.prediction.points.get(name)
        yield name, "", f"the prediction has no points '{name}'" if ours is None else paired(ours, theirs)[:2]


def _warped_points(given: Given) -> Rows:
    u, points = _displacement_image(given), given.case.points
    names = [k.removeprefix("fixed:") for k in points if k.startswith("fixed:") and f"moving:{k.removeprefix('fixed:')}" in points]
    if not names:
        raise Missing("the case has no points of both images")
    for name in names:
        fixed, moving, _ = paired(points[f"fixed:{name}"], points[f"moving:{name}"])
        yield name, "", (moved(fixed, np.asarray(u.data), u.geometry), moving)


def _displacement(given: Given) -> Rows:
    u = _displacement_image(given)
    yield "", "", (np.asarray(u.data), u.geometry)


def _warped_labels(given: Given) -> Rows:
    """Structures of the moving case where the displacement lays them on the fixed grid."""
    u, label = _displacement_image(given), given.prediction.label
    if label is None or not label.geometry.close(u.geometry):
        raise Missing("the prediction has no label map of the moving case on the displacement's grid")
    labels = label.semantic
    for index, name in asked(labels):
        yield name, "", (np.asarray(u.data), u.geometry, mask_of(labels, np.asarray(labels.data), index))


def _displacement_image(given: Given) -> Image:
    if given.prediction.displacement is None:
        raise Missing("the prediction has no displacement")
    return given.prediction.displacement


# ---------------------------------------------------------------------------------------------------------------------- text and table
def _text(given: Given) -> Rows:
    case, prediction = given.case, given.prediction
    names = [k for k in case.text if f"text:{k}" in case.answers or k in prediction.text]
    if not names:
        raise Missing("the case has no text that is a target")
    for name in names:
        ours = prediction.text.get(name)
        yield name, "", f"the prediction has no text '{name}'" if ours is None else (ours, case.text[name])


def _asked_columns(given: Given) -> dict[str, Any]:
    """The target columns whose cell is known: those the data set declares, else the case's answers, else what the method answers."""
    table = given.case.table
    wanted = set(given.targets) or {a for a in given.case.answers if not a.startswith("text:")} or set(given.prediction.table)
    known = {c: v for c, v in table.items() if c in wanted and v not in (None, "") and v == v}
    if not known:
        raise Missing("the case's table answers no target column")
    return known


def _column(given: Given) -> Rows:
    for name, cell in _asked_columns(given).items():
        ours = given.prediction.table.get(name)
        if ours is None:
            yield name, "", f"the prediction has no answer for '{name}'"
        elif isinstance(ours, str):
            yield name, "", f"the prediction answers '{name}' in words: no probability or number"
        else:
            yield name, "", columns.evidence(name, ours, cell, given.targets.get(name))


def _record(given: Given) -> Rows:
    """The answers as a filled form: the most probable level of every target column against the cell."""
    known = _asked_columns(given)
    given_answers, targets = given.prediction.table, given.targets
    ours = {name: columns.answer(name, given_answers.get(name), cell, targets.get(name)) for name, cell in known.items()}
    yield "", "", (ours, {name: columns.level(cell) if isinstance(ours[name], str) else cell for name, cell in known.items()})


# --------------------------------------------------------------------------------------------------------------- challenge protocols
def _protocol(score: Callable[[Prediction, Case], list[Score]], name: str) -> Callable[[Given], Rows]:
    """The rows of that name that a protocol's own scorer gives; all of its rows are made at once and kept."""

    def rows(given: Given) -> Rows:
        try:
            found = given.once(score.__module__, lambda: score(given.prediction, given.case))
        except GeometryError:
            raise
        except DataError as e:
            raise Missing(e.what) from e
        for row in found:
            if row.metric == name:
                yield row.structure, row.rater, row.extra.get("evidence") or ((row.value,) if row.value is not None else row.note)

    return rows


GATHER: Mapping[str, Callable[[Given], Iterable[tuple[str, str, Any]]]] = {
    "probability": _by_structure,
    "probabilities": _all_classes,
    "saliency": _saliency,
    "uncertainty": _uncertainty,
    "samples": _samples,
    "raters": _raters,
    "raters alone": _raters_alone,
    "raters' probability": _raters_probability,
    "volumes": _volumes,
    "candidates": _candidates,
    "points": _points,
    "warped points": _warped_points,
    "displacement": _displacement,
    "warped labels": _warped_labels,
    "text": _text,
    "column": _column,
    "record": _record,
    **{name: _protocol(curvas.score, name) for name in curvas.ROWS},
    **{name: _protocol(tdsc_abus.score, name) for name in tdsc_abus.ROWS},
}
