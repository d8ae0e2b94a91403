import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from vesalius.core.case import IGNORE, Boxes, Case, Image, LabelMap, Points, Query
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.prediction import Prediction
from vesalius.metrics import (
    DEFAULT,
    METRICS,
    NEEDS,
    Matching,
    carrier,
    check_metrics,
    curvas,
    pool,
    score_case,
    score_prediction,
    tdsc_abus,
)
from vesalius.metrics.gather import GATHER
from vesalius.metrics.table import FROM_LABELS

NAMES = ("background", "kidney", "tumour")
GRID = Geometry.of((10, 11, 12), (1.0, 1.0, 2.0))
FLAT = Geometry.of((20, 24), (0.5, 0.5))


def _labels(shift=0):
    data = np.zeros(GRID.shape, np.int16)
    data[2 + shift : 6 + shift, 2:7, 3:8] = 1
    data[3 + shift, 4, 5] = 2
    return data


def _map(data, names=NAMES, geometry=GRID, **facts):
    return LabelMap(data, geometry, names, **facts)


def _everything():
    """A case and a prediction that hold something for every need."""
    rng = np.random.default_rng(0)
    truth = _labels()
    chance = np.stack([np.where(_labels(1) == k, 0.8, 0.1) for k in range(3)])
    u = np.zeros((3, *GRID.shape))
    u[0] = 1.0
    marks = Points(np.array([[1.0, 2, 3], [4, 5, 6]]), ("a", "b"))
    case = Case(
        "c1",
        "p1",
        images={"CT": Image(np.zeros((1, *GRID.shape)), GRID)},
        labels={"one": _map(truth), "two": _map(_labels(1))},
        points={"marks": marks, "fixed:m": marks, "moving:m": Points(marks.xyz + [1.0, 0, 0], ("a", "b"))},
        boxes={"lesion": Boxes(np.array([[0.0, 0, 0]]), np.array([[4.0, 4, 4]]))},
        text={"findings": "a mass of 2 cm in the left kidney"},
        table={"malignant": 1, "grade": "3", "age": 50},
        answers=frozenset({"malignant", "grade", "text:findings"}),
    )
    prediction = Prediction(
        labels={"prediction": _map(_labels(1))},
        probability=Image(chance, GRID),
        names=NAMES,
        uncertainty=Image(rng.random((1, *GRID.shape)), GRID),
        samples=Image(np.stack([chance, chance[::-1]]), GRID),
        points={"marks": Points(np.array([[4.0, 5, 9], [1, 2, 3]]), ("b", "a"))},
        boxes={"lesion": Boxes(np.array([[0.0, 0, 0], [9, 9, 9]]), np.array([[4.0, 4, 3], [10, 10, 10]]), scores=np.array([0.9, 0.2]))},
        displacement=Image(u, GRID),
        text={"findings": "a mass of 3 cm in the left kidney"},
        table={"malignant": 0.7, "grade": {"1": 0.1, "2": 0.2, "3": 0.7}},
    )
    return case, prediction


def _value(rows, metric, structure="", rater=""):
    found = [s for s in rows if (s.metric, s.structure, s.rater) == (metric, structure, rater)]
    assert len(found) == 1, (metric, structure, rater, [(s.structure, s.rater) for s in rows if s.metric == metric])
    return found[0].value


def test_every_need_of_the_table_has_a_gatherer():
    assert set(GATHER) | FROM_LABELS == set(NEEDS) == {m.needs for m in METRICS.values()}


CHALLENGES = {*curvas.ROWS, *tdsc_abus.ROWS}  # their own tests


def test_every_metric_of_a_full_prediction_has_a_value_in_its_range():
    case, prediction = _everything()
    volumes = [n for n, m in METRICS.items() if 3 in m.dims and m.needs not in CHALLENGES]
    rows = score_prediction(prediction, case, metrics=volumes)
    pooled = pool([r for r in rows if METRICS[r.metric].pooled])
    assert {r.metric for r in rows} == set(volumes)
    for name in volumes:
        values = [r.value for r in (pooled if METRICS[name].pooled else rows) if r.metric == name]
        low, high = METRICS[name].range
        assert all(v is None or low - 1e-9 <= v <= high + 1e-9 for v in values), name
        one_case = METRICS[name].needs == "column"  # nothing can be ranked in one case
        assert one_case or any(v is not None for v in values), name


def test_known_values_of_every_need():
    case, prediction = _everything()
    rows = score_prediction(prediction, case, metrics=tuple(METRICS), tolerances={"kidney": 1.0})
    assert _value(rows, "dsc", "kidney", "two") == 1 and _value(rows, "dsc", "kidney", "one") < 1
    assert _value(rows, "mre", "marks") == 1.5 and _value(rows, "sdr@2", "marks") == 0.5
    assert _value(rows, "tre", "m") == 0 and _value(rows, "folding") == 0
    assert _value(rows, "brier", "", "two") == pytest.approx(0.2**2 + 2 * 0.1**2)
    assert _value(rows, "mae", "tumour", "two") == pytest.approx((0.2 + 0.1 * (GRID_SIZE - 1)) / GRID_SIZE)
    assert _value(rows, "slot_f1") == 1 and _value(rows, "exact_match", "findings") == 0
    assert _value(rows, "rater_dsc", "tumour") == 0
    assert _value(rows, "weighted_f", "kidney", "one") is None
    evidence = next(s for s in rows if s.metric == "auroc" and s.structure == "malignant").extra["evidence"]
    assert evidence == {"predicted": [pytest.approx(0.3), 0.7], "reference": 1}
    froc = next(s for s in rows if s.metric == "froc")
    assert (froc.structure, froc.extra["evidence"]) == ("lesion", {"lesions": 1, "found": [0.9], "false": [0.2]})
    assert all(carrier(s) == METRICS[s.metric].pooled for s in rows)
    assert next(s for s in rows if s.metric == "nsd" and s.structure == "kidney").extra["tolerance_mm"] == 1.0
    assert next(s for s in rows if s.metric == "pq").extra["matching"] == "iou 0.5, optimal"


GRID_SIZE = int(np.prod(GRID.shape))


def test_what_is_not_there_is_a_row_with_the_reason():
    case, _ = _everything()
    rows = score_prediction(Prediction(), case, metrics=tuple(METRICS))
    assert {r.metric for r in rows} == set(METRICS)
    assert all(r.note and (r.value is None or r.metric in ("rater_dsc", "fleiss_kappa")) for r in rows if r.value is None)
    notes = {r.metric: r.note for r in rows}
    assert notes["dsc"] == "the prediction has no label map" and notes["ece"] == "the prediction has no probability map"
    empty = score_prediction(Prediction(labels={"p": _map(_labels())}), Case("c"), metrics=("dsc", "ece", "auroc", "froc"))
    assert [r.value for r in empty] == [None] * 4 and empty[0].note == "the case has no reference label map"
    one = score_prediction(Prediction(), case.with_(labels={"two": None}), metrics=("fleiss_kappa",))
    assert one[0].note == "one rater only"


def test_label_maps_alone_equal_score_case_row_by_row():
    case, prediction = _everything()
    expected = [
        row
        for rater, reference in case.labels.items()
        for row in score_case(prediction.label, reference, case_id="c1", patient="p1", rater=rater, metrics=DEFAULT)
    ]
    assert score_prediction(prediction, case, metrics=DEFAULT) == expected


def test_labels_are_decided_from_probability():
    case, prediction = _everything()
    bare = prediction.with_(labels={})
    assert score_prediction(bare, case, metrics=DEFAULT) == score_prediction(prediction, case, metrics=DEFAULT)


def test_ignored_voxels_count_for_no_metric():
    case, prediction = _everything()
    hidden = _labels()
    hidden[:, :, :4] = IGNORE
    case = case.with_(labels={"one": _map(hidden), "two": None})
    noise = np.random.default_rng(1)
    worse = np.asarray(prediction.probability.data).copy()
    worse[:, :, :, :4] = noise.dirichlet(np.ones(3), size=worse[0, :, :, :4].shape).transpose(3, 0, 1, 2)
    labels = np.asarray(prediction.label.data).copy()
    labels[:, :, :4] = noise.integers(0, 3, labels[:, :, :4].shape)
    other = prediction.with_(labels={"prediction": _map(labels)}, probability=Image(worse, GRID))
    metrics = [n for n, m in METRICS.items() if m.needs not in ("volumes", "uncertainty", *CHALLENGES) and m.dims != (2,)]
    metrics += ["aurc"]
    # CRPS of volume takes the whole image's volume, as published
    for a, b in zip(*(score_prediction(p, case, metrics=metrics) for p in (prediction, other)), strict=True):
        if METRICS[a.metric].pooled:
            assert a.extra == b.extra, a.metric
        else:
            assert a.value == pytest.approx(b.value, abs=1e-12), a.metric


def test_object_ids_are_used_where_they_are_given():
    ids = np.zeros((6, 12), np.int32)
    ids[1:5, 1:5], ids[1:5, 5:9] = 1, 2  # touching: one component, two objects
    grid = Geometry.of(ids.shape)
    names = ("background", "cell")
    reference = LabelMap(ids, grid, names, instances=True)
    case = Case("c", labels={"reference": reference})
    as_ids = score_prediction(Prediction(labels={"p": reference}), case, metrics=("pq", "dsc"))
    assert [(r.metric, r.value, r.structure) for r in as_ids] == [("pq", 1, "cell"), ("dsc", 1, "cell")]
    mask = LabelMap((ids > 0).astype(int), grid, names)
    assert score_prediction(Prediction(labels={"p": mask}), case, metrics=("object_f1",))[0].value == pytest.approx(2 / 3)
    both = Prediction(labels={"p": mask}, instances=reference)
    assert score_prediction(both, case, metrics=("object_f1",))[0].value == 1
    froc = score_prediction(both, case, metrics=("froc",))[0].extra["evidence"]
    assert froc == {"lesions": 2, "found": [1.0, 1.0], "false": []}


def test_candidates_take_the_largest_probability_inside():
    case, prediction = _everything()
    case = case.with_(boxes={"lesion": None})
    rows = score_prediction(prediction, case, metrics=("froc",), matching=Matching("centre"))
    assert {(r.structure, r.rater) for r in rows} == {(s, r) for s in NAMES[1:] for r in ("one", "two")}
    assert next(r for r in rows if (r.structure, r.rater) == ("tumour", "two")).extra["evidence"]["found"] == [0.8]


def test_expressions_are_scored_one_by_one():
    left, right = np.zeros((2, *FLAT.shape), bool)
    left[4:9, 2:8], right[4:9, 12:18] = True, True
    target = lambda m: LabelMap(m.astype(int), FLAT, ("background", "lesion"))
    case = Case("c", queries=(Query("q1", "the left one", target(left)), Query("q2", "the right one", target(right)), Query("q3", "none")))
    found = LabelMap(np.stack([left, left]), FLAT, ("q1", "q2"), overlapping=True)
    rows = score_prediction(Prediction(labels={"p": found}), case, metrics=("dsc",))
    assert [(r.query, r.value) for r in rows] == [("q1", 1), ("q2", 0)]
    silent = score_prediction(Prediction(), case, metrics=("dsc",))
    assert [r.note for r in silent] == ["the prediction does not answer this expression"] * 2


def test_overlapping_structures_are_calibrated_one_by_one():
    a, b = np.zeros((2, *FLAT.shape), bool)
    a[2:10, 2:10], b[4:8, 4:8] = True, True
    reference = LabelMap(np.stack([a, b]), FLAT, ("organ", "lesion"), overlapping=True)
    p = Prediction(probability=Image(np.stack([a * 0.9, b * 0.6]), FLAT), names=("organ", "lesion"), threshold=0.5)
    rows = score_prediction(p, Case("c", labels={"r": reference}), metrics=("brier", "dsc", "s_measure"))
    assert _value(rows, "brier", "lesion", "r") == pytest.approx(0.16 * b.mean()) and _value(rows, "dsc", "lesion", "r") == 1
    assert 0.5 < _value(rows, "s_measure", "organ", "r") < 1


def test_maps_that_do_not_fit_are_refused():
    case, prediction = _everything()
    with pytest.raises(GeometryError):
        score_prediction(Prediction(labels={"p": _map(_labels(), geometry=Geometry.of(GRID.shape))}), case)
    with pytest.raises(DataError, match="name different classes"):
        score_prediction(Prediction(labels={"p": _map(_labels(), names=("background", "a", "b"))}), case)
    with pytest.raises(UsageError, match="cldice"):
        score_prediction(prediction, case, metrics=("cl_dice",))
    moved = prediction.with_(probability=Image(np.zeros((3, *GRID.shape)), Geometry.of(GRID.shape)))
    assert "grid" in score_prediction(moved, case, metrics=("ece",))[0].note


def test_steps_and_workers():
    case, prediction = _everything()
    rows = score_prediction(prediction, case, metrics=("dsc",), step=3)
    assert {r.step for r in rows} == {3}
    assert pickle.loads(pickle.dumps(rows)) == rows and pickle.loads(pickle.dumps(METRICS["f2"])).label == "F2"
    json.dumps([r.to_json() for r in score_prediction(prediction, case, metrics=tuple(METRICS))])


def _manifest(dims=3, targets=None, **fields):
    row = CaseRef("c", "p", **{"labels": {"reference": "a.nii.gz"}, **fields})
    labels = {"background": 0, "kidney": 1}
    return Manifest("data", Path("."), dims, ("CT",), labels, (row,), targets=targets or {})


def test_what_a_data_set_cannot_give_is_refused_before_any_case():
    check_metrics(("dsc", "cldice", "ece", "pq"), _manifest())
    refused = {"s_measure": _manifest(), "auroc": _manifest(), "mre": _manifest(), "fleiss_kappa": _manifest(), "bleu": _manifest()}
    refused |= {"dsc": _manifest(labels={}), "froc": _manifest(labels={}), "dcs": _manifest()}
    for name, manifest in refused.items():
        with pytest.raises(UsageError, match=name):
            check_metrics((name,), manifest)
    check_metrics(("s_measure", "mre"), _manifest(dims=2, points={"marks": "m.csv"}))
    check_metrics(("auroc",), _manifest(targets={"malignant": {"kind": "binary", "levels": ["0", "1"]}}))
    check_metrics(("froc",), _manifest(labels={}, boxes={"lesion": "b.csv"}))


def test_texts_and_tables_without_images_have_their_metrics():
    table = _manifest(dims=0, targets={"malignant": {"kind": "binary", "levels": ["0", "1"]}}, labels={}, text={"report": "clear"})
    check_metrics(("auroc", "column_accuracy", "field_accuracy", "bleu"), table)
    for name in ("dsc", "folding", "mre"):
        with pytest.raises(UsageError, match=name):
            check_metrics((name,), table)
    check_metrics(("dsc", "betti2_error"), _manifest(dims=4))  # frames of volumes


def test_channels_of_other_structures_are_a_reason_too():
    case, prediction = _everything()
    other = prediction.with_(names=("background", "liver", "spleen"))
    assert score_prediction(other, case, metrics=("mae",))[0].note == "prediction and case have no structure in common"
