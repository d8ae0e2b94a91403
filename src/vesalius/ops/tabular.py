"""Tables of numbers: rows with gaps as arrays, and scikit-learn's classifiers kept as plain arrays, so that nothing is pickled.

A model is fitted by scikit-learn and asked without it: ``Model`` holds coefficients or the nodes of trees and gives the same probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError, UsageError, nearest
from .search import Range, Space

Kind = Literal["logistic", "tree", "forest", "boosting", "mlp"]
_WEIGHT = ("even", "balanced")
SPACES: Mapping[str, Space] = {  # what is searched, around scikit-learn's defaults
    "logistic": {"C": Range(1e-3, 1e2, log=True), "weight": _WEIGHT},
    "tree": {"depth": Range(1, 12, whole=True), "leaf": Range(1, 20, whole=True), "weight": _WEIGHT},
    "forest": {
        "trees": Range(20, 200, log=True, whole=True),
        "depth": Range(2, 16, whole=True),
        "leaf": Range(1, 10, whole=True),
        "features": Range(0.1, 1.0),
        "weight": _WEIGHT,
    },
    "boosting": {
        "trees": Range(20, 200, log=True, whole=True),
        "rate": Range(0.01, 0.5, log=True),
        "depth": Range(1, 5, whole=True),
        "leaf": Range(1, 20, whole=True),
        "subsample": Range(0.5, 1.0),
    },
    "mlp": {
        "width": Range(4, 64, log=True, whole=True),
        "layers": Range(1, 2, whole=True),
        "alpha": Range(1e-5, 1.0, log=True),
        "rate": Range(1e-4, 3e-2, log=True),
    },
}
_NAMES = {  # ours -> scikit-learn's
    "weight": "class_weight",
    "depth": "max_depth",
    "leaf": "min_samples_leaf",
    "trees": "n_estimators",
    "features": "max_features",
    "rate": "learning_rate",
}


def level(value: Any) -> str:
    """The level a cell names: 1, 1.0, True and '1' are one level."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (float, np.floating)) and float(value).is_integer()):
        return str(int(value))
    return str(value)


def levels_of(cells: Iterable[Any]) -> list[str]:
    """The levels that these cells name, each once: by number where all are numbers, else by their letters. Empty cells name none."""
    values = {v for v in cells if v not in (None, "") and v == v}
    by_number = all(isinstance(v, (int, float)) for v in values)
    return sorted({level(v) for v in values}, key=float if by_number else str)


def target_of(rows: Sequence[Mapping[str, Any]], column: str, declared: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """{"kind", "levels"} of a column: as declared, else nominal with the levels that these rows have, in order. Raises UsageError for an
    unknown column, DataError where fewer than two values are known."""
    columns = {k for row in rows for k in row}
    if column not in columns:
        raise UsageError(f"'{column}' is no column of the table", fix=nearest(column, columns))
    levels = levels_of(row.get(column) for row in rows)
    if len(levels) < 2 and (declared or {}).get("kind") != "real":
        raise DataError(f"'{column}' has fewer than two values among the training cases", found=", ".join(levels) or "none")
    return dict(declared) if declared else {"kind": "nominal", "levels": levels}


def numeric(rows: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns that hold a number in some row and text in none, in order."""
    columns = dict.fromkeys(k for row in rows for k in row if k not in without)
    held = {k: [row.get(k) for row in rows if row.get(k) not in (None, "")] for k in columns}
    return tuple(k for k, v in held.items() if v and all(isinstance(x, (int, float)) for x in v))


def matrix(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> np.ndarray:
    """(n, p) float64, NaN where a cell is empty, the column absent or the number not finite. Raises DataError for text."""
    out = np.full((len(rows), len(columns)), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = row.get(column)
            if cell in (None, ""):
                continue
            if not isinstance(cell, (int, float)):
                raise DataError(f"column '{column}' holds a word where the model takes a number", found=repr(cell))
            out[i, j] = cell if np.isfinite(cell) else np.nan
    return out


@dataclass(frozen=True)
class Scaler:
    """What stands for a gap and the unit of each column, all from the rows it was fitted to: rows of (3, p) are median, mean and sd.
    ``gaps``: one more 0/1 column for each of ``p`` that had gaps then, which says whether the number was missing."""

    facts: np.ndarray
    gaps: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, *, indicators: bool = False) -> Scaler:
        known = np.isfinite(x)
        median = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(x.T, known.T, strict=True)])
        full = np.where(known, x, median)
        sd = full.std(0)
        gaps = np.flatnonzero(~known.all(0) & known.any(0)) if indicators else np.zeros(0, int)
        return cls(np.stack([median, full.mean(0), np.where(sd > 1e-12, sd, 1.0)]), gaps)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, p) with gaps -> (n, p + indicators) float64 without."""
        median, mean, sd = self.facts
        known = np.isfinite(x)
        return np.column_stack([(np.where(known, x, median) - mean) / sd, ~known[:, self.gaps]])


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted classifier of ``levels`` classes as arrays; ``classes``: the levels it was shown (others get probability 0)."""

    kind: str
    levels: int
    arrays: Mapping[str, np.ndarray]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, p) -> (n, levels) probabilities, rows sum to 1."""
        a = self.arrays
        if "roots" in a:
            p = _forest(a, x) if self.kind != "boosting" else _chances(_boosted(a, x))
        else:
            hidden = np.asarray(x, float)
            layers = sum(k.startswith("weight") for k in a)
            for n in range(layers):
                hidden = hidden @ a[f"weight{n}"] + a[f"bias{n}"]
                hidden = np.maximum(hidden, 0) if n < layers - 1 else hidden
            p = _chances(hidden)
        out = np.zeros((len(p), self.levels))
        out[:, a["classes"]] = p
        return out


def fit(kind: Kind, x: np.ndarray, y: np.ndarray, levels: int, options: Mapping[str, Any] | None = None, seed: int = 0) -> Model:
    """Fit scikit-learn's classifier ``kind`` to (n, p) numbers without gaps and (n,) level indices; ``options`` are those of ``SPACES``,
    scikit-learn's defaults where not given. Raises DataError where fewer than two levels are present."""
    classes = np.unique(y)
    if len(classes) < 2:
        raise DataError("a classifier learns from two classes at least", found=f"{len(classes)} among {len(y)} cases")
    given = {_NAMES.get(k, k): v for k, v in (options or {}).items()}
    if "class_weight" in given:
        given["class_weight"] = None if given["class_weight"] == "even" else "balanced"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that did not converge: the search sees the score
        fitted = _estimator(kind, given, seed).fit(x, y)
    arrays = _TREES[kind](fitted) if kind in _TREES else _layers(fitted)
    return Model(kind, levels, {"classes": classes.astype(np.int64), **arrays})


@dataclass(frozen=True, eq=False)
class Scaled:
    """A model behind the scaler of the rows it was fitted to: it takes rows with gaps."""

    scaler: Scaler
    model: Model

    @classmethod
    def fit(
        cls,
        kind: Kind,
        x: np.ndarray,
        y: np.ndarray,
        levels: int,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        *,
        indicators: bool = False,
    ) -> Scaled:
        """``Scaler.fit`` and ``fit`` to the same rows (n, p), which may have gaps."""
        scaler = Scaler.fit(x, indicators=indicators)
        return cls(scaler, fit(kind, scaler(x), y, levels, options, seed))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, p) -> (n, levels) probabilities."""
        return self.model(self.scaler(x))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything it is made of, by name: what a method saves."""
        own = {f"model.{k}": v for k, v in self.model.arrays.items()}
        return own | {"scaler.facts": self.scaler.facts, "scaler.gaps": self.scaler.gaps}

    @classmethod
    def of(cls, kind: str, levels: int, arrays: Mapping[str, np.ndarray]) -> Scaled | None:
        """The inverse of ``arrays``; None where there is no model among them."""
        own = {k.removeprefix("model."): np.asarray(v) for k, v in arrays.items() if k.startswith("model.")}
        if not own:
            return None
        return cls(Scaler(np.asarray(arrays["scaler.facts"]), np.asarray(arrays["scaler.gaps"])), Model(kind, levels, own))


def _estimator(kind: str, given: dict[str, Any], seed: int) -> Any:
    if kind == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=500, **given)
    if kind == "tree":
        from sklearn.tree import DecisionTreeClassifier

        return DecisionTreeClassifier(random_state=seed, **given)
    if kind == "mlp":
        from sklearn.neural_network import MLPClassifier

        sizes = (given.pop("width", 32),) * given.pop("layers", 1)
        rate = given.pop("learning_rate", 1e-3)
        return MLPClassifier(sizes, max_iter=200, random_state=seed, learning_rate_init=rate, **given)
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    return {"forest": RandomForestClassifier, "boosting": GradientBoostingClassifier}[kind](random_state=seed, **given)


def _layers(fitted: Any) -> dict[str, np.ndarray]:
    """Weights (inputs, outputs) and biases, of a regression one layer."""
    if hasattr(fitted, "coefs_"):
        pairs = list(zip(fitted.coefs_, fitted.intercepts_, strict=True))
    else:
        pairs = [(fitted.coef_.T, fitted.intercept_)]
    return {f"{k}{n}": np.asarray(v, float) for n, pair in enumerate(pairs) for k, v in zip(("weight", "bias"), pair, strict=True)}


def _nodes(trees: Sequence[Any]) -> dict[str, np.ndarray]:
    """All trees' nodes one after the other; children and roots count from the first."""
    start = np.cumsum([0, *(t.node_count for t in trees)])
    child = lambda name: np.concatenate([np.where(getattr(t, name) < 0, -1, getattr(t, name) + s) for t, s in zip(trees, start)])
    return {
        "left": child("children_left"),
        "right": child("children_right"),
        "feature": np.concatenate([t.feature for t in trees]).astype(np.int64),
        "threshold": np.concatenate([t.threshold for t in trees]),
        "value": np.concatenate([t.value[:, 0, :] for t in trees]),
        "roots": start[:-1].astype(np.int64),
    }


def _boosting_arrays(fitted: Any) -> dict[str, np.ndarray]:
    """Regression trees round after round, and the log odds (or log shares) it starts from."""
    prior = np.clip(fitted.init_.class_prior_, 1e-12, 1)
    start = np.log(prior[1:] / prior[0]) if len(prior) == 2 else np.log(prior)
    nodes = _nodes([t.tree_ for t in fitted.estimators_.ravel()])
    return {**nodes, "start": start, "rate": np.array([fitted.learning_rate])}


_TREES = {
    "tree": lambda fitted: _nodes([fitted.tree_]),
    "forest": lambda fitted: _nodes([t.tree_ for t in fitted.estimators_]),
    "boosting": _boosting_arrays,
}


def _leaves(a: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """(n, trees): the leaf that each row reaches (compared in float32, as scikit-learn does)."""
    x = np.asarray(x, np.float32)
    at = np.broadcast_to(a["roots"], (len(x), len(a["roots"]))).copy()
    row = np.arange(len(x))[:, None]
    while (inner := a["left"][at] >= 0).any():
        goes_left = x[row, np.where(inner, a["feature"][at], 0)] <= a["threshold"][at]
        at = np.where(inner, np.where(goes_left, a["left"][at], a["right"][at]), at)
    return at


def _forest(a: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    shares = a["value"][_leaves(a, x)]
    return (shares / shares.sum(-1, keepdims=True)).mean(1)


def _boosted(a: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    steps = a["value"][_leaves(a, x)][..., 0]
    return a["start"] + a["rate"] * steps.reshape(len(x), -1, len(a["start"])).sum(1)


def _chances(raw: np.ndarray) -> np.ndarray:
    """Log odds (n, 1) or logits (n, K) -> probabilities of all classes."""
    if raw.shape[1] == 1:
        raw = np.concatenate([np.zeros_like(raw), raw], 1)
    e = np.exp(raw - raw.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
