"""Focal Tversky loss (Abraham and Khan, ISBI 2019, https://arxiv.org/abs/1810.07842): Tversky's index with misses and false alarms weighed
apart, its distance from 1 raised to a power."""

from __future__ import annotations

from torch import Tensor


def focal_tversky(
    p: Tensor, y: Tensor, *, alpha: float = 0.7, gamma: float = 0.75, smooth: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Scalar of probabilities ``p`` and masks ``y`` (B, K, *s): |1 - (TP + s) / (TP + a FN + (1 - a) FP + s)|^g with sums over the batch,
    a mean over the K structures. ``weight`` (B, 1, *s) weighs voxels. Distances below 1e-6 count as that and have no gradient: the
    power's slope has no bound at 0."""
    w = 1.0 if weight is None else weight.to(p.dtype)
    axes = (0, *range(2, p.ndim))
    hit, missed, false = ((x * w).sum(axes) for x in (p * y, (1 - p) * y, p * (1 - y)))
    index = (hit + smooth) / (hit + alpha * missed + (1 - alpha) * false + smooth)
    return (1 - index).clamp_min(1e-6).pow(gamma).mean()
