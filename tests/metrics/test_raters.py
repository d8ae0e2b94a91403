from itertools import combinations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.metrics import overlap, raters


def some(seed=0, r=3, shape=(5, 6, 7), classes=3, silent=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    maps = [np.where(rng.random(shape) < 0.7, truth, rng.integers(0, classes, shape)) for _ in range(r)]
    return [np.where(rng.random(shape) < silent, IGNORE, m).astype(np.int16) for m in maps]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.0, 0.2]))
def test_regions_partition_what_all_speak_for(seed, r, silent):
    maps = some(seed, r, (4, 5), silent=silent)
    g = raters.regions(maps, 2)
    spoken = np.all([m != IGNORE for m in maps], axis=0)
    assert ((g.foreground.astype(int) + g.background + g.dissensus) == spoken).all()
    assert (g.foreground == (np.all([m == 2 for m in maps], axis=0))).all()
    assert (g.background == (np.all([(m != 2) & (m != IGNORE) for m in maps], axis=0))).all()


def test_curvas_invariants():
    maps = some(1, 1) * 3
    prediction = some(2, 1)[0] == 1
    assert not raters.regions(maps, 1).dissensus.any()
    assert raters.consensus_dsc(prediction, maps, 1) == overlap.dsc(prediction, maps[0] == 1)
    maps = some(3)
    dissensus = raters.regions(maps, 1).dissensus
    assert dissensus.any()
    assert raters.consensus_dsc(prediction ^ dissensus, maps, 1) == raters.consensus_dsc(prediction, maps, 1)
    none = np.zeros_like(prediction)
    assert raters.consensus_dsc(none, maps, 9) is None and raters.consensus_dsc(none, maps, 1) == 0
    with pytest.raises(GeometryError):
        raters.consensus_dsc(prediction[:2], maps, 1)


def test_consensus_confidence():
    maps = some(4)
    p = np.random.default_rng(0).random(maps[0].shape)
    inside = p[np.all([m == 1 for m in maps], axis=0)]
    assert raters.consensus_confidence(p, maps, 1) == pytest.approx(inside.mean())
    assert raters.consensus_confidence(p, maps, 1, how="max") == inside.max()
    assert raters.consensus_confidence(p, maps, 9) is None
    with pytest.raises(UsageError):
        raters.consensus_confidence(p, maps, 1, how="median")
    with pytest.raises(DataError, match="NaN"):
        raters.consensus_confidence(p * np.nan, maps, 1)


@pytest.mark.parametrize("shape", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize("r", [1, 2, 3, 5])
def test_majority_against_simpleitk(shape, r):
    maps = some(r, r, shape, classes=4)
    vote = sitk.LabelVoting([sitk.GetImageFromArray(m.astype(np.uint8)) for m in maps], 99)
    assert (raters.majority(maps, undecided=99) == sitk.GetArrayFromImage(vote)).all()


def test_the_silent_do_not_vote():
    maps = [np.array([0, 1, IGNORE, 2, 1]), np.array([0, IGNORE, IGNORE, 1, 2]), np.array([1, 1, IGNORE, IGNORE, 2])]
    assert raters.majority(maps).tolist() == [0, 1, IGNORE, IGNORE, 2]
    assert raters.majority([np.array([True, False]), np.array([True, True])]).tolist() == [1, IGNORE]


@pytest.mark.parametrize("shape", [(12, 11), (6, 7, 8)])
def test_staple_against_simpleitk_on_the_grid(shape):
    maps = some(7, 4, shape, classes=2)
    run = sitk.STAPLEImageFilter()
    run.SetForegroundValue(1)
    expected = sitk.GetArrayFromImage(run.Execute([sitk.GetImageFromArray(m.astype(np.uint8)) for m in maps]))
    ours = raters.staple(maps)
    assert ours.probability == pytest.approx(expected, abs=1e-12)
    assert ours.sensitivity == pytest.approx(run.GetSensitivity()) and ours.specificity == pytest.approx(run.GetSpecificity())
    labels = some(8, 3, shape, classes=4)
    both = sitk.MultiLabelSTAPLEImageFilter()
    both.SetLabelForUndecidedPixels(77)
    expected = sitk.GetArrayFromImage(both.Execute([sitk.GetImageFromArray(m.astype(np.uint16)) for m in labels]))
    assert (raters.staple_labels(labels, undecided=77) == expected).all()


def test_staple_finds_the_worse_rater_and_keeps_to_its_region():
    rng = np.random.default_rng(0)
    truth = rng.random((40, 40)) < 0.4
    maps = [np.where(rng.random(truth.shape) < q, ~truth, truth) for q in (0.02, 0.05, 0.3, 0.35, 0.35)]
    s = raters.staple(maps)
    assert s.sensitivity == pytest.approx([0.98, 0.95, 0.7, 0.65, 0.65], abs=0.06)
    assert s.specificity == pytest.approx([0.98, 0.95, 0.7, 0.65, 0.65], abs=0.06)
    assert overlap.dsc(s.probability > 0.5, truth) > 0.02 + overlap.dsc(raters.majority(maps) == 1, truth)
    roi = np.zeros_like(truth)
    roi[:20] = True
    part = raters.staple(maps, roi=roi)
    assert np.isnan(part.probability[20:]).all()
    assert part.probability[:20] == pytest.approx(raters.staple([m[:20] for m in maps]).probability)
    silent = [np.where(roi, m, IGNORE) if n == 1 else m.astype(int) for n, m in enumerate(maps)]
    assert np.array_equal(raters.staple(silent).probability, part.probability, equal_nan=True)
    assert (raters.staple_labels(silent)[20:] == IGNORE).all()


def test_staple_where_all_agree():
    for value in (False, True):
        s = raters.staple([np.full((3, 4), value)] * 3)
        assert (s.probability == value).all()
        assert s.sensitivity == ((1.0,) * 3 if value else (None,) * 3) and s.specificity == ((None,) * 3 if value else (1.0,) * 3)
    nobody = [np.full((3, 4), IGNORE)] * 2
    assert np.isnan(raters.staple(nobody).probability).all() and (raters.staple_labels(nobody) == IGNORE).all()
    maps = some(1, 1) * 3
    assert (raters.staple_labels(maps) == maps[0]).all()


# ------------------------------------------------------------------------------------------------------------------------------ agreement
def test_fleiss_by_its_worked_example():
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    table += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    votes = np.array([np.repeat(np.arange(5), row) for row in table]).T  # 14 raters, 10 subjects
    assert raters.fleiss_kappa(votes) == pytest.approx(0.210, abs=5e-4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_fleiss_by_its_formula(seed, r):
    maps = some(seed, r, (12,), silent=0.1)
    both = np.array(maps)[:, (np.array(maps) != IGNORE).all(0)]
    n = np.stack([(both == k).sum(0) for k in range(3)], axis=1)
    value = raters.fleiss_kappa(maps)
    if n.size == 0 or (n.sum(0) > 0).sum() < 2:
        assert value is None
    else:
        p, share = ((n**2).sum(1) - r).mean() / (r * (r - 1)), n.sum(0) / n.sum()
        assert value == pytest.approx((p - (share**2).sum()) / (1 - (share**2).sum()), abs=1e-9)


def test_cohen_and_pairwise_dsc():
    maps = some(5, 3, silent=0.2)
    each = raters.cohen_kappas(maps)
    pairs = list(combinations(range(3), 2))
    assert list(each) == pairs
    dsc = []
    for i, j in pairs:
        both = (maps[i] != IGNORE) & (maps[j] != IGNORE)
        a, b = maps[i][both], maps[j][both]
        assert each[i, j] == pytest.approx(cohen_kappa_score(a, b))
        dsc.append(overlap.dsc(a == 1, b == 1))
    assert raters.cohen_kappa(maps) == pytest.approx(np.mean(list(each.values())))
    assert raters.pairwise_dsc(maps, 1) == pytest.approx(np.mean(dsc))


def test_undefined_agreement():
    same = [np.zeros((3, 4), int)] * 2
    assert raters.fleiss_kappa(same) is None is raters.cohen_kappa(same)
    assert raters.pairwise_dsc(same) is None and raters.pairwise_dsc(same, 0) == 1
    assert raters.fleiss_kappa(some(0, 1)) is None is raters.cohen_kappa(some(0, 1))
    perfect = some(0, 1) * 4
    assert raters.fleiss_kappa(perfect) == 1 == raters.cohen_kappa(perfect)


def test_bad_raters():
    with pytest.raises(DataError, match="no rater"):
        raters.majority([])
    with pytest.raises(GeometryError, match="different shapes"):
        raters.majority([np.zeros(3, int), np.zeros(4, int)])
    with pytest.raises(DataError, match="class indices"):
        raters.fleiss_kappa([np.zeros(3), np.full(3, 0.5)])
    with pytest.raises(GeometryError, match="region"):
        raters.staple(some(), roi=np.ones(3, bool))
