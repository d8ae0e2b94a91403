"""How well samples cover what raters say, and how well an uncertainty finds the errors.

Sets of masks are boolean (S, *spatial) samples and (R, *spatial) references of one structure, at least one each. Two empty masks agree by
definition here: their distance 1 - IoU is ``both_empty`` = 0, as in Kohl et al. 2018; None leaves such pairs out of every mean instead.
Maps of samples are (S, K, *spatial) probabilities, K exclusive classes, or K = 1 for the foreground alone; entropies are in nats.
"""

from __future__ import annotations

from math import lcm

import numpy as np

from ..core.errors import DataError, GeometryError
from .calibration import check_probability

_CHUNK = 1 << 20  # voxels at a time in pairwise overlaps: float32 counts stay exact below 2^24


# ------------------------------------------------------------------------------------------------------------------------- sets of masks
def ged(samples: np.ndarray, references: np.ndarray, *, both_empty: float | None = 0.0) -> float | None:
    """Generalised energy distance, squared: 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU, in [0, 2], lower is better.

    Means run over all pairs, a mask with itself included, so equal sets have 0. Two empty masks: d = ``both_empty`` (module). Undefined
    (None) when a set is empty or has no pair left. Source: Kohl et al. 2018, arXiv:1806.05034 (Szekely and Rizzo 2013).
    """
    between, within, among = (_mean(1 - _iou(a, b, both_empty)) for a, b in ((samples, references), (samples,) * 2, (references,) * 2))
    return None if None in (between, within, among) else max(0.0, 2 * between - within - among)


def diversity(samples: np.ndarray, *, both_empty: float | None = 0.0) -> float | None:
    """Sample diversity: the mean of 1 - IoU over the pairs of different samples, in [0, 1]; neither high nor low is good by itself.

    Two empty masks: ``both_empty`` (module). Undefined (None) for fewer than two samples. Source: Kohl et al. 2018, third term of GED,
    without the pairs of a mask with itself, so that it does not grow with the number of samples.
    """
    distance = 1 - _iou(samples, samples, both_empty)
    return _mean(distance[~np.eye(len(distance), dtype=bool)])


def dice_max(samples: np.ndarray, references: np.ndarray, *, both_empty: float | None = 0.0) -> float | None:
    """Maximum Dice matching: every reference's best DSC with a sample, mean over references, in [0, 1], higher is better.

    Two empty masks: DSC 1 - ``both_empty``. Undefined (None) without samples or references. Source: Rahman et al. 2023, arXiv:2304.04745.
    """
    iou = _iou(samples, references, both_empty)
    dsc = 2 * iou / (1 + iou)
    if dsc.size == 0:
        return None
    return _mean(np.fmax.reduce(dsc, axis=0))


def matched_iou(samples: np.ndarray, references: np.ndarray) -> float | None:
    """Hungarian-matched IoU: the mean IoU of the best one-to-one matching of both sets, in [0, 1], higher is better.

    Both sets are repeated to the least common multiple of their sizes first. Two empty masks have IoU 1. Undefined (None) when a set is
    empty. Source: Kohl et al. 2019, arXiv:1905.13077.
    """
    from scipy.optimize import linear_sum_assignment

    iou = _iou(samples, references, 0.0)
    if iou.size == 0:
        return None
    n = lcm(*iou.shape)
    iou = np.tile(iou, (n // iou.shape[0], n // iou.shape[1]))
    return float(iou[linear_sum_assignment(iou, maximize=True)].mean())


def _iou(a: np.ndarray, b: np.ndarray, both_empty: float | None) -> np.ndarray:
    """(n, m) IoU of every mask of ``a`` with every one of ``b``; two empty masks: 1 - ``both_empty``, NaN for None."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != bool or b.dtype != bool or a.ndim < 2 or a.shape[1:] != b.shape[1:]:
        raise GeometryError("sets of masks are boolean (n, *spatial) on one grid", found=((a.dtype, a.shape), (b.dtype, b.shape)))
    a, b = (m.reshape(len(m), int(np.prod(m.shape[1:]))) for m in (a, b))
    both = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        both += a[:, part].astype(np.float32) @ b[:, part].astype(np.float32).T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan if both_empty is None else 1 - both_empty)


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


# --------------------------------------------------------------------------------------------------------------------- risk and coverage
def risk_coverage(uncertainty: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage (n,), risk (n,)): the mean error of the k least uncertain, k = 1..n, against k / n.

    ``error`` (n,) is any loss per item (bool: wrong or not). Equal uncertainties take their mean error, so order does not matter.
    """
    uncertainty, error = _items(uncertainty, error)
    n = uncertainty.size
    _, group, size = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean = np.bincount(group, error, len(size)) / np.maximum(size, 1)
    k = np.arange(1, n + 1)
    return k / max(n, 1), np.cumsum(np.repeat(mean, size)) / k


def aurc(uncertainty: np.ndarray, error: np.ndarray) -> float | None:
    """Area under the risk-coverage curve: the mean over k = 1..n of the mean error of the k least uncertain, lower is better.

    Undefined (None) without items. Source: Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, section 2.
    """
    risk = risk_coverage(uncertainty, error)[1]
    return float(risk.mean()) if risk.size else None


def e_aurc(uncertainty: np.ndarray, error: np.ndarray) -> float | None:
    """Excess AURC: AURC minus that of the best order (least error first), at least 0, lower is better; free of the error rate itself.

    Undefined (None) without items. Source: Geifman et al. 2019, with the best order's sum itself in place of its integral.
    """
    value = aurc(uncertainty, error)
    return None if value is None else max(0.0, value - aurc(error, error))


def uncertainty_error_overlap(uncertainty: np.ndarray, error: np.ndarray, *, threshold: float | None = None) -> float | None:
    """Uncertainty-error overlap: DSC of {uncertainty >= threshold} and the wrong voxels, in [0, 1], higher is better.

    ``threshold`` None takes the best of all (then an upper bound, not a choice that could have been made). Undefined (None) when nothing is
    wrong and nothing uncertain, and for the best threshold whenever nothing is wrong. Source: Jungo and Reyes 2019, arXiv:1907.03338.
    """
    uncertainty, error = np.asarray(uncertainty), np.asarray(error)
    if error.dtype != bool:
        raise DataError("the error is a boolean mask", found=error.dtype)
    uncertainty, error = _items(uncertainty, error)
    wrong = int(error.sum())
    if threshold is not None:
        unsure = uncertainty >= threshold
        total = int(unsure.sum()) + wrong
        return float(2 * error[unsure].sum() / total) if total else None
    if not wrong:
        return None
    order = np.argsort(-uncertainty, kind="stable")
    last = np.flatnonzero(np.append(np.diff(uncertainty[order]) != 0, True))  # a threshold takes all equal values
    return float((2 * np.cumsum(error[order])[last] / (last + 1 + wrong)).max())


def _items(uncertainty: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    uncertainty, error = np.asarray(uncertainty, np.float64).ravel(), np.asarray(error, np.float64).ravel()
    if uncertainty.size != error.size:
        raise DataError("uncertainty and error have different numbers of items", found=uncertainty.size, allowed=error.size)
    for name, values in (("uncertainty", uncertainty), ("error", error)):
        if not np.isfinite(values).all():
            raise DataError(f"the {name} is not finite", found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values")
    return uncertainty, error


# ------------------------------------------------------------------------------------------------------------------------ maps of samples
def predictive_entropy(samples: np.ndarray) -> np.ndarray:
    """(S, K, *spatial) -> (*spatial): the entropy of the mean probability, H(E p), total uncertainty, in [0, ln K] nats.

    Source: Gal 2016, Uncertainty in Deep Learning, section 3.3.
    """
    return _entropy(_channels(samples).mean(axis=0))


def expected_entropy(samples: np.ndarray) -> np.ndarray:
    """(S, K, *spatial) -> (*spatial): the mean entropy of the samples, E H(p), the aleatoric part, nats."""
    return np.mean([_entropy(p) for p in _channels(samples)], axis=0)


def mutual_information(samples: np.ndarray) -> np.ndarray:
    """(S, K, *spatial) -> (*spatial): H(E p) - E H(p), what the samples disagree on (epistemic), at least 0 nats.

    Source: Houlsby et al. 2011, arXiv:1112.5745 (BALD); Gal 2016.
    """
    return np.maximum(predictive_entropy(samples) - expected_entropy(samples), 0)


def _channels(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim < 3 or 0 in samples.shape[:2]:
        raise DataError("samples are (S, K, *spatial) probabilities", found=samples.shape)
    check_probability(samples)
    samples = samples.astype(np.float64)
    return samples if samples.shape[1] > 1 else np.concatenate([1 - samples, samples], axis=1)


def _entropy(p: np.ndarray) -> np.ndarray:
    from scipy.special import entr

    return entr(np.clip(p, 0, 1)).sum(axis=0)
