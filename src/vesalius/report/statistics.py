"""Statistics of a comparison of methods: intervals, paired tests, effect sizes. Pure functions of numbers, seeded; no torch.

The unit of inference is the patient (``groups`` names the patient of each value): several values of a patient (cases, structures, runs)
are averaged first, because they are not independent. Undefined values (None or NaN) are left out, in both methods when they are paired,
and counted; they are never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ..core.errors import UsageError

Values = Sequence[float | None] | np.ndarray
EXACT = 16  # with up to this many pairs all 2^n sign changes are enumerated
DRAWS = 10_000  # random sign changes beyond that


@dataclass(frozen=True)
class Interval:
    """A mean over patients with its confidence interval (None where it cannot be had), the patients and the undefined values behind it."""

    mean: float | None
    low: float | None
    high: float | None
    patients: int
    values: int
    undefined: int
    confidence: float = 0.95

    def to_json(self) -> dict:
        return asdict(self)


# --------------------------------------------------------------------------------------------------------------------- values by patient
def as_numbers(values: Values) -> np.ndarray:
    """(n,) float64 with NaN for undefined; infinite values are refused."""
    numbers = np.array([np.nan if v is None else float(v) for v in values], float)
    if np.isinf(numbers).any():
        raise UsageError("a value is infinite", fix="undefined values are None")
    return numbers


def patient_means(values: Values, patients: Sequence[str] | None = None) -> tuple[np.ndarray, int]:
    """Mean of each patient's defined values, in order of first appearance, and the number of undefined values.

    Without ``patients`` every value is a patient of its own. A patient without any defined value is left out.
    """
    numbers = as_numbers(values)
    names = list(range(len(numbers))) if patients is None else list(patients)
    if len(names) != len(numbers):
        raise UsageError("every value needs its patient", found=f"{len(names)} patients", allowed=f"{len(numbers)} values")
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    owner = np.array([number[name] for name in names], int)
    defined = np.isfinite(numbers)
    size = np.bincount(owner[defined], minlength=len(number))
    total = np.bincount(owner[defined], numbers[defined], minlength=len(number))
    return total[size > 0] / size[size > 0], int((~defined).sum())


# ----------------------------------------------------------------------------------------------------------------------------- intervals
def mean_interval(
    values: Values,
    groups: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over patients with a bootstrap confidence interval: patients are drawn with replacement.

    'bca' is bias-corrected and accelerated (Efron 1987, doi:10.1080/01621459.1987.10478410), 'percentile' the plain quantiles. With one
    patient there is a mean and no interval; with none, neither.
    """
    if not 0 < confidence < 1 or samples < 100:
        raise UsageError("confidence lies between 0 and 1, with 100 bootstrap samples or more", found=(confidence, samples))
    if method not in ("bca", "percentile"):
        raise UsageError("unknown bootstrap", found=method, allowed="bca, percentile")
    means, undefined = patient_means(values, groups)
    facts = {"patients": len(means), "values": len(values) - undefined, "undefined": undefined, "confidence": confidence}
    if len(means) == 0:
        return Interval(None, None, None, **facts)
    if len(means) == 1:
        return Interval(float(means[0]), None, None, **facts)
    draws = means[resamples(len(means), samples, seed)].mean(axis=1)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _bca_tails(means, draws, tails)
    low, high = np.quantile(draws, tails)
    return Interval(float(means.mean()), float(low), float(high), **facts)


@lru_cache(maxsize=4)
def resamples(n: int, samples: int, seed: int) -> np.ndarray:
    """(samples, n) patient numbers, drawn with replacement; the same for the same seed, so that methods are resampled together."""
    return np.random.default_rng([seed, n]).integers(0, n, (samples, n))


@lru_cache(maxsize=2)
def _signs(n: int, draws: int, seed: int) -> np.ndarray:
    """(draws, n) random signs."""
    return np.random.default_rng([seed, n, 1]).integers(0, 2, (draws, n), dtype=np.int8) * 2 - 1


def _bca_tails(means: np.ndarray, draws: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """The quantiles to read, moved by bias (half of ties below) and by acceleration (jackknife of the mean)."""
    from scipy.special import ndtr, ndtri

    centred = means - means.mean()
    spread = (centred**2).sum()
    if spread <= 1e-24 * max(1.0, float(means.mean() ** 2)):
        return tails
    below = ((draws < means.mean()).mean() + (draws <= means.mean()).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    acceleration = (centred**3).sum() / (6 * spread**1.5)  # leave-one-out means differ by -centred / (n - 1)
    z = bias + ndtri(tails)
    return ndtr(bias + z / (1 - acceleration * z))


# --------------------------------------------------------------------------------------------------------------------------------- tests
def paired_difference(
    method: Values,
    baseline: Values,
    groups: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Method minus baseline on the same cases: ``method[i]`` and ``baseline[i]`` belong together; differences are averaged by patient.

    Returns mean, low, high (interval of the mean difference), patients, values, excluded (pairs with an undefined value), confidence,
    two-sided wilcoxon and permutation p-values, and the effect sizes, positive when the method's values are larger: shift with shift_low
    and shift_high (Hodges-Lehmann), rank_biserial and cliffs_delta (in [-1, 1]) and cohens_d. What cannot be had (an interval from one
    patient) is None. Raises UsageError.
    """
    a, b = as_numbers(method), as_numbers(baseline)
    if len(a) != len(b):
        raise UsageError("paired values differ in number", found=len(a), allowed=len(b))
    difference = a - b
    interval = mean_interval(difference, groups, confidence=confidence, samples=samples, seed=seed)
    d, excluded = patient_means(difference, groups)
    facts = interval.to_json()
    facts.pop("undefined")
    both = np.isfinite(difference)
    sides = (patient_means(np.where(both, side, np.nan), groups)[0] for side in (a, b))
    tests = {"wilcoxon": wilcoxon(d), "permutation": permutation(d, seed=seed)}
    effects = {"rank_biserial": rank_biserial(d), "cliffs_delta": cliffs_delta(*sides), "cohens_d": cohens_d(d)}
    return {**facts, "excluded": excluded, **tests, **hodges_lehmann(d, confidence=confidence), **effects}


def wilcoxon(differences: Values) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test that differences are symmetric about 0; zeros are dropped (Wilcoxon 1945).

    Exact for up to 16 non-zero differences, ties included, by all sign changes of the ranks; then as ``scipy.stats.wilcoxon``. All zeros
    give 1; no difference at all gives None.
    """
    d = _defined(differences)
    if len(d) == 0:
        return None
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    if len(d) <= EXACT:
        ranks = _ranks(np.abs(d))
        return _exact_p(ranks, abs(float((ranks * np.sign(d)).sum())))
    from scipy import stats

    return float(stats.wilcoxon(d).pvalue)


def permutation(differences: Values, *, draws: int = DRAWS, seed: int = 0) -> float | None:
    """Two-sided p of the paired permutation test of the mean: the share of sign changes with a mean at least as far from 0.

    Exact for up to 16 pairs; beyond, ``draws`` random sign changes, with the observed one counted in (Phipson and Smyth 2010).
    """
    d = _defined(differences)
    if len(d) == 0:
        return None
    observed = abs(float(d.sum()))
    if len(d) <= EXACT:
        return _exact_p(d, observed)
    return float((1 + _as_far(_signs(len(d), draws, seed) @ d, observed, d)) / (1 + draws))


def _exact_p(parts: np.ndarray, observed: float) -> float:
    """Share of all 2^n sign changes of ``parts`` whose sum is at least as far from 0 as ``observed``."""
    sums = np.zeros(1)
    for part in parts:
        sums = np.concatenate([sums - part, sums + part])
    return float(_as_far(sums, observed, parts) / len(sums))


def _as_far(sums: np.ndarray, observed: float, parts: np.ndarray) -> int:
    return int((np.abs(sums) >= observed - 1e-12 * np.abs(parts).sum()).sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (1979), in the order given; None stays None and does not count as a test."""
    known = [n for n, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for step, n in enumerate(sorted(known, key=lambda n: p_values[n])):
        running = max(running, min(1.0, p_values[n] * (len(known) - step)))
        adjusted[n] = running
    return adjusted


# --------------------------------------------------------------------------------------------------------------------------- effect sizes
def rank_biserial(differences: Values) -> float | None:
    """Matched-pairs rank-biserial correlation: (W+ - W-) / (W+ + W-), in [-1, 1]; zeros are dropped (Kerby 2014)."""
    d = _defined(differences)
    d = d[d != 0]
    if len(d) == 0:
        return None
    ranks = _ranks(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def cliffs_delta(method: Values, baseline: Values) -> float | None:
    """P(a value of the method > one of the baseline) - P(<), over all pairs of the two samples, in [-1, 1] (Cliff 1993)."""
    a, b = _defined(method), np.sort(_defined(baseline))
    if len(a) == 0 or len(b) == 0:
        return None
    below, above = np.searchsorted(b, a, "left").sum(), len(a) * len(b) - np.searchsorted(b, a, "right").sum()
    return float((below - above) / (len(a) * len(b)))


def hodges_lehmann(differences: Values, *, confidence: float = 0.95) -> dict[str, float | None]:
    """{"shift", "shift_low", "shift_high"}: the median of all Walsh averages (d_i + d_j) / 2, i <= j, and the interval of those shifts that
    Wilcoxon's signed-rank test does not reject (Hollander, Wolfe and Chicken 2014, 3.2-3.3; Hodges and Lehmann 1963).

    Its rank bound is exact up to 50 differences, normal beyond. Too few differences for the confidence (fewer than six at 95 %) have no
    interval; no difference, or more than 4000 (all pairs of them are formed), has no shift.
    """
    d = _defined(differences)
    if not 0 < len(d) <= 4000:
        return {"shift": None, "shift_low": None, "shift_high": None}
    i, j = np.triu_indices(len(d))
    walsh = np.sort((d[i] + d[j]) / 2)
    outside = _signed_rank_bound(len(d), (1 - confidence) / 2)
    low, high = (float(walsh[outside - 1]), float(walsh[-outside])) if outside else (None, None)
    return {"shift": float(np.median(walsh)), "shift_low": low, "shift_high": high}


@lru_cache(maxsize=64)
def _signed_rank_bound(n: int, tail: float) -> int:
    """The largest k with P(W+ < k) <= ``tail`` for n differences without ties: the k-th Walsh average from each end bounds the interval."""
    from scipy.special import ndtri

    if n > 50:
        return max(0, int(np.floor(n * (n + 1) / 4 + 0.5 + ndtri(tail) * np.sqrt(n * (n + 1) * (2 * n + 1) / 24))))
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, n + 1):
        ways[rank:] += ways[:-rank].copy()
    return int(np.searchsorted(np.cumsum(ways) / 2.0**n, tail, "right"))


def noninferior(low: float | None, high: float | None, margin: float, better: Literal["higher", "lower"]) -> bool | None:
    """Whether the interval (low, high) of method minus reference excludes being worse by ``margin`` or more (two-sided 95 %: a one-sided
    test at 2.5 %, as the CONSORT extension asks, Piaggio et al. 2012). None without an interval."""
    if margin <= 0:
        raise UsageError("a non-inferiority margin is positive, in the metric's unit", found=margin)
    if low is None or high is None:
        return None
    return low > -margin if better == "higher" else high < margin


def cohens_d(differences: Values) -> float | None:
    """Cohen's d of paired differences (d_z): mean / standard deviation (n - 1). None with fewer than two pairs or no spread."""
    d = _defined(differences)
    if len(d) < 2:
        return None
    sd = float(d.std(ddof=1))
    return float(d.mean() / sd) if sd > 1e-12 * float(np.abs(d).max()) else None


def _defined(values: Values) -> np.ndarray:
    numbers = as_numbers(values)
    return numbers[np.isfinite(numbers)]


def _ranks(values: np.ndarray) -> np.ndarray:
    """1-based ranks, ties get their mean; differences below 1e-9 of the largest are ties (rounding of decimals)."""
    from scipy.stats import rankdata

    scale = float(np.abs(values).max()) or 1.0
    return rankdata(np.round(values / scale, 9))
