"""VGG's convolutions: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
https://arxiv.org/abs/1409.1556 (``VGG(3)`` is VGG-16 without its dense layers); and the up-sampling of Long, Shelhamer and Darrell, Fully
Convolutional Networks for Semantic Segmentation, CVPR 2015, https://arxiv.org/abs/1411.4038.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VGG(nn.Module):
    """Blocks of 3x3 convolutions, each followed by pooling: (B, C, H, W) -> (B, widths[-1], H / 2^n, W / 2^n); layers named as in the
    published VGG-16, so that its weights fit."""

    def __init__(self, in_channels: int, widths: Sequence[int] = (64, 128, 256, 512, 512), convs: Sequence[int] = (2, 2, 3, 3, 3)):
        super().__init__()
        layers: list[nn.Module] = []
        for width, n in zip(widths, convs, strict=True):
            for _ in range(n):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Upsample(nn.ConvTranspose2d):
    """(B, 1, h, w) -> (B, 1, h * stride, w * stride): a kernel of two strides, bilinear interpolation to begin with."""

    def __init__(self, stride: int):
        super().__init__(1, 1, 2 * stride, stride, stride // 2, bias=False)
        ramp = 1 - (torch.arange(2 * stride) + 0.5 - stride).abs() / stride
        with torch.no_grad():
            self.weight.copy_(torch.outer(ramp, ramp))
