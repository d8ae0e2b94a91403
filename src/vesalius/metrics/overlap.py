"""Overlap of two masks, from the four counts of the confusion matrix.

Every function takes two boolean masks of one shape, ``f(prediction, reference)``, or the ``Counts`` of such a pair, ``f(counts)``, so that
all metrics of a structure cost one pass. TP, FP, FN, TN are voxel numbers; P = TP + FP is the prediction, R = TP + FN the reference.
A metric whose denominator is 0 is undefined and None: it is counted and shown in reports and never replaced by a number.
Definitions: Metrics Reloaded (Maier-Hein, Reinke et al. 2024, doi:10.1038/s41592-023-02151-z), Supplementary Note 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..core.errors import GeometryError, UsageError


@dataclass(frozen=True)
class Counts:
    """Voxels by agreement: true/false positive/negative."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def prediction(self) -> int:
        return self.tp + self.fp

    @property
    def reference(self) -> int:
        return self.tp + self.fn

    @property
    def total(self) -> int:
        return self.tp + self.fp + self.fn + self.tn


def counts(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> Counts:
    """The counts of two boolean masks (any equal shape); ``Counts`` pass through. Raises GeometryError."""
    if isinstance(prediction, Counts):
        return prediction
    prediction, reference = as_masks(prediction, reference)
    tp = int(np.count_nonzero(prediction & reference))
    p, r = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    return Counts(tp, p - tp, r - tp, prediction.size - p - r + tp)


def as_masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as boolean arrays of one shape; raises GeometryError for anything else (label maps and probabilities are not masks)."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool:
            raise GeometryError(f"the {name} is no boolean mask", found=mask.dtype, allowed="bool", fix="compare with a class: data == k")
    if prediction.shape != reference.shape:
        raise GeometryError("prediction and reference have different shapes", found=prediction.shape, allowed=reference.shape)
    return prediction, reference


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole else None


def mean_defined(values: Iterable[float | None]) -> float | None:
    """The mean of those that are defined; None where none is."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def dsc(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Dice similarity coefficient: 2 TP / (P + R), in [0, 1], higher is better.

    Empty masks: both empty is undefined (None); only one empty is 0. Source: Metrics Reloaded, DSC (Dice 1945).
    """
    c = counts(prediction, reference)
    return ratio(2 * c.tp, c.prediction + c.reference)


def iou(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Intersection over union: TP / (TP + FP + FN), in [0, 1], higher is better.

    Empty masks: both empty is undefined (None); only one empty is 0. Source: Metrics Reloaded, IoU (Jaccard 1912).
    """
    c = counts(prediction, reference)
    return ratio(c.tp, c.tp + c.fp + c.fn)


def volumetric_similarity(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Volumetric similarity: 1 - |P - R| / (P + R), in [0, 1], higher is better; says nothing about position.

    Empty masks: both empty is undefined (None); only one empty is 0. Source: Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x.
    """
    c = counts(prediction, reference)
    share = ratio(abs(c.prediction - c.reference), c.prediction + c.reference)
    return None if share is None else 1 - share


def relative_volume_error(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Relative volume error: |P - R| / R, at least 0, lower is better; 0.1 is a volume off by 10 %.

    The sign is dropped so that over- and under-segmentation do not cancel in a mean; ``relative_volume_difference`` keeps it.
    Empty masks: an empty reference is undefined (None); an empty prediction alone is 1. Source: Metrics Reloaded, RVE.
    """
    difference = relative_volume_difference(prediction, reference)
    return None if difference is None else abs(difference)


def relative_volume_difference(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Relative volume difference: (P - R) / R, at least -1, best at 0; positive is over-segmentation.

    Empty masks: an empty reference is undefined (None); an empty prediction alone is -1. Source: Heimann et al. 2009, RVD.
    """
    c = counts(prediction, reference)
    return ratio(c.prediction - c.reference, c.reference)


def sensitivity(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Sensitivity (recall): TP / R, in [0, 1], higher is better.

    Empty masks: an empty reference is undefined (None); an empty prediction alone is 0. Source: Metrics Reloaded, sensitivity.
    """
    c = counts(prediction, reference)
    return ratio(c.tp, c.reference)


def precision(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Precision (positive predictive value): TP / P, in [0, 1], higher is better.

    Empty masks: an empty prediction is undefined (None); an empty reference alone is 0. Source: Metrics Reloaded, PPV.
    """
    c = counts(prediction, reference)
    return ratio(c.tp, c.prediction)


def specificity(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Specificity: TN / (TN + FP), in [0, 1], higher is better; grows with the field of view, so compare it on equal images only.

    Undefined (None) when the reference fills the image. Source: Metrics Reloaded, specificity.
    """
    c = counts(prediction, reference)
    return ratio(c.tn, c.tn + c.fp)


def accuracy(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Accuracy: (TP + TN) / all voxels, in [0, 1], higher is better; flatters small structures, so never report it alone.

    Undefined (None) only without voxels. Source: Metrics Reloaded, accuracy.
    """
    c = counts(prediction, reference)
    return ratio(c.tp + c.tn, c.total)


def balanced_accuracy(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Balanced accuracy: (sensitivity + specificity) / 2, in [0, 1], higher is better; 0.5 is chance.

    Undefined (None) when the reference is empty or fills the image; an empty prediction alone is 0.5. Source: Metrics Reloaded, BA.
    """
    c = counts(prediction, reference)
    parts = sensitivity(c), specificity(c)
    return None if None in parts else sum(parts) / 2


def f_beta(prediction: np.ndarray | Counts, reference: np.ndarray | None = None, *, beta: float = 2.0) -> float | None:
    """F-beta: (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP), in [0, 1], higher is better; beta 1 is DSC, 2 weighs misses more.

    Empty masks: both empty is undefined (None); only one empty is 0. Raises UsageError unless ``beta`` is positive.
    Source: Metrics Reloaded, F-beta (van Rijsbergen 1979).
    """
    if not (np.isfinite(beta) and beta > 0):
        raise UsageError("beta of F-beta is a positive number", found=beta)
    c = counts(prediction, reference)
    hit = (1 + beta**2) * c.tp
    return ratio(hit, hit + beta**2 * c.fn + c.fp)


def mcc(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Matthews correlation coefficient: (TP TN - FP FN) / sqrt(P R (all - P) (all - R)), in [-1, 1], higher is better; 0 is chance.

    Undefined (None) when a mask is empty or fills the image. Source: Metrics Reloaded, MCC (Matthews 1975).
    """
    c = counts(prediction, reference)
    product = c.prediction * c.reference * (c.total - c.prediction) * (c.total - c.reference)  # integers: no overflow
    return (c.tp * c.tn - c.fp * c.fn) / math.sqrt(product) if product else None


def kappa(prediction: np.ndarray | Counts, reference: np.ndarray | None = None) -> float | None:
    """Cohen's kappa of the voxels: (o - e) / (1 - e), at most 1, higher is better; 0 is chance.

    o = (TP + TN) / N is the agreement, e = (P R + (N - P)(N - R)) / N^2 the one expected by chance. Undefined (None) when e is 1: both
    empty or both full; one empty alone is 0. Source: Metrics Reloaded, Cohen's kappa (Cohen 1960).
    """
    c = counts(prediction, reference)
    n = c.total
    chance = c.prediction * c.reference + (n - c.prediction) * (n - c.reference)
    return ratio(n * (c.tp + c.tn) - chance, n * n - chance)
