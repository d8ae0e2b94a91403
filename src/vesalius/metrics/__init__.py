"""Metrics as pure functions, one table of them, and the rows of a case.

Definitions follow Metrics Reloaded; every docstring has its formula and its empty-mask rule. A value that is undefined is None.
"""

from __future__ import annotations

from .detection import Matching
from .overlap import Counts, counts
from .pooling import as_score, carrier, effort, gaps, pool
from .score import check_metrics, score_case, score_prediction
from .surface import SurfaceDistances, surfaces
from .table import DEFAULT, METRICS, NEEDS, PROBABLE, TOLERANCE, Metric, metric

__all__ = [
    "DEFAULT",
    "METRICS",
    "NEEDS",
    "PROBABLE",
    "TOLERANCE",
    "Counts",
    "Matching",
    "Metric",
    "SurfaceDistances",
    "as_score",
    "carrier",
    "check_metrics",
    "counts",
    "effort",
    "gaps",
    "metric",
    "pool",
    "score_case",
    "score_prediction",
    "surfaces",
]
