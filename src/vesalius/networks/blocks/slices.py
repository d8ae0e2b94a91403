"""Two-dimensional networks on volumes: the slices along the last axis (axial ones of a prepared case) become images of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.errors import UsageError


def thin_axis(axis: int, window: Sequence[int] = ()) -> int:
    """The axis to cut across: ``axis``, or for -1 that of the shortest side of ``window`` (the last of several, or where there is none)."""
    if axis not in (-1, 0, 1, 2):
        raise UsageError("no such axis to cut across", where="axis", found=axis, allowed="0, 1, 2, or -1 for the shortest")
    if axis >= 0 or len(window) != 3:
        return axis % 3
    return 2 - list(window[::-1]).index(min(window))


def in_plane(rows: Sequence[Sequence[int]], axis: int) -> tuple[tuple[int, ...], ...]:
    """Strides or kernels, a row a level, without those of ``axis`` (-1: with all)."""
    return tuple(tuple(v for a, v in enumerate(row) if a != axis) for row in rows)


def to_slices(x: Tensor) -> Tensor:
    """Volumes (B, ..., h, w, d) -> their slices (B d, ..., h, w), those of one volume after each other."""
    return x.movedim(-1, 1).flatten(0, 1)


def from_slices(x: Tensor, depth: int) -> Tensor:
    """Slices (B d, ..., h, w) -> volumes (B, ..., h, w, d); the inverse of ``to_slices``."""
    return x.unflatten(0, (-1, depth)).movedim(1, -1)


def with_neighbours(x: Tensor, reach: int) -> Tensor:
    """Volumes (B, C, h, w, d) -> (B, (2 reach + 1) C, h, w, d): every slice with those up to ``reach`` before and after it as channels,
    all channels of the first one first; beyond the ends the last slice stands for those that are not there."""
    d = x.shape[-1]
    at = torch.arange(d, device=x.device)
    return torch.cat([x[..., (at + k).clamp(0, d - 1)] for k in range(-reach, reach + 1)], 1)


class SliceWise(nn.Module):
    """``network`` (B, C, h, w) -> (B, K, h, w) applied to each slice of (B, C, h, w, d) by itself; ``multiple`` is the network's, and 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.multiple = (*network.multiple, 1)

    def forward(self, x: Tensor) -> Tensor:
        return from_slices(self.network(to_slices(x)), x.shape[-1])
