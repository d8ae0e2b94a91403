import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.case import Points
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.metrics import landmark

NAN = np.nan
REFERENCE = np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [NAN, NAN, NAN]])
PREDICTION = np.array([[0.0, 3, 4], [10, 1, 0], [NAN, NAN, NAN], [1, 1, 1]])


def test_by_hand():
    """Errors 5 and 1 mm, one landmark missing, one that nobody marked."""
    pair = PREDICTION, REFERENCE
    assert landmark.distances(*pair)[:2].tolist() == [5, 1] and np.isnan(landmark.distances(*pair)[2:]).tolist() == [True]
    assert landmark.mre(*pair) == 3 and landmark.mre_sd(*pair) == pytest.approx(np.sqrt(8))
    assert [landmark.sdr(*pair, t) for t in (0.5, 1, 5)] == pytest.approx([0, 1 / 3, 2 / 3])  # a missing landmark is a failure
    assert landmark.missing(*pair) == pytest.approx(1 / 3)


def test_undefined():
    none, nothing = np.full((2, 3), NAN), np.zeros((0, 3))
    marked = np.zeros((2, 3))
    assert landmark.mre(none, marked) is None is landmark.mre_sd(marked[:1], marked[:1])
    assert landmark.sdr(none, marked) == 0 and landmark.missing(none, marked) == 1
    for reference in (none, nothing):
        assert landmark.mre(reference, reference) is None is landmark.sdr(reference, reference)
        assert landmark.missing(reference, reference) is None


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from([2, 3]))
def test_laws(seed, n, d):
    rng = np.random.default_rng(seed)
    p, r, shift = rng.normal(0, 10, (n, d)), rng.normal(0, 10, (n, d)), rng.normal(0, 99, d)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    assert landmark.mre(p @ q + shift, r @ q + shift) == pytest.approx(landmark.mre(p, r))
    assert landmark.mre(r + 3 * q[0], r) == pytest.approx(3)
    rates = [landmark.sdr(p, r, t) for t in (0, 5, 20, 1e6)]
    assert rates == sorted(rates) and rates[-1] == 1
    order = rng.permutation(n)
    assert landmark.mre(p[order], r[order]) == pytest.approx(landmark.mre(p, r))


def test_points_are_matched_by_name():
    reference = Points(np.arange(9.0).reshape(3, 3), ("a", "b", "c"))
    prediction = Points(np.array([[6.0, 7, 8], [0, 1, 3], [9, 9, 9]]), ("c", "a", "extra"))
    p, r, names = landmark.paired(prediction, reference)
    assert names == ("a", "b", "c") and p[0].tolist() == [0, 1, 3] and np.isnan(p[1]).all() and p[2].tolist() == [6, 7, 8]
    assert landmark.mre(p, r) == 0.5 and landmark.missing(p, r) == pytest.approx(1 / 3)
    p, r, names = landmark.paired(Points(np.ones((2, 2))), Points(np.zeros((2, 2))))
    assert names == ("0", "1") and landmark.mre(p, r) == pytest.approx(np.sqrt(2))
    empty = Points(np.zeros((0, 3)), ())
    p, r, _ = landmark.paired(empty, empty)
    assert landmark.mre(p, r) is None


def test_pooled_over_cases():
    names = ("apex", "base", "tip", "rim")
    table = landmark.by_landmark([(PREDICTION, REFERENCE, names), (REFERENCE[:2], REFERENCE[:2], names[:2])], thresholds=(1, 2.5))
    assert set(table) == {*names, "all"}
    assert table["apex"] == {"mre": 2.5, "sd": pytest.approx(np.sqrt(12.5)), "sdr@1": 0.5, "sdr@2.5": 0.5, "missing": 0, "count": 2}
    assert table["tip"]["mre"] is None and table["tip"]["missing"] == 1
    assert table["rim"]["count"] == 0 and table["rim"]["sdr@1"] is None
    assert table["all"]["mre"] == pytest.approx(6 / 4) and table["all"]["count"] == 5 and table["all"]["missing"] == 0.2


def test_bad_landmarks():
    with pytest.raises(GeometryError):
        landmark.mre(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(DataError, match="infinite"):
        landmark.mre(np.full((2, 3), np.inf), np.zeros((2, 3)))
    with pytest.raises(DataError, match="one name each"):
        landmark.paired(Points(np.zeros((2, 3)), ("a", "a")), Points(np.zeros((1, 3)), ("a",)))
    with pytest.raises(DataError, match="one name each"):
        landmark.paired(Points(np.zeros((1, 3))), Points(np.zeros((1, 3)), ("a",)))
    with pytest.raises(DataError, match="differ in number"):
        landmark.paired(Points(np.zeros((1, 3))), Points(np.zeros((2, 3))))
    with pytest.raises(GeometryError, match="dimension"):
        landmark.paired(Points(np.zeros((1, 2)), ("a",)), Points(np.zeros((2, 3)), ("a", "b")))
    with pytest.raises(UsageError):
        landmark.sdr(np.zeros((1, 3)), np.zeros((1, 3)), -1)
    with pytest.raises(DataError, match="'all'"):
        landmark.by_landmark([(np.zeros((1, 3)), np.zeros((1, 3)), ("all",))])
