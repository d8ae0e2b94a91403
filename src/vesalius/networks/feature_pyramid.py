"""A feature pyramid of few operations: the body of YOLOv8 (Ultralytics 2023), as QTSeg uses it; written from its published layout.

Down to stride 32 through split blocks, pooling at the bottom, up again with the finer maps beside, and down once more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d


class FeaturePyramid(nn.Module):
    """(B, C, H, W) -> three maps at strides 8, 16 and 32 with ``features`` channels: YOLOv8's body, down, up and down again."""

    def __init__(self, in_channels: int, width: int = 16):
        super().__init__()
        n = width
        self.features = (4 * n, 8 * n, 16 * n)
        self.stem = nn.Sequential(unit(in_channels, n, 3, 2), unit(n, 2 * n, 3, 2), Split(2 * n, 2 * n, 1, residual=True))
        down = ((2 * n, 4 * n, 2), (4 * n, 8 * n, 2), (8 * n, 16 * n, 1))
        self.down = nn.ModuleList(nn.Sequential(unit(a, b, 3, 2), Split(b, b, k, residual=True)) for a, b, k in down)
        self.pooling = Pooling(16 * n)
        self.up = nn.ModuleList([Split(24 * n, 8 * n), Split(12 * n, 4 * n)])
        self.shrink = nn.ModuleList([unit(4 * n, 4 * n, 3, 2), unit(8 * n, 8 * n, 3, 2)])
        self.again = nn.ModuleList([Split(12 * n, 8 * n), Split(24 * n, 16 * n)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        fine, middle, coarse = (x := stage(x) for stage in self.down)
        coarse = self.pooling(coarse)
        middle = self.up[0](torch.cat([interpolate(coarse, scale_factor=2.0, mode="nearest"), middle], 1))
        fine = self.up[1](torch.cat([interpolate(middle, scale_factor=2.0, mode="nearest"), fine], 1))
        middle = self.again[0](torch.cat([self.shrink[0](fine), middle], 1))
        return [fine, middle, self.again[1](torch.cat([self.shrink[1](middle), coarse], 1))]


class Split(nn.Module):
    """Half of the channels pass by, the others go through ``n`` pairs of 3x3 convolutions, and all that is found is joined (C2f)."""

    def __init__(self, inp: int, out: int, n: int = 1, *, residual: bool = False):
        super().__init__()
        half = out // 2
        self.enter, self.leave, self.residual = unit(inp, 2 * half, 1), unit((2 + n) * half, out, 1), residual
        self.pairs = nn.ModuleList(nn.Sequential(unit(half, half), unit(half, half)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.enter(x).chunk(2, 1))
        for pair in self.pairs:
            found.append(pair(found[-1]) + found[-1] if self.residual else pair(found[-1]))
        return self.leave(torch.cat(found, 1))


class Pooling(nn.Module):
    """A map beside its maxima over 5, 9 and 13 pixels (SPPF)."""

    def __init__(self, dim: int):
        super().__init__()
        self.enter, self.leave = unit(dim, dim // 2, 1), unit(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.enter(x)]
        for _ in range(3):
            found.append(max_pool2d(found[-1], 5, 1, 2))
        return self.leave(torch.cat(found, 1))


def unit(inp: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.SiLU())
