"""The corrective network of PRISM: looks at the image, a mask and all clicks at half resolution and adds a correction to the mask's logits.

Li et al., PRISM: a promptable and robust interactive segmentation model with visual prompts, MICCAI 2024,
https://arxiv.org/abs/2404.15028; with ``lift`` the whole network of its successor PRISM Lite. Two heads, one for where the mask is wrong
and one for what to do there, are multiplied; what they do not touch stays as it was, since the mask passes by on a path of its own.

Where we differ: click maps are halved by their maximum and not linearly like the rest. Linearly an eighth of a click is left in 3D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d, interpolate

from ...core.prompt import Asked
from .conv import CONV, NORMS, ResidualBlock, conv

LINEAR = {2: "bilinear", 3: "trilinear"}
MAX_POOL = {2: adaptive_max_pool2d, 3: adaptive_max_pool3d}


class Refiner(nn.Module):
    """(image (B, C, *s), logits (B, 1, *s), clicks (B, 2, *s)) -> logits (B, 1, *s): up2(error * correction + down2(logits)).

    The logits that come in take no gradient, so that what is learnt here teaches nobody else. ``lift``: a small network of 1^d
    convolutions adds to the halved logits what is never negative, so that a hard mask can become a graded one.
    """

    def __init__(self, in_channels: int, *, dims: int, width: int = 32, blocks: int = 2, lift: bool = False, hidden: int = 16):
        super().__init__()
        stack = [ResidualBlock(dims, width, width) for _ in range(blocks)]
        self.features = nn.Sequential(conv(dims, in_channels + 3, width, 1), *stack)
        self.error, self.correction = conv(dims, width, 1, 1), conv(dims, width, 1, 1)
        self.lift = None
        if lift:
            steps = [CONV[dims](a, b, 1) for a, b in ((1, hidden), (hidden, hidden), (hidden, 1))]
            self.lift = nn.Sequential(*steps, NORMS["batch"][dims](1), nn.ReLU())

    def forward(self, image: Tensor, logits: Tensor, clicks: Tensor) -> Tensor:
        logits = logits.detach()
        kept = halved(logits)
        marks = MAX_POOL[clicks.ndim - 2](clicks, list(kept.shape[2:]))
        seen = self.features(torch.cat([halved(torch.cat([image, (logits > 0).to(image.dtype)], 1)), marks], 1))
        if self.lift is not None:
            kept = kept + self.lift(kept)
        return resized(self.error(seen) * self.correction(seen) + kept, image.shape[2:])


def halved(x: Tensor) -> Tensor:
    """(B, C, *s) -> (B, C, *ceil(s / 2)), linearly."""
    return resized(x, [-(-n // 2) for n in x.shape[2:]])


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(x, list(size), mode=LINEAR[len(size)], align_corners=False)


def click_maps(asked: Sequence[Asked], size: Sequence[int]) -> Tensor:
    """(B, 2, *size): 1 on the voxels clicked on in any of these turns, those on the object in the first map, those beside in the second."""
    points, signs = torch.cat([a.points for a in asked], 1), torch.cat([a.signs for a in asked], 1)
    last = torch.tensor(size, device=points.device) - 1
    which, click = (signs >= 0).nonzero(as_tuple=True)
    at = torch.minimum(points[which, click].round().long().clamp_min(0), last)
    maps = points.new_zeros(len(points), 2, *size)
    maps[(which, 1 - signs[which, click], *at.unbind(-1))] = 1
    return maps
