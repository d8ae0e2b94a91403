"""PVT v2, a pyramid of transformers with feature taps (Wang et al., PVT v2, 2022, https://arxiv.org/abs/2106.13797).

Patches overlap; keys and values are read from a map shrunk by a strided convolution, so that attention stays affordable at stride 4; a
depthwise convolution between the two layers of each MLP tells tokens where they are. Parameters are named as in the published weights, so
that a safetensors copy of pvt_v2_b0 ... b5 fits (``blocks.pretrained``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .drop_path import kept
from .start import truncated_linear

MULTIPLES, HEADS, RATIOS, REDUCTIONS = (1, 2, 5, 8), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1)  # of the four stages, b0 to b5


class PVTv2(nn.Module):
    """(B, C, H, W) -> maps at strides 4, 8, 16, 32 with ``features`` channels: 1, 2, 5 and 8 times ``width``. H, W: multiples of 32.

    ``width`` 32 with ``depths`` (2, 2, 2, 2) is b0, 64 with (3, 4, 6, 3) b2. ``drop_path`` grows linearly from 0 in the first block.
    """

    def __init__(self, in_channels: int, *, width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), drop_path: float = 0.1):
        super().__init__()
        self.features = tuple(width * m for m in MULTIPLES)
        rates = iter([drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        inp = in_channels
        for i, (n, depth) in enumerate(zip(self.features, depths, strict=True)):
            setattr(self, f"patch_embed{i + 1}", Patches(inp, n, *((7, 4) if i == 0 else (3, 2))))
            blocks = [Block(n, HEADS[i], RATIOS[i], REDUCTIONS[i], next(rates)) for _ in range(depth)]
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(n, eps=1e-6))
            inp = n
        self.apply(_init)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for i in range(1, 5):
            x, size = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, size)
            x = _as_map(getattr(self, f"norm{i}")(x), size)
            found.append(x)
        return found


class Patches(nn.Module):
    """A strided convolution and a norm: (B, C, H, W) -> tokens (B, N, out) and their grid (h, w)."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inp, out, kernel, stride, kernel // 2), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int, reduction: int, drop_path: float):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), ReducedAttention(dim, heads, reduction)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), ConvMLP(dim, dim * ratio)
        self.drop_path = drop_path

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + kept(self.attn(self.norm1(x), size), self.drop_path, self.training)
        return x + kept(self.mlp(self.norm2(x), size), self.drop_path, self.training)


class ReducedAttention(nn.Module):
    """Multi-head attention of every token to a map that is ``reduction`` times smaller along each side."""

    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, reduction, reduction), nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        seen = x if self.reduction == 1 else self.norm(self.sr(_as_map(x, size)).flatten(2).transpose(1, 2))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), *self.kv(seen).chunk(2, -1)))
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ConvMLP(nn.Module):
    """Linear, depthwise 3x3 on the grid, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), _Depthwise(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.fc2(gelu(self.dwconv(self.fc1(x), size)))


class _Depthwise(nn.Module):
    """Its convolution is called as in the published weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.dwconv(_as_map(x, size)).flatten(2).transpose(1, 2)


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, size)


def _init(m: nn.Module) -> None:
    truncated_linear(m)
    if isinstance(m, nn.Conv2d):
        nn.init.normal_(m.weight, 0, math.sqrt(2 * m.groups / (m.out_channels * m.kernel_size[0] * m.kernel_size[1])))
        nn.init.zeros_(m.bias)
