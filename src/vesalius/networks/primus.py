"""Primus: a 3D segmenter that has nothing but its transformer to segment with.

Many hybrids hardly lose when their transformer is taken out, since the convolutions around it are a U-Net already. Primus leaves one
convolution to cut 8^3-voxel tokens and a few transposed ones to paint them back, without skips; what it can do, attention does.

Roy et al., Primus: Enforcing attention usage for 3D medical image segmentation, 2025, https://arxiv.org/abs/2503.01835, code in MIC-DKFZ's
nnUNet and dynamic-network-architectures. Where we differ or had to choose:

* Rotary positions: a sixth of a head's channels, in sine-cosine pairs, for each axis (the published 'rope dim = head_dim / 1.5' comes to
  the same); coordinates are token indices of the window that the network is trained with.
* The card's ``config`` is S, the smallest of the published sizes, so that a CPU can train it; the paper's headline is M.
* Register tokens, patch dropping and the residual tokenizer of the later PrimusV2 are not built.
* ``token`` 4 or 16 instead of 8 and ``identity`` (the blocks taken out) are the paper's own experiments.

Key components: ``blocks.transformer.Transformer`` (EVA-02 blocks: rotary attention with inner norms, SwiGLU, LayerScale, stochastic depth),
``Painter`` (the light decoder), ``networks.ablation`` (identity twin and UNet index, for any network).

Good to know: every token attends to every other, so time grows with the square of the tokens: a window of 128^3 voxels has 4096. Nothing
finer than a token is kept but what its channels remember, and thin structures suffer first. Transformers want far more steps than a U-Net;
with the few of a small budget expect it to trail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.conv import CONV, CONV_TRANSPOSE
from .blocks.padding import check_multiple
from .blocks.transformer import Transformer

CONFIGS = {"S": (12, 6, 396), "B": (12, 12, 792), "M": (16, 12, 864), "L": (24, 16, 1056)}  # depth, heads, channels


class Primus(nn.Module):
    """Logits (B, out_channels, *s); sides are multiples of ``token`` (GeometryError). ``window``: the input size that the positions are
    laid out for (rounded up to whole tokens); others work with scaled positions.

    ``config`` gives depth, heads and channels, each of which ``depth``, ``heads`` and ``dim`` replace when not 0. ``rotary``, ``absolute``:
    the two kinds of positions. ``identity``: all transformer blocks replaced by the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        window: Sequence[int] = (128, 128, 128),
        config: Literal["S", "B", "M", "L"] = "M",
        depth: int = 0,
        heads: int = 0,
        dim: int = 0,
        token: int = 8,
        rotary: bool = True,
        absolute: bool = True,
        drop_path: float = 0.2,
        identity: bool = False,
    ):
        super().__init__()
        if spatial_dims != 3 or len(window) != 3:
            raise UsageError("Primus is a 3D network", where="primus", found=f"{spatial_dims}D data, window {tuple(window)}")
        if config not in CONFIGS:
            raise UsageError("unknown configuration", where="config", found=config, allowed=", ".join(CONFIGS))
        if token < 2 or token & (token - 1):
            raise UsageError("a token's side is a power of two", where="token", found=token, allowed="2, 4, 8, 16")
        depth, heads, dim = (given or planned for given, planned in zip((depth, heads, dim), CONFIGS[config], strict=True))
        self.multiple = (token,) * 3
        grid = [-(-n // token) for n in window]
        self.tokenizer = CONV[3](in_channels, dim, token, token)
        depth = 0 if identity else depth
        self.transformer = Transformer(dim, depth, heads, grid, drop_path=drop_path, rotary=rotary, absolute=absolute)
        self.decoder = Painter(dim, out_channels, int(math.log2(token)), 3)

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "Primus")
        return self.decoder(self.transformer(self.tokenizer(x)))


class Painter(nn.Sequential):
    """``steps`` transposed convolutions of kernel and stride 2 from ``dim`` channels to ``out``; between them the channels shrink by one
    ratio, (dim / (2 out))^(1 / steps), to multiples of 8, each followed by a norm over channels and GELU."""

    def __init__(self, dim: int, out: int, steps: int, dims: int):
        ratio = (dim / (2 * out)) ** (1 / steps)
        widths = [dim, *(max(8, 8 * round(dim / ratio**i / 8)) for i in range(1, steps)), out]
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [CONV_TRANSPOSE[dims](a, b, 2, 2), ChannelNorm(b), nn.GELU()]
        super().__init__(*layers[:-2])


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, *s), voxel by voxel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
