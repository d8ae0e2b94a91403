"""Classes and scores of cases: ROC and its DeLong interval, operating points, and agreement of labels.

``score`` (n,) is any finite number that grows with being ``positive`` (n,) bool; ``predicted`` and ``reference`` (n,) are class indices.
What scikit-learn or scipy compute is theirs; DeLong's variance is ours. With a class missing, what compares the two is undefined (None).
The Brier score, log loss and calibration of cases are those of ``calibration``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import DataError, UsageError


# ------------------------------------------------------------------------------------------------------------------------- scores: the ROC
def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties half, in [0, 1], higher is better.

    Undefined (None) when a class is missing. Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    score, positive = _scored(score, positive)
    return _placements(score[None], positive)[0].item() if _both(positive) else None


def auprc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Average precision: sum over thresholds of (recall gained) x precision, in [0, 1], higher is better; chance is the share of positives.

    No interpolation between points. Undefined (None) when a class is missing. Source: scikit-learn, average_precision_score.
    """
    from sklearn.metrics import average_precision_score

    score, positive = _scored(score, positive)
    return float(average_precision_score(positive, score)) if _both(positive) else None


def partial_auc(score: np.ndarray, positive: np.ndarray, *, max_fpr: float = 0.1, standardised: bool = True) -> float | None:
    """Area under the ROC curve up to the false positive rate ``max_fpr``, higher is better.

    ``standardised``: 0.5 for chance, 1 for perfect (McClish 1989, doi:10.1177/0272989X8900900307); else the area itself, at most
    ``max_fpr``. Undefined (None) when a class is missing. Source: scikit-learn, roc_auc_score.
    """
    from sklearn.metrics import roc_auc_score

    if not 0 < max_fpr <= 1:
        raise UsageError("the largest false positive rate lies in (0, 1]", found=max_fpr)
    score, positive = _scored(score, positive)
    if not _both(positive):
        return None
    standard = float(roc_auc_score(positive, score, max_fpr=max_fpr))
    if standardised or max_fpr == 1:
        return standard
    chance = max_fpr**2 / 2
    return chance + (2 * standard - 1) * (max_fpr - chance)


def sensitivity_at_specificity(score: np.ndarray, positive: np.ndarray, *, specificity: float = 0.9) -> float | None:
    """The largest sensitivity of a threshold whose specificity is at least ``specificity``, in [0, 1], higher is better.

    Thresholds are the scores themselves, nothing is interpolated. Undefined (None) when a class is missing.
    """
    return _best(score, positive, specificity, "specificity")


def specificity_at_sensitivity(score: np.ndarray, positive: np.ndarray, *, sensitivity: float = 0.9) -> float | None:
    """The largest specificity of a threshold whose sensitivity is at least ``sensitivity``, in [0, 1], higher is better.

    Thresholds are the scores themselves, nothing is interpolated. Undefined (None) when a class is missing.
    """
    return _best(score, positive, sensitivity, "sensitivity")


def fpr_at_tpr(score: np.ndarray, positive: np.ndarray, *, tpr: float = 0.95) -> float | None:
    """FPR95: the smallest false positive rate of a threshold that finds at least the share ``tpr`` of positives, lower is better.

    Undefined (None) when a class is missing. Source: Liang et al. 2018, arXiv:1706.02690.
    """
    value = _best(score, positive, tpr, "tpr")
    return None if value is None else 1 - value


def _best(score: np.ndarray, positive: np.ndarray, at_least: float, name: str) -> float | None:
    """The best of one rate among the thresholds that keep the other (``name``)."""
    from sklearn.metrics import roc_curve

    if not 0 <= at_least <= 1:
        raise UsageError(f"a {name} lies between 0 and 1", found=at_least)
    score, positive = _scored(score, positive)
    if not _both(positive):
        return None
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    kept, wanted = (1 - fpr, tpr) if name == "specificity" else (tpr, 1 - fpr)
    return float(wanted[kept >= at_least - 1e-12].max())


# ------------------------------------------------------------------------------------------------------------------------------ DeLong
@dataclass(frozen=True)
class AurocInterval:
    """AUROC with DeLong's standard error ``se`` and the interval at ``level``, cut to [0, 1]; None where a class has a single case."""

    value: float
    se: float | None
    low: float | None
    high: float | None
    level: float


@dataclass(frozen=True)
class AurocTest:
    """Two scores of the same cases: ``difference`` first - second, its standard error, interval, ``z`` and two-sided ``p``.

    Scores that order the cases alike have difference 0 and p = 1. z and p are None where the variance is unknown (a class with a single
    case) or 0 for a difference that is not.
    """

    first: float
    second: float
    difference: float
    se: float | None
    low: float | None
    high: float | None
    z: float | None
    p: float | None
    level: float


def auroc_interval(score: np.ndarray, positive: np.ndarray, *, level: float = 0.95) -> AurocInterval | None:
    """AUROC and its normal interval by DeLong's variance, in O(n log n). Undefined (None) when a class is missing.

    A perfect score has variance 0 and an interval of no width. Source: DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595, by
    midranks: Sun and Xu 2014, doi:10.1109/LSP.2014.2337313.
    """
    score, positive = _scored(score, positive)
    if not _both(positive):
        return None
    value, covariance = _delong(score[None], positive)
    se = None if covariance is None else float(np.sqrt(covariance[0, 0]))
    low, high = _interval(value[0], se, level, 0.0, 1.0)
    return AurocInterval(float(value[0]), se, low, high, level)


def auroc_test(first: np.ndarray, second: np.ndarray, positive: np.ndarray, *, level: float = 0.95) -> AurocTest | None:
    """DeLong's paired test of two scores of the same cases, two-sided. Undefined (None) when a class is missing. Source: as above."""
    from scipy.special import ndtr

    first, positive = _scored(first, positive)
    second, _ = _scored(second, positive)
    if not _both(positive):
        return None
    values, covariance = _delong(np.stack([first, second]), positive)
    difference = float(values[0] - values[1])
    se = z = p = None
    if covariance is not None:
        variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        se = float(np.sqrt(max(variance, 0.0)))
        if se > 1e-9:
            z = difference / se
            p = float(2 * ndtr(-abs(z)))
        elif abs(difference) < 1e-12:
            z, p = 0.0, 1.0
    low, high = _interval(difference, se, level, -1.0, 1.0)
    return AurocTest(float(values[0]), float(values[1]), difference, se, low, high, z, p, level)


def _delong(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """AUROC (k,) of ``scores`` (k, n) and their covariance (k, k), None when a class has a single case."""
    value, of_positives, of_negatives = _placements(scores, positive)
    if min(of_positives.shape[1], of_negatives.shape[1]) < 2:
        return value, None
    return value, sum(np.atleast_2d(np.cov(v)) / v.shape[1] for v in (of_positives, of_negatives))


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC (k,); per positive (k, m) the share of negatives below it; per negative (k, n) the share of positives above it; ties half."""
    from scipy.stats import rankdata

    p, q = scores[:, positive], scores[:, ~positive]
    ranks = rankdata(scores, axis=1)
    below = (ranks[:, positive] - rankdata(p, axis=1)) / q.shape[1]
    above = 1 - (ranks[:, ~positive] - rankdata(q, axis=1)) / p.shape[1]
    return below.mean(axis=1), below, above


def _interval(value: float, se: float | None, level: float, least: float, most: float) -> tuple[float | None, float | None]:
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise UsageError("a confidence level lies between 0 and 1", found=level)
    if se is None:
        return None, None
    reach = float(ndtri((1 + level) / 2)) * se
    return max(least, float(value) - reach), min(most, float(value) + reach)


# ------------------------------------------------------------------------------------------------------------------------------ labels
def confusion(predicted: np.ndarray, reference: np.ndarray, *, classes: int | None = None) -> np.ndarray:
    """(K, K) int64 numbers of cases, rows the reference, columns the prediction; ``classes`` None: up to the largest index there is."""
    predicted, reference = _labelled(predicted, reference)
    k = int(max(predicted.max(initial=-1), reference.max(initial=-1))) + 1
    if classes is not None and k > classes:
        raise DataError("a label has no class", found=k - 1, allowed=f"0 to {classes - 1}")
    k = k if classes is None else classes
    return np.bincount(reference * k + predicted, minlength=k * k).reshape(k, k)


def accuracy(predicted: np.ndarray, reference: np.ndarray) -> float | None:
    """The share of cases with the right class, in [0, 1], higher is better. Undefined (None) only without cases."""
    predicted, reference = _labelled(predicted, reference)
    return float(np.mean(predicted == reference)) if reference.size else None


def balanced_accuracy(predicted: np.ndarray, reference: np.ndarray) -> float | None:
    """The mean over the classes the reference has of the share found, in [0, 1], higher is better.

    Undefined (None) when the reference has fewer than two classes. Source: Metrics Reloaded, BA; scikit-learn, balanced_accuracy_score.
    """
    c = confusion(predicted, reference)
    there = c.sum(axis=1) > 0
    return float((np.diag(c)[there] / c.sum(axis=1)[there]).mean()) if there.sum() > 1 else None


def f1(predicted: np.ndarray, reference: np.ndarray, *, average: Literal["macro", "micro", "binary"] = "macro") -> float | None:
    """F1: 2 TP / (2 TP + FP + FN), in [0, 1], higher is better.

    macro: the mean over the classes that occur in reference or prediction; micro: of all counts together (the accuracy, for one label a
    case); binary: of class 1 alone. Undefined (None) without cases, and binary when class 1 occurs nowhere. Source: scikit-learn, f1_score.
    """
    from sklearn.metrics import f1_score

    if average not in ("macro", "micro", "binary"):
        raise UsageError("unknown average of F1", found=average, allowed="macro, micro, binary")
    predicted, reference = _labelled(predicted, reference)
    if average == "binary":
        predicted, reference = predicted == 1, reference == 1
        return float(f1_score(reference, predicted)) if (predicted | reference).any() else None
    return float(f1_score(reference, predicted, average=average)) if reference.size else None


def mcc(predicted: np.ndarray, reference: np.ndarray) -> float | None:
    """Matthews' correlation coefficient, for any number of classes, in [-1, 1], higher is better; 0 is chance.

    Undefined (None) when reference or prediction has fewer than two classes. Source: Gorodkin 2004,
    doi:10.1016/j.compbiolchem.2004.09.006; scikit-learn, matthews_corrcoef.
    """
    from sklearn.metrics import matthews_corrcoef

    rows, columns, number = _table(predicted, reference)
    if min(np.unique(rows).size, np.unique(columns).size) < 2:
        return None
    return float(matthews_corrcoef(rows, columns, sample_weight=number))


def kappa(predicted: np.ndarray, reference: np.ndarray, *, weights: Literal["linear", "quadratic"] | None = None) -> float | None:
    """Cohen's kappa: 1 - observed / expected disagreement, at most 1, higher is better; 0 is chance.

    ``weights``: disagreement counts 1, |i - j| or (i - j)^2; levels are the indices themselves, so a level nobody uses keeps its place.
    Undefined (None) without cases and when all are of one class. Source: Cohen 1968, doi:10.1037/h0026256; scikit-learn, cohen_kappa_score.
    """
    from sklearn.metrics import cohen_kappa_score

    if weights not in (None, "linear", "quadratic"):
        raise UsageError("unknown weights of kappa", found=weights, allowed="None, linear, quadratic")
    rows, columns, number = _table(predicted, reference)
    used = np.union1d(rows, columns)
    if used.size < 2:
        return None
    levels = list(range(int(used.max()) + 1))
    return float(cohen_kappa_score(rows, columns, labels=levels, weights=weights, sample_weight=number))


def kendall_tau(predicted: np.ndarray, reference: np.ndarray) -> float | None:
    """Kendall's tau-b of two rankings (n,) of numbers, in [-1, 1], higher is better; ties are corrected for.

    Undefined (None) when one of them is constant or there are fewer than two cases. Source: scipy, kendalltau.
    """
    from scipy.stats import kendalltau

    predicted, reference = _numbers(predicted, "predictions"), _numbers(reference, "reference")
    if predicted.shape != reference.shape:
        raise DataError("predictions and reference have different numbers of cases", found=predicted.shape, allowed=reference.shape)
    if min(np.unique(predicted).size, np.unique(reference).size) < 2:
        return None
    return float(kendalltau(predicted, reference).statistic)


# ------------------------------------------------------------------------------------------------------------------------------ input
def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise DataError(f"the {name} are not one number a case", found=values.shape, allowed="(n,)")
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinite numbers"
        raise DataError(f"the {name} hold {kind}", found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} cases")
    return values


def _scored(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    score, positive = _numbers(score, "scores"), np.asarray(positive)
    if positive.shape != score.shape or not (positive.dtype == bool or np.isin(positive, (0, 1)).all()):
        raise DataError("each score has a truth, positive or not", found=(positive.dtype, positive.shape), allowed=f"bool {score.shape}")
    return score, positive.astype(bool)


def _both(positive: np.ndarray) -> bool:
    return bool(positive.any() and not positive.all())


def _labelled(predicted: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = []
    for name, values in (("predicted", predicted), ("reference", reference)):
        values = np.asarray(values)
        whole = values.dtype == bool or np.issubdtype(values.dtype, np.integer) or bool((np.isfinite(values) & (values % 1 == 0)).all())
        if values.ndim != 1 or not whole or values.min(initial=0) < 0:
            raise DataError(f"the {name} labels are not class indices", found=(values.dtype, values.shape), allowed="(n,) integers from 0")
        out.append(values.astype(np.intp))
    if out[0].shape != out[1].shape:
        raise DataError("predictions and reference have different numbers of cases", found=out[0].shape, allowed=out[1].shape)
    return out[0], out[1]


def _table(predicted: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of classes that occur, reference and prediction, and how often: millions of voxels become a few weighted cases."""
    c = confusion(predicted, reference)
    rows, columns = np.nonzero(c)
    return rows, columns, c[rows, columns]
