"""Ranking of methods, and how much of it chance decides: bootstrap over patients (Wiesenfarth et al. 2021, doi:10.1038/s41598-021-82017-6,
the schemes of their challengeR). Pure functions of numbers, seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from ..core.errors import UsageError
from .statistics import Values, as_numbers, holm, patient_means, resamples

Scheme = Literal["mean rank", "mean", "significance"]
SCHEMES: tuple[Scheme, ...] = ("mean rank", "mean", "significance")
ALPHA = 0.05


@dataclass(frozen=True)
class Ranking:
    """Per method: ``score`` (mean rank; mean; or how many others it beats), ``place`` in that order (ties share the better place),
    ``shares`` (the fractions of bootstrap samples in which it takes place 1, 2, ...) and ``stability`` (that in which it keeps its place).

    ``tau``: mean of Kendall's tau-b between this ranking and the bootstrap's, ``tau_low`` its 2.5 % quantile. ``excluded``: patients left
    out for an undefined value; ``worst``: undefined values that took the worst rank instead.
    """

    scheme: Scheme
    score: dict[str, float]
    place: dict[str, int]
    shares: dict[str, list[float]]
    stability: dict[str, float]
    tau: float | None
    tau_low: float | None
    patients: int
    excluded: int
    worst: int = 0

    def to_json(self) -> dict:
        return asdict(self)


def ranking(
    scores: Mapping[str, Values],
    groups: Sequence[str] | None = None,
    *,
    better: Literal["higher", "lower"] = "higher",
    scheme: Scheme = "mean rank",
    undefined: Literal["exclude", "worst"] = "exclude",
    samples: int = 1000,
    seed: int = 0,
) -> Ranking:
    """Rank methods on patient means; ``scores[method][i]`` is value i of every method and ``groups[i]`` its patient.

    'mean rank': rank within each patient, then average; 'mean': average, then rank; 'significance': by the number of methods that a
    one-sided Wilcoxon signed-rank test (normal approximation, Holm over all ordered pairs, 5 %) shows to be worse. ``undefined``: a patient
    with a value undefined for any method is left out, or that value takes the worst rank (only 'mean rank'). Raises UsageError.
    """
    if better not in ("higher", "lower") or scheme not in SCHEMES:
        raise UsageError("a ranking needs a direction and a scheme", found=(better, scheme), allowed=f"higher, lower; {', '.join(SCHEMES)}")
    if undefined == "worst" and scheme != "mean rank":
        raise UsageError("an undefined value can take the worst rank, but has no mean", found=scheme, allowed="mean rank")
    methods = list(scores)
    sign = -1.0 if better == "higher" else 1.0
    table, excluded, worst = _by_patient({m: sign * as_numbers(v) for m, v in scores.items()}, groups, undefined)
    n = table.shape[1]
    if n == 0:
        return Ranking(scheme, {}, {}, {}, {}, None, None, 0, excluded, worst)
    counts = _counts(n, samples, seed)
    all_once = np.ones((1, n))
    rate = {"mean rank": _mean_ranks, "mean": _means, "significance": _losses}[scheme]
    observed, drawn = rate(table, all_once)[0], rate(table, counts)
    place, places = _places(observed[None])[0], _places(drawn)
    shares = [[float((places[:, k] == p).mean()) for p in range(1, len(methods) + 1)] for k in range(len(methods))]
    taus = _kendall(observed, drawn)
    shown = {"mean rank": observed, "mean": sign * observed, "significance": len(methods) - 1 - observed}[scheme]
    return Ranking(
        scheme,
        dict(zip(methods, shown.tolist(), strict=True)),
        dict(zip(methods, place.tolist(), strict=True)),
        dict(zip(methods, shares, strict=True)),
        dict(zip(methods, (places == place).mean(axis=0).tolist(), strict=True)),
        float(taus.mean()) if taus.size else None,
        float(np.quantile(taus, 0.025)) if taus.size else None,
        n,
        excluded,
        worst,
    )


def _by_patient(scores: Mapping[str, np.ndarray], groups: Sequence[str] | None, undefined: str) -> tuple[np.ndarray, int, int]:
    """(methods, patients), lower is better; patients left out; values that became the worst (inf)."""
    table = np.stack(list(scores.values()))
    names = np.arange(table.shape[1]) if groups is None else np.asarray(groups)
    everyone = len(set(names.tolist()))
    if undefined == "exclude":
        keep = np.isfinite(table).all(axis=0)
        rows = [patient_means(row[keep], names[keep].tolist())[0] for row in table]
        return np.stack(rows), everyone - len(rows[0]), 0
    order = {name: k for k, name in enumerate(dict.fromkeys(names.tolist()))}
    owner = np.array([order[name] for name in names.tolist()], int)
    out = np.full((len(table), everyone), np.inf)
    for k, row in enumerate(table):
        bad = np.bincount(owner[~np.isfinite(row)], minlength=everyone) > 0
        mean = np.bincount(owner, np.nan_to_num(row), minlength=everyone) / np.bincount(owner, minlength=everyone)
        out[k] = np.where(bad, np.inf, mean)
    nobody = np.isinf(out).all(axis=0)
    return out[:, ~nobody], int(nobody.sum()), int(np.isinf(out[:, ~nobody]).sum())


def _counts(n: int, samples: int, seed: int) -> np.ndarray:
    """(samples, n): how often each patient is drawn."""
    draws = resamples(n, samples, seed)
    flat = np.bincount((draws + n * np.arange(samples)[:, None]).ravel(), minlength=samples * n)
    return flat.reshape(samples, n).astype(float)


# each: (methods, patients) lower is better, (samples, patients) weights -> (samples, methods) lower is better
def _mean_ranks(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return counts @ rankdata(table, axis=0).T / counts.sum(axis=1, keepdims=True)


def _means(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return counts @ table.T / counts.sum(axis=1, keepdims=True)


def _losses(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many other methods each is *not* shown to beat."""
    from scipy.special import ndtr

    m = len(table)
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    z = np.stack([_signed_rank_z(table[j] - table[i], counts) for i, j in pairs]) if pairs else np.zeros((0, len(counts)))
    p = np.concatenate([ndtr(-z), ndtr(z)])  # i better than j (j's values larger), j better than i
    significant = _holm_rejects(p)
    wins = np.zeros((len(counts), m))
    for k, (i, j) in enumerate(pairs):
        wins[:, i] += significant[k]
        wins[:, j] += significant[len(pairs) + k]
    return m - 1 - wins


def _signed_rank_z(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """z of Wilcoxon's signed-rank statistic in each weighted sample; ties share their mean rank, zeros are dropped; 0 without a rest."""
    size = np.abs(differences)
    groups, group = np.unique(np.round(size / (size.max() or 1.0), 9), return_inverse=True)
    weight = counts * (groups[group] > 0)
    in_group = np.zeros((len(counts), len(groups)))
    np.add.at(in_group.T, group, weight.T)
    rank = np.cumsum(in_group, axis=1) - (in_group - 1) / 2
    signed = weight * rank[:, group]
    spread = np.sqrt((signed * rank[:, group]).sum(axis=1))
    return np.divide((signed * np.sign(differences)).sum(axis=1), spread, out=np.zeros(len(counts)), where=spread > 0)


def _holm_rejects(p: np.ndarray) -> np.ndarray:
    """(tests, samples) of p -> whether Holm's procedure rejects at ``ALPHA``."""
    if p.shape[1] == 1:
        return np.array([q <= ALPHA for q in holm(p[:, 0].tolist())], bool)[:, None]
    order = np.argsort(p, axis=0, kind="stable")
    steps = len(p) - np.arange(len(p))[:, None]
    passed = np.minimum.accumulate(np.take_along_axis(p, order, 0) * steps <= ALPHA, axis=0)
    out = np.empty_like(passed)
    np.put_along_axis(out, order, passed, 0)
    return out


def _places(rated: np.ndarray) -> np.ndarray:
    """(samples, methods), lower is better -> places from 1; equals share the better place."""
    tolerance = 1e-9 * max(1.0, float(np.abs(rated).max(initial=0.0)))
    return 1 + (rated[:, None, :] < rated[:, :, None] - tolerance).sum(axis=2)


def _kendall(observed: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of the observed order with each drawn one (samples,); empty where the observed order is all ties."""
    i, j = np.triu_indices(len(observed), 1)
    tolerance = 1e-9 * max(1.0, float(np.abs(drawn).max(initial=0.0)))

    def order(rated: np.ndarray) -> np.ndarray:
        gap = rated[..., i] - rated[..., j]
        return np.sign(np.where(np.abs(gap) <= tolerance, 0, gap))

    ours, theirs = order(observed), order(drawn)
    untied = np.sqrt(np.abs(ours).sum() * np.abs(theirs).sum(axis=1))
    if not np.abs(ours).any():
        return np.zeros(0)
    return np.divide((ours * theirs).sum(axis=1), untied, out=np.zeros(len(drawn)), where=untied > 0)
