"""The planned U-Net: depth, strides and kernels follow the data, as nnU-Net showed (Isensee et al., Nature Methods 2021).

Encoder stages of plain or residual convolutions, strided downsampling, transposed-convolution upsampling, skip concatenation, one logits
head per resolution when deeply supervised. Returns logits: a tensor, or in training with ``deep_supervision`` a list, finest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from .blocks.conv import CONV_TRANSPOSE, AttentionGate, ConvStack, ResidualBlock, conv


class UNet(nn.Module):
    """``features[i]`` channels and stride ``strides[i]`` on entering stage i (the first is usually 1), kernels likewise.

    Input sides must be multiples of ``multiple`` (the product of the strides along each axis). ``gates`` puts an attention gate on every
    skip. ``encoder`` is 'plain' (two convolutions a stage) or 'residual' (``blocks`` residual blocks a stage).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        features: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
        norm: str = "instance",
        dropout: float = 0.0,
        deep_supervision: bool = False,
        gates: bool = False,
        encoder: str = "plain",
        blocks: int = 1,
    ):
        super().__init__()
        if encoder not in ("plain", "residual"):
            raise ValueError(f"encoder is plain or residual, not {encoder}")
        d, n = spatial_dims, len(features)
        strides = [tuple(s) for s in strides] or [(1,) * d] + [(2,) * d] * (n - 1)
        kernels = [tuple(k) for k in kernels] or [(3,) * d] * n
        self.multiple = tuple(prod(int(s[a]) for s in strides) for a in range(d))
        self.deep_supervision = deep_supervision
        self.down, inp = nn.ModuleList(), in_channels
        for f, s, k in zip(features, strides, kernels, strict=True):
            if encoder == "plain":
                self.down.append(ConvStack(d, inp, f, k, s, 2, norm, dropout))
            else:
                first = ResidualBlock(d, inp, f, k, s, norm, dropout)
                self.down.append(nn.Sequential(first, *[ResidualBlock(d, f, f, k, 1, norm, dropout) for _ in range(blocks - 1)]))
            inp = f
        self.up, self.merge, self.gate = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(n - 2, -1, -1):
            f, s = features[i], strides[i + 1]
            self.up.append(CONV_TRANSPOSE[d](features[i + 1], f, s, s))
            self.gate.append(AttentionGate(d, f, f) if gates else nn.Identity())
            self.merge.append(ConvStack(d, 2 * f, f, kernels[i], 1, 2 if encoder == "plain" else 1, norm, dropout))
        self.heads = nn.ModuleList(conv(d, f, out_channels, 1) for f in (features[-2::-1] if deep_supervision else features[:1]))
        self.gated = gates
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(m.weight, a=0.01)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest stage (feature taps)."""
        return self.down[-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """The feature maps of all stages, finest first."""
        maps = []
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        return maps

    def decode(self, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """From the maps of all stages, finest first: the deepest, then every one on the way up."""
        x = maps[-1]
        yield x
        for up, gate, merge, skip in zip(self.up, self.gate, self.merge, maps[-2::-1], strict=True):
            x = up(x)
            x = merge(torch.cat([gate(skip, x) if self.gated else skip, x], 1))
            yield x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = []
        for i, seen in enumerate(self.decode(self.encode(x)), start=-1):
            if self.deep_supervision and self.training and i >= 0:
                outputs.append(self.heads[i](seen))
        if self.deep_supervision and self.training:
            return outputs[::-1]
        return self.heads[-1](seen)
