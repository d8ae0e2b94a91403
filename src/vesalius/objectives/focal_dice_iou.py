"""Focal loss, soft Dice, and the error of a model's own estimate of its IoU: what Segment Anything and its descendants are tuned by.

Lin et al. 2017 (doi:10.1109/ICCV.2017.324) for the focal loss; the weights 20 : 1 : 1 are those of Segment Anything (Kirillov et al. 2023)
and SAM-Med2D (Cheng et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def focal_dice_iou(
    logits: Tensor, quality: Tensor, truth: Tensor, known: Tensor, *, weight: float = 20.0, alpha: float = 0.25, gamma: float = 2.0
) -> dict[str, Tensor]:
    """Terms of logits (B, *s), what the model thinks of them (B,), truth (B, *s) bool and known (B, *s) bool; unknown pixels count nowhere.

    'focal': ``weight`` x mean of alpha (1 - p)^gamma (-log p) where there is something and (1 - alpha) p^gamma (-log(1 - p)) elsewhere;
    'dice': 1 - (2 sum p g + 1) / (sum p + sum g + 1), summed over the batch; 'quality': mean squared error against each mask's soft IoU,
    (sum p g + eps) / (sum p + sum g - sum p g + eps), which is a fact to the estimate and takes no gradient.
    """
    logits, on, g = logits.float(), known.float(), (truth & known).float()
    p = logits.sigmoid()
    focal = alpha * g * (1 - p) ** gamma * logsigmoid(logits) + (1 - alpha) * (on - g) * p**gamma * logsigmoid(-logits)
    axes = tuple(range(1, logits.ndim))
    both, each = (p * g).sum(axes), (p * on).sum(axes) + g.sum(axes)
    iou = (both + 1e-7) / (each - both + 1e-7)
    return {
        "focal": -weight * focal.sum() / on.sum().clamp(min=1),
        "dice": 1 - (2 * both.sum() + 1) / (each.sum() + 1),
        "quality": torch.mean((quality.float() - iou.detach()) ** 2),
    }
