"""Quality of a probability map against a mask, as the polyp, camouflage and salient-object field measures it.

Every function takes ``f(probability (*spatial) in [0, 1], reference bool (*spatial))``. The published evaluation scripts first stretch each
map to its own 0..1; that hides how sure a model is, so nothing is stretched here: do it before where a paper's table is to be met.
Sources: PraNet (Fan et al. 2020, arXiv:2006.11392) names the set; each function names its own.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..core.errors import DataError, GeometryError, UsageError
from .overlap import as_masks

EPS = float(np.finfo(np.float64).eps)
LEVELS = 256  # thresholds 0/255 .. 255/255 of the published scripts


def mae(probability: np.ndarray, reference: np.ndarray) -> float | None:
    """Mean absolute error: mean |p - r| over all voxels, in [0, 1], lower is better; falls with the size of the background.

    Defined for empty references (then the mean probability); None only without voxels. Source: Perazzi et al. 2012, CVPR, eq. 10.
    """
    p, r = _pair(probability, reference)
    return float(np.abs(p - r).mean()) if p.size else None


def weighted_f(probability: np.ndarray, reference: np.ndarray, *, beta: float = 1.0) -> float | None:
    """Weighted F-measure of a 2D map: F-beta of weighted precision and recall, in [0, 1], higher is better.

    The errors |p - r| outside the mask are taken from their nearest mask pixel, smoothed (7 x 7 Gaussian, sd 5) and used inside the mask
    where smaller; outside they weigh 2 - 0.5^(d / 5) with d the pixels to the mask. Undefined (None) when the reference is empty; an
    all-zero map is 0 (a little more within 3 pixels of the edge, where the smoothing sees zeros). Raises DataError for other than two
    axes. Source: Margolin et al. 2014, CVPR (distances in pixels, as published).
    """
    from scipy import ndimage

    if not (np.isfinite(beta) and beta > 0):
        raise UsageError("beta of the weighted F-measure is a positive number", found=beta)
    p, r = _plane(probability, reference)
    if not r.any():
        return None
    error = np.abs(p - r)
    gap, nearest = ndimage.distance_transform_edt(~r, return_indices=True)
    dependent = error[tuple(nearest)]
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 5.0**2))
    smooth = ndimage.correlate(dependent, kernel / kernel.sum(), mode="constant")
    least = np.where(r & (smooth < error), smooth, error)
    weighted = least * np.where(r, 1.0, 2 - 0.5 ** (gap / 5))
    found, invented = r.sum() - weighted[r].sum(), weighted[~r].sum()
    recall, precision = 1 - weighted[r].mean(), found / (found + invented + EPS)
    return float((1 + beta**2) * recall * precision / (recall + beta**2 * precision + EPS))


def s_measure(probability: np.ndarray, reference: np.ndarray, *, alpha: float = 0.5) -> float | None:
    """Structure measure of a 2D map: alpha x object similarity + (1 - alpha) x region similarity, in [0, 1], higher is better.

    Object: 2 m / (m^2 + 1 + sd) of the map inside the mask, and of 1 - map outside, joined by the mask's share. Region: the structural
    similarity of the four quadrants at the mask's centroid, by area. By the published rule an empty reference gives 1 - mean(p) and a
    full one mean(p); None only without pixels. Raises DataError for other than two axes. Source: Fan et al. 2017, ICCV, eqs. 1-8.
    """
    p, r = _plane(probability, reference)
    if not p.size:
        return None
    if not r.any():
        return float(1 - p.mean())
    if r.all():
        return float(p.mean())
    share = r.mean()
    of_objects = share * _similar_object(p[r]) + (1 - share) * _similar_object(1 - p[~r])
    return float(max(0.0, alpha * of_objects + (1 - alpha) * _similar_regions(p, r)))


def e_measure(probability: np.ndarray, reference: np.ndarray, *, over: Literal["max", "mean"] = "max") -> float | None:
    """Enhanced-alignment measure: (1 + x)^2 / 4 averaged over voxels, in [0, 1], higher is better; the best or mean of 256 thresholds.

    x = 2 a b / (a^2 + b^2) with a, b the thresholded map and the mask, each minus its mean. By the published rule an empty reference gives
    the share of voxels left out, a full one the share taken. None only without voxels. Source: Fan et al. 2018, IJCAI, eqs. 4-6 (the
    published script divides by one voxel less).
    """
    if over not in ("max", "mean"):
        raise UsageError("the E-measure is the best or the mean over thresholds", found=over, allowed="max or mean")
    p, r = _pair(probability, reference)
    if not p.size:
        return None
    taken_in, taken_out, inside, outside = _by_threshold(p, r)
    n, taken = p.size, taken_in + taken_out
    if inside == 0:
        values = 1 - taken / n
    elif outside == 0:
        values = taken / n
    else:
        mean_p, mean_r = taken / n, inside / n
        values = np.zeros(LEVELS)
        kinds = ((taken_in, 1, 1), (taken_out, 1, 0), (inside - taken_in, 0, 1), (outside - taken_out, 0, 0))
        for number, a, b in kinds:  # a voxel is one of four kinds, so no map is needed
            a, b = a - mean_p, b - mean_r
            values = values + number * (2 * a * b / (a * a + b * b + EPS) + 1) ** 2 / 4
        values = values / n
    return float(values.max() if over == "max" else values.mean())


def mean_dsc(probability: np.ndarray, reference: np.ndarray) -> float | None:
    """DSC averaged over the thresholds 0, 1/255 .. 1: mean 2 TP / (P + R), in [0, 1], higher is better (PraNet's mean Dice).

    An empty reference is undefined (None). Source: Fan et al. 2020, section 3.1.
    """
    taken_in, taken_out, inside, _ = _by_threshold(*_pair(probability, reference))
    return float((2 * taken_in / (taken_in + taken_out + inside)).mean()) if inside else None


def mean_iou(probability: np.ndarray, reference: np.ndarray) -> float | None:
    """IoU averaged over the thresholds 0, 1/255 .. 1: mean TP / (TP + FP + FN), in [0, 1], higher is better (PraNet's mean IoU).

    An empty reference is undefined (None). Source: Fan et al. 2020, section 3.1.
    """
    taken_in, taken_out, inside, _ = _by_threshold(*_pair(probability, reference))
    return float((taken_in / (taken_out + inside)).mean()) if inside else None


# ---------------------------------------------------------------------------------------------------------------------------- parts
def _pair(probability: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, r = np.asarray(probability), np.asarray(reference)
    as_masks(np.zeros(p.shape, bool), r)  # the reference is a mask of the same shape
    if not np.issubdtype(p.dtype, np.floating):
        raise GeometryError("the map is no array of probabilities", found=p.dtype, allowed="float")
    p = p.astype(np.float64, copy=False)
    if p.size and not (0 <= p.min() and p.max() <= 1):  # NaN fails too
        raise DataError("probabilities lie between 0 and 1", found=f"{p.min()} to {p.max()}", fix="apply softmax or sigmoid first")
    return p, r


def _plane(probability: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, r = _pair(probability, reference)
    if p.ndim != 2:
        raise DataError("this measure is defined on pictures of two axes", found=p.shape, fix="score volumes with mae, e_measure or dsc")
    return p, r


def _by_threshold(p: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(256,) voxels at or above each threshold inside and outside the mask; voxels inside and outside."""
    level = np.floor(p * (LEVELS - 1) + 1e-4).astype(np.int64)  # k / 255 in float32 reaches threshold k
    both = [np.bincount(level[m], minlength=LEVELS) for m in (r, ~r)]
    above = [np.cumsum(h[::-1])[::-1] for h in both]
    return above[0], above[1], int(both[0].sum()), int(both[1].sum())


def _similar_object(values: np.ndarray) -> float:
    sd = values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * values.mean() / (values.mean() ** 2 + 1 + sd + EPS)


def _similar_regions(p: np.ndarray, r: np.ndarray) -> float:
    row, column = (int(np.rint(at.mean())) + 1 for at in np.nonzero(r))
    total = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            a, b = p[rows, columns], r[rows, columns].astype(np.float64)
            if a.size:
                total += a.size / p.size * _ssim(a, b)
    return total


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    x, y, free = a.mean(), b.mean(), a.size - 1 + EPS
    spread = ((a - x) ** 2).sum() / free + ((b - y) ** 2).sum() / free
    above, below = 4 * x * y * ((a - x) * (b - y)).sum() / free, (x * x + y * y) * spread
    if above:
        return above / (below + EPS)
    return 1.0 if below == 0 else 0.0
