"""Feature maps of one level at the size of another."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, h, w) at the size of ``like`` (B, *, H, W), bilinearly between pixel centres; ``x`` itself where that is its size."""
    return x if x.shape[2:] == like.shape[2:] else interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
