"""M2SNet: levels are joined by what they differ in, not by their sum: multi-scale subtraction at every pair of neighbouring levels.

A subtraction unit takes the absolute difference of two levels, pixel by pixel and over neighbourhoods of 3 x 3 and 5 x 5, so that what both
found is not handed on twice. Units are stacked into a pyramid: differences of neighbours, differences of those, and so on, ten in all; they
carry what far levels differ in to every decoder step. LossNet, a frozen classifier, compares prediction and mask feature by feature.

Zhao et al., M2SNet: Multi-scale in multi-scale subtraction network for medical image segmentation, 2023,
https://arxiv.org/abs/2303.10894; before it MSNet (MICCAI 2021), code https://github.com/Xiaoqi-Zhao-DLUT/MSNet-M2SNet. Where we differ or
had to choose:

* The box filters of a unit act on each channel by itself, are sums (not means) and see zeros outside; the published code is MSNet's alone.
  |F(A) - F(B)| is computed as |F(A - B)|, which is the same number.
* Several structures (the paper has one): a map each, trained one against the rest.
* The published name filter for the backbone's smaller rate never matches, so all weights learn at 0.05 there, and here. Its rate rises and
  falls in straight lines; here it falls by (1 - t)^0.9.
* LossNet is VGG-16 with ImageNet weights in the paper: ``--set vgg=FILE.safetensors``. Without a file its filters are random and fixed,
  which still compares borders and textures of the two masks, though not as ImageNet would.
* Input size, normalisation and augmentation are the plan's. ``--set pretrained=FILE.safetensors`` fills the backbone.

Key components: ``Subtraction``, ``Pyramid``, ``LossNet``.

Good to know: subtraction needs levels that mean the same by the same channel, which training must find; from random weights a sum is the
easier start. LossNet costs two passes of a VGG at ``loss_size`` per step and nothing at prediction; ``--set features=0`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, mse_loss

from ..core.errors import UsageError
from .blocks.conv import conv_norm_relu
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.pretrained import load_backbone
from .blocks.res2net import Res2Net
from .blocks.resize import resize_like
from .blocks.vgg import VGG

SCALES = {"multi": (1, 3, 5), "single": (1,)}  # sides of the box filters
CUTS = (4, 9, 16, 23)  # layers of VGG-16 after which features are compared: before each of the first four poolings
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class M2SNet(nn.Module):
    """Logits (B, out_channels, H, W). H and W are multiples of 32.

    ``depths`` and ``width`` of the backbone (see ``Res2Net``), ``channels`` of every level after it. ``unit``: how two levels are joined:
    'multi' is the paper, 'single' MSNet's pixelwise difference, 'add' the sum (same parameters).
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
        channels: int = 64,
        unit: Literal["multi", "single", "add"] = "multi",
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("M2SNet is a 2D network", where="m2snet", found=f"{spatial_dims}D data")
        if len(depths) != 4 or min(depths) < 1 or width < 4 or channels < 1:
            raise UsageError("M2SNet has four stages of one block or more", where="depths, width", found=(depths, width, channels))
        c = channels
        self.backbone = Res2Net(in_channels, depths=depths, width=width)
        stem = nn.Identity() if width == c else conv_norm_relu(width, c)
        self.reduce = nn.ModuleList([stem, *(conv_norm_relu(n, c) for n in self.backbone.features)])
        self.pyramid = Pyramid(c, levels=5, unit=unit)
        self.deepest = conv_norm_relu(self.backbone.features[-1], c)
        self.steps = nn.ModuleList(conv_norm_relu(c, c) for _ in range(3))
        self.head = nn.Conv2d(c, out_channels, 3, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The backbone's last stage (feature taps)."""
        return self.backbone.layer4

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "M2SNet")
        check_batch(self, x, 32)
        levels = self.backbone.levels(x)
        joined = self.pyramid([reduce(level) for reduce, level in zip(self.reduce, levels, strict=True)])
        y = self.deepest(levels[-1])
        for step, found in zip(self.steps, joined[:0:-1], strict=True):
            y = step(resize_like(y, found) + found)
        return resize_like(self.head(resize_like(y, joined[0]) + joined[0]), x)


class Pyramid(nn.Module):
    """Levels (B, C, h, w), finest first -> one map less, each what its level differs in from all deeper ones.

    Column k joins neighbours of column k - 1; column 0 are the levels. A level's answer is a convolution over the sum of its row; the
    deepest row holds one unit and is handed on as it is."""

    def __init__(self, channels: int, *, levels: int, unit: str):
        super().__init__()
        if unit not in (*SCALES, "add"):
            raise UsageError("unknown unit", where="unit", found=unit, allowed=", ".join((*SCALES, "add")))
        self.columns = nn.ModuleList(nn.ModuleList(Subtraction(channels, unit) for _ in range(levels - k)) for k in range(1, levels))
        self.join = nn.ModuleList(conv_norm_relu(channels, channels) for _ in range(levels - 2))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        rows: list[list[Tensor]] = [[] for _ in levels[1:]]
        column = list(levels)
        for units in self.columns:
            column = [unit(fine, coarse) for unit, fine, coarse in zip(units, column, column[1:])]
            for row, found in zip(rows, column):
                row.append(found)
        return [*(join(sum(row)) for join, row in zip(self.join, rows)), rows[-1][0]]


class Subtraction(nn.Module):
    """Conv-BN-ReLU of sum_n |F_n(A) - F_n(B)| with F_n the n x n box of ones: A (B, C, h, w), B the deeper level, resized to A's."""

    def __init__(self, channels: int, unit: str = "multi"):
        super().__init__()
        self.unit, self.conv = unit, conv_norm_relu(channels, channels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.conv(self.join(a, resize_like(b, a)))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """What the convolution sees of two maps of one size; exactly 0 where they agree, and the same with the two exchanged."""
        if self.unit == "add":
            return a + b
        return sum(box(a - b, n).abs() for n in SCALES[self.unit])


def box(x: Tensor, side: int) -> Tensor:
    """Sum over ``side`` x ``side`` neighbours of each pixel of each channel, zeros outside."""
    return x if side == 1 else avg_pool2d(x, side, 1, side // 2, divisor_override=1)


class LossNet(nn.Module):
    """sum_i MSE(phi_i(P), phi_i(G)) over four levels of a frozen VGG-16, for maps P and G (N, 1, h, w) in 0..1.

    Nothing here learns. ``vgg``: a safetensors file with VGG-16's published weights; without one, He-initialised filters that are the same
    every time, ``width`` of them in the first layers (64 is VGG's). ``size``: side that maps are resized to.
    """

    def __init__(self, *, vgg: str = "", width: int = 64, size: int = 224):
        super().__init__()
        if width < 1 or size < 8 or (vgg and width != 64):
            raise UsageError("LossNet is a VGG", where="loss_width, loss_size", found=(width, size), allowed="64 with a file; 8 px or more")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            whole = VGG(3) if vgg else VGG(3, (width, 2 * width, 4 * width, 8 * width), (2, 2, 3, 3))
        if vgg:
            load_backbone(whole, vgg)
        starts = (0, *CUTS)
        self.parts = nn.ModuleList(whole.features[a:b] for a, b in zip(starts, CUTS))
        self.size = size
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, p: Tensor, g: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(g)
        return sum(mse_loss(found, aim) for found, aim in zip(self.features(p), wanted, strict=True))

    def features(self, maps: Tensor) -> list[Tensor]:
        x = (maps.float() - self.mean) / self.std  # one channel becomes three
        x = interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found
