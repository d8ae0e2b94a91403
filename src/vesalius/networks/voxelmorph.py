"""VoxelMorph: a small U-Net that reads two images and writes where each voxel of the first is found in the second.

Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, IEEE TMI 2019,
https://arxiv.org/abs/1809.05231: strided convolutions down, nearest-neighbour upsampling and skips up, LeakyReLU(0.2), no normalisation.
The published last layer starts near 0 (sd 1e-5); this one at 0, so that an untrained network is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .blocks.conv import conv
from .blocks.padding import check_multiple


class VoxelMorph(nn.Module):
    """(B, in_channels, *s) -> (B, out_channels, *s): a flow in voxels. ``features``: channels on the way down, each at half the size of
    the one before; ``refine``: of the last convolutions, at full size. Sides are multiples of ``multiple``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        features: tuple[int, ...] = (16, 32, 32, 32),
        refine: tuple[int, ...] = (32, 16, 16),
    ):
        super().__init__()
        d, wide = spatial_dims, features[-1]
        self.multiple = (2 ** len(features),) * d
        inputs = (in_channels, *features[:-1])
        self.down = nn.ModuleList(_layer(d, a, b, stride=2) for a, b in zip(inputs, features, strict=True))
        self.up = nn.ModuleList(_layer(d, features[-1] if not i else wide + skip, wide) for i, skip in enumerate(_skips(features)))
        widths = (wide + in_channels, *refine)
        self.refine = nn.Sequential(*[_layer(d, a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        self.head = conv(d, widths[-1], out_channels, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest stage (feature taps)."""
        return self.down[-1]

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "VoxelMorph")
        skips = [x]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        x = skips.pop()
        for layer in self.up:
            x = torch.cat([interpolate(layer(x), scale_factor=2), skips.pop()], 1)
        return self.head(self.refine(x))


def _layer(dims: int, inp: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(dims, inp, out, 3, stride), nn.LeakyReLU(0.2))


def _skips(features: Sequence[int]) -> tuple[int, ...]:
    """Channels of the skip that joins before each layer up; nothing joins before the first."""
    return (0, *reversed(features[:-1]))
