"""Tversky loss plus weighted cross-entropy of one structure against the rest, where somebody said what is there.

The cross-entropy is the focal loss of gamma 0, over both polarities.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .tversky import tversky_index


def tversky_bce(
    logits: Tensor, truth: Tensor, known: Tensor, *, fp: float = 0.5, fn: float = 0.5, smooth: float = 1.0, weight: float = 10.0
) -> Tensor:
    """Scalar of logits (B, *s), truth (B, *s) bool and known (B, *s) bool. 1 - (tp + smooth) / (tp + fp x false positives + fn x false
    negatives + smooth), summed over the batch, + ``weight`` x mean cross-entropy; both over known pixels only."""
    on, there = known.to(logits.dtype), truth.to(logits.dtype)
    p = logits.sigmoid()
    tversky = 1 - tversky_index(p[:, None], there[:, None], fp=fp, fn=fn, smooth=smooth, weight=on[:, None])[0]
    ce = functional.binary_cross_entropy_with_logits(logits, there, reduction="none")
    return tversky + weight * (ce * on).sum() / on.sum().clamp(min=1)
