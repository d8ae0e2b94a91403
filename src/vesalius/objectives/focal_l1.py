"""Focal L1 of signed maps: small errors weigh little, a wrong sign at least as much as in plain L1 (Dang et al., SAUNA and SiNGR, 2024).

Two published forms: SAUNA's weight is 1 where the signs differ and is differentiated through; SiNGR's is never below 1 there and detached.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def focal_l1(
    p: Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    wrong: Literal["one", "at least one"] = "one",
    detach: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Scalar: mean of w |p - y| over all voxels of signed maps ``p`` and ``y`` (B, K, *s), w = ``alpha`` |p - y|^``beta`` where the signs
    agree; where they differ w is 1 ('one') or no less than 1 ('at least one'). ``detach``: w is a constant to the gradient. ``weight``
    (B, 1, *s) weighs voxels; without any left the loss is 0."""
    error = (p - y).abs()
    w = alpha * error**beta
    w = torch.where(p.sign() == y.sign(), w, torch.ones_like(w) if wrong == "one" else w.clamp_min(1))
    return mean((w.detach() if detach else w) * error, weight)


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of (B, K, *s) under ``weight`` (B, 1, *s)."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1e-8)
