"""Normalisations that torch has not, and what batch norm needs."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ...core.errors import UsageError


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each voxel of (B, C, *s). By the fused kernel: statistics across strides are slow."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


def check_batch(net: nn.Module, x: Tensor, stride: int) -> None:
    """UsageError when ``net`` is in training and its batch norm at ``stride`` would see one value a channel of ``x`` (B, C, *s)."""
    if net.training and len(x) * prod(n // stride for n in x.shape[2:]) <= 1:
        raise UsageError("batch norm needs more than one value a channel", where="patch and batch", found=tuple(x.shape), fix="enlarge one")
