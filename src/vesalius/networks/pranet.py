"""PraNet: find roughly with the deep features only, then refine by looking where the rough answer says there is nothing.

A parallel partial decoder joins the three deepest levels of a Res2Net into one rough global map. Reverse attention then goes back from
coarse to fine: each level's features are multiplied by 1 - sigmoid(the map so far), which takes away what was found already, and a small
head adds what was missed: the border.

Fan et al., PraNet: Parallel reverse attention network for polyp segmentation, MICCAI 2020, https://arxiv.org/abs/2006.11392, code
https://github.com/DengPingFan/PraNet. Where we differ or had to choose:

* All four maps are returned at the input's size, finest first (equal weights, ``structure_loss``); interpolation is bilinear between pixel
  centres, and a head ends in a plain convolution.
* The published answer is stretched to 0..1 in every image; that turns frames without a polyp into frames with one and is left out.
* Several structures (the paper has one): a map each, trained one against the rest. The features are erased where *any* has been found.
* Input size, normalisation and augmentation are the plan's, for fair comparisons: ``--set whole=true --set size=352,352`` squeezes every
  image into the paper's 352 x 352 px. The paper starts from ImageNet weights; give a local copy with ``--set pretrained=FILE.safetensors``.

Key components: ``networks.blocks.partial_decoder``, ``PraNet.refine`` (reverse attention), the boundary-weighted
``objectives.structure_loss``, and training at three scales, an update each (``scales``).

Good to know: the final map is the global map plus three corrections, so a polyp that the deep features miss is lost for all. Batch norm
needs more than one value per channel at stride 32: not a batch of one with 32 px patches. The backbone from scratch needs many more steps
than the planned U-Net; ``width=16`` makes a small one for small data.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.conv import conv_norm
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.partial_decoder import PartialDecoder
from .blocks.res2net import Res2Net
from .blocks.resize import resize_like


class PraNet(nn.Module):
    """Logits (B, out_channels, H, W); in training a list of four such maps, finest first. H and W are multiples of 32.

    ``depths`` and ``width`` of the backbone (see ``Res2Net``), ``channels`` of the partial decoder. ``attention``: 'reverse' is the paper;
    'forward' keeps what was found instead of erasing it, 'uniform' leaves the features as they are, 'off' returns the global map alone.
    """

    multiple = (32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        channels: int = 32,
        attention: Literal["reverse", "forward", "uniform", "off"] = "reverse",
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("PraNet is a 2D network", where="pranet", found=f"{spatial_dims}D data")
        if len(depths) != 4 or min(depths) < 1 or width < 4 or channels < 1:
            raise UsageError("PraNet has four stages of one block or more", where="depths, width", found=(depths, width, channels))
        if attention not in ("reverse", "forward", "uniform", "off"):
            raise UsageError("unknown attention", where="attention", found=attention, allowed="reverse, forward, uniform, off")
        self.attention = attention
        self.backbone = Res2Net(in_channels, depths=depths, width=width)
        levels = self.backbone.features[1:]
        self.fields = nn.ModuleList(ReceptiveField(n, channels) for n in levels)
        self.decoder = PartialDecoder(channels, out_channels)
        heads = [_head(n, m, out_channels, k) for n, m, k in zip(levels[::-1], (4 * width, width, width), (5, 3, 3), strict=True)]
        self.heads = nn.ModuleList(heads if attention != "off" else [])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_multiple(x, self.multiple, "PraNet")
        check_batch(self, x, 32)
        levels = self.backbone(x)[1:]
        maps = [self.decoder(*(field(f) for field, f in zip(self.fields, levels, strict=True)))]
        for head, features in zip(self.heads, levels[::-1]):
            maps.append(self.refine(head, features, resize_like(maps[-1], features)))
        if not self.training:
            return resize_like(maps[-1], x)
        return [resize_like(m, x) for m in reversed(maps)]

    def refine(self, head: nn.Module, features: Tensor, guidance: Tensor) -> Tensor:
        """``guidance`` logits (B, K, h, w) plus what the head finds in the features (B, C, h, w) that the attention lets through."""
        return head(features * self.weight(guidance)) + guidance

    def weight(self, guidance: Tensor) -> Tensor:
        """(B, 1, h, w) in 0..1: near 0 where a structure has been found already ('reverse'), its complement, or 1."""
        if self.attention == "uniform":
            return torch.ones_like(guidance[:, :1])
        found = torch.sigmoid(guidance.amax(1, keepdim=True))
        return 1 - found if self.attention == "reverse" else found


class ReceptiveField(nn.Module):
    """A level at ``out`` channels, seen at four sizes: 1x1, and 1xk, kx1, 3x3 with dilation k for k = 3, 5, 7 (Liu et al. 2018)."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        wide = [
            nn.Sequential(conv_norm(inp, out, 1), conv_norm(out, out, (1, k)), conv_norm(out, out, (k, 1)), conv_norm(out, out, 3, k))
            for k in (3, 5, 7)
        ]
        self.branches = nn.ModuleList([conv_norm(inp, out, 1), *wide])
        self.join, self.skip = conv_norm(4 * out, out), conv_norm(inp, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.join(torch.cat([branch(x) for branch in self.branches], 1)) + self.skip(x))


def _head(inp: int, middle: int, out: int, kernel: int) -> nn.Sequential:
    """1x1, then convolutions to a residual logit: the deepest level three 5x5 and a 1x1, the others two 3x3 and a 3x3."""
    repeats, last = (3, 1) if kernel == 5 else (2, 3)
    layers = [layer for _ in range(repeats) for layer in (conv_norm(middle, middle, kernel), nn.ReLU(inplace=True))]
    return nn.Sequential(conv_norm(inp, middle, 1), *layers, nn.Conv2d(middle, out, last, padding=last // 2))
