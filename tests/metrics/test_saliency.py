import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.metrics.saliency import e_measure, mae, mean_dsc, mean_iou, s_measure, weighted_f

RNG = np.random.default_rng(3)


def _pairs(n=40):
    for _ in range(n):
        shape = tuple(RNG.integers(2, 25, 2))
        r = ndimage.gaussian_filter(RNG.random(shape), 2) > 0.5
        if 0 < r.sum() < r.size:
            p = np.clip(0.7 * r + RNG.normal(0.1, 0.2, shape), 0, 1)
            yield np.round(p * 255) / 255, r


def test_thresholded_measures_equal_a_loop_over_thresholds():
    for p, r in _pairs():
        alignment, dice, iou = [], [], []
        for t in range(256):
            m = np.round(p * 255) >= t
            a, b = m - m.mean(), r - r.mean()
            alignment.append(((2 * a * b / (a * a + b * b + 2.3e-16) + 1) ** 2 / 4).mean())
            dice.append(2 * (m & r).sum() / (m.sum() + r.sum()))
            iou.append((m & r).sum() / (m | r).sum())
        assert e_measure(p, r) == pytest.approx(max(alignment)) and e_measure(p, r, over="mean") == pytest.approx(np.mean(alignment))
        assert mean_dsc(p, r) == pytest.approx(np.mean(dice)) and mean_iou(p, r) == pytest.approx(np.mean(iou))


def test_a_perfect_map_is_perfect_and_its_inverse_is_not():
    for _, r in _pairs(10):
        p = r.astype(float)
        assert mae(p, r) == 0 and weighted_f(p, r) == pytest.approx(1) and s_measure(p, r) == pytest.approx(1, abs=1e-6)
        assert e_measure(p, r) == pytest.approx(1)
        assert mae(1 - p, r) == 1 and weighted_f(1 - p, r) < 0.5 and s_measure(1 - p, r) < 0.5


def test_weighted_f_by_hand():
    """One reference pixel, one false pixel k columns away: the false one weighs 2 - 0.5^(k / 5)."""
    r = np.zeros((1, 40), bool)
    r[0, 5] = True
    for k in (1, 5, 20):
        p = r.astype(float)
        p[0, 5 + k] = 1
        false = 2 - 0.5 ** (k / 5)
        precision = 1 / (1 + false)
        assert weighted_f(p, r) == pytest.approx(2 * precision / (1 + precision))
    inner = np.pad(np.ones((4, 4), bool), 5)
    assert weighted_f(np.zeros((14, 14)), inner) == pytest.approx(0, abs=1e-9)


def test_s_measure_by_hand():
    r = np.zeros((6, 6), bool)
    r[:, :3] = True
    half = np.full((6, 6), 0.5)
    of_objects = 2 * 0.5 / (0.25 + 1)  # no spread, inside as outside
    assert s_measure(half, r, alpha=1) == pytest.approx(of_objects)
    assert s_measure(half, r, alpha=0) == pytest.approx(2 / 6)  # two flat quadrants (of two columns) match a flat map, two do not


def test_empty_and_full_references_follow_the_published_rules():
    p, none = np.full((4, 5), 0.25), np.zeros((4, 5), bool)
    assert mae(p, none) == 0.25 and s_measure(p, none) == 0.75 and s_measure(p, ~none) == 0.25
    assert e_measure(np.zeros((4, 5)), none) == 1 and e_measure(p, ~none) == 1
    assert weighted_f(p, none) is mean_dsc(p, none) is mean_iou(p, none) is None
    nothing = np.zeros((0, 3))
    assert mae(nothing, nothing > 0) is e_measure(nothing, nothing > 0) is s_measure(nothing, nothing > 0) is None


def test_volumes_have_the_measures_that_need_no_picture():
    r = np.zeros((4, 5, 6), bool)
    r[1:3, 1:4, 2:5] = True
    assert mae(r * 0.5, r) == pytest.approx(0.5 * r.mean()) and e_measure(r * 0.5, r) == pytest.approx(1)
    for f in (weighted_f, s_measure):
        with pytest.raises(DataError, match="two axes"):
            f(r * 0.5, r)


def test_bad_input_is_refused():
    r = np.ones((2, 2), bool)
    with pytest.raises(DataError, match="between 0 and 1"):
        mae(np.array([[0, 1.5], [0, 0]]), r)
    with pytest.raises(DataError):
        mae(np.full((2, 2), np.nan), r)
    with pytest.raises(GeometryError):
        mae(np.zeros((2, 2), int), r)
    with pytest.raises(GeometryError):
        mae(np.zeros((2, 3)), r)
    with pytest.raises(UsageError):
        e_measure(np.zeros((2, 2)), r, over="median")
    with pytest.raises(UsageError):
        weighted_f(np.zeros((2, 2)), r, beta=0)
