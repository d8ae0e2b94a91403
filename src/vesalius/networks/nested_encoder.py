"""The encoder of MCADS: nested U-shapes of separable convolutions with gated skips, then dilated blocks (after U2-Net, Qin et al. 2020).

Wazir and Kim, CVPR 2025, https://arxiv.org/abs/2506.18335; layers and widths as in https://github.com/saadwazir/MCADS-Decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, silu

from .blocks.resize import resize_like


class NestedEncoder(nn.Module):
    """(B, C, H, W) -> six maps at strides 1 to 32 with ``features`` channels: four nested U-shapes, a dilated block, and one at the bottom;
    after each but the last a gate and a convolution."""

    def __init__(self, in_channels: int, width: int = 64):
        super().__init__()
        w = width
        self.features = (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
        shapes = [
            NestedU(in_channels, w, w // 2, 6, w),
            NestedU(w, 2 * w, w // 2, 5, w),
            NestedU(2 * w, 4 * w, w, 4, w),
            NestedU(4 * w, 8 * w, 2 * w, 3, w),
            DilatedBlock(8 * w, 8 * w, 4 * w),
        ]
        self.stages = nn.ModuleList(nn.Sequential(s, DualGate(n), ConvBlock(n, n)) for s, n in zip(shapes, self.features))
        self.bridge = DilatedBlock(8 * w, 8 * w, 4 * w)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            found.append(stage(x))
            x = max_pool2d(found[-1], 2)
        return [*found, self.bridge(x)]


class NestedU(nn.Module):
    """A U-shape of ``levels`` levels inside one stage, with gates on its skips, added to its first convolution (after U2-Net). The gates
    have 8, 4, 2, 1 times ``width`` channels from the bottom up."""

    def __init__(self, inp: int, out: int, inner: int, levels: int, width: int):
        super().__init__()
        self.first = ConvBlock(inp, out)
        self.down = nn.ModuleList(ConvBlock(out if i == 0 else inner, inner) for i in range(levels))
        self.bridge, self.bottom = ConvBlock(inner, inner, dilation=2), ConvBlock(2 * inner, inner)
        self.gates = nn.ModuleList(SkipGate(inner, 8 * width >> i) for i in range(levels - 2))
        self.up = nn.ModuleList(ConvBlock(2 * inner, inner) for _ in range(levels - 2))
        self.last = ConvBlock(2 * inner, out)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.first(x)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else max_pool2d(x, 2))
            skips.append(x)
        x = self.bottom(torch.cat([self.bridge(x), skips.pop()], 1))
        for gate, up in zip(self.gates, self.up, strict=True):
            skip = skips.pop()
            x = up(torch.cat([resize_like(x, skip), gate(skip, x)], 1))
        return first + self.last(torch.cat([resize_like(x, skips[0]), skips[0]], 1))


class SkipGate(nn.Module):
    """Additive attention (Oktay et al. 2018) as the published code has it: the skip (B, C, 2h, 2w) is brought to the size of the map below
    (B, C, h, w), weights are found there and enlarged to the nearest."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.signal = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU())
        self.of_gate = nn.Sequential(nn.Conv2d(inner, inner, 1), nn.ConvTranspose2d(inner, inner, 3, 1, 1))
        self.of_skip, self.psi = nn.Conv2d(channels, inner, 2, 2), nn.Conv2d(inner, 1, 1)
        self.out = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        weight = self.psi(torch.relu(self.of_gate(self.signal(below)) + self.of_skip(skip))).sigmoid()
        return self.out(skip * interpolate(weight, skip.shape[2:], mode="nearest"))


class DilatedBlock(nn.Module):
    """A U-shape without pooling: dilations 1, 2, 4, 8 and back through 4, 2, 1, added to its first convolution."""

    def __init__(self, inp: int, out: int, inner: int):
        super().__init__()
        self.first = ConvBlock(inp, out)
        self.down = nn.ModuleList(ConvBlock(out if d == 1 else inner, inner, d) for d in (1, 2, 4, 8))
        self.up = nn.ModuleList(ConvBlock(2 * inner, out if d == 1 else inner, d) for d in (4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.first(x)
        seen = []
        for block in self.down:
            x = block(x)
            seen.append(x)
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            x = block(torch.cat([x, skip], 1))
        return first + x


class ConvBlock(nn.Sequential):
    """Separable convolution: depthwise 3x3 with ``dilation``, then 1x1, each with batch norm and LeakyReLU(0.3), Keras's slope."""

    def __init__(self, inp: int, out: int, dilation: int = 1):
        first = (depthwise(inp, 3, dilation), nn.BatchNorm2d(inp), nn.LeakyReLU(0.3))
        super().__init__(*first, nn.Conv2d(inp, out, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.3))
        he_uniform(self)


class DualGate(nn.Module):
    """x times a weight a channel plus x times a weight a pixel, both weights in 0..1. Channels: from mean and maximum over the map; pixels:
    from mean, maximum, minimum and sum over the channels, of which training drops half. Weights start he-normal,
    biases at 0."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        inner = max(1, channels // ratio)
        self.squeeze, self.excite = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)
        self.drop, self.around, self.point = nn.Dropout(0.5), nn.Conv2d(4, 1, 7, padding=3), nn.Conv2d(1, 1, 1)
        for layer in (self.squeeze, self.excite, self.around, self.point):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        by_channel = self.excite(silu(self.squeeze(x.mean((2, 3)) + x.amax((2, 3))))).sigmoid()[:, :, None, None]
        seen = torch.cat([f(1, keepdim=True) for f in (x.mean, x.amax, x.amin, x.sum)], 1)
        by_pixel = self.point(silu(self.around(self.drop(seen)))).sigmoid()
        return x * (by_channel + by_pixel)


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """One filter a channel, of the same size out as in."""
    return nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels, bias=False)


def he_uniform(net: nn.Module) -> nn.Module:
    """Uniform weights that keep the variance under ReLU, in all convolutions of ``net``, and biases 0."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return net
