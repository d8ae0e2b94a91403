"""Weights that grow with training; ``fraction`` is ``Clock.fraction`` (0 to 1), so they scale with the budget."""

from __future__ import annotations

import math


def sigmoid_ramp(fraction: float, until: float = 1.0) -> float:
    """exp(-5 (1 - t)^2) with t = fraction / until, 1 from ``until`` on (Laine & Aila 2017)."""
    if until <= 0:
        return 1.0
    t = min(max(fraction / until, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def cosine_decay(fraction: float, floor: float = 0.0) -> float:
    """1 at the start, ``floor`` at the end, half a cosine between."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


def poly_decay(fraction: float, power: float = 0.9) -> float:
    """(1 - t)^power."""
    return (1.0 - min(max(fraction, 0.0), 1.0)) ** power
