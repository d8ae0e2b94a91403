"""Transformer blocks on image grids in the form of EVA-02 (Fang et al. 2023, https://arxiv.org/abs/2303.11331), 2D and 3D.

Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) axis by axis: each pair of a head's channels belongs to one axis and is
turned by coordinate times frequency, so that a query and a key meet under an angle that depends on their distance alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

from ...core.errors import UsageError
from .drop_path import kept
from .start import truncated_linear


class Transformer(nn.Module):
    """``depth`` EVA blocks over the voxels of a feature map: (B, dim, *g) -> (B, dim, *g), g usually ``grid``.

    ``rotary`` and ``absolute`` positions each can be left out. On another grid than the one it was made for, learned positions are
    interpolated and rotary coordinates scaled to the same range. ``drop_path`` grows linearly from 0 in the first block.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        grid: Sequence[int],
        *,
        mlp_ratio: float = 8 / 3,
        drop_path: float = 0.2,
        layer_scale: float = 0.1,
        rotary: bool = True,
        absolute: bool = True,
    ):
        super().__init__()
        d = len(grid)
        if dim % heads or (rotary and (dim // heads) % (2 * d)):
            allowed = f"dim a multiple of heads, each head of a multiple of {2 * d} channels"
            raise UsageError("rotary positions do not fit the heads", where="dim, heads", found=(dim, heads), allowed=allowed)
        self.grid, self.bands = tuple(int(n) for n in grid), dim // heads // (2 * d) if rotary else 0
        self.position = nn.Parameter(torch.empty(1, dim, *self.grid)) if absolute else None
        if absolute:
            nn.init.trunc_normal_(self.position, std=0.02)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(EvaBlock(dim, heads, round(dim * mlp_ratio), rates[i], layer_scale, i + 1) for i in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[2:])
        if self.position is not None:
            mode = "trilinear" if len(grid) == 3 else "bilinear"
            x = x + (self.position if grid == self.grid else interpolate(self.position, grid, mode=mode, align_corners=False))
        tokens = x.flatten(2).transpose(1, 2)
        turn = rotation(coordinates(grid, self.grid, x.device), self.bands) if self.bands else None
        for block in self.blocks:
            tokens = block(tokens, turn)
        return self.norm(tokens).transpose(1, 2).reshape(x.shape)


class EvaBlock(nn.Module):
    """x + s1 * attention(LN(x)), then x + s2 * mlp(LN(x)), with learned scales s and stochastic depth. ``layer`` (from 1) scales the
    initial weights that end in the residual stream by 1 / sqrt(2 layer)."""

    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float = 0.0, layer_scale: float = 0.1, layer: int = 1):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), GatedMLP(dim, hidden)
        self.scale1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.scale2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = drop_path
        self.apply(truncated_linear)
        with torch.no_grad():
            for end in (self.attention.out, self.mlp.out):
                end.weight /= math.sqrt(2 * layer)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + kept(self.scale1 * self.attention(self.norm1(x), turn), self.drop_path, self.training)
        return x + kept(self.scale2 * self.mlp(self.norm2(x)), self.drop_path, self.training)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions and a norm before the output projection. Keys have no bias, as in EVA."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return self.out(self.norm(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class GatedMLP(nn.Module):
    """SwiGLU with a norm inside: out(LN(silu(gate(x)) * inner(x)))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate, self.inner = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.norm, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(silu(self.gate(x)) * self.inner(x)))


def coordinates(grid: Sequence[int], reference: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(N, d) float32 positions of a grid's voxels in row-major order, in voxels of the ``reference`` grid that spans the same range."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) * (r / n) for n, r in zip(grid, reference, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def rotation(at: Tensor, bands: int, temperature: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine (N, d * bands) for positions ``at`` (N, d): ``bands`` frequencies temperature^(-i / bands) on each axis."""
    frequencies = temperature ** (-torch.arange(bands, dtype=torch.float32, device=at.device) / bands)
    angle = (at[:, :, None] * frequencies).flatten(1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """``x`` (B, heads, N, e) with each pair of neighbouring channels turned by its angle; e = 2 * d * bands."""
    cos, sin = turn
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
