"""ResUNet: a U-Net of residual units that normalise before they convolve; the deep baseline of Kvasir-SEG.

Three levels of 64, 128 and 256 feature maps and a bridge of 512. A unit is normalisation, ReLU and convolution, twice, beside a 1x1
convolution of its input; the first convolution of a unit strides instead of pooling, the first unit of all begins with its convolution.

Zhang, Liu and Wang, Road extraction by deep residual U-Net, 2018, https://arxiv.org/abs/1711.10684; as the baseline of Jha et al.,
Kvasir-SEG: a segmented polyp dataset, MMM 2020, https://arxiv.org/abs/1911.07069. Where we had to choose:

* The baseline's settings are known second hand: soft Dice, Nadam at a rate of 1e-4, batches of 8, frames of 320 x 320 for 150 epochs. Some
  hundred steps want ten times as much, the card's default, and it falls by a cosine. Input size and augmentation are the plan's
  (``--set whole=true --set size=320,320`` squeezes every frame into one window).
* The baseline has one map and a sigmoid. Here is a map for every class and a softmax, which of two classes is the same.
* Enlarging is bilinear; the 1x1 convolution beside a unit is not normalised.

Key components: ``Unit``.

Good to know: batch statistics need batches. The coarsest maps are an eighth of the input: a polyp that fills the frame is seen in parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.conv import NORMS, conv
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.resize import resize_like


class ResUNet(nn.Module):
    """Logits (B, out_channels, *s). ``width``: feature maps of the first level, doubled ``levels`` times down to the bridge. Sides are
    multiples of 2 to the power of ``levels``."""

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int, width: int = 64, levels: int = 3):
        super().__init__()
        if width < 1 or levels < 1:
            raise UsageError("a U-Net has levels and feature maps", where="width, levels", found=(width, levels), allowed="1 or more")
        widths = [width * 2**i for i in range(levels + 1)]
        self.multiple = (2**levels,) * spatial_dims
        self.down = nn.ModuleList([Unit(spatial_dims, in_channels, width, raw=True)])
        self.down.extend(Unit(spatial_dims, a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(Unit(spatial_dims, a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = conv(spatial_dims, width, out_channels, 1)

    @property
    def bottleneck(self) -> nn.Module:
        """The bridge (feature taps)."""
        return self.down[-1]

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "ResUNet")
        check_batch(self, x, self.multiple[0])
        maps = []
        for unit in self.down:
            x = unit(x)
            maps.append(x)
        for unit, skip in zip(self.up, maps[-2::-1], strict=True):
            x = unit(torch.cat([resize_like(x, skip), skip], 1))
        return self.head(x)


class Unit(nn.Module):
    """(BN, ReLU, 3x3 convolution) twice, plus a 1x1 convolution of the input; ``raw``: the first BN and ReLU are left out."""

    def __init__(self, dims: int, inp: int, out: int, *, stride: int = 1, raw: bool = False):
        super().__init__()
        before = [] if raw else [NORMS["batch"][dims](inp), nn.ReLU(inplace=False)]
        after = [NORMS["batch"][dims](out), nn.ReLU(inplace=True), conv(dims, out, out)]
        self.body = nn.Sequential(*before, conv(dims, inp, out, 3, stride), *after)
        self.skip = conv(dims, inp, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)
