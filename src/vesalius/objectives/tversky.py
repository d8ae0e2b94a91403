"""Tversky's index of soft masks (Salehi et al. 2017, doi:10.1007/978-3-319-67389-9_44): the overlap in which misses and false alarms have
weights of their own; with one half for both it is the soft Dice."""

from __future__ import annotations

from torch import Tensor


def tversky_index(
    p: Tensor, y: Tensor, *, fp: float, fn: float, smooth: float, weight: Tensor | None = None, absent_is_right: bool = True
) -> Tensor:
    """(K,) of probabilities ``p`` and masks ``y`` (B, K, *s): (TP + s) / (TP + fp FP + fn FN + s), sums over the batch; ``weight``
    (B, 1, *s) weighs voxels. Without ``absent_is_right`` s stands below the line alone, and a class that nobody sees has index 0."""
    w = 1.0 if weight is None else weight.to(p.dtype)
    axes = (0, *range(2, p.ndim))
    hit, false, missed = ((x * w).sum(axes) for x in (p * y, p * (1 - y), (1 - p) * y))
    return (hit + smooth * absent_is_right) / (hit + fp * false + fn * missed + smooth).clamp_min(1e-8)
