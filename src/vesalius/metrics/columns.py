"""Columns of the table over cases: from the evidence of each case to what ``classification`` measures.

Evidence of a case is plain JSON: {"predicted": [a probability for every level], "reference": index of the right level}, or two numbers for
a real column. Where there are two levels the second is the positive one; with more, a curve is the mean over the levels against the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import UsageError
from ..ops.tabular import level
from .overlap import mean_defined

Evidence = Sequence[Mapping[str, Any]]


def evidence(column: str, predicted: Any, reference: Any, target: Mapping[str, Any] | None) -> dict:
    """What one case tells of a column: ``predicted`` as a Prediction's table holds it, ``reference`` the cell, ``target`` its declaration.

    Without a declaration a mapping names the levels, and a number against 0 or 1 is a probability. Raises UsageError for a value outside
    the levels.
    """
    levels = _levels_of(predicted, reference, target)
    if levels is None:
        return {"predicted": float(predicted), "reference": float(reference)}
    cell = level(reference)
    if cell not in levels:
        raise UsageError("a value outside the column's levels", where=column, found=cell, allowed=", ".join(levels))
    return {"predicted": _chances(column, predicted, levels), "reference": levels.index(cell)}


def answer(column: str, predicted: Any, reference: Any, target: Mapping[str, Any] | None) -> Any:
    """The cell a prediction would write: the most probable level as text, or the number of a real column; text and None as they are."""
    if predicted is None or isinstance(predicted, str):
        return predicted
    levels = _levels_of(predicted, reference, target)
    return predicted if levels is None else levels[int(np.argmax(_chances(column, predicted, levels)))]


def _levels_of(predicted: Any, reference: Any, target: Mapping[str, Any] | None) -> list[str] | None:
    """The column's levels in order; None: it holds numbers."""
    declared = target or {}
    if declared.get("kind") == "real":
        return None
    if declared.get("levels"):
        return [level(v) for v in declared["levels"]]
    if isinstance(predicted, Mapping):
        return [level(v) for v in predicted]
    return ["0", "1"] if level(reference) in ("0", "1") and 0 <= float(predicted) <= 1 else None


def _chances(column: str, predicted: Any, levels: Sequence[str]) -> list[float]:
    """A probability for every level."""
    if isinstance(predicted, Mapping):
        named = {level(k): float(v) for k, v in predicted.items()}
        return [named.get(k, 0.0) for k in levels]
    if len(levels) != 2:
        raise UsageError("one number answers a column of two levels only", where=column, found=predicted, allowed=", ".join(levels))
    return [1 - float(predicted), float(predicted)]


def ranked(function: Callable[..., float | None], cases: Evidence) -> float | None:
    """A measure f(scores, positive) of the positive level, or its mean over levels against the rest (macro) where defined.

    Undefined (None) for a real column and where it is so for every level.
    """
    if not _levels(cases):
        return None
    return macro(function, np.array([c["predicted"] for c in cases]), np.array([c["reference"] for c in cases]))


def macro(function: Callable[..., float | None], chances: np.ndarray, truth: np.ndarray) -> float | None:
    """f(scores, positive) of probabilities (n, levels) and right levels (n,): of the second of two levels, of more the mean over the levels
    against the rest where it is defined. Undefined (None) where it is so for every level."""
    of_interest = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    return mean_defined(function(chances[:, k], truth == k) for k in of_interest)


def decided(function: Callable[..., float | None], cases: Evidence) -> float | None:
    """A measure f(predicted level, right level) of the most probable levels. Undefined (None) for a real column."""
    if not _levels(cases):
        return None
    return function(np.array([int(np.argmax(c["predicted"])) for c in cases]), np.array([c["reference"] for c in cases]))


def numbers(function: Callable[..., float | None], cases: Evidence) -> float | None:
    """A measure f(predicted, reference) of a real column's numbers, or of the expected and the right level's index."""
    if _levels(cases):
        predicted = [float(np.dot(c["predicted"], np.arange(len(c["predicted"])))) for c in cases]
    else:
        predicted = [c["predicted"] for c in cases]
    return function(np.array(predicted, float), np.array([c["reference"] for c in cases], float))


def mean_absolute_error(predicted: np.ndarray, reference: np.ndarray) -> float | None:
    """mean |predicted - reference|, at least 0, lower is better, in the column's unit. Undefined (None) only without cases."""
    return float(np.abs(predicted - reference).mean()) if len(predicted) else None


def _levels(cases: Evidence) -> bool:
    return bool(cases) and isinstance(cases[0]["predicted"], Sequence)
