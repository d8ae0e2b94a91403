"""Soft Dice + cross-entropy, the common objective of the field (nnU-Net's default; Milletari et al. 2016 for the soft Dice).

Dice_k = (2 sum p_k g_k + eps) / (sum p_k + sum g_k + eps), averaged over foreground classes; the loss is w_d (1 - Dice) + w_c CE.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class DiceCE:
    """Callable ``(logits (B, K, *s), target, *, weight=None, ignore_index=None) -> scalar``.

    ``target``: class indices (B, *s) or soft (B, K, *s). ``weight`` (B, *s) multiplies voxels. ``batch_dice`` sums over the batch before
    the ratio. ``squared`` uses squared sums in the denominator (V-Net's form). ``include_background`` counts class 0 in the Dice.
    A voxel with ``ignore_index`` counts nowhere; a batch with none left gives 0. One-channel logits are a sigmoid with a 0/1 target.
    """

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        batch_dice: bool = True,
        squared: bool = False,
        include_background: bool = False,
        eps: float = 1e-5,
    ):
        self.dice_weight, self.ce_weight, self.batch_dice = dice_weight, ce_weight, batch_dice
        self.squared, self.include_background, self.eps = squared, include_background, eps

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        logits = logits.float()
        if logits.shape[1] == 1:  # sigmoid as a two-class softmax
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        if target.dtype.is_floating_point and target.ndim == logits.ndim:
            soft, valid = target, None
        else:
            valid = None if ignore_index is None else target != ignore_index
            index = target.clamp_min(0) if valid is not None else target
            soft = torch.zeros_like(logits).scatter_(1, index.unsqueeze(1).long(), 1.0)
        count = None if valid is None and weight is None else torch.ones_like(logits[:, 0])
        if valid is not None:
            count = count * valid
        if weight is not None:
            count = count * weight
        logp = F.log_softmax(logits, 1)
        loss = logits.new_zeros(())
        if self.ce_weight:
            ce = -(soft * logp).sum(1)
            ce = ce.mean() if count is None else (ce * count).sum() / count.sum().clamp_min(1e-8)
            loss = loss + self.ce_weight * ce
        if self.dice_weight:
            loss = loss + self.dice_weight * self.dice(logp.exp(), soft, count)
        return loss

    def dice(self, p: Tensor, g: Tensor, count: Tensor | None = None) -> Tensor:
        """1 - mean soft Dice of probabilities ``p`` and one-hot or soft ``g`` (B, K, *s)."""
        if not self.include_background:
            p, g = p[:, 1:], g[:, 1:]
        if count is not None:
            p, g = p * count.unsqueeze(1), g * count.unsqueeze(1)
        axes = tuple(range(2, p.ndim)) if not self.batch_dice else (0, *range(2, p.ndim))
        both = (p * g).sum(axes)
        each = (p * p).sum(axes) + (g * g).sum(axes) if self.squared else p.sum(axes) + g.sum(axes)
        return 1 - ((2 * both + self.eps) / (each + self.eps)).mean()


def deep(
    objective, logits: Tensor | list[Tensor], target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None
) -> Tensor:
    """Deep supervision: the objective at every resolution with weights 1, 1/2, 1/4, ... normalised to 1; targets are read by nearest
    neighbour at the coarser grids (soft ones by area)."""
    if isinstance(logits, Tensor):
        return objective(logits, target, weight=weight, ignore_index=ignore_index)
    factors = [0.5**i for i in range(len(logits))]
    total = logits[0].new_zeros(())
    for f, level in zip(factors, logits, strict=True):
        at, w = target, weight
        if level.shape[2:] != logits[0].shape[2:]:
            size = level.shape[2:]
            if target.dtype.is_floating_point:
                at = F.adaptive_avg_pool3d(target, size) if len(size) == 3 else F.adaptive_avg_pool2d(target, size)
            else:
                at = F.interpolate(target.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).long()
            w = None if weight is None else F.interpolate(weight.unsqueeze(1), size, mode="nearest-exact").squeeze(1)
        total = total + f / sum(factors) * objective(level, at, weight=w, ignore_index=ignore_index)
    return total
