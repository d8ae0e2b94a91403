"""The TDSC-ABUS evaluator: its official rules by hand and by SimpleITK, ours beside them, and the invariants of the specification."""

import numpy as np
import pytest

from vesalius.core.case import Boxes, Case, Image, LabelMap
from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.core.prediction import Prediction
from vesalius.metrics.tdsc_abus import classification, component_boxes, evidence, official_froc, pool, score

GRID = Geometry.of((20, 18, 16), (0.2, 0.073, 0.475674))


def boxes(*rows, scores=None) -> Boxes:
    rows = np.asarray(rows, float).reshape(-1, 6)
    return Boxes(rows[:, :3], rows[:, 3:], scores=None if scores is None else np.asarray(scores, float))


ONE = (0, 0, 0, 10, 10, 10)
OFF = (50, 50, 50, 60, 60, 60)


def test_perfect_boxes_score_one_and_none_score_zero():
    perfect = [evidence(boxes(ONE), boxes(ONE)) for _ in range(4)]
    assert official_froc(perfect).score == pytest.approx(1)
    nothing = [evidence(boxes(), boxes(ONE)) for _ in range(4)]
    curve = official_froc(nothing)
    assert curve.score == pytest.approx(0, abs=1e-8) and len(curve.recall) == 200


def test_touching_boxes_do_not_overlap():
    seen = evidence(boxes((10, 0, 0, 20, 10, 10), scores=[0.9]), boxes(ONE))
    assert seen == {"lesions": 1, "found": [None], "false": [0.9]}


def test_a_hit_has_more_than_the_threshold():
    third = (0, 0, 0, 10, 10, 3.0)  # IoU exactly 0.3
    assert evidence(boxes(third, scores=[0.9]), boxes(ONE))["found"] == [None]
    assert evidence(boxes((0, 0, 0, 10, 10, 3.01), scores=[0.9]), boxes(ONE))["found"] == [0.9]


def test_duplicates_of_a_hit_change_neither_true_nor_false_positives():
    single = [evidence(boxes(ONE, OFF, scores=[0.8, 0.4]), boxes(ONE))]
    double = [evidence(boxes(ONE, ONE, ONE, OFF, scores=[0.8, 0.5, 0.3, 0.4]), boxes(ONE))]
    a, b = official_froc(single), official_froc(double)
    assert np.array_equal(a.false, b.false) and np.array_equal(a.recall, b.recall)


def test_a_candidate_belongs_to_the_one_truth_it_overlaps_most():
    truth = boxes(ONE, (0, 0, 0, 10, 10, 8))
    assert evidence(boxes(ONE, scores=[0.7]), truth)["found"] == [0.7, None]


def test_a_volume_without_predictions_counts_in_the_denominator():
    with_false = evidence(boxes(ONE, OFF, scores=[0.9, 0.95]), boxes(ONE))
    empty = evidence(boxes(), boxes(ONE))
    assert official_froc([with_false]).false.max() == pytest.approx(1)
    assert official_froc([with_false, empty]).false.max() == pytest.approx(0.5)


def test_boxes_score_alike_in_voxels_and_mm():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (6, 3))
    high = low + rng.uniform(5, 40, (6, 3))
    mm = np.array([0.2, 0.073, 0.475674])
    voxels = evidence(Boxes(low[:4], high[:4], scores=rng.uniform(size=4)), Boxes(low[4:], high[4:]))
    rng = np.random.default_rng(0)
    rng.uniform(size=(12, 3))
    world = evidence(Boxes(low[:4] * mm, high[:4] * mm, scores=rng.uniform(size=4)), Boxes(low[4:] * mm, high[4:] * mm))
    assert voxels == world


def official_by_hand(cases) -> float:
    """The published rules written as loops: cases of (boxes with scores, truths) in voxels."""

    def iou(a, b):
        sides = [min(a[d + 3], b[d + 3]) - max(a[d], b[d]) for d in range(3)]
        if min(sides) <= 0:
            return 0.0
        common = np.prod(sides)
        return common / (np.prod(np.subtract(a[3:], a[:3])) + np.prod(np.subtract(b[3:], b[:3])) - common)

    points = []
    for p in np.arange(0, 1, 0.005):
        tp = fp = 0
        for found, truths in cases:
            hit = set()
            for box, s in found:
                if s >= p:
                    overlaps = [iou(t, box) for t in truths]
                    best = int(np.argmax(overlaps)) if overlaps else 0
                    if overlaps and overlaps[best] > 0.3:
                        hit.add(best)
                    else:
                        fp += 1
            tp += len(hit)
        points.append(((fp + 1e-8) / (len(cases) + 1e-8), (tp + 1e-8) / (sum(len(t) for _, t in cases) + 1e-8)))
    points.sort()
    at = []
    for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8):
        below, above = [x for x in points if x[0] <= rate], [x for x in points if x[0] >= rate]
        if not below:
            at.append(0.0)
        elif not above:
            at.append(max(r for _, r in points))
        else:
            (f0, r0), (f1, r1) = below[-1], above[0]
            at.append(r0 + (r1 - r0) * (rate - f0) / (f1 - f0 + 1e-8))
    return float(np.mean(at))


@pytest.mark.parametrize("seed", range(8))
def test_the_official_froc_equals_the_rules_written_as_loops(seed):
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(6):
        number = int(rng.integers(0 if cases else 1, 3))
        truths = [np.concatenate([c := rng.uniform(0, 40, 3), c + rng.uniform(8, 20, 3)]) for _ in range(number)]
        found = [(t + rng.normal(0, 2, 6), float(np.round(rng.uniform(), 2))) for t in truths for _ in range(rng.integers(0, 3))]
        far = lambda: np.concatenate([c := rng.uniform(0, 60, 3), c + 6])
        found += [(far(), float(np.round(rng.uniform(), 2))) for _ in range(rng.integers(0, 5))]
        cases.append((found, truths))
    ours = [evidence(boxes(*[b for b, _ in f], scores=[s for _, s in f]), boxes(*t)) for f, t in cases]
    assert official_froc(ours).score == pytest.approx(official_by_hand(cases), abs=1e-9)


def test_auc_is_unchanged_by_monotone_maps_and_accuracy_counts_from_one_half():
    rng = np.random.default_rng(1)
    p, y = rng.uniform(size=40), rng.integers(0, 2, 40)
    a, b = classification(p, y), classification(p**3, y)
    assert a["auc"] == b["auc"] and a["score"] == (a["auc"] + a["accuracy"]) / 2
    assert classification([0.5, 0.49], [1, 0])["accuracy"] == 1
    assert classification([0.2, 0.7], [1, 1]) == {"accuracy": 0.5, "auc": None, "score": None}
    with pytest.raises(DataError, match="0 to 1"):
        classification([1.2], [1])


def test_the_official_distance_is_itks_under_identity_spacing():
    import SimpleITK as sitk

    rng = np.random.default_rng(2)
    for k in range(4):
        p, r = rng.uniform(size=(2, *GRID.shape)) < 0.002 * (1 + k)
        p[4, 4, 3] = r[2, 2, 2] = True
        for metric, spacing in (("tdsc_hd_voxels", (1.0, 1.0, 1.0)), ("tdsc_hd_mm", GRID.spacing)):
            images = [sitk.GetImageFromArray(x.T.astype(np.uint8)) for x in (r, p)]
            for image in images:
                image.SetSpacing(spacing)
            run = sitk.HausdorffDistanceImageFilter()
            run.Execute(*images)
            value = next(row.value for row in score(answer(p, 0.5), case_of(r, 1)) if row.metric == metric)
            assert value == pytest.approx(run.GetHausdorffDistance(), rel=1e-5)


def case_of(mask: np.ndarray, malignant: int, name: str = "a", own_boxes: bool = False) -> Case:
    labels = {"reference": LabelMap(mask.astype(np.int16), GRID, ("background", "lesion"))}
    image = Image(np.zeros((1, *GRID.shape), np.float32), GRID)
    found = {"lesion": component_boxes(mask, GRID)} if own_boxes else {}
    return Case(name, images={"ABUS": image}, labels=labels, boxes=found, table={"malignant": malignant})


def answer(mask: np.ndarray, p: float) -> Prediction:
    found = component_boxes(mask, GRID)
    labels = {"prediction": LabelMap(mask.astype(np.int16), GRID, ("background", "lesion"))}
    boxes = {"lesion": Boxes(found.low, found.high, scores=np.full(len(found.low), 0.9))}
    return Prediction(labels=labels, boxes=boxes, table={"malignant": p})


def lesion(shift: int = 0) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[4 + shift : 9 + shift, 5:12, 3:9] = True
    return mask


def test_rows_and_boards_of_a_method():
    rows = score(answer(lesion(), 0.8), case_of(lesion(), 1)) + score(answer(lesion(1), 0.3), case_of(lesion(), 0, "b", own_boxes=True))
    board = {r.metric: r.value for r in pool(rows)}
    assert board["tdsc_board_detection"] == pytest.approx(1) and board["tdsc_froc"] == 1
    assert board["tdsc_board_classification"] == 1 == board["tdsc_auc"]
    assert board["tdsc_hd_voxels"] == 0.5 and board["tdsc_hd_mm"] == pytest.approx(0.1)
    assert board["tdsc_board_segmentation"] == pytest.approx(board["tdsc_dsc"] - 0.5)
    assert all(r.to_json() for r in rows)


def test_an_empty_mask_makes_the_official_board_infinite_and_ours_undefined_for_that_case():
    rows = score(answer(lesion(), 0.8), case_of(lesion(), 1)) + score(answer(np.zeros_like(lesion()), 0.2), case_of(lesion(), 0, "b"))
    board = {r.metric: r for r in pool(rows)}
    assert board["tdsc_board_segmentation"].value is None and "infinity" in board["tdsc_board_segmentation"].note
    assert board["tdsc_hd_mm"].value == 0 and board["tdsc_hd_mm"].extra["undefined"] == 1
    assert board["tdsc_dsc"].value == 0.5
    missed = next(r for r in rows if r.metric == "tdsc_hd_voxels" and r.case == "b")
    assert missed.value is None and "infinite" in missed.note


def test_components_become_boxes_of_outer_faces():
    mask = lesion()
    mask[15, 15, 14] = True
    found = component_boxes(mask, GRID)
    spacing = np.array(GRID.spacing)
    assert np.allclose(found.low[0], (np.array([4, 5, 3]) - 0.5) * spacing)
    assert np.allclose(found.high[0], (np.array([9, 12, 9]) - 0.5) * spacing)
    assert np.allclose(np.prod(found.high - found.low, 1), [210 * GRID.voxel_volume, GRID.voxel_volume])
    assert len(component_boxes(mask, GRID, smallest=2 * GRID.voxel_volume).low) == 1
    turned = Geometry.of(GRID.shape, GRID.spacing, direction=np.diag([-1.0, -1, 1]))
    assert (component_boxes(mask, turned).low <= component_boxes(mask, turned).high).all()


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="0 to 1"):
        evidence(boxes(ONE, scores=[1.5]), boxes(ONE))
    with pytest.raises(DataError, match="true box"):
        official_froc([evidence(boxes(ONE), boxes())])
    other = Geometry.of(GRID.shape, 1.0)
    mask = lesion().astype(np.int16)
    with pytest.raises(GeometryError, match="different grids"):
        score(Prediction(labels={"prediction": LabelMap(mask, other)}), case_of(lesion(), 1))


def test_one_board_can_be_answered_alone():
    rows = score(Prediction(table={"malignant": 0.7}), case_of(lesion(), 1))
    assert [r.metric for r in rows] == ["tdsc_classification"]
    assert {r.metric for r in pool(rows)} == {"tdsc_accuracy", "tdsc_auc", "tdsc_board_classification"}
