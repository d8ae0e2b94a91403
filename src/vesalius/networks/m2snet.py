"""M2SNet: levels are joined by what they differ in, not by their sum: multi-scale subtraction at every pair of neighbouring levels.

A subtraction unit takes the absolute difference of two levels, pixel by pixel and over neighbourhoods of 3 x 3 and 5 x 5, so that what both
found is not handed on twice. Units are stacked into a pyramid: differences of neighbours, differences of those, and so on, ten in all; they
carry what far levels differ in to every decoder step. LossNet, a frozen classifier, compares prediction and mask feature by feature.

Zhao et al., M2SNet: Multi-scale in multi-scale subtraction network for medical image segmentation, 2023,
https://arxiv.org/abs/2303.10894; before it MSNet (MICCAI 2021), code https://github.com/Xiaoqi-Zhao-DLUT/MSNet-M2SNet. Where we differ or
had to choose:

* A unit's filters of ones act on each channel by itself, see zeros outside and are averaged, not summed: summed, the largest box drowns
  the pixels; averaged, an untrained unit sees about as much of each. The authors' repository holds MSNet alone. Of the M2SNet that
  circulates in others' the filters run over all channels, then batch norm and ReLU, before |F(A) - F(B)|: all channels then say the same of
  a neighbourhood. |F(A) - F(B)| is computed as |F(A - B)|, which is the same number.
* Several structures (the paper has one): a map each, trained one against the rest.
* The paper's backbone, from ImageNet, is meant to learn at a tenth of the others' rate (the published name filter for it never matches).
  Ours does with ``--set pretrained=FILE.safetensors``; one of random weights has nothing to keep and learns like the rest.
* The paper's training is SGD at 0.05, up for half of 50 epochs and down for the other half. A short training learns more by AdamW at 1e-3
  with a short warm-up, the default; ``--set optimizer=sgd --set lr=0.05 --set weight_decay=5e-4 --set schedule=poly --set warmup=0.5`` is
  the paper's but for the way down, (1 - t)^0.9 for a straight line.
* LossNet is VGG-16 with ImageNet weights in the paper: ``--set vgg=FILE.safetensors``. Without a file its filters are random and fixed,
  which still compares borders and textures of the two masks, though not as ImageNet would; each level is then divided by how much it varies
  over a disc, since its luck would set the loss's scale. Maps smaller than ``loss_size`` are seen as they are: enlarging them cost more
  than the network.
* Input size, normalisation and augmentation are the plan's.

Key components: ``Subtraction``, ``Pyramid``, ``LossNet``.

Good to know: subtraction needs levels that mean the same by the same channel, which training must find; from random weights a sum is the
easier start. LossNet costs two passes of a VGG per step, about as much as the network, and nothing at prediction; ``--set features=0``
leaves it out.
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
    'multi' is the paper, 'single' MSNet's pixelwise difference, 'add' the sum, 'concat' both beside each other (same parameters: its
    convolution has two groups, each of half of both levels' channels).
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
        unit: Literal["multi", "single", "add", "concat"] = "multi",
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
        if unit not in (*SCALES, "add", "concat"):
            raise UsageError("unknown unit", where="unit", found=unit, allowed=", ".join((*SCALES, "add", "concat")))
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
    """Conv-BN-ReLU of sum_n |F_n(A) - F_n(B)| / n^2 with F_n the n x n box of ones: A (B, C, h, w), B the deeper level, resized to A's."""

    def __init__(self, channels: int, unit: str = "multi"):
        super().__init__()
        self.unit, self.conv = unit, conv_norm_relu(channels, channels)
        if unit == "concat":
            if channels % 2:
                raise UsageError("two groups need an even number", where="channels", found=channels, fix="take one more")
            self.conv[0] = nn.Conv2d(2 * channels, channels, 3, padding=1, groups=2, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.conv(self.join(a, resize_like(b, a)))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """What the convolution sees of two maps of one size; a difference is exactly 0 where they agree, and the same when exchanged."""
        if self.unit == "add":
            return a + b
        if self.unit == "concat":
            return torch.cat([half for pair in zip(a.chunk(2, 1), b.chunk(2, 1), strict=True) for half in pair], 1)
        return sum(box(a - b, n).abs() / n**2 for n in SCALES[self.unit])


def box(x: Tensor, side: int) -> Tensor:
    """Sum over ``side`` x ``side`` neighbours of each pixel of each channel, zeros outside."""
    return x if side == 1 else avg_pool2d(x, side, 1, side // 2, divisor_override=1)


class LossNet(nn.Module):
    """sum_i MSE(phi_i(P), phi_i(G)) / c_i over four levels of a frozen VGG-16, for maps P and G (N, 1, h, w) in 0..1.

    Nothing here learns. ``vgg``: a safetensors file with VGG-16's published weights, c_i = 1; without one, He-initialised filters that are
    the same every time, ``width`` of them in the first layers (64 is VGG's), and c_i is the variance of phi_i over the map of a disc.
    ``size``: sides that larger maps are shrunk to.
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
        self.register_buffer("scales", torch.ones(len(CUTS)) if vgg else self.contrasts())

    def forward(self, p: Tensor, g: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(g)
        return sum(mse_loss(found, aim) / c for found, aim, c in zip(self.features(p), wanted, self.scales, strict=True))

    def features(self, maps: Tensor) -> list[Tensor]:
        x = (maps.float() - self.mean) / self.std  # one channel becomes three
        size = [min(n, self.size) for n in x.shape[2:]]
        x = interpolate(x, size, mode="bilinear", align_corners=False) if size != list(x.shape[2:]) else x
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found

    def contrasts(self) -> Tensor:
        """(4,): each level's variance over the map of a disc, averaged over its channels."""
        at = torch.arange(64, dtype=torch.float32) - 31.5
        disc = (at[:, None] ** 2 + at**2 < 20**2).float()
        return torch.stack([found.var((2, 3)).mean() for found in self.features(disc[None, None])]).clamp_min(1e-6)
