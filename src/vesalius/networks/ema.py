"""Exponential moving average of a module's weights (Tarvainen & Valpola 2017; also used as the averaged model at test time)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class EMA(nn.Module):
    """``average`` follows ``module``: w <- d w + (1 - d) w', with d = min(decay, (1 + step) / (10 + step)) so that it starts at once, and
    no longer memory than a twentieth of the ``total`` steps where these are given: a short training has no weights worth remembering.

    Parameters are averaged, buffers (running statistics) copied. The average takes no gradient.
    """

    def __init__(self, module: nn.Module, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.average = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, total: float = math.inf) -> None:
        d = max(0.0, min(self.decay, (1 + step) / (10 + step), 1 - 20 / total))
        mine, theirs = list(self.average.parameters()), list(module.parameters())
        torch._foreach_lerp_(mine, [p.detach() for p in theirs], 1 - d)
        for a, b in zip(self.average.buffers(), module.buffers(), strict=True):
            a.copy_(b)

    def forward(self, *args, **kwargs):
        return self.average(*args, **kwargs)
