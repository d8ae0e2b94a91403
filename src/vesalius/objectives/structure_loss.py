"""Structure loss: cross-entropy and IoU in which pixels near a border weigh more (Wei et al., F3Net, AAAI 2020; PraNet, MICCAI 2020).

w = 1 + border * |mean of G over a box - G|, wBCE = sum(w BCE) / sum(w), wIoU = 1 - (sum(w p g) + 1) / (sum(w (p + g)) - sum(w p g) + 1).
The sums run over one structure of one image; terms are averaged. (The published code reduces BCE to a scalar before weighting it, so that
its weights cancel; this is the form that the paper writes.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class StructureLoss:
    """Callable ``(logits (B, K, *s), target, *, weight=None, ignore_index=None) -> scalar`` for sigmoid maps of K foreground classes.

    ``target``: class indices (B, *s), of which map k answers for class k + 1, or soft maps (B, K, *s). ``weight`` (B, *s) multiplies
    voxels. ``border``: how much more a voxel at a border weighs; ``reach``: half the box's side, voxels. A voxel with ``ignore_index``
    counts nowhere, not in its neighbours' weights either; a batch with none left gives 0. Outside the image G is 0, as published.
    """

    def __init__(self, *, border: float = 5.0, reach: int = 15):
        if border < 0 or reach < 0:
            raise ValueError(f"border and reach are not negative: {border}, {reach}")
        self.border, self.reach = border, reach

    def __call__(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        z = logits.float()
        if target.dtype.is_floating_point and target.ndim == z.ndim:
            g, valid = target.float(), None
        else:
            valid = None if ignore_index is None else (target != ignore_index).unsqueeze(1).float()
            g = torch.cat([(target == k).unsqueeze(1) for k in range(1, z.shape[1] + 1)], 1).float()
        w = self.weights(g, valid)
        if weight is not None:
            w = w * weight.unsqueeze(1)
        axes = tuple(range(2, z.ndim))
        bce = F.binary_cross_entropy_with_logits(z, g, reduction="none")
        bce = (w * bce).sum(axes) / w.sum(axes).clamp_min(1e-8)
        p = torch.sigmoid(z)
        both = (w * p * g).sum(axes)
        iou = 1 - (both + 1) / ((w * (p + g)).sum(axes) - both + 1)
        return (bce + iou).mean()

    def weights(self, g: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, K, *s) voxel weights of the masks ``g``, 0 where ``valid`` (B, 1, *s) is."""
        if valid is None:
            return 1 + self.border * (_box(g, self.reach) - g).abs()
        mean = _box(g * valid, self.reach) + g * _box(1 - valid, self.reach)  # an ignored neighbour counts as equal
        return valid * (1 + self.border * (mean - g).abs())


def _box(x: Tensor, reach: int) -> Tensor:
    """Mean over a cube of side 2 reach + 1, zeros outside, axis by axis."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    for axis in range(x.ndim - 2):
        kernel, padding = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        x = pool(x, kernel, stride=1, padding=padding)
    return x
