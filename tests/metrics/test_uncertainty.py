from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, GeometryError
from vesalius.metrics import overlap
from vesalius.metrics import uncertainty as unc

A, B, NONE = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool), np.zeros(4, bool)


def d(a, b, empty):
    value = overlap.iou(a, b)
    return empty if value is None else 1 - value


def ged_by_hand(samples, references, empty=0.0):
    mean = lambda a, b: np.mean([d(x, y, empty) for x in a for y in b])
    return 2 * mean(samples, references) - mean(samples, samples) - mean(references, references)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_sets_by_brute_force(seed, s, r):
    rng = np.random.default_rng(seed)
    samples, references = rng.random((s, 3, 4)) < rng.random((s, 1, 1)), rng.random((r, 3, 4)) < rng.random((r, 1, 1)) * 0.5
    assert unc.ged(samples, references) == pytest.approx(max(0, ged_by_hand(samples, references)), abs=1e-9)
    assert unc.ged(samples, samples[rng.permutation(s)]) == pytest.approx(0, abs=1e-9)
    assert unc.ged(samples, references) == pytest.approx(unc.ged(references, samples), abs=1e-9)
    pairs = [d(samples[i], samples[j], 0.0) for i in range(s) for j in range(s) if i != j]
    assert unc.diversity(samples) == (pytest.approx(np.mean(pairs), abs=1e-9) if pairs else None)
    dsc = lambda a, b: 1.0 if overlap.dsc(a, b) is None else overlap.dsc(a, b)
    assert unc.dice_max(samples, references) == pytest.approx(np.mean([max(dsc(x, y) for x in samples) for y in references]))
    if s == r:
        best = max(np.mean([1 - d(samples[i], references[j], 0.0) for i, j in enumerate(order)]) for order in permutations(range(s)))
        assert unc.matched_iou(samples, references) == pytest.approx(best)


def test_known_answers_and_the_empty_rule():
    assert unc.ged(A[None], A[None]) == 0
    assert unc.ged(A[None], B[None]) == pytest.approx(2 * 2 / 3)
    assert unc.ged(A[None], NONE[None]) == 2
    assert unc.ged(NONE[None], NONE[None]) == 0
    assert unc.ged(NONE[None], NONE[None], both_empty=None) is None
    assert unc.ged(np.stack([A, NONE]), np.stack([A, NONE]), both_empty=1.0) == pytest.approx(0.75 * 2 - 1.5)
    assert unc.dice_max(np.stack([A, NONE]), np.stack([A, NONE])) == 1
    assert unc.dice_max(NONE[None], np.stack([A, NONE]), both_empty=None) == 0
    assert unc.dice_max(NONE[None], NONE[None], both_empty=None) is None
    assert unc.diversity(A[None]) is None and unc.diversity(np.stack([A, B])) == pytest.approx(2 / 3)
    assert unc.matched_iou(A[None], np.stack([A, B])) == pytest.approx((1 + 1 / 3) / 2)  # A stands twice
    assert unc.matched_iou(np.stack([A, A, B]), np.stack([A, B])) == pytest.approx((5 + 1 / 3) / 6)
    no = np.zeros((0, 4), bool)
    assert unc.ged(no, A[None]) is None and unc.dice_max(no, A[None]) is None and unc.matched_iou(A[None], no) is None


def test_overlaps_are_exact_across_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    samples, references = rng.random((3, 10, 11)) < 0.5, rng.random((2, 10, 11)) < 0.5
    whole = unc.ged(samples, references)
    monkeypatch.setattr(unc, "_CHUNK", 7)
    assert unc.ged(samples, references) == whole


@pytest.mark.parametrize("a, b", [(A, A[None]), (A[None] * 0.5, A[None]), (A[None], A[None, :3]), (A[None].astype(int), A[None])])
def test_only_sets_of_masks(a, b):
    with pytest.raises(GeometryError, match="sets of masks"):
        unc.ged(a, b)


# --------------------------------------------------------------------------------------------------------------------- risk and coverage
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_aurc_is_the_mean_over_orders_of_ties(seed, n):
    rng = np.random.default_rng(seed)
    u, e = rng.integers(0, 3, n).astype(float), rng.random(n) < 0.5
    areas = []
    for order in permutations(range(n)):
        if (np.diff(u[list(order)]) >= 0).all():
            areas.append(np.mean(np.cumsum(e[list(order)]) / np.arange(1, n + 1)))
    assert unc.aurc(u, e) == pytest.approx(np.mean(areas))
    assert unc.aurc(u, e) >= unc.aurc(e, e) - 1e-12
    assert unc.e_aurc(u, e) == pytest.approx(unc.aurc(u, e) - unc.aurc(e, e), abs=1e-12)


def test_aurc_by_hand():
    assert unc.aurc([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert unc.e_aurc([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]) == 0
    assert unc.aurc([0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.5, 0.5]) == pytest.approx((0.5 + 0.5 + 1 / 3 + 1 / 4) / 4)  # any loss
    assert unc.aurc([], []) is None is unc.e_aurc([], [])
    coverage, risk = unc.risk_coverage([1.0, 0.0], [True, False])
    assert coverage.tolist() == [0.5, 1.0] and risk.tolist() == [0.0, 0.5]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10_000))
def test_uncertainty_error_overlap(seed):
    rng = np.random.default_rng(seed)
    u, e = rng.integers(0, 6, (4, 5)) / 5, rng.random((4, 5)) < 0.3
    at = {t: overlap.dsc(u >= t, e) for t in np.unique(u)}
    for t, value in at.items():
        assert unc.uncertainty_error_overlap(u, e, threshold=t) == pytest.approx(value)
    assert unc.uncertainty_error_overlap(u, e) == (pytest.approx(max(at.values())) if e.any() else None)
    assert unc.uncertainty_error_overlap(u, e, threshold=2.0) == (0.0 if e.any() else None)


def test_bad_uncertainty_is_named():
    with pytest.raises(DataError, match="uncertainty is not finite.*1 of 2"):
        unc.aurc([np.nan, 1], [0, 1])
    with pytest.raises(DataError, match="numbers of items"):
        unc.aurc([1.0], [0, 1])
    with pytest.raises(DataError, match="boolean"):
        unc.uncertainty_error_overlap(np.ones(3), np.ones(3))


# ------------------------------------------------------------------------------------------------------------------------ maps of samples
def test_entropies():
    rng = np.random.default_rng(0)
    p = np.moveaxis(rng.dirichlet(np.ones(3), (5, 4, 6)), -1, 1)
    entropy = lambda q: -(q * np.log(q)).sum(0)
    total, within = entropy(p.mean(0)), np.mean([entropy(q) for q in p], axis=0)
    assert unc.predictive_entropy(p) == pytest.approx(total)
    assert unc.expected_entropy(p) == pytest.approx(within)
    assert unc.mutual_information(p) == pytest.approx(total - within)
    assert (unc.mutual_information(p) >= 0).all() and unc.predictive_entropy(p).shape == (4, 6)
    assert unc.mutual_information(np.repeat(p[:1], 4, axis=0)) == pytest.approx(0, abs=1e-12)


def test_entropy_of_certain_samples_that_disagree():
    one = np.array([1.0, 0.0])[:, None, None] * np.ones((2, 1, 3))  # two samples of one foreground map: all, nothing
    assert unc.predictive_entropy(one) == pytest.approx(np.log(2) * np.ones(3))
    assert unc.mutual_information(one) == pytest.approx(np.log(2) * np.ones(3))
    assert unc.expected_entropy(one).tolist() == [0, 0, 0]
    both = np.concatenate([1 - one, one], axis=1)
    assert (unc.predictive_entropy(both) == unc.predictive_entropy(one)).all()
    with pytest.raises(DataError, match="NaN"):
        unc.predictive_entropy(np.full((2, 1, 3), np.nan))
    with pytest.raises(DataError, match="S, K"):
        unc.predictive_entropy(np.zeros((0, 2, 3)))
