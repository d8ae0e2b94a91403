"""Two-dimensional networks on volumes: the slices along the last axis (axial ones of a prepared case) become images of one batch."""

from __future__ import annotations

from torch import Tensor, nn


def to_slices(x: Tensor) -> Tensor:
    """Volumes (B, ..., h, w, d) -> their slices (B d, ..., h, w), those of one volume after each other."""
    return x.movedim(-1, 1).flatten(0, 1)


def from_slices(x: Tensor, depth: int) -> Tensor:
    """Slices (B d, ..., h, w) -> volumes (B, ..., h, w, d); the inverse of ``to_slices``."""
    return x.unflatten(0, (-1, depth)).movedim(1, -1)


class SliceWise(nn.Module):
    """``network`` (B, C, h, w) -> (B, K, h, w) applied to each slice of (B, C, h, w, d) by itself; ``multiple`` is the network's, and 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.multiple = (*network.multiple, 1)

    def forward(self, x: Tensor) -> Tensor:
        return from_slices(self.network(to_slices(x)), x.shape[-1])
