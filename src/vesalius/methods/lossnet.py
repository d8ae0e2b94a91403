"""The structure loss and LossNet in one objective: a loss that holds a network stands where both may be imported."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..networks.m2snet import LossNet
from ..objectives.structure_loss import StructureLoss


class StructureLossNet(StructureLoss):
    """L = wBCE + wIoU + ``features`` * LossNet (M2SNet, https://arxiv.org/abs/2303.10894); called as ``StructureLoss`` is.

    ``features``: weight of LossNet, 0: without. ``vgg``: local safetensors file with VGG-16's ImageNet weights, read at the first step;
    without one its filters are random and fixed. ``loss_width``: its first layers' channels; ``loss_size``: sides, in pixels, that larger
    maps are shrunk to for it. ``border``, ``reach``: see ``StructureLoss``. Pixels with ``ignore_index`` are shown to LossNet as if
    predicted right.
    """

    def __init__(
        self,
        *,
        features: float = 0.1,
        vgg: str = "",
        loss_width: int = 64,
        loss_size: int = 224,
        border: float = 5.0,
        reach: int = 15,
    ):
        super().__init__(border=border, reach=reach)
        if features < 0:
            raise UsageError("a weight is not negative", where="features", found=features)
        self.features, self.how = features, dict(vgg=vgg, width=loss_width, size=loss_size)
        self.lossnet: LossNet | None = None

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        loss = super().__call__(logits, target, weight=weight, ignore_index=ignore_index)
        if not self.features:
            return loss
        if self.lossnet is None:
            self.lossnet = LossNet(**self.how)
        p = torch.sigmoid(logits.float())
        if target.dtype.is_floating_point and target.ndim == p.ndim:
            g = target.float()
        else:
            g = torch.stack([target == k for k in range(1, p.shape[1] + 1)], 1).float()
            if ignore_index is not None:
                p = torch.where((target == ignore_index).unsqueeze(1), g, p)
        return loss + self.features * self.lossnet.to(p.device)(p.flatten(0, 1).unsqueeze(1), g.flatten(0, 1).unsqueeze(1))
