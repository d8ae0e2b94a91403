"""Tversky loss plus weighted cross-entropy of one structure against the rest, where somebody said what is there.

Salehi et al. 2017 (doi:10.1007/978-3-319-67389-9_44) for the Tversky index; with both weights 0.5 it is the soft Dice. The cross-entropy is
the focal loss of gamma 0, over both polarities.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def tversky_bce(
    logits: Tensor, truth: Tensor, known: Tensor, *, fp: float = 0.5, fn: float = 0.5, smooth: float = 1.0, weight: float = 10.0
) -> Tensor:
    """Scalar of logits (B, *s), truth (B, *s) bool and known (B, *s) bool. 1 - (tp + smooth) / (tp + fp x false positives + fn x false
    negatives + smooth), summed over the batch, + ``weight`` x mean cross-entropy; both over known pixels only."""
    on, there = known.to(logits.dtype), truth.to(logits.dtype)
    p = logits.sigmoid()
    tp, wrong, missed = ((x * on).sum() for x in (p * there, p * (1 - there), (1 - p) * there))
    tversky = 1 - (tp + smooth) / (tp + fp * wrong + fn * missed + smooth)
    ce = functional.binary_cross_entropy_with_logits(logits, there, reduction="none")
    return tversky + weight * (ce * on).sum() / on.sum().clamp(min=1)
