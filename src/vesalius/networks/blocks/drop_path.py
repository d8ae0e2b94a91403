"""Stochastic depth (Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382): whole branches are left out in training."""

from __future__ import annotations

import torch
from torch import Tensor


def kept(branch: Tensor, rate: float, training: bool) -> Tensor:
    """The branch (B, ...) of each sample, dropped in ``training`` with probability ``rate``; kept ones grow so that the mean stays."""
    if not training or not rate:
        return branch
    keep = 1 - rate
    return branch * (torch.rand(len(branch), *(1,) * (branch.ndim - 1), device=branch.device) < keep) / keep
