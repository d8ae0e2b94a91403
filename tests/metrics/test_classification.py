import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from vesalius.core.errors import DataError, UsageError
from vesalius.metrics import classification as cls


def cases(seed, n=40, levels=None, share=0.4):
    """Scores that know something, with ties when ``levels`` are few."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < share
    score = rng.normal(positive.astype(float), 1)
    return (score if levels is None else np.round(score * levels) / levels), positive


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([None, 1, 2]))
def test_scores_against_scikit_learn(seed, n, levels):
    score, positive = cases(seed, n, levels)
    if positive.all() or not positive.any():
        assert cls.auroc(score, positive) is None is cls.auprc(score, positive)
        return
    assert cls.auroc(score, positive) == pytest.approx(sk.roc_auc_score(positive, score), abs=1e-12)
    assert cls.auprc(score, positive) == pytest.approx(sk.average_precision_score(positive, score), abs=1e-12)
    for most in (0.1, 0.5, 1.0):
        fpr, tpr, _ = sk.roc_curve(positive, score)
        at = np.unique(np.append(fpr[fpr <= most], most))
        upper = np.array([tpr[fpr <= a].max() for a in at])
        upper[-1] = np.interp(most, fpr, tpr) if most not in fpr else upper[-1]
        lower = np.array([tpr[fpr >= a - 1e-15].min() if a in fpr else u for a, u in zip(at, upper, strict=True)])
        area = float(((upper[:-1] + lower[1:]) / 2) @ np.diff(at))
        assert cls.partial_auc(score, positive, max_fpr=most, standardised=False) == pytest.approx(area, abs=1e-9)
        chance = most**2 / 2
        standard = area if most == 1 else 0.5 * (1 + (area - chance) / (most - chance))
        assert cls.partial_auc(score, positive, max_fpr=most) == pytest.approx(standard, abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([None, 2]), st.floats(0, 1))
def test_operating_points_by_every_threshold(seed, levels, least):
    score, positive = cases(seed, 25, levels)
    positive[:2] = True, False
    points = [((score >= t)[positive].mean(), (score < t)[~positive].mean()) for t in [*np.unique(score), np.inf]]
    best = lambda keep, want: max(p[want] for p in points if p[keep] >= least - 1e-12)
    assert cls.sensitivity_at_specificity(score, positive, specificity=least) == pytest.approx(best(1, 0))
    assert cls.specificity_at_sensitivity(score, positive, sensitivity=least) == pytest.approx(best(0, 1))
    assert cls.fpr_at_tpr(score, positive, tpr=least) == pytest.approx(1 - best(0, 1))


# ------------------------------------------------------------------------------------------------------------------------------ DeLong
def delong_by_hand(scores, positive):
    """The structural components pair by pair: AUROC and covariance of several scores."""
    psi = [(np.sign(s[positive][:, None] - s[~positive][None]) + 1) / 2 for s in scores]
    ten, one = np.array([p.mean(1) for p in psi]), np.array([p.mean(0) for p in psi])
    return np.array([p.mean() for p in psi]), np.cov(ten) / ten.shape[1] + np.cov(one) / one.shape[1]


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10_000), st.integers(6, 40), st.sampled_from([None, 1]))
def test_delong_by_brute_force(seed, n, levels):
    first, positive = cases(seed, n, levels)
    second = np.round(first + np.random.default_rng(seed).normal(0, 1, n), 1)
    positive[:4] = True, True, False, False
    value, covariance = delong_by_hand([first, second], positive)
    test = cls.auroc_test(first, second, positive)
    assert (test.first, test.second) == pytest.approx(value, abs=1e-12)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert test.se == pytest.approx(np.sqrt(max(variance, 0)), abs=1e-8)
    if variance > 1e-12:
        z = (value[0] - value[1]) / np.sqrt(variance)
        assert test.z == pytest.approx(z) and test.p == pytest.approx(2 * stats.norm.sf(abs(z)))
        assert test.p < 0.05 or test.low <= 0 <= test.high
    one = cls.auroc_interval(first, positive, level=0.9)
    assert one.se == pytest.approx(np.sqrt(covariance[0, 0]), abs=1e-12)
    assert one.low == pytest.approx(max(0, value[0] - stats.norm.ppf(0.95) * one.se))
    mirrored = cls.auroc_test(second, first, positive)
    assert (mirrored.difference, mirrored.p) == (-test.difference, test.p)


def test_delong_interval_covers_and_test_holds_its_level():
    rng = np.random.default_rng(0)
    true, covered, rejected, runs = stats.norm.cdf(1 / np.sqrt(2)), 0, 0, 400
    positive = np.arange(120) < 50
    for _ in range(runs):
        common = rng.normal(positive.astype(float), 0.8)
        a, b = common + rng.normal(0, 0.6, 120), common + rng.normal(0, 0.6, 120)  # sd 1, equally good
        i = cls.auroc_interval(a, positive)
        covered += i.low <= true <= i.high
        rejected += cls.auroc_test(a, b, positive).p < 0.05
    assert 0.92 < covered / runs < 0.98 and 0.025 < rejected / runs < 0.085


def test_delong_at_the_edges():
    perfect = cls.auroc_interval([1, 2, 3, 4], [False, False, True, True])
    assert (perfect.value, perfect.se, perfect.low, perfect.high) == (1, 0, 1, 1)
    lone = cls.auroc_interval([1.0, 2, 3], [False, False, True])
    assert lone.value == 1 and lone.se is None is lone.low
    score, positive = cases(0)
    same = cls.auroc_test(score, np.exp(score), positive)
    assert (same.difference, same.z, same.p) == (0, 0, 1)
    reversed_ = cls.auroc_test([1, 2, 3, 4], [4, 3, 2, 1], [False, False, True, True])
    assert reversed_.difference == 1 and reversed_.p is None
    assert cls.auroc_test([1, 2], [2, 1], [True, True]) is None is cls.auroc_interval([], [])


def test_delong_is_fast():
    score, positive = cases(1, 200_000)
    start = time.process_time()
    assert cls.auroc_test(score, -score, positive).difference > 0.4
    assert time.process_time() - start < 3  # pairs by pairs would be 10^10


# ------------------------------------------------------------------------------------------------------------------------------ labels
@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 30), st.integers(1, 5))
def test_labels_against_scikit_learn(seed, n, k):
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, k, n)
    predicted = np.where(rng.random(n) < 0.5, reference, rng.integers(0, k, n))
    c = cls.confusion(predicted, reference, classes=k)
    if n == 0:
        assert not c.any() and c.shape == (k, k)
        assert {f(predicted, reference) for f in (cls.accuracy, cls.balanced_accuracy, cls.f1, cls.mcc, cls.kappa)} == {None}
        return
    assert (c == sk.confusion_matrix(reference, predicted, labels=range(k))).all()
    assert cls.accuracy(predicted, reference) == sk.accuracy_score(reference, predicted)
    assert cls.f1(predicted, reference) == pytest.approx(sk.f1_score(reference, predicted, average="macro"))
    assert cls.f1(predicted, reference, average="micro") == pytest.approx(sk.accuracy_score(reference, predicted))
    if np.unique(reference).size > 1:
        there = [np.mean(predicted[reference == j] == j) for j in np.unique(reference)]
        assert cls.balanced_accuracy(predicted, reference) == pytest.approx(np.mean(there))
    else:
        assert cls.balanced_accuracy(predicted, reference) is None is cls.mcc(predicted, reference)
    if np.union1d(predicted, reference).size > 1:
        for weights in (None, "linear", "quadratic"):
            expected = sk.cohen_kappa_score(reference, predicted, weights=weights, labels=range(k))
            assert cls.kappa(predicted, reference, weights=weights) == pytest.approx(expected)
    if min(np.unique(predicted).size, np.unique(reference).size) > 1:
        assert cls.mcc(predicted, reference) == pytest.approx(sk.matthews_corrcoef(reference, predicted))
        assert cls.kendall_tau(predicted, reference) == pytest.approx(stats.kendalltau(predicted, reference).statistic)
    else:
        assert cls.kendall_tau(predicted, reference) is None


def test_known_answers():
    assert cls.auroc([1, 2, 3], [False, True, True]) == 1 and cls.auroc([1, 1], [0, 1]) == 0.5
    assert cls.kappa([0, 1, 2, 2], [0, 1, 2, 1], weights="quadratic") == pytest.approx(0.8)
    assert cls.kappa([0, 4], [4, 4], weights="quadratic") == 0  # an empty level keeps its place
    assert cls.kappa([1, 1], [1, 1]) is None
    assert cls.f1([0, 1, 1], [0, 0, 1], average="binary") == pytest.approx(2 / 3)
    assert cls.f1([0, 0], [0, 0], average="binary") is None
    assert cls.mcc([0, 1, 0, 1], [0, 1, 1, 0]) == 0
    assert cls.kendall_tau([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert cls.fpr_at_tpr([3, 2, 1, 0], [True, False, True, False]) == pytest.approx(0.5)


def test_kappa_of_millions_of_voxels_is_a_small_table():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 2_000_000))
    start = time.process_time()
    assert abs(cls.kappa(a, b)) < 0.01
    assert time.process_time() - start < 1.5


def test_bad_input_is_named():
    with pytest.raises(DataError, match="scores hold NaN.*1 of 3"):
        cls.auroc([0.1, np.nan, 0.2], [0, 1, 1])
    with pytest.raises(DataError, match="infinite"):
        cls.auroc_test([1, 2], [np.inf, 2], [True, False])
    with pytest.raises(DataError, match="positive or not"):
        cls.auprc([0.1, 0.2], [0, 2])
    with pytest.raises(DataError, match="positive or not"):
        cls.auprc([0.1, 0.2], [True])
    with pytest.raises(DataError, match="class indices"):
        cls.kappa([0.5, 1], [0, 1])
    with pytest.raises(DataError, match="class indices"):
        cls.f1([-1, 1], [0, 1])
    with pytest.raises(DataError, match="different numbers"):
        cls.mcc([0, 1], [0, 1, 1])
    with pytest.raises(DataError, match="no class"):
        cls.confusion([0, 3], [0, 1], classes=2)
    for call in (
        lambda: cls.fpr_at_tpr([1, 2], [0, 1], tpr=95),
        lambda: cls.partial_auc([1, 2], [0, 1], max_fpr=0),
        lambda: cls.auroc_interval([1, 2], [0, 1], level=95),
        lambda: cls.f1([0], [0], average="weighted"),
        lambda: cls.kappa([0], [0], weights="cubic"),
    ):
        with pytest.raises(UsageError):
            call()
