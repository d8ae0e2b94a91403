"""A U-Net with one encoder and a decoder for each answer, which goes down by large steps: the whole of a slide in few levels.

Lucassen et al., Tissue cross-section and pen marking segmentation in whole slide images, SPIE Medical Imaging 2024,
https://arxiv.org/abs/2401.13511. Channels double up to 16 times the first; max-pooling by ``factors`` (2, 4, 4, 4, 4); two 3 x 3
convolutions with instance norm and ReLU a block, none of the norm in the bottom block; nearest up-sampling; a last 3 x 3 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .blocks.conv import MAX_POOL, conv
from .blocks.padding import pad_to_multiple

_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class MultiDecoderUNet(nn.Module):
    """``out_channels``: the answers' names and channels. ``forward``: (B, C, *s) -> name -> logits (B, K, *s). Inputs whose sides are no
    multiple of ``multiple`` are padded and the answer cropped. Decoders share nothing: leaving one out changes no other."""

    def __init__(
        self,
        in_channels: int,
        out_channels: Mapping[str, int],
        *,
        spatial_dims: int = 2,
        filters: int = 32,
        factors: tuple[int, ...] = (2, 4, 4, 4, 4),
    ):
        super().__init__()
        self.factors, self.multiple = tuple(factors), (prod(factors),) * spatial_dims
        widths = [min(filters * 2**i, filters * 16) for i in range(len(factors) + 1)]
        self.encoder = nn.ModuleList(
            _block(spatial_dims, a, b, norm=i < len(factors))
            for i, (a, b) in enumerate(zip([in_channels, *widths[:-1]], widths, strict=True))
        )
        self.pool = nn.ModuleList(MAX_POOL[spatial_dims](f) for f in factors)
        self.decoders = nn.ModuleDict({name: _Decoder(spatial_dims, widths, k, self.factors) for name, k in out_channels.items()})

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest block (feature taps)."""
        return self.encoder[-1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        inside = (..., *(slice(0, n) for n in image.shape[2:]))
        skips = [self.encoder[0](pad_to_multiple(image, self.multiple))]
        for pool, block in zip(self.pool, self.encoder[1:], strict=True):
            skips.append(block(pool(skips[-1])))
        return {name: decoder(skips)[inside] for name, decoder in self.decoders.items()}


class _Decoder(nn.Module):
    def __init__(self, dims: int, widths: list[int], out: int, factors: tuple[int, ...]):
        super().__init__()
        self.factors = factors[::-1]
        self.blocks = nn.ModuleList(_block(dims, widths[i] + widths[i + 1], widths[i]) for i in range(len(widths) - 2, -1, -1))
        self.last = _kaiming(conv(dims, widths[0], out, 3))

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for block, factor, skip in zip(self.blocks, self.factors, skips[-2::-1], strict=True):
            x = block(torch.cat([interpolate(x, scale_factor=factor, mode="nearest"), skip], 1))
        return self.last(x)


def _block(dims: int, inp: int, out: int, norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inp, out):
        layers.append(_kaiming(conv(dims, width, out, 3, bias=not norm)))
        layers += [_NORM[dims](out, affine=True)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _kaiming(layer: nn.Module) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
