"""LARC: layer-wise adaptive rates for large or badly scaled losses (You et al. 2017, https://arxiv.org/abs/1708.03888)."""

from __future__ import annotations

import math

import torch


def larc(optimizer: torch.optim.Optimizer, *, decay: float, trust: float = 1e-3) -> torch.optim.Optimizer:
    """The optimiser with no tensor's rate above ``trust`` |w| / (|g| + ``decay`` |w|); the weight decay joins the gradient before it is
    scaled, so the optimiser itself has none."""

    @torch.no_grad()
    def scale(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                w, g = float(p.norm()), float(p.grad.norm())
                if w and g and math.isfinite(g):
                    rate = trust * w / (g + decay * w)
                    p.grad.add_(p, alpha=decay).mul_(min(1.0, rate / max(group["lr"], 1e-12)))

    optimizer.register_step_pre_hook(scale)
    return optimizer
