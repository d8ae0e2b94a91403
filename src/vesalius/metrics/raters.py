"""Several raters of one image: where they agree, how much, and one map made of all.

``labels`` is a sequence of R label maps (*spatial) of class indices, 2D or 3D, with ``IGNORE`` where a rater did not speak; boolean masks
of one structure are label maps of the classes 0 and 1. A voxel where a rater is silent is neither consensus nor dissensus, and agreement is
measured where all speak (Cohen's kappa and DSC: where the pair does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ..core.case import IGNORE
from ..core.errors import DataError, GeometryError, UsageError
from .calibration import check_probability
from .classification import kappa
from .overlap import as_masks, dsc, mean_defined


def stack(labels: Sequence[np.ndarray]) -> np.ndarray:
    """(R, *spatial) integers of all raters; raises GeometryError for different shapes, DataError for no rater or for probabilities."""
    maps = [np.asarray(m) for m in labels]
    if not maps:
        raise DataError("there is no rater")
    if len({m.shape for m in maps}) > 1:
        raise GeometryError("the raters' maps have different shapes", found=sorted({m.shape for m in maps}))
    if not all(m.dtype == bool or np.issubdtype(m.dtype, np.integer) for m in maps):
        raise DataError("a rater's map holds class indices", found=sorted({str(m.dtype) for m in maps}), allowed="integers or bool")
    return np.stack([m.view(np.int8) if m.dtype == bool else m for m in maps])


# ------------------------------------------------------------------------------------------------------------- consensus and dissensus
@dataclass(frozen=True)
class Regions:
    """Of one structure, (*spatial) bool: all raters say it, all say something else, they disagree. In none of the three: one is silent."""

    foreground: np.ndarray
    background: np.ndarray
    dissensus: np.ndarray


def regions(labels: Sequence[np.ndarray], structure: int = 1) -> Regions:
    """Consensus foreground, consensus background and dissensus of class ``structure``. Source: CURVAS challenge 2024."""
    maps = stack(labels)
    spoken, said = (maps != IGNORE).all(axis=0), maps == structure
    every, some = said.all(axis=0), said.any(axis=0)
    return Regions(every & spoken, ~some & spoken, some & ~every & spoken)


def consensus_dsc(prediction: np.ndarray, labels: Sequence[np.ndarray], structure: int = 1) -> float | None:
    """DSC of a boolean mask with the consensus foreground, voxels of dissensus left out; in [0, 1], higher is better.

    Undefined (None) when both are empty there; only one empty is 0. Source: CURVAS challenge 2024.
    """
    r = regions(labels, structure)
    prediction, _ = as_masks(prediction, r.foreground)
    return dsc(prediction & (r.foreground | r.background), r.foreground)


def consensus_confidence(
    probability: np.ndarray, labels: Sequence[np.ndarray], structure: int = 1, *, how: Literal["mean", "max"] = "mean"
) -> float | None:
    """The probability (*spatial) of a structure within its consensus foreground, in [0, 1], higher is better.

    ``how``: the mean, as the CURVAS paper describes it, or the max, as its code computes it. Undefined (None) without such a consensus.
    """
    if how not in ("mean", "max"):
        raise UsageError("unknown summary of confidence", found=how, allowed="mean, max")
    region = regions(labels, structure).foreground
    if np.shape(probability) != region.shape:
        raise GeometryError("probability and raters' maps have different shapes", found=np.shape(probability), allowed=region.shape)
    inside = np.asarray(probability)[region]
    check_probability(inside)
    if inside.size == 0:
        return None
    return float(inside.max() if how == "max" else inside.mean(dtype=np.float64))


# -------------------------------------------------------------------------------------------------------------------------- one map of all
def majority(labels: Sequence[np.ndarray], *, undecided: int = IGNORE) -> np.ndarray:
    """(*spatial) the class most raters say; ``undecided`` where the first place is shared or nobody spoke. Silent raters do not vote."""
    maps = stack(labels)
    best, votes = np.full(maps.shape[1:], undecided, np.result_type(maps.dtype, np.int16)), np.zeros(maps.shape[1:], np.uint16)
    for k in np.unique(maps):
        if k == IGNORE:
            continue
        said = (maps == k).sum(axis=0, dtype=np.uint16)
        best[said > votes] = k
        best[(said == votes) & (said > 0)] = undecided
        np.maximum(votes, said, out=votes)
    return best


@dataclass(frozen=True)
class Staple:
    """``probability`` (*spatial) that the structure is there, NaN where a rater is silent; by rater ``sensitivity`` and ``specificity``
    (None: nobody says the structure, or nobody says anything else)."""

    probability: np.ndarray
    sensitivity: tuple[float | None, ...]
    specificity: tuple[float | None, ...]


def staple(labels: Sequence[np.ndarray], structure: int = 1, *, roi: np.ndarray | None = None) -> Staple:
    """STAPLE of one structure by SimpleITK, over the voxels all raters speak for (inside ``roi`` (*spatial, bool) if given).

    The prior is the structure's mean share of those voxels, so a wide background moves the result; a region of interest keeps it out.
    Voxels are independent in STAPLE, so the grid's dimension does not matter. If all say the structure everywhere, or nowhere, that is the
    result. Source: Warfield, Zou and Wells 2004, doi:10.1109/TMI.2004.828354.
    """
    import SimpleITK as sitk

    maps, keep = _selected(labels, roi)
    said = maps == structure
    probability = np.full(keep.shape, np.nan)
    if said.size and said.any() and not said.all():
        run = sitk.STAPLEImageFilter()
        run.SetForegroundValue(1)
        probability[keep] = sitk.GetArrayFromImage(run.Execute([sitk.GetImageFromArray(m[None].astype(np.uint8)) for m in said]))[0]
        return Staple(probability, tuple(run.GetSensitivity()), tuple(run.GetSpecificity()))
    probability[keep] = float(said.any())
    right, unknown = (1.0,) * len(said), (None,) * len(said)
    return Staple(probability, right if said.any() else unknown, right if said.size and not said.any() else unknown)


def staple_labels(labels: Sequence[np.ndarray], *, roi: np.ndarray | None = None, undecided: int = IGNORE) -> np.ndarray:
    """(*spatial) the most probable class by multi-label STAPLE (SimpleITK), ``undecided`` for ties, silent raters and outside ``roi``.

    Source: Rohlfing, Russakoff and Maurer 2004, doi:10.1109/TMI.2004.830803, as in ITK's MultiLabelSTAPLE.
    """
    import SimpleITK as sitk

    maps, keep = _selected(labels, roi)
    out = np.full(keep.shape, undecided, np.result_type(maps.dtype, np.int16))
    if maps.size == 0:
        return out
    classes, index = np.unique(maps, return_inverse=True)
    run = sitk.MultiLabelSTAPLEImageFilter()
    run.SetLabelForUndecidedPixels(len(classes))
    best = run.Execute([sitk.GetImageFromArray(m[None].astype(np.uint16)) for m in index.reshape(maps.shape)])
    out[keep] = np.append(classes, undecided).astype(out.dtype)[sitk.GetArrayFromImage(best)[0]]
    return out


def _selected(labels: Sequence[np.ndarray], roi: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(R, n) the labels of the voxels all speak for, and where they are (*spatial) bool."""
    maps = stack(labels)
    keep = (maps != IGNORE).all(axis=0)
    if roi is not None:
        roi = np.asarray(roi)
        if roi.dtype != bool or roi.shape != keep.shape:
            raise GeometryError("a region of interest is a boolean mask of the labels' shape", found=(roi.dtype, roi.shape))
        keep &= roi
    return maps[:, keep], keep


# ------------------------------------------------------------------------------------------------------------------------------ agreement
def fleiss_kappa(labels: Sequence[np.ndarray]) -> float | None:
    """Fleiss' kappa: (P - Pe) / (1 - Pe), at most 1, higher is more agreement; P the mean share of agreeing pairs of raters per voxel, Pe
    the sum of the classes' squared shares.

    ``labels`` (R, n) of any items will do. Undefined (None) for one rater, no item, or one class only. Source: Fleiss 1971,
    doi:10.1037/h0031619.
    """
    maps, _ = _selected(labels, None)
    r, n = maps.shape
    if r < 2 or n == 0:
        return None
    agreeing, chance = 0, 0.0
    for k in np.unique(maps):
        votes = np.bincount((maps == k).sum(axis=0), minlength=r + 1)  # how many voxels got 0..R votes for k
        number = np.arange(r + 1)
        agreeing += int(votes @ (number * (number - 1)))
        chance += (int(votes @ number) / (n * r)) ** 2
    return (agreeing / (n * r * (r - 1)) - chance) / (1 - chance) if chance < 1 else None


def cohen_kappas(
    labels: Sequence[np.ndarray], *, weights: Literal["linear", "quadratic"] | None = None
) -> dict[tuple[int, int], float | None]:
    """Cohen's kappa of every pair of raters, by their places (i < j), where both speak; None for one class only. See ``kappa``."""
    return {pair: kappa(*both, weights=weights) for pair, both in _pairs(labels)}


def cohen_kappa(labels: Sequence[np.ndarray], *, weights: Literal["linear", "quadratic"] | None = None) -> float | None:
    """The mean of the raters' pairwise Cohen kappas that are defined, at most 1, higher is more agreement; none is undefined (None)."""
    return mean_defined(cohen_kappas(labels, weights=weights).values())


def pairwise_dsc(labels: Sequence[np.ndarray], structure: int = 1) -> float | None:
    """The mean DSC of all pairs of raters, in [0, 1], higher is more agreement: what a method can be expected to reach.

    Pairs of two empty masks are left out; no pair left is undefined (None).
    """
    return mean_defined(dsc(a == structure, b == structure) for _, (a, b) in _pairs(labels))


def _pairs(labels: Sequence[np.ndarray]):
    maps = stack(labels)
    for i, j in combinations(range(len(maps)), 2):
        both = (maps[i] != IGNORE) & (maps[j] != IGNORE)
        yield (i, j), (maps[i][both], maps[j][both])
