"""Feature maps of one level at the size of another."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, *s) in two or three dimensions at the size of ``like`` (B, *, *t), linearly between voxel centres; ``x`` itself where that is
    its size."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return x if x.shape[2:] == like.shape[2:] else interpolate(x, like.shape[2:], mode=mode, align_corners=False)
