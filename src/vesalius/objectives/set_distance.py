"""Distances between two sets of masks, each mask a point in the space of its voxels: what a sampler of masks is taught by.

They do not ask which sample answers which rater, so any order of either set gives the same value, and a set is 0 away from itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """(B,) E|x - y| - E|x - x'| / 2 - E|y - y'| / 2 of the sets ``x`` (B, M, D) and ``y`` (B, N, D), |.| Euclidean; 0 for equal sets.

    It is positive for different ones (Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018, as half of theirs), and what GeomLoss calls
    'hausdorff' and 'energy' with the kernel -|x - y|. A member counts in the mean over its own set, too.
    """
    return _apart(x, y).mean((1, 2)) - (_apart(x, x).mean((1, 2)) + _apart(y, y).mean((1, 2))) / 2


def sinkhorn_divergence(x: Tensor, y: Tensor, *, blur: float = 0.05) -> Tensor:
    """(B,) OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 of sets as in ``energy_distance``: entropic optimal transport at the cost |x - y|^2 / 2
    and the temperature ``blur``^2, 0 for equal sets.

    Feydy et al. 2019, https://arxiv.org/abs/1810.08278; the defaults are GeomLoss's (p = 2, blur = 0.05). The gradient is that of the cost
    under the transport found.
    """
    if not blur > 0:
        raise ValueError(f"a blur is positive, not {blur}")
    cost = lambda a, b: _apart(a, b).square() / 2
    return _transport(cost(x, y), blur**2) - (_transport(cost(x, x), blur**2) + _transport(cost(y, y), blur**2)) / 2


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """(B, M, N) Euclidean distances, in double precision: the differences of near ones are what counts."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _transport(cost: Tensor, temperature: float, *, settle: int = 50) -> Tensor:
    """(B,) entropic transport between uniform weights at ``cost`` (B, M, N): Sinkhorn's updates while the temperature falls by quarters
    from the largest cost, then ``settle`` more."""
    with torch.no_grad():
        m, n = cost.shape[1:]
        start = max(float(cost.max()), temperature)
        steps = math.ceil(math.log(start / temperature, 4))
        f, g = cost.new_zeros(cost.shape[:2]), cost.new_zeros(len(cost), n)
        for t in [*(start / 4**i for i in range(steps)), *[temperature] * settle]:
            g = -t * ((f.unsqueeze(2) - cost) / t - math.log(m)).logsumexp(1)
            f = -t * ((g.unsqueeze(1) - cost) / t - math.log(n)).logsumexp(2)
        plan = ((f.unsqueeze(2) + g.unsqueeze(1) - cost) / temperature - math.log(m * n)).exp()
        value = f.mean(1) + g.mean(1)
    return value + (plan * (cost - cost.detach())).sum((1, 2))
