"""clDice: two tubes are alike when each one's centre line lies in the other.

The centre line of a probability map is drawn by minimum and maximum filters, so that the overlap of centre lines has a gradient; a gap of
a few pixels, which hardly changes the Dice, takes its share of the line away.

Shit et al., clDice: A novel topology-preserving loss function for tubular structure segmentation, CVPR 2021,
https://arxiv.org/abs/2003.07311.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, max_pool2d, max_pool3d, one_hot, relu

from ..core.errors import UsageError
from .dice_ce import DiceCE


class ClDice:
    """Callable ``(logits (B, K, *s), target (B, *t), *, weight=None, ignore_index=None) -> scalar``: (1 - ``alpha``) of the soft Dice and
    ``alpha`` of the soft clDice of the foreground classes' softmax, and ``ce_weight`` of the cross-entropy (published: none).

    ``iterations`` of thinning: half the width, in voxels, of the thickest tube. Where the logits are of larger blocks than the target's
    voxels, a block's class is the foreground most of it that has any ('any'), or the most frequent one ('majority'): ``nodes``. A voxel
    with ``ignore_index`` or no ``weight`` (B, *t) counts nowhere.
    """

    def __init__(self, *, alpha: float = 0.5, ce_weight: float = 0.0, iterations: int = 5, nodes: Literal["any", "majority"] = "any"):
        if not 0 <= alpha <= 1 or ce_weight < 0 or iterations < 1:
            found, allowed = (alpha, ce_weight, iterations), "alpha from 0 to 1; ce_weight 0 or more; one iteration or more"
            raise UsageError("no such loss", where="alpha, ce_weight, iterations", found=found, allowed=allowed)
        if nodes not in ("any", "majority"):
            raise UsageError("unknown rule", where="nodes", found=nodes, allowed="any, majority")
        self.alpha, self.iterations, self.nodes = alpha, iterations, nodes
        self.overlap = DiceCE(dice_weight=1 - alpha, ce_weight=ce_weight)

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        count = torch.ones_like(target, dtype=torch.float32) if weight is None else weight.float()
        if ignore_index is not None:
            count = count * (target != ignore_index)
        if target.shape[1:] != logits.shape[2:]:
            target, count = block_classes(target, count, logits.shape[1], logits.shape[2:], self.nodes)
        loss = self.overlap(logits, target.clamp_min(0), weight=count)
        if not self.alpha:
            return loss
        inside = count.unsqueeze(1)
        p = logits.float().softmax(1)[:, 1:] * inside
        y = one_hot(target.clamp_min(0).long(), logits.shape[1]).movedim(-1, 1)[:, 1:] * inside
        return loss + self.alpha * (1 - soft_cldice(p, y, self.iterations)).mean()


def soft_cldice(p: Tensor, y: Tensor, iterations: int, smooth: float = 1.0) -> Tensor:
    """(K,): 2 Tprec Tsens / (Tprec + Tsens) of (B, K, *s) in [0, 1] (eqs. 1-2), sums over the batch, ``smooth`` against empty lines."""
    axes = (0, *range(2, p.ndim))
    line_p, line_y = skeleton(p, iterations), skeleton(y, iterations)
    precision = ((line_p * y).sum(axes) + smooth) / (line_p.sum(axes) + smooth)
    found = ((line_y * p).sum(axes) + smooth) / (line_y.sum(axes) + smooth)
    return 2 * precision * found / (precision + found)


def skeleton(x: Tensor, iterations: int) -> Tensor:
    """The soft centre line of (B, K, *s) in [0, 1] (algorithm 1): what an opening removes, again after each erosion."""
    line = relu(x - dilate(erode(x)))
    for _ in range(iterations):
        x = erode(x)
        more = relu(x - dilate(erode(x)))
        line = line + relu(more - line * more)
    return line


def erode(x: Tensor) -> Tensor:
    """The least of each voxel and its face neighbours."""
    pool, d = (max_pool2d, 2) if x.ndim == 4 else (max_pool3d, 3)
    kernels = [tuple(3 if a == b else 1 for b in range(d)) for a in range(d)]
    least = [-pool(-x, k, 1, tuple(n // 2 for n in k)) for k in kernels]
    return torch.stack(least).amin(0)


def dilate(x: Tensor) -> Tensor:
    """The greatest of each voxel and all its neighbours."""
    return (max_pool2d if x.ndim == 4 else max_pool3d)(x, 3, 1, 1)


def block_classes(target: Tensor, count: Tensor, classes: int, size: Sequence[int], rule: str) -> tuple[Tensor, Tensor]:
    """Classes (B, *size) int64 of the ``size`` blocks of ``target`` (B, *t), and whether any voxel of them has a ``count`` (B, *t)."""
    pool = adaptive_avg_pool2d if len(size) == 2 else adaptive_avg_pool3d
    shares = one_hot(target.clamp_min(0).long(), classes).movedim(-1, 1) * count.unsqueeze(1)
    shares = pool(shares, tuple(size))
    foreground = shares[:, 1:].amax(1)
    index = shares[:, 1:].argmax(1) + 1
    needed = foreground > (shares[:, 0] if rule == "majority" else 0)
    return index * needed, (shares.sum(1) > 0).float()
