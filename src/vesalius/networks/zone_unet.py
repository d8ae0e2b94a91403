"""A 3D U-Net for thick slices: the first two of its three poolings leave the slice axis alone, and its decoder drops half of its features.

Meyer et al., Towards patient-individual PI-RADS v2 sector map: CNN for automatic segmentation of prostatic zones from T2-weighted MRI, ISBI
2019, code https://github.com/AnnekeMeyer/zone-segmentation. A block is twice convolution, ReLU, batch norm.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.conv import conv
from .blocks.padding import check_multiple


class ZoneUNet(nn.Module):
    """Logits (B, out_channels, *s) of volumes; ``tapped``: (logits, the features (B, 2 width, *s) they are a linear map of).

    ``width``: channels of the first convolution; ``across``: the axis of thick slices, halved once, the others three times; ``dropout``
    at the bottom and in the decoder.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, spatial_dims: int = 3, width: int = 16, across: int = 2, dropout: float = 0.5
    ):
        super().__init__()
        if spatial_dims != 3:
            raise UsageError("this network takes volumes", where="zone-unet", found=f"{spatial_dims}D data")
        in_plane = tuple(1 if axis == across else 2 for axis in range(3))
        steps = (in_plane, in_plane, (2, 2, 2))
        self.multiple = tuple(prod(step[axis] for step in steps) for axis in range(3))
        wide = [(width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
        self.down = nn.ModuleList(_Block(inp, *w) for inp, w in zip((in_channels, 2 * width, 4 * width), wide, strict=True))
        self.pool = nn.ModuleList(nn.MaxPool3d(step) for step in steps)
        self.bottleneck = nn.Sequential(_Block(8 * width, 16 * width, 16 * width), nn.Dropout(dropout))
        self.up, self.merge, inp = nn.ModuleList(), nn.ModuleList(), 16 * width
        for step, (_, out) in zip(steps[::-1], wide[::-1], strict=True):
            self.up.append(nn.ConvTranspose3d(inp, inp, step, step))
            self.merge.append(nn.Sequential(nn.Dropout(dropout), _Block(inp + out, out, out)))
            inp = out
        self.head = conv(3, inp, out_channels, 1)

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_multiple(x, self.multiple, "this network")
        skips = []
        for block, pool in zip(self.down, self.pool, strict=True):
            skips.append(block(x))
            x = pool(skips[-1])
        x = self.bottleneck(x)
        for up, merge, skip in zip(self.up, self.merge, skips[::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x), x

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x)[0]


class _Block(nn.Sequential):
    def __init__(self, inp: int, middle: int, out: int):
        super().__init__(
            conv(3, inp, middle, 3), nn.ReLU(), nn.BatchNorm3d(middle), conv(3, middle, out, 3), nn.ReLU(), nn.BatchNorm3d(out)
        )
