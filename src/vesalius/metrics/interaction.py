"""What corrections cost: quality against the number of interactions.

A curve is the quality of one object after each interaction, ``curve[k]`` after ``first + k`` of them (``first`` = 0 when the curve starts
with the quality before any); None and NaN are undefined and reach nothing. ``curves_of`` makes them from Score rows with ``step``.
``better`` says which way quality grows. Somebody who is content stops: after its end a curve stays at its last value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import DataError, UsageError
from ..core.prediction import Score

Curve = Sequence[float | None] | np.ndarray
Key = tuple[str, str, str, str]


def curves_of(rows: Iterable[Score], metric: str) -> tuple[dict[Key, list[float | None]], int]:
    """The curves of a metric by (case, structure, query, rater), and ``first``: the smallest step of all rows.

    A step without a row is undefined. Rows of other metrics and without step are left out; a step that stands twice is a DataError.
    """
    found: dict[Key, dict[int, float | None]] = {}
    for row in rows:
        if row.metric != metric or row.step is None:
            continue
        steps = found.setdefault((row.case, row.structure, row.query, row.rater), {})
        if row.step in steps:
            raise DataError(
                "two rows of one step", where=f"case {row.case}", found=f"{metric} of {row.structure or 'all'}, step {row.step}"
            )
        steps[row.step] = row.value
    first = min((min(steps) for steps in found.values()), default=1)
    return {key: [steps.get(n) for n in range(first, max(steps) + 1)] for key, steps in found.items()}, first


def noc(curve: Curve, quality: float, *, cap: int = 20, first: int = 1, better: Literal["higher", "lower"] = "higher") -> int:
    """Interactions of one object until it first reaches ``quality``; ``cap`` when it does not within that many."""
    reached = _reached(curve, quality, cap, first, better)
    return cap if reached is None else reached


def noc_at(
    curves: Iterable[Curve], quality: float, *, cap: int = 20, first: int = 1, better: Literal["higher", "lower"] = "higher"
) -> float | None:
    """NoC@q: the mean number of interactions until ``quality`` is first reached, lower is better; who fails counts ``cap``.

    Read it beside ``success_rate`` at the same cap. Undefined (None) without curves. Source: Xu et al. 2016, arXiv:1603.04042; the cap of
    20: Sofiiuk et al. 2022, arXiv:2102.06583.
    """
    numbers = [noc(curve, quality, cap=cap, first=first, better=better) for curve in curves]
    return float(np.mean(numbers)) if numbers else None


def success_rate(
    curves: Iterable[Curve], quality: float, *, budget: int = 20, first: int = 1, better: Literal["higher", "lower"] = "higher"
) -> float | None:
    """The share of objects that reach ``quality`` within ``budget`` interactions, in [0, 1], higher is better. None without curves.

    Source: 1 - the failure rate of Sofiiuk et al. 2022.
    """
    reached = [_reached(curve, quality, budget, first, better) is not None for curve in curves]
    return float(np.mean(reached)) if reached else None


@dataclass(frozen=True)
class Effort:
    """By number of interactions ``steps`` (n,): the mean quality ``mean`` (n,), NaN where undefined, of ``defined`` (n,) objects."""

    steps: np.ndarray
    mean: np.ndarray
    defined: np.ndarray


def effort(curves: Iterable[Curve], *, first: int = 1, budget: int | None = None) -> Effort:
    """Mean quality by number of interactions, up to ``budget`` (None: the longest curve).

    An ended curve keeps its last value; undefined values within a curve are left out of that step's mean.
    """
    values = [v for v in map(_numbers, curves) if len(v)]
    longest = max((len(c) for c in values), default=0)
    n = longest if budget is None else max(0, budget - first + 1)
    table = np.array([np.pad(c[:n], (0, n - len(c[:n])), mode="edge") for c in values]).reshape(len(values), n)
    defined = (~np.isnan(table)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return Effort(np.arange(first, first + n), np.nansum(table, axis=0) / defined, defined)


def effort_area(curves: Iterable[Curve], *, first: int = 1, budget: int | None = None) -> float | None:
    """Normalised area under the effort curve: its trapezoids over the number of interactions they span, in the quality's unit and range.

    It is the mean quality on the way, so quick methods win over ones that only end well. Undefined (None) for fewer than two steps, or
    where a step has no defined value. Source: the DSC AUC of the CVPR 2025 challenge on interactive 3D
    segmentation, here over the span.
    """
    e = effort(curves, first=first, budget=budget)
    if e.steps.size < 2 or np.isnan(e.mean).any():
        return None
    return float(np.trapezoid(e.mean, e.steps) / (e.steps[-1] - e.steps[0]))


def _reached(curve: Curve, quality: float, cap: int, first: int, better: str) -> int | None:
    if better not in ("higher", "lower"):
        raise UsageError("quality grows one way", found=better, allowed="higher, lower")
    if cap < 1 or not np.isfinite(quality):
        raise UsageError("NoC needs a finite quality and a cap of at least one interaction", found=(quality, cap))
    values = _numbers(curve)
    hit = np.flatnonzero(values >= quality if better == "higher" else values <= quality)
    return int(hit[0]) + first if hit.size and hit[0] + first <= cap else None


def _numbers(curve: Curve) -> np.ndarray:
    values = np.array([np.nan if v is None else v for v in curve], np.float64)
    if np.isinf(values).any():
        raise DataError("a curve holds infinite values", found=values.tolist())
    return values
