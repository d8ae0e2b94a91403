"""Tversky loss plus binary cross-entropy over all classes, the hybrid loss of MPU-Net.

T_c = TP / (TP + fp FP + fn FN + smooth) of every class, background included; L = 1 - mean T_c + w BCE, the BCE of each class against the
rest. With fn above fp a miss weighs more than a false alarm. Yu et al., MPU-Net, 2023, https://arxiv.org/abs/2307.05799.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..core.errors import UsageError
from .tversky import tversky_index


class TverskyCE:
    """Callable ``(logits (B, K, *s), target, *, weight=None, ignore_index=None) -> scalar``, K at least 2.

    ``target``: class indices (B, *s) or soft (B, K, *s); ``weight`` (B, *s) multiplies voxels; a voxel with ``ignore_index`` counts
    nowhere. Sums go over the batch. A class that is absent has an index of 0, as ``smooth`` stands below the line alone.
    ``squashed``: the BCE is of the sigmoid of the probabilities, as published code has it, so that it never falls below .31.
    """

    def __init__(self, *, fp: float = 0.3, fn: float = 0.7, smooth: float = 1.0, ce_weight: float = 1.0, squashed: bool = False):
        if min(fp, fn, smooth, ce_weight) < 0:
            raise UsageError("weights are not negative", where="fp, fn, smooth, ce_weight", found=(fp, fn, smooth, ce_weight))
        self.fp, self.fn, self.smooth, self.ce_weight, self.squashed = fp, fn, smooth, ce_weight, squashed

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        logp = log_softmax(logits.float(), 1)
        p, on = logp.exp(), torch.ones_like(logp[:, :1])
        if target.dtype.is_floating_point and target.ndim == logits.ndim:
            g = target.float()
        else:
            if ignore_index is not None:
                on = (target != ignore_index).unsqueeze(1).float()
            g = torch.zeros_like(p).scatter_(1, target.clamp_min(0).unsqueeze(1).long(), 1.0)
        on = on if weight is None else on * weight.unsqueeze(1)
        loss = 1 - tversky_index(p, g, fp=self.fp, fn=self.fn, smooth=self.smooth, weight=on, absent_is_right=False).mean()
        if not self.ce_weight:
            return loss
        if self.squashed:
            logp, p = torch.nn.functional.logsigmoid(p), p.sigmoid()
        ce = -(g * logp + (1 - g) * torch.log1p(-p.clamp(max=1 - 1e-6)))
        return loss + self.ce_weight * (ce.mean(1, keepdim=True) * on).sum() / on.sum().clamp_min(1e-8)
