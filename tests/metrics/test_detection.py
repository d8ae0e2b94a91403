from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.metrics import detection
from vesalius.metrics.detection import Matching, froc, llf, marks, match, nlf, objects, sensitivity_at

IDS = st.integers(1, 8).flatmap(
    lambda n: arrays.arrays(np.int16, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, n))
)
RULES = [Matching(), Matching("iou", 0.1), Matching("dsc", 0.3, "greedy"), Matching("centre"), Matching("distance", 2.0)]


def _squares():
    a, b = np.zeros((2, 20, 20), int)
    a[2:6, 2:6], a[10:15, 10:15] = 3, 7
    b[2:6, 3:7], b[10:15, 10:15], b[17:19, 17:19] = 1, 2, 5
    return a, b


def test_known_answers():
    m = match(objects(*_squares(), (1, 1)))
    assert m.pairs.tolist() == [[0, 0], [1, 1]] and (m.tp, m.fp, m.fn) == (2, 0, 1)
    assert m.iou.tolist() == [12 / 20, 1]
    assert detection.sq(m) == 0.8 and detection.pq(m) == pytest.approx(1.6 / 2.5) and detection.object_f1(m) == 0.8
    assert detection.aji(m) == (12 + 25) / (20 + 25 + 4)
    assert detection.object_precision(m) == 1 and detection.object_sensitivity(m) == 2 / 3
    assert detection.false_positives(m) == 0 and detection.count_error(m) == -1


def test_a_merge_and_a_split():
    two, one = np.zeros((2, 1, 9), int)
    two[0, :4], two[0, 5:] = 1, 2
    one[0, :] = 1
    merged, split = match(objects(one, two, (1, 1))), match(objects(two, one, (1, 1)))
    assert merged.tp == split.tp == 0  # 4 / 9 each
    assert match(merged.objects, Matching("iou", 0.4)).tp == 1
    assert detection.aji(merged) == 8 / 18  # the one prediction serves both
    assert detection.aji(split) == 4 / (9 + 4)


@pytest.mark.parametrize("matching", RULES, ids=str)
@settings(max_examples=60, deadline=None)
@given(IDS)
def test_laws_on_any_maps(matching, pair):
    o = objects(pair[0], pair[1], (1.0, 2.0))
    m = match(o, matching)
    allowed = o.affinity(matching)[1]
    assert all(allowed[i, j] for i, j in m.pairs)
    assert len(set(m.pairs[:, 0])) == len(set(m.pairs[:, 1])) == m.tp <= min(allowed.shape)
    assert m.tp + m.fp == len(np.unique(pair[0][pair[0] > 0])) and m.tp + m.fn == len(np.unique(pair[1][pair[1] > 0]))
    for f in (detection.pq, detection.sq, detection.aji, detection.object_f1, detection.object_precision, detection.object_sensitivity):
        assert f(m) is None or 0 <= f(m) <= 1 + 1e-12
    if detection.sq(m) is not None:
        assert detection.pq(m) == pytest.approx(detection.sq(m) * detection.object_f1(m))
    same = match(objects(pair[0], pair[0], (1.0, 2.0)))
    expected = 1 if (pair[0] > 0).any() else None
    assert detection.pq(same) == detection.aji(same) == detection.object_f1(same) == expected


def _best_by_trying(closeness, allowed):
    """(pairs, closeness of them) of the best one-to-one assignment, every one tried."""
    if closeness.shape[0] > closeness.shape[1]:
        closeness, allowed = closeness.T, allowed.T
    best = (0, 0.0)
    for columns in permutations(range(closeness.shape[1]), closeness.shape[0]):
        taken = [(i, j) for i, j in enumerate(columns) if allowed[i, j]]
        best = max(best, (len(taken), sum(closeness[i, j] for i, j in taken)))
    return best


def test_optimal_assignment_equals_trying_everything():
    rng = np.random.default_rng(0)
    for n in range(120):
        pair = rng.integers(0, 5, (2, 5, 6))
        o = objects(*pair, (1, 1))
        closeness, allowed = o.affinity(rule := [Matching("iou", 0.05), Matching("distance", 1.5)][n % 2])
        pairs = match(o, rule).pairs
        number, total = _best_by_trying(closeness, allowed)
        assert len(pairs) == number
        assert closeness[tuple(pairs.T)].sum() == pytest.approx(total, abs=1e-9)


def test_greedy_takes_scores_first_and_optimal_the_most_pairs():
    a, b = np.zeros((2, 1, 12), int)
    a[0, 0:4], a[0, 4:8] = 1, 2
    b[0, 1:6], b[0, 6:9] = 1, 2
    o = objects(a, b, (1, 1))
    low = Matching("iou", 0.1, "greedy")
    assert match(o, low).pairs.tolist() == [[0, 0], [1, 1]]
    assert match(o, low, scores=np.array([0.1, 0.9])).pairs.tolist() == [[1, 1], [0, 0]]
    far = objects(np.array([[1, 0, 2, 0]]), np.array([[0, 1, 0, 2]]), (1, 1))
    assert match(far, Matching("distance", 1.0)).tp == 2


def test_centre_and_distance_in_mm():
    a, b = np.zeros((2, 9, 9), int)
    a[4, 4] = 1
    b[3:6, 3:6] = 1
    b[4, 4] = 0
    ring = objects(a, b, (1, 3))
    assert not ring.centred.any() and match(ring, Matching("centre")).tp == 0
    assert ring.gaps == pytest.approx(0) and match(ring, Matching("distance", 0.0)).tp == 1
    moved = objects(np.roll(a, 2, 1), b, (1, 3))
    assert moved.gaps == pytest.approx(6.0)
    assert match(moved, Matching("distance", 5.9)).tp == 0 and match(moved, Matching("distance", 6.1)).tp == 1


def test_equals_brute_force_overlaps():
    rng = np.random.default_rng(4)
    for _ in range(40):
        p, r = rng.integers(-1, 4, (2, 4, 5, 3))
        o = objects(p, r, (1, 1, 2))
        ours, theirs = ([k for k in np.unique(x) if k > 0] for x in (p, r))
        expected = [[((p == i) & (r == j)).sum() / ((p == i) | (r == j)).sum() for j in theirs] for i in ours]
        np.testing.assert_allclose(o.iou, np.array(expected).reshape(len(ours), len(theirs)))
        centres = [(np.argwhere(p == i) * (1, 1, 2)).mean(0) for i in ours]
        np.testing.assert_allclose(o.centre_prediction, np.array(centres).reshape(len(ours), 3))


# ------------------------------------------------------------------------------------------------------------------------------- curves
CASES = [
    marks(np.array([[1, 0], [0, 0], [0, 1]], bool), np.array([0.9, 0.8, 0.3])),  # two lesions, found at 0.9 and 0.3, a false one at 0.8
    marks(np.zeros((2, 0), bool), np.array([0.7, 0.2])),  # a healthy case with two false marks
]


def test_froc_by_hand():
    thresholds, false, sensitivity = detection.froc_curve(CASES)
    assert thresholds.tolist() == [0.9, 0.8, 0.7, 0.3, 0.2]
    assert false.tolist() == [0, 0.5, 1, 1, 1.5] and sensitivity.tolist() == [0.5, 0.5, 0.5, 1, 1]
    assert sensitivity_at(CASES, 0.99) == 0.5 and sensitivity_at(CASES, 1) == 1
    assert froc(CASES) == pytest.approx((3 * 0.5 + 4 * 1) / 7)
    assert llf(CASES) == 1 and llf(CASES, threshold=0.5) == 0.5 and nlf(CASES) == 1.5 and nlf(CASES, threshold=0.75) == 0.5


def test_marks_are_plain_json_and_extra_hits_count_neither_way():
    import json

    twice = marks(np.array([[1], [1]], bool), np.array([0.4, 0.6]))
    assert json.loads(json.dumps(twice)) == twice == {"lesions": 1, "found": [0.6], "false": []}


def test_curves_without_lesions_candidates_or_cases():
    healthy, silent = marks(np.zeros((1, 0), bool), np.ones(1)), marks(np.zeros((0, 2), bool), np.zeros(0))
    assert froc([healthy]) is llf([healthy]) is None and nlf([healthy]) == 1
    assert froc([silent]) == llf([silent]) == nlf([silent]) == 0
    assert froc([]) is llf([]) is nlf([]) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_curve_equals_counting_at_every_threshold(seed):
    rng = np.random.default_rng(seed)
    raw = []
    for _ in range(rng.integers(1, 5)):
        n, m = rng.integers(0, 6, 2)
        raw.append((rng.random((n, m)) < 0.3, rng.integers(0, 4, n) / 4))
    cases = [marks(*case) for case in raw]
    thresholds, false, sensitivity = detection.froc_curve(cases)
    for t, f, s in zip(thresholds, false, sensitivity, strict=True):
        assert f * len(raw) == pytest.approx(sum((scores[~hits.any(1)] >= t).sum() for hits, scores in raw))
        lesions = sum(hits.shape[1] for hits, _ in raw)
        if lesions:
            assert s * lesions == pytest.approx(sum(hits[scores >= t].any(0).sum() for hits, scores in raw))
    assert (np.diff(false) >= 0).all() and not (np.diff(sensitivity) < 0).any()


def test_boxes_overlap():
    low, high = np.array([[0, 0, 0], [5, 5, 5]]), np.array([[2, 2, 2], [5, 9, 9]])
    found = detection.box_overlaps(low, high, np.array([[1.0, 0, 0]]), np.array([[3.0, 2, 2]]))
    assert found.tolist() == [[pytest.approx(4 / 12)], [0]]  # the second has no volume


def test_bad_input_is_refused():
    for bad in [("nearest", 0.5), ("iou", 0.0), ("iou", 1.5), ("distance", -1), ("distance", np.nan)]:
        with pytest.raises(UsageError):
            Matching(*bad)
    with pytest.raises(UsageError):
        Matching(assignment="random")
    with pytest.raises(GeometryError):
        objects(np.zeros((2, 2)), np.zeros((2, 2), int), (1, 1))
    with pytest.raises(GeometryError):
        objects(np.zeros((2, 3), int), np.zeros((2, 2), int), (1, 1))
    with pytest.raises(DataError):
        marks(np.ones((2, 1), bool), np.array([0.5, np.nan]))
    with pytest.raises(DataError):
        match(objects(*_squares(), (1, 1)), scores=np.ones(5))
