import numpy as np
import pytest
from scipy import stats

from vesalius.core.errors import UsageError
from vesalius.report import statistics as st


def _gauss(n, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, n)


# intervals
def test_patients_are_averaged_first_and_undefined_values_counted():
    means, undefined = st.patient_means([1, 3, None, 10, None], ["a", "a", "b", "b", "c"])
    assert means.tolist() == [2, 10] and undefined == 2
    i = st.mean_interval([1, 3, None, 10, None], ["a", "a", "b", "b", "c"])
    assert (i.mean, i.patients, i.values, i.undefined) == (6.0, 2, 3, 2)


def test_bca_equals_scipy():
    x = np.random.default_rng(3).lognormal(size=40)
    ours = st.mean_interval(x, samples=20000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.02) and ours.high == pytest.approx(theirs.high, rel=0.02)


@pytest.mark.parametrize("method, draw", [("bca", "lognormal"), ("percentile", "normal")])
def test_the_interval_covers_the_mean_about_as_often_as_it_says(method, draw):
    rng, truth = np.random.default_rng(0), {"normal": 0.0, "lognormal": np.exp(0.125)}[draw]
    hits = 0
    for n in range(400):
        x = rng.normal(size=30) if draw == "normal" else rng.lognormal(sigma=0.5, size=30)
        i = st.mean_interval(x, method=method, samples=400, seed=n)
        hits += i.low <= truth <= i.high
    assert 0.90 <= hits / 400 <= 0.97


def test_correlated_values_of_a_patient_do_not_narrow_the_interval():
    x = _gauss(12)
    one, many = st.mean_interval(x, list("abcdefghijkl")), st.mean_interval(np.repeat(x, 50), list(np.repeat(list("abcdefghijkl"), 50)))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_small_and_constant_samples():
    assert st.mean_interval([]).mean is None
    assert st.mean_interval([None, None]).undefined == 2
    one = st.mean_interval([0.7])
    assert (one.mean, one.low, one.high) == (0.7, None, None)
    flat = st.mean_interval([0.7] * 5)
    assert flat.low == pytest.approx(0.7) == flat.high
    for bad in ({"confidence": 1.0}, {"method": "basic"}, {"samples": 5}):
        with pytest.raises(UsageError):
            st.mean_interval([1, 2], **bad)
    with pytest.raises(UsageError):
        st.mean_interval([1, np.inf])
    assert st.mean_interval(_gauss(9), seed=4) == st.mean_interval(_gauss(9), seed=4)


# tests
@pytest.mark.parametrize("n", [5, 9, 16, 30, 80])
def test_wilcoxon_equals_scipy_without_ties(n):
    for seed in range(5):
        d = _gauss(n, 0.3, seed)
        assert st.wilcoxon(d) == pytest.approx(stats.wilcoxon(d).pvalue, rel=1e-9)


def test_wilcoxon_with_ties_is_the_exact_permutation_of_ranks():
    d = np.array([1, 1, -1, 2, 2, -2, 3, 0, 0.0])
    method = stats.PermutationMethod(n_resamples=np.inf)
    assert st.wilcoxon(d) == pytest.approx(stats.wilcoxon(d[d != 0], method=method).pvalue)
    assert st.wilcoxon([0.0, 0.0]) == 1.0 and st.wilcoxon([None]) is None
    # 0.1 + 0.2 - 0.3 style rounding makes no false order
    assert st.wilcoxon([0.3, 0.1 + 0.2, -0.3]) == st.wilcoxon([1, 1, -1])


def test_six_equal_signs_give_the_smallest_exact_p():
    assert st.wilcoxon([1, 2, 3, 4, 5, 6]) == st.permutation([1, 2, 3, 4, 5, 6]) == 2 / 2**6


def test_permutation_equals_scipy():
    d = _gauss(10, 0.5)
    exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided")
    assert st.permutation(d) == pytest.approx(exact.pvalue)
    many = _gauss(60, 0.2)
    assert st.permutation(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert st.permutation([]) is None


def test_p_is_uniform_when_nothing_differs():
    p = [st.wilcoxon(_gauss(12, 0, seed)) for seed in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_holm_by_hand_and_with_undefined():
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert st.holm([]) == []


def test_paired_leaves_out_pairs_with_an_undefined_value():
    result = st.paired_difference([0.9, 0.8, None, 0.7], [0.8, None, 0.5, 0.5], ["a", "b", "c", "d"])
    assert result["excluded"] == 2 and result["patients"] == 2
    assert result["mean"] == pytest.approx(0.15)
    with pytest.raises(UsageError):
        st.paired_difference([1, 2], [1])


# effect sizes
def test_effect_sizes_in_closed_form():
    assert st.rank_biserial([1, 2, 3]) == 1.0 and st.rank_biserial([-1, -2]) == -1.0
    assert st.rank_biserial([1, -2, 3]) == pytest.approx((4 - 2) / 6)
    assert st.rank_biserial([0.0]) is None
    assert st.cohens_d([1, 3]) == pytest.approx(2 / np.sqrt(2))
    assert st.cohens_d([0.1, 0.1, 0.1]) is None and st.cohens_d([1]) is None


def test_hodges_lehmann_of_the_textbook():
    """Hollander and Wolfe, table 3.1 (depression scores): shift 0.46, 96.1 % interval (0.010, 0.786)."""
    x = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    y = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    found = st.hodges_lehmann(x - y)
    assert (found["shift"], found["shift_low"], found["shift_high"]) == pytest.approx((0.46, 0.010, 0.786))


@pytest.mark.parametrize("n", [6, 20, 80])
def test_the_shift_interval_is_what_the_signed_rank_test_does_not_reject(n):
    d = _gauss(n, 0.4, n)
    found = st.hodges_lehmann(d)
    i, j = np.triu_indices(n)
    assert found["shift"] == pytest.approx(np.median((d[i] + d[j]) / 2))
    step = 1e-6
    inside, outside = (stats.wilcoxon(d - found["shift_low"] - s).pvalue for s in (step, -step))
    assert inside > 0.05 - 0.003 and outside <= 0.05 + 0.003
    assert found["shift_low"] < found["shift"] < found["shift_high"]


def test_too_few_or_too_many_differences_for_a_shift():
    assert st.hodges_lehmann([1.0, 2, 3, 4, 5])["shift_low"] is None and st.hodges_lehmann([1.0, 2, 3])["shift"] == 2
    assert st.hodges_lehmann([])["shift"] is None and st.hodges_lehmann(np.zeros(4001))["shift"] is None


def test_cliffs_delta_is_the_scaled_mann_whitney_statistic():
    assert st.cliffs_delta([1, 2, 3], [1, 2, 3]) == 0 and st.cliffs_delta([4, 5], [1, 2]) == 1 and st.cliffs_delta([], [1]) is None
    a, b = np.round(_gauss(30, 0.5), 1), np.round(_gauss(25, 0, 1), 1)
    u = stats.mannwhitneyu(a, b).statistic
    assert st.cliffs_delta(a, b) == pytest.approx(2 * u / (30 * 25) - 1)


def test_non_inferiority_by_hand():
    assert st.noninferior(-0.01, 0.03, 0.02, "higher") is True and st.noninferior(-0.03, 0.03, 0.02, "higher") is False
    assert st.noninferior(-1.0, 1.5, 2.0, "lower") is True and st.noninferior(None, None, 1, "lower") is None
    with pytest.raises(UsageError, match="positive"):
        st.noninferior(0, 1, 0.0, "higher")


def test_effects_use_complete_pairs_only():
    found = st.paired_difference([0.9, 0.8, None, 0.7], [0.8, None, 0.5, 0.5], list("abcd"))
    assert found["cliffs_delta"] == pytest.approx(0.5) and found["shift"] == pytest.approx(0.15)
