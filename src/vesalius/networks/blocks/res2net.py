"""Res2Net, a 2D backbone with feature taps (Gao et al., TPAMI 2021, https://arxiv.org/abs/1904.01169), in its 'v1b' form.

A bottleneck splits its middle channels into ``scale`` groups; each group's 3x3 convolution also sees what the previous group found, so one
block sees several sizes at once. v1b: three 3x3 convolutions as stem, average pooling before the shortcut's 1x1. Parameters are named as in
the published weights, so that a safetensors copy of Res2Net50-v1b-26w-4s fits (``blocks.pretrained``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPANSION = 4  # channels of a stage over those in the middle of its blocks


class Res2Net(nn.Module):
    """(B, C, H, W) -> feature maps at strides 4, 8, 16, 32 with ``features`` channels. The defaults are Res2Net50-26w-4s.

    ``depths``: blocks of each stage; ``width``: channels in the middle of the first stage, doubled at each (64: 256, 512, 1024, 2048
    features); ``base``: channels of one group at ``width`` 64; ``scale``: groups. H and W are multiples of 32.
    """

    def __init__(self, in_channels: int, *, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, base: int = 26, scale: int = 4):
        super().__init__()
        self.features = tuple(width * 2**i * EXPANSION for i in range(4))
        half = max(1, width // 2)
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, 2, 1, bias=False),
            *(nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            nn.Conv2d(half, half, 3, 1, 1, bias=False),
            *(nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            nn.Conv2d(half, width, 3, 1, 1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inp = width
        for i, (depth, out) in enumerate(zip(depths, self.features, strict=True)):
            group = max(1, out // EXPANSION * base // 64)
            blocks = [
                Bottle2neck(inp if b == 0 else out, out, group, scale, stride=2 if i and b == 0 else 1, first=b == 0) for b in range(depth)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            inp = out
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.levels(x)[1:]

    def levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pooled stem, ``width`` channels at stride 4, and the four stages' maps."""
        found = [self.maxpool(self.relu(self.bn1(self.conv1(x))))]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            found.append(stage(found[-1]))
        return tuple(found)


class Bottle2neck(nn.Module):
    """1x1 to ``scale`` groups of ``group`` channels, 3x3 on all but the last, 1x1 to ``out``. In the ``first`` block of a stage the groups
    do not feed each other and the last is average-pooled to the new size."""

    def __init__(self, inp: int, out: int, group: int, scale: int, *, stride: int, first: bool):
        super().__init__()
        self.group, self.first = group, first
        self.conv1 = nn.Conv2d(inp, group * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(group * scale)
        self.convs = nn.ModuleList(nn.Conv2d(group, group, 3, stride, 1, bias=False) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(group) for _ in range(scale - 1))
        self.pool = nn.AvgPool2d(3, stride, 1) if first else nn.Identity()
        self.conv3 = nn.Conv2d(group * scale, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if first:
            self.downsample = nn.Sequential(nn.AvgPool2d(stride, stride), nn.Conv2d(inp, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.relu(self.bn1(self.conv1(x))).split(self.group, 1)
        found: list[Tensor] = []
        for part, conv, bn in zip(groups, self.convs, self.bns):
            part = part if self.first or not found else part + found[-1]
            found.append(self.relu(bn(conv(part))))
        found.append(self.pool(groups[-1]))
        return self.relu(self.bn3(self.conv3(torch.cat(found, 1))) + self.downsample(x))
