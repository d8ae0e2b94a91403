"""Adapters beside the layers of a frozen transformer.

Cheng et al., SAM-Med2D (2023), https://arxiv.org/abs/2308.16184: a gate over the channels, then a strided convolution down and a transposed
one up again, beside the multilayer perceptron of a block, whose normalised input they share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from .norm import ChannelNorm


class SideAdapter(nn.Module):
    """(B, C, h, w) -> the same. ``narrow``: the convolutions meet in C / narrow channels (the paper: 1). ``still``: its last normalisation
    starts at a scale of 0, so that it adds nothing until it has learnt (the paper: at 1, and the frozen output is another from the
    start)."""

    def __init__(self, channels: int, *, narrow: int = 1, still: bool = True):
        super().__init__()
        inner, width = max(1, channels // 4), max(1, channels // narrow)
        self.gate = nn.Sequential(nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid())
        self.down = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.up = nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False)
        self.norm = ChannelNorm(channels)
        for convolution in (self.down, self.up):
            nn.init.kaiming_normal_(convolution.weight)
        if still:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.gate(x.mean((2, 3)))[..., None, None] * x
        spatial = relu(self.up(relu(self.down(gated))))
        return self.norm(x + spatial[..., : x.shape[2], : x.shape[3]])


class Adapted(nn.Module):
    """(B, n^2, C) tokens of a square map -> ``perceptron`` (B, n^2, C) + ``adapter`` (B, C, n, n), both of the input as the perceptron's
    own ``norm`` leaves it."""

    def __init__(self, perceptron: nn.Module, adapter: nn.Module):
        super().__init__()
        self.perceptron, self.adapter = perceptron, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        n = math.isqrt(tokens.shape[1])
        grid = self.perceptron.norm(tokens).transpose(1, 2).unflatten(2, (n, n))
        return self.perceptron(tokens) + torch.flatten(self.adapter(grid), 2).transpose(1, 2)
