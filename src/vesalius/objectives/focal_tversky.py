"""Focal Tversky loss (Abraham and Khan, ISBI 2019, https://arxiv.org/abs/1810.07842): Tversky's index with misses and false alarms weighed
apart, its distance from 1 raised to a power."""

from __future__ import annotations

from torch import Tensor

from .tversky import tversky_index


def focal_tversky(
    p: Tensor, y: Tensor, *, alpha: float = 0.7, gamma: float = 0.75, smooth: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Scalar of probabilities ``p`` and masks ``y`` (B, K, *s): |1 - (TP + s) / (TP + a FN + (1 - a) FP + s)|^g with sums over the batch,
    a mean over the K structures. ``weight`` (B, 1, *s) weighs voxels. Distances below 1e-6 count as that and have no gradient: the
    power's slope has no bound at 0."""
    index = tversky_index(p, y, fp=1 - alpha, fn=alpha, smooth=smooth, weight=weight)
    return (1 - index).clamp_min(1e-6).pow(gamma).mean()
