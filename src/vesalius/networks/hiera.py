"""Hiera, the image encoder of Segment Anything 2: a vision transformer in stages that halve the grid, with a neck that joins them.

Ryali et al., Hiera: a hierarchical vision transformer without the bells-and-whistles, ICML 2023, https://arxiv.org/abs/2306.00989; as
Ravi et al., SAM 2: segment anything in images and videos, https://arxiv.org/abs/2408.00714, use it: tokens look through windows and in
a few blocks at everything, the first block of a stage pools its queries, and each token's place is a coarse map of places plus one tile
repeated in every window (Bolya et al., https://arxiv.org/abs/2311.05613).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, max_pool2d, scaled_dot_product_attention

from .blocks.windows import through_windows


class Hiera(nn.Module):
    """(B, 3, H, W) -> the maps of all stages, finest first, (B, dims[i], H / 4 / 2^i, W / 4 / 2^i). ``depths``: blocks, ``heads``: of their
    attention, ``windows``: tokens a side that they see; ``whole``: the blocks, counted through all stages, that see everything;
    ``background``: sides of the coarse map of places. Sides are multiples of 32 and, in tokens, of ``windows[0]``. The defaults are the
    tiny model's."""

    def __init__(
        self,
        *,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (1, 2, 7, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        windows: Sequence[int] = (8, 4, 14, 7),
        whole: Sequence[int] = (5, 7, 9),
        background: Sequence[int] = (7, 7),
        ratio: float = 4.0,
    ):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dims[0], 7, 4, 3)
        self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], *background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dims[0], windows[0], windows[0]))
        self.blocks, self.ends = nn.ModuleList(), set()
        for stage, depth in enumerate(depths):
            for i in range(depth):
                new = stage > 0 and i == 0  # the stage before still rules what is seen
                window = 0 if len(self.blocks) in whole else windows[stage - new]
                self.blocks.append(Block(dims[stage - new], dims[stage], heads[stage], window, ratio, pool=new))
            self.ends.add(len(self.blocks) - 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        tile = self.pos_embed_window.repeat(1, 1, *(n // m for n, m in zip(x.shape[2:], self.pos_embed_window.shape[2:], strict=True)))
        x = (x + interpolate(self.pos_embed, x.shape[2:], mode="bicubic") + tile).permute(0, 2, 3, 1)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps


class Block(nn.Module):
    """Attention among (B, h, w, dim) tokens, of windows of ``window`` a side (0: of all), and a two-layer perceptron; ``pool``: what comes
    out has half as many a side."""

    def __init__(self, dim: int, out: int, heads: int, window: int, ratio: float, *, pool: bool):
        super().__init__()
        self.heads, self.window, self.pool = heads, window, pool
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(out, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * out), nn.Linear(out, out)
        self.mlp.lin1, self.mlp.lin2 = nn.Linear(out, int(out * ratio)), nn.Linear(int(out * ratio), out)
        self.proj = nn.Linear(dim, out) if dim != out else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(x)
        kept = x if self.proj is None else self.proj(inner)
        if self.pool:
            kept = _halved(kept)
        x = kept + (through_windows(inner, self.window, self._attend) if self.window else self._attend(inner))
        return x + self.mlp.lin2(gelu(self.mlp.lin1(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        q, k, v = self.attn.qkv(x).chunk(3, -1)
        if self.pool:
            q = _halved(q)
            h, w = q.shape[1:3]
        q, k, v = (t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.attn.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, -1))


def _halved(x: Tensor) -> Tensor:
    return max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class Neck(nn.Module):
    """Maps of ``dims`` channels, finest first -> as many of ``out`` channels but the last; ``joined``: the levels that get the sum of what
    is coarser, the others keep to themselves."""

    def __init__(self, dims: Sequence[int], out: int = 256, joined: Sequence[int] = (2, 3)):
        super().__init__()
        self.joined = frozenset(joined)
        self.convs = nn.ModuleList(nn.Conv2d(n, out, 1) for n in reversed(dims))  # coarsest first, as released

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for level in reversed(range(len(maps))):
            x = self.convs[-1 - level](maps[level])
            if found and level in self.joined:
                x = x + interpolate(found[-1], scale_factor=2.0, mode="nearest")
            found.append(x)
        return found[:0:-1]
