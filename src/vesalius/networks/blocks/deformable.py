"""Attention along a sequence that chooses the places it looks at (deformable attention in one dimension).

Xia et al., Vision transformer with deformable attention, CVPR 2022, https://arxiv.org/abs/2201.00520: a small network on the queries moves
the points of a coarse grid; keys and values are read there. Along the slices of a volume: Nguyen et al. 2023, https://arxiv.org/abs/2212.01893.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from ...core.errors import UsageError


class DeformableTransformer(nn.Module):
    """(B, N, dim) -> (B, N, dim): learned positions, laid out for ``length`` and interpolated for other N, then ``depth`` pre-norm blocks
    of deformable attention and a two-layer perceptron of ``hidden`` units."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        length: int,
        *,
        hidden: int,
        dropout: float = 0.1,
        downsample: int = 4,
        reach: float = 2.0,
        kernel: int = 6,
    ):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, dim, length))
        how = dict(downsample=downsample, reach=reach, kernel=kernel)
        self.blocks = nn.ModuleList(_Block(dim, heads, hidden, dropout, how) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        n, at = x.shape[1], self.position
        at = at if n == at.shape[2] else interpolate(at, n, mode="linear", align_corners=False)
        x = x + at.transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, how: dict):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), DeformableAttention1d(dim, heads, **how)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class DeformableAttention1d(nn.Module):
    """Multi-head self-attention of (B, N, dim) whose keys and values are read at one place for every ``downsample`` members: the middle of
    that cell, moved by at most ``reach`` cells. ``kernel``: members whose queries decide on a place."""

    def __init__(self, dim: int, heads: int, *, downsample: int = 4, reach: float = 2.0, kernel: int = 6):
        super().__init__()
        if dim % heads:
            raise UsageError("heads share the channels", where="dim, heads", found=(dim, heads), allowed="dim a multiple of heads")
        if not 0 < downsample <= kernel:
            raise UsageError("a place is chosen from its whole cell", where="kernel", found=kernel, allowed=f"{downsample} or more")
        self.heads, self.downsample, self.reach, self.kernel = heads, downsample, reach, kernel
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.offset = nn.Sequential(
            nn.Conv1d(dim, dim, kernel, downsample, groups=dim), nn.GELU(), nn.Conv1d(dim, 1, 1, bias=False), nn.Tanh()
        )

    def places(self, queries: Tensor) -> Tensor:
        """(B, ceil(N / downsample)) positions in the sequence, in members."""
        step, n = self.downsample, queries.shape[1]
        before = (self.kernel - step) // 2
        around = (before, self.kernel - step - before + -n % step)
        moved = self.offset(pad(queries.transpose(1, 2), around)).squeeze(1)
        middle = (torch.arange(moved.shape[1], device=queries.device) + 0.5) * step - 0.5
        return middle + step * self.reach * moved

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        there = read_at(x, self.places(q))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, self.key(there), self.value(there)))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def read_at(x: Tensor, at: Tensor) -> Tensor:
    """(B, M, D): ``x`` (B, N, D) between its members, linearly, at ``at`` (B, M); beyond the ends the end members."""
    n = x.shape[1]
    at = at.to(x.dtype).clamp(0, n - 1)
    low = at.detach().floor().long().clamp(max=max(0, n - 2))
    share = (at - low).unsqueeze(-1)
    first, second = (x.gather(1, i.unsqueeze(-1).expand(-1, -1, x.shape[2])) for i in (low, (low + 1).clamp(max=n - 1)))
    return first + share * (second - first)
