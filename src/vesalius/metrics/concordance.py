"""How a reader study measures an aid: lesions localised against false marks, agreement with radiologists, and how usable they find it.

The evaluation of a breast cancer detector in a Thai population (arXiv:2506.03177), of which only the abstract could be read: JAFROC axes,
concordance of class and location, acceptance, System Usability Scale. What counts as the same location is therefore an argument here.
Marks are points (n, d) or boxes with a rating; the sizes and positions are in mm or pixels, the same for marks and lesions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import DataError, UsageError
from .detection import froc_curve, llf, marks, nlf


# --------------------------------------------------------------------------------------------------------------------- marks: LLF and NLF
@dataclass(frozen=True)
class Marked:
    """One image: marks ``at`` (n, d) with ``ratings`` (n,), and the lesions that are there as boxes ``low``, ``high`` (m, d)."""

    at: np.ndarray
    ratings: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self):
        at, ratings, low, high = (np.asarray(x, float) for x in (self.at, self.ratings, self.low, self.high))
        d = next((x.shape[1] for x in (at, low) if x.ndim == 2 and x.size), 2)
        at, low, high = (x.reshape(-1, d) if x.size == 0 else x for x in (at, low, high))
        if at.ndim != 2 or low.ndim != 2 or low.shape != high.shape or low.shape[1] != at.shape[1] or ratings.shape != at.shape[:1]:
            shapes = tuple(x.shape for x in (at, ratings, low, high))
            raise DataError("marks are (n, d) points with (n,) ratings, lesions (m, d) boxes", found=shapes)
        if not all(np.isfinite(x).all() for x in (at, ratings, low, high)) or (low > high).any():
            raise DataError("marks and lesions are finite numbers, and boxes run from low to high")
        for name, value in zip(("at", "ratings", "low", "high"), (at, ratings, low, high), strict=True):
            object.__setattr__(self, name, value)

    def evidence(self, radius: float = 0.0) -> dict:
        """What ``detection.llf``, ``nlf`` and ``froc_curve`` pool: a mark is on a lesion in its box or within ``radius`` of it.

        Several marks on one lesion localise it once and are no false marks; a mark on two lesions localises both.
        """
        if not radius >= 0:
            raise UsageError("a radius is not negative", found=radius)
        outside = np.maximum(np.maximum(self.low[None] - self.at[:, None], self.at[:, None] - self.high[None]), 0)  # (n, m, d)
        return marks(np.linalg.norm(outside, axis=-1) <= radius, self.ratings)


@dataclass(frozen=True)
class LocalisationCurve:
    """By threshold, falling: ``llf`` (lesion localisation fraction) and ``nlf`` (non-lesion marks an image), both (n,)."""

    thresholds: np.ndarray
    llf: np.ndarray
    nlf: np.ndarray

    def llf_at(self, nlf: float) -> float | None:
        """The largest LLF at no more than ``nlf`` false marks an image; 0 when every threshold has more; None without lesions."""
        if np.isnan(self.llf).any():
            return None
        return float(self.llf[self.nlf <= nlf].max(initial=0.0))


def localisation(images: Sequence[Marked], *, radius: float = 0.0) -> LocalisationCurve:
    """LLF = lesions with a mark / lesions and NLF = marks off every lesion / images, with every rating as a threshold (marks rated at least
    that count); higher LLF and lower NLF are better.

    Images without lesions or marks count in the denominator of NLF. Without lesions LLF is NaN. Source: Chakraborty 2017, Observer
    performance methods, chapter 12 (the axes of JAFROC).
    """
    if not images:
        raise DataError("there is no image to score")
    thresholds, nlf, llf = froc_curve([one.evidence(radius) for one in images])
    return LocalisationCurve(thresholds, llf, nlf)


def marks_of_boxes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n, d) marks at the centres of boxes."""
    return (np.asarray(low, float) + np.asarray(high, float)) / 2


def case_score(views: Mapping[str, float | None] | Sequence[float | None]) -> float | None:
    """The score of an examination: the largest of its views' (missing views are None); None without any."""
    known = [float(v) for v in (views.values() if isinstance(views, Mapping) else views) if v is not None]
    return max(known) if known else None


# --------------------------------------------------------------------------------------------------------------------------- concordance
@dataclass(frozen=True)
class Share:
    """``count`` of ``total`` with the Wilson 95 % interval; the value is None for a total of 0."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson 1927, doi:10.1080/01621459.1927.10502953, at 95 %; None for a total of 0."""
        if not self.total:
            return None
        n, p, z = self.total, self.count / self.total, 1.959963984540054
        middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return float(max(0.0, (middle - half) / (1 + z * z / n))), float(min(1.0, (middle + half) / (1 + z * z / n)))


def class_concordance(model: Sequence[object], reader: Sequence[object]) -> Share:
    """Cases in which model and reader say the same class, of those where both said one (None is silence)."""
    both = _paired(model, reader)
    return Share(sum(m == r for m, r in both), len(both))


def location_concordance(
    images: Sequence[Marked], *, threshold: float, radius: float = 0.0, among: Literal["both", "any", "all"] = "any"
) -> Share:
    """Images in which model and reader mark the same places: every lesion the reader boxed has a mark rated at least ``threshold`` on it
    and no such mark is elsewhere.

    The boxes of ``Marked`` are the reader's. ``among``: of the images that 'both' marked, that 'any' of them marked, or of 'all' (two empty
    opinions then agree). Which of them the study used is not in its abstract.
    """
    if among not in ("both", "any", "all"):
        raise UsageError("unknown base of the concordance", found=among, allowed="both, any, all")
    agree, base = 0, 0
    for one in images:
        marked, boxed = bool((one.ratings >= threshold).any()), len(one.low) > 0
        if (among == "both" and not (marked and boxed)) or (among == "any" and not (marked or boxed)):
            continue
        base += 1
        seen = [one.evidence(radius)]
        agree += nlf(seen, threshold=threshold) == 0 and llf(seen, threshold=threshold) in (1, None)
    return Share(agree, base)


def acceptance(decisions: Sequence[bool | None]) -> Share:
    """Results an expert accepted, of those looked at (None was not)."""
    said = [bool(d) for d in decisions if d is not None]
    return Share(sum(said), len(said))


def _paired(a: Sequence[object], b: Sequence[object]) -> list[tuple[object, object]]:
    if len(a) != len(b):
        raise DataError("two opinions are of the same cases", found=(len(a), len(b)))
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


# ----------------------------------------------------------------------------------------------------------------------------- usability
def system_usability(answers: Sequence[int]) -> float:
    """System Usability Scale of one person: ten answers of 1 (disagree) to 5 (agree) -> 0 to 100, higher is better.

    2.5 (sum over odd items of (x - 1) + sum over even items of (5 - x)), items counted from 1. Raises DataError for other answers; a
    questionnaire with a gap has no score. Source: Brooke 1996, 'SUS: a quick and dirty usability scale'.
    """
    x = np.asarray(answers)
    if x.shape != (10,) or not np.issubdtype(x.dtype, np.integer) or x.min() < 1 or x.max() > 5:
        raise DataError("the scale has ten answers", found=list(answers), allowed="whole numbers from 1 to 5")
    return float(2.5 * ((x[0::2] - 1).sum() + (5 - x[1::2]).sum()))
