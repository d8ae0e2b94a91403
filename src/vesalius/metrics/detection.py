"""Objects against objects: matching rules, the instance metrics of one case, and the curves pooled over cases.

``match`` pairs predicted with reference objects once; the instance metrics are functions of the ``Matched`` it returns. A true positive is
a pair, a false positive a predicted object without a partner, a false negative a reference object without one. ``marks`` turns scored
candidates of a case into the evidence that ``froc``, ``llf`` and ``nlf`` pool. A value with nothing to divide by is undefined and None.
Definitions: Metrics Reloaded (Maier-Hein, Reinke et al. 2024, doi:10.1038/s41592-023-02151-z) where nothing else is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import DataError, GeometryError, UsageError
from .overlap import ratio

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan of the FROC score (LUNA16)


@dataclass(frozen=True)
class Matching:
    """When a predicted and a reference object may be paired, and which pairs are taken; no object is in two pairs.

    ``rule``: 'iou' and 'dsc' need at least ``threshold`` overlap; 'centre' needs the prediction's centre of mass in a voxel of the
    reference; 'distance' needs at most ``threshold`` mm between centres of mass. ``assignment`` 'optimal' takes the most pairs and of
    those the closest (Hungarian); 'greedy' takes the closest pair first, or the prediction of the highest score where scores are given.
    """

    rule: Literal["iou", "dsc", "centre", "distance"] = "iou"
    threshold: float = 0.5
    assignment: Literal["optimal", "greedy"] = "optimal"

    def __post_init__(self):
        if self.rule not in ("iou", "dsc", "centre", "distance"):
            raise UsageError("unknown matching rule", found=self.rule, allowed="iou, dsc, centre, distance")
        if self.assignment not in ("optimal", "greedy"):
            raise UsageError("unknown assignment", found=self.assignment, allowed="optimal, greedy")
        share = self.rule in ("iou", "dsc")
        if not (np.isfinite(self.threshold) and self.threshold >= 0 and (not share or 0 < self.threshold <= 1)):
            found, allowed = f"{self.rule} {self.threshold}", "an overlap in (0, 1] or a distance in mm"
            raise UsageError("the threshold does not fit the matching rule", found=found, allowed=allowed)


@dataclass(frozen=True)
class Objects:
    """How the objects of two instance maps lie to each other: ``common`` (n, m) voxels shared, sizes (n,) and (m,) in voxels, centres of
    mass (n, d) and (m, d) in mm, and ``centred`` (n, m): the prediction's centre lies in the reference."""

    common: np.ndarray
    size_prediction: np.ndarray
    size_reference: np.ndarray
    centre_prediction: np.ndarray
    centre_reference: np.ndarray
    centred: np.ndarray

    @property
    def union(self) -> np.ndarray:
        return self.size_prediction[:, None] + self.size_reference[None] - self.common

    @property
    def iou(self) -> np.ndarray:
        """(n, m) overlap of every pair."""
        return self.common / self.union

    @property
    def gaps(self) -> np.ndarray:
        """(n, m) distance between centres of mass, mm."""
        return np.linalg.norm(self.centre_prediction[:, None] - self.centre_reference[None], axis=-1)

    def affinity(self, matching: Matching) -> tuple[np.ndarray, np.ndarray]:
        """((n, m) closeness, greater is closer, (n, m) may be paired)."""
        if matching.rule == "distance":
            return -self.gaps, self.gaps <= matching.threshold
        if matching.rule == "centre":
            return -self.gaps, self.centred
        shared = self.iou if matching.rule == "iou" else 2 * self.common / (self.size_prediction[:, None] + self.size_reference[None])
        return shared, shared >= matching.threshold


@dataclass(frozen=True)
class Matched:
    """``pairs`` (k, 2): row and column of the paired objects in ``objects``."""

    objects: Objects
    pairs: np.ndarray

    @property
    def tp(self) -> int:
        return len(self.pairs)

    @property
    def fp(self) -> int:
        return len(self.objects.size_prediction) - self.tp

    @property
    def fn(self) -> int:
        return len(self.objects.size_reference) - self.tp

    @property
    def iou(self) -> np.ndarray:
        """(k,) overlap of the pairs."""
        return self.objects.iou[self.pairs[:, 0], self.pairs[:, 1]]


def objects(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Objects:
    """Sizes, overlaps and centres of two instance maps (*spatial) of ids, 0 and less background; ids need not be consecutive.

    Objects are in the order of their ids. Raises GeometryError when the shapes, or the axes and ``spacing`` (mm), differ.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    for name, ids in (("prediction", prediction), ("reference", reference)):
        if ids.dtype.kind not in "iub":
            raise GeometryError(f"the {name} holds no object ids", found=ids.dtype, allowed="integers", fix="number objects from 1")
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise GeometryError("object maps share a shape, with a spacing for every axis", found=(prediction.shape, reference.shape, spacing))
    at = np.nonzero((prediction > 0) | (reference > 0))
    p, r = prediction[at], reference[at]
    rows, columns = _consecutive(p), _consecutive(r)
    n, m = int(rows.max(initial=0)), int(columns.max(initial=0))
    common = np.bincount(rows * (m + 1) + columns, minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    mm = np.stack(at, 1) * np.asarray(spacing, float) if p.size else np.zeros((0, prediction.ndim))
    sizes = common.sum(1)[1:], common.sum(0)[1:]
    centres = [
        np.stack([np.bincount(k, mm[:, axis], size.size + 1)[1:] / size for axis in range(prediction.ndim)], 1)
        for k, size in ((rows, sizes[0]), (columns, sizes[1]))
    ]
    centred = np.zeros((n, m), bool)
    if n:
        seen = np.zeros(reference.shape, np.int64)
        seen[at] = columns
        middle = np.rint(centres[0] / np.asarray(spacing, float)).astype(int)
        inside = seen[tuple(middle.T)]
        centred[np.flatnonzero(inside), inside[inside > 0] - 1] = True
    return Objects(common[1:, 1:], *sizes, *centres, centred)


def match(o: Objects, matching: Matching = Matching(), scores: np.ndarray | None = None) -> Matched:
    """One-to-one pairs by the rule; ``scores`` (n,) of the predictions order a greedy assignment. Raises DataError for other shapes."""
    closeness, allowed = o.affinity(matching)
    if scores is not None and np.shape(scores) != (len(o.size_prediction),):
        raise DataError("every predicted object has one score", found=np.shape(scores), allowed=(len(o.size_prediction),))
    pairs = _optimal(closeness, allowed) if matching.assignment == "optimal" else _greedy(closeness, allowed, scores)
    return Matched(o, np.array(pairs, np.int64).reshape(-1, 2))


def _consecutive(ids: np.ndarray) -> np.ndarray:
    """Ids as 0 for background and 1..n in order."""
    present = np.unique(ids[ids > 0])
    return np.where(ids > 0, np.searchsorted(present, ids) + 1, 0)


def _optimal(closeness: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    from scipy.optimize import linear_sum_assignment

    if not allowed.any():
        return []
    low, high = closeness[allowed].min(), closeness[allowed].max()
    bonus = (closeness - low) / max(high - low, 1e-12)  # 0..1: all bonuses together weigh less than one more pair
    gain = np.where(allowed, 1 + bonus / (1 + min(allowed.shape)), 0.0)
    return [(i, j) for i, j in zip(*linear_sum_assignment(gain, maximize=True), strict=True) if allowed[i, j]]


def _greedy(closeness: np.ndarray, allowed: np.ndarray, scores: np.ndarray | None) -> list[tuple[int, int]]:
    rows, columns = np.nonzero(allowed)
    first = np.zeros(rows.size) if scores is None else -np.asarray(scores)[rows]
    pairs, used_rows, used_columns = [], set(), set()
    for k in np.lexsort((columns, rows, -closeness[rows, columns], first)):
        i, j = int(rows[k]), int(columns[k])
        if i not in used_rows and j not in used_columns:
            pairs.append((i, j))
            used_rows.add(i)
            used_columns.add(j)
    return pairs


# ---------------------------------------------------------------------------------------------------------------- instances of one case
def object_f1(m: Matched) -> float | None:
    """F1 of objects: 2 TP / (2 TP + FP + FN), in [0, 1], higher is better; 'recognition quality' of PQ.

    No object in either is undefined (None); in only one of them it is 0. Source: Metrics Reloaded, F-beta at instance level.
    """
    return ratio(2 * m.tp, 2 * m.tp + m.fp + m.fn)


def object_precision(m: Matched) -> float | None:
    """Precision of objects: TP / (TP + FP), in [0, 1], higher is better.

    No predicted object is undefined (None); no reference object alone is 0. Source: Metrics Reloaded, PPV at instance level.
    """
    return ratio(m.tp, m.tp + m.fp)


def object_sensitivity(m: Matched) -> float | None:
    """Sensitivity of objects: TP / (TP + FN), in [0, 1], higher is better.

    No reference object is undefined (None); no predicted object alone is 0. Source: Metrics Reloaded, sensitivity at instance level.
    """
    return ratio(m.tp, m.tp + m.fn)


def false_positives(m: Matched) -> float:
    """Predicted objects without a partner in this case, at least 0, lower is better; its mean over cases is the FP per case.

    Always defined: 0 when nothing is predicted. Source: Metrics Reloaded, FPPI.
    """
    return float(m.fp)


def count_error(m: Matched) -> float:
    """Predicted minus reference objects, best at 0; positive is over-counting. Always defined: 0 when there are none in either."""
    return float(m.fp - m.fn)


def sq(m: Matched) -> float | None:
    """Segmentation quality: the mean IoU of the pairs, in [0, 1], higher is better.

    Undefined (None) without a pair. Source: Kirillov et al. 2019, CVPR (arXiv:1801.00868), eq. 2.
    """
    return float(m.iou.mean()) if m.tp else None


def pq(m: Matched) -> float | None:
    """Panoptic quality: sum of the pairs' IoU / (TP + FP / 2 + FN / 2) = SQ x RQ, in [0, 1], higher is better.

    No object in either is undefined (None); without a pair it is 0. Kirillov et al. pair at IoU > 0.5. Source: the same, eq. 1.
    """
    return ratio(float(m.iou.sum()), m.tp + m.fp / 2 + m.fn / 2)


def aji(m: Matched) -> float | None:
    """Aggregated Jaccard index: of every reference object with the prediction of highest IoU, common voxels over united voxels, unused
    predictions added below; in [0, 1], higher is better. The pairs play no part, a prediction may serve several reference objects.

    No object in either is undefined (None); in only one of them it is 0. Source: Kumar et al. 2017, IEEE TMI 36:1550, algorithm 1.
    """
    o = m.objects
    if not o.iou.size:
        return 0.0 if o.size_prediction.size or o.size_reference.size else None
    best = o.iou.argmax(0)
    columns = np.flatnonzero(o.common.max(0) > 0)
    common = o.common[best[columns], columns].sum()
    united = o.union[best[columns], columns].sum() + np.delete(o.size_reference, columns).sum()
    unused = np.delete(o.size_prediction, np.unique(best[columns])).sum()
    return float(common / (united + unused))


# ---------------------------------------------------------------------------------------------------------------- candidates and curves
def marks(hits: np.ndarray, scores: np.ndarray) -> dict:
    """The evidence of one case for the pooled metrics, as plain JSON: ``hits`` (n, m) bool, candidate n falls on lesion m, and ``scores``.

    A lesion counts from the highest score of the candidates on it; further candidates on it count neither way. Raises DataError for
    scores that are not one finite number a candidate.
    """
    hits, scores = np.asarray(hits, bool), np.asarray(scores, float)
    if hits.ndim != 2 or scores.shape != hits.shape[:1] or not np.isfinite(scores).all():
        raise DataError("every candidate has one finite score", found=(hits.shape, scores.shape))
    found = [float(scores[column].max()) if column.any() else None for column in hits.T]
    return {"lesions": hits.shape[1], "found": found, "false": sorted(map(float, scores[~hits.any(1)]), reverse=True)}


def box_overlaps(low: np.ndarray, high: np.ndarray, low_reference: np.ndarray, high_reference: np.ndarray) -> np.ndarray:
    """(n, m) IoU of axis-aligned boxes (n, d) and (m, d) in mm; a box without volume overlaps nothing."""
    sides = np.minimum(high[:, None], high_reference[None]) - np.maximum(low[:, None], low_reference[None])
    common = np.prod(np.clip(sides, 0, None), -1)
    united = np.prod(high - low, -1)[:, None] + np.prod(high_reference - low_reference, -1)[None] - common
    return np.divide(common, united, out=np.zeros_like(common, float), where=united > 0)


def froc_curve(cases: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds, false positives per scan, sensitivity), from the strictest threshold on; the evidence of ``marks``, one a case."""
    lesions = sum(c["lesions"] for c in cases)
    found = np.sort([s for c in cases for s in c["found"] if s is not None])
    false = np.sort([s for c in cases for s in c["false"]])
    thresholds = np.unique(np.concatenate([found, false]))[::-1]
    above = [s.size - np.searchsorted(s, thresholds) for s in (found, false)]
    return thresholds, above[1] / max(len(cases), 1), above[0] / lesions if lesions else np.full(thresholds.size, np.nan)


def sensitivity_at(cases: Sequence[Mapping], rate: float) -> float | None:
    """The highest sensitivity with at most ``rate`` false positives per scan, in [0, 1]; no interpolation between thresholds.

    Undefined (None) when the cases hold no lesion; 0 without candidates.
    """
    if not any(c["lesions"] for c in cases):
        return None
    _, false, sensitivity = froc_curve(cases)
    return float(sensitivity[false <= rate].max(initial=0.0))


def froc(cases: Sequence[Mapping], *, rates: Sequence[float] = RATES) -> float | None:
    """FROC score: the mean of the sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, in [0, 1], higher is better.

    Undefined (None) when the cases hold no lesion; 0 without candidates. Source: LUNA16 (Setio et al. 2017, MedIA 42:1), which
    interpolates between thresholds; here only thresholds that exist count.
    """
    values = [sensitivity_at(cases, rate) for rate in rates]
    return None if None in values else float(np.mean(values))


def llf(cases: Sequence[Mapping], *, threshold: float = 0.0) -> float | None:
    """Lesion localisation fraction: lesions with a candidate of at least ``threshold`` / all lesions, in [0, 1], higher is better.

    Undefined (None) when the cases hold no lesion; 0 without candidates. Source: Chakraborty 2017, Observer performance methods, 12.
    """
    lesions = sum(c["lesions"] for c in cases)
    return ratio(sum(s is not None and s >= threshold for c in cases for s in c["found"]), lesions)


def nlf(cases: Sequence[Mapping], *, threshold: float = 0.0) -> float | None:
    """Non-lesion localisation fraction: candidates of at least ``threshold`` on no lesion / cases, at least 0, lower is better.

    Undefined (None) without a case; 0 without candidates. Source: Chakraborty 2017, Observer performance methods, chapter 12.
    """
    return ratio(sum(s >= threshold for c in cases for s in c["false"]), len(cases))
