"""HybridGNet with image-to-graph skip connections: where the points are by now, they look at the image again.

A graph decoder that sees nothing but a global code smooths over detail. Half way to the coordinates each point says where it believes to
be, reads the encoder's features in a small window there and goes on with them. Both beliefs are trained towards the truth as well.

Gaggion et al., Improving anatomical plausibility in medical image segmentation via hybrid graph neural networks: applications to chest
x-ray analysis, IEEE TMI 2023, https://arxiv.org/abs/2203.10977, code https://github.com/ngaggion/HybridGNet. Where we differ or had to
choose, beside what stands at ``hybridgnet``:

* RoIAlign with one cell and a 3 x 3 window is the mean of nine bilinear reads one pixel apart, and is written so (grid_sample). A window is
  centred on the point; the published boxes lie half a map pixel further on.
* At rates above the published 1e-4 the hundred encoder features that all points read alike drown the sixteen that tell points apart, and
  the contours collapse. So what is read is normed point by point to a length of 1, and the weights that take it up start at 0;
  ``scaled=false`` gives it as it is.
* As there, no gradient flows through where a window lies, only through what it reads; ``through_place=true`` lets it.
* Levels 6 and 5 are published for 1024 px, where their maps have 32 and 64 pixels a side. On smaller images maps of that many pixels are at
  finer ``levels``, such as 4 and 3 at 160 px.

Key components: ``ImageToGraph`` before the third convolution (halved contours) and the fifth (all points); ``levels`` names the encoder's
level of each, one level alone is the paper's 1-IGSC; the places before each are supervised with weight 1.

Good to know: what a skip reads is local, so under occlusion it reads what covers the organ: expect less gain there than on clean images.
The three sets of points share one loss, so early in a training the last one is behind that of ``hybridgnet``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from ..core.errors import UsageError
from .blocks.graph import normed
from .hybridgnet import WIDTHS, HybridGNet

BEFORE = (2, 4)  # the decoder's convolutions that have a skip


class HybridGNetIGSC(HybridGNet):
    """``HybridGNet`` whose ``forward`` also gives 'points before 2' (B, halved N, 2) and, with two ``levels``, 'points before 4' (B, N, 2).

    ``levels``: of the encoder, 1 the finest, read by the first and second skip; ``window`` (odd): map pixels read along each axis;
    ``scaled``: what is read is normed to a length of 1; ``through_place``: gradient flows through where a window lies.
    """

    def __init__(
        self,
        in_channels: int,
        nodes: Sequence[int],
        size: Sequence[int],
        *,
        channels: tuple[int, ...] = (8, 16, 32, 64, 128, 128),
        latent: int = 64,
        order: int = 6,
        levels: tuple[int, ...] = (6, 5),
        window: int = 3,
        scaled: bool = True,
        through_place: bool = False,
    ):
        if not 1 <= len(levels) <= len(BEFORE) or not all(1 <= level <= len(channels) for level in levels):
            raise UsageError("one or two skips read levels of the encoder", where="levels", found=levels, allowed=f"1 to {len(channels)}")
        if window < 1 or window % 2 == 0:
            raise UsageError("a window has a middle pixel", where="window", found=window, allowed="1, 3, 5, ...")
        skips = {
            i: ImageToGraph(WIDTHS[i], channels[level - 1], level=level, window=window, scaled=scaled, through_place=through_place)
            for i, level in zip(BEFORE, levels, strict=False)
        }
        super().__init__(in_channels, nodes, size, channels=channels, latent=latent, order=order, skips=skips)


class ImageToGraph(nn.Module):
    """Features (B, N, F) and the encoder's maps -> (those features, what the map holds at the place, the place: (B, N, F + C + 2); the
    place (B, N, 2))."""

    def __init__(self, features: int, channels: int, *, level: int, window: int, scaled: bool, through_place: bool):
        super().__init__()
        self.level, self.window, self.scaled, self.through_place, self.extra = level, window, scaled, through_place, channels + 2
        self.place = nn.Linear(features, 2, bias=False)  # a graph convolution of order 1
        nn.init.normal_(self.place.weight, 0, 0.1)

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        place = self.place(x)
        seen = read(maps[self.level - 1], place if self.through_place else place.detach(), self.window)
        return torch.cat([x, normed(seen) / seen.shape[-1] ** 0.5 if self.scaled else seen, place], -1), place


def read(features: Tensor, place: Tensor, window: int) -> Tensor:
    """(B, N, C): the mean of ``window`` x ``window`` bilinear reads, one pixel apart, of ``features`` (B, C, h, w) around ``place``
    (B, N, 2), (row, column) as fractions of the sides; beyond the border its nearest pixel."""
    sides = torch.tensor(features.shape[2:], dtype=place.dtype, device=place.device)
    step = torch.arange(window, dtype=place.dtype, device=place.device) - window // 2
    around = torch.cartesian_prod(step, step).view(-1, 2) / sides
    at = (place[:, :, None] + around).flip(-1) * 2 - 1
    return grid_sample(features, at, padding_mode="border", align_corners=False).mean(-1).transpose(1, 2)
