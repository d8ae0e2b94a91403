import numpy as np
import pytest
from scipy import stats

from vesalius.core.errors import UsageError
from vesalius.report.ranking import SCHEMES, _signed_rank_z, ranking


def _gauss(n, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, n)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dominant_method_keeps_its_place(scheme):
    x = _gauss(20)
    r = ranking({"good": x + 1, "bad": x, "worst": x - 1}, scheme=scheme)
    assert r.place == {"good": 1, "bad": 2, "worst": 3} and set(r.stability.values()) == {1.0} and r.tau == 1.0
    assert r.shares["good"] == [1.0, 0.0, 0.0] and r.shares["worst"] == [0.0, 0.0, 1.0]
    assert ranking({"good": x + 1, "bad": x}, better="lower", scheme=scheme).place["bad"] == 1


def test_scores_by_hand():
    values = {"a": [3.0, 3, 0, 3], "b": [2.0, 2, 9, 2], "c": [1.0, 1, 1, 1]}
    assert ranking(values).score == {"a": 1.5, "b": 1.75, "c": 2.75}
    assert ranking(values, scheme="mean").score == {"a": 2.25, "b": 3.75, "c": 1.0}
    assert ranking(values, scheme="mean").place == {"b": 1, "a": 2, "c": 3} and ranking(values).place == {"a": 1, "b": 2, "c": 3}
    assert set(ranking(values, scheme="significance").place.values()) == {1}  # four patients show nothing


def test_equal_methods_share_a_place_and_undefined_patients_are_left_out():
    r = ranking({"a": [1, 2, None], "b": [1, 2, 5]})
    assert r.place == {"a": 1, "b": 1} and r.score == {"a": 1.5, "b": 1.5} and (r.patients, r.excluded) == (2, 1)
    assert r.tau is None
    assert ranking({"a": [None], "b": [1]}).place == {}
    noisy = ranking({"a": _gauss(12, 0, 1), "b": _gauss(12, 0, 2)})
    assert min(noisy.stability.values()) < 1 and -1 <= noisy.tau < 1


def test_undefined_values_may_take_the_worst_rank():
    values = {"a": [0.9, None, 0.9], "b": [0.5, 0.5, 0.5], "c": [None, None, 0.1]}
    r = ranking(values, undefined="worst")
    assert r.score == pytest.approx({"a": (1 + 2.5 + 1) / 3, "b": (2 + 1 + 2) / 3, "c": (3 + 2.5 + 3) / 3}) and r.worst == 3
    nobody = ranking({"a": [None, 1.0], "b": [None, 2.0]}, undefined="worst")
    assert (nobody.patients, nobody.excluded, nobody.worst) == (1, 1, 0)


def test_patients_are_ranked_not_cases():
    r = ranking({"a": [1, 1, 1, 0], "b": [0, 0, 0, 1]}, ["p", "p", "p", "q"])
    assert r.patients == 2 and r.place == {"a": 1, "b": 1}


def test_the_weighted_signed_rank_statistic_equals_scipy_on_the_drawn_sample():
    rng = np.random.default_rng(0)
    for _ in range(20):
        d, times = rng.normal(0.2, 1, 40).round(1), rng.integers(0, 3, 40)
        drawn = np.repeat(d, times)
        theirs = stats.wilcoxon(drawn[drawn != 0], method="approx", correction=False)
        z = float(_signed_rank_z(d, times[None].astype(float))[0])
        assert 2 * stats.norm.sf(abs(z)) == pytest.approx(theirs.pvalue)


def test_kendalls_tau_equals_scipy():
    from vesalius.report.ranking import _kendall

    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, 6).astype(float), rng.integers(0, 4, (30, 6)).astype(float)
    assert _kendall(a, b) == pytest.approx([stats.kendalltau(a, row).statistic for row in b])


def test_bad_input():
    for bad in ({"better": "zero"}, {"scheme": "median"}, {"undefined": "worst", "scheme": "mean"}):
        with pytest.raises(UsageError):
            ranking({"a": [1], "b": [2]}, **bad)
