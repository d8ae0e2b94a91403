"""BEiT's vision transformer: tokens that know places by distances alone.

Tokens of ``patch`` pixels and one class token attend to each other; each block adds a learnt number a head for how far two tokens are
apart, which is all it knows of places, so that another image size needs another table and nothing else.

Bao et al., BEiT: BERT pre-training of image transformers, ICLR 2022, https://arxiv.org/abs/2106.08254, with its names of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention

from ...core.errors import DataError
from .drop_path import kept
from .pretrained import read_tensors
from .start import truncated_linear


class Beit(nn.Module):
    """(B, C, H, W) -> the tokens (B, dim, H / patch, W / patch) after each block of ``levels``.

    Tokens that are ``hidden`` (B, H / patch, W / patch) are replaced by ``token`` (dim) before the first block.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        levels: Sequence[int],
        *,
        drop_path: float = 0.1,
        layer_scale: float = 0.1,
    ):
        super().__init__()
        self.grid, self.patch, self.dim, self.levels = tuple(grid), patch, dim, tuple(levels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, dim, patch, patch)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, self.grid, rates[i], layer_scale) for i in range(depth))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(truncated_linear)
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight /= math.sqrt(2 * layer)
                block.mlp.fc2.weight /= math.sqrt(2 * layer)

    def forward(self, x: Tensor, *, hidden: Tensor | None = None, token: Tensor | None = None) -> list[Tensor]:
        maps = self.patch_embed.proj(x)
        if hidden is not None:
            maps = torch.where(hidden.unsqueeze(1), token.to(maps.dtype)[:, None, None], maps)
        grid = tuple(maps.shape[2:])
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1).to(maps.dtype), maps.flatten(2).transpose(1, 2)], 1)
        index, seen = relative_index(grid, x.device), {}
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, grid, index)
            if i in self.levels:
                seen[i] = tokens[:, 1:].transpose(1, 2).reshape(maps.shape)
        return [seen[i] for i in self.levels]

    def above(self, name: str) -> int:
        """How many layers lie above a parameter of that name: the depth + 1 for the embedding, 1 for the last block."""
        return len(self.blocks) - int(name.split(".")[1]) if name.startswith("blocks.") else len(self.blocks) + 1


class Block(nn.Module):
    """x + g1 attention(LN(x)), then x + g2 mlp(LN(x)), with learnt scales g and stochastic depth."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, ...], drop_path: float, layer_scale: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp, self.drop_path = Attention(dim, heads, grid), nn.Module(), drop_path
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        if layer_scale:
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in range(2))
        else:
            self.gamma_1 = self.gamma_2 = 1.0

    def forward(self, x: Tensor, grid: tuple[int, ...], index: Tensor) -> Tensor:
        x = x + kept(self.gamma_1 * self.attn(self.norm1(x), grid, index), self.drop_path, self.training)
        return x + kept(self.gamma_2 * self.mlp.fc2(gelu(self.mlp.fc1(self.norm2(x)))), self.drop_path, self.training)


class Attention(nn.Module):
    """Multi-head self-attention of the class token and a grid of tokens, with a bias for how far two of them are apart. Keys have none."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, ...]):
        super().__init__()
        self.heads, self.grid = heads, grid
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances(grid) + 3, heads))

    def forward(self, x: Tensor, grid: tuple[int, ...], index: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        table = resized_table(self.relative_position_bias_table, self.grid, grid)
        near = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)[None].to(q.dtype)
        return self.proj(scaled_dot_product_attention(q, k, v, attn_mask=near).transpose(1, 2).flatten(2))


def distances(grid: Sequence[int]) -> int:
    """How many (row, column) distances two tokens of a grid can have."""
    return math.prod(2 * n - 1 for n in grid)


def relative_index(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(1 + N, 1 + N) which row of a block's table says how far token i is from token j, the class token first; the table's last three rows
    are for from the class token, to it, and itself."""
    h, w = grid
    rows, columns = (torch.arange(n, device=device) for n in (h, w))
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
    apart = at[:, :, None] - at[:, None]
    last = distances(grid)
    index = torch.full((1 + h * w,) * 2, last + 1, device=device)
    index[0], index[0, 0] = last, last + 2
    index[1:, 1:] = (apart[0] + h - 1) * (2 * w - 1) + apart[1] + w - 1
    return index


def resized_table(table: Tensor, own: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The table (distances + 3, heads) of the grid ``own`` for another grid: bilinear between the distances, the class token's rows as they
    are; the table itself for the same grid."""
    if tuple(own) == tuple(grid):
        return table
    near = table[:-3].T.reshape(1, -1, *(2 * n - 1 for n in own))
    near = interpolate(near.float(), tuple(2 * n - 1 for n in grid), mode="bilinear", align_corners=False).to(table.dtype)
    return torch.cat([near.flatten(2)[0].T, table[-3:]])


def adopt(backbone: Beit, path: str | Path) -> None:
    """Fill the transformer with what another run, of any image size, learnt, or a safetensors file of BEiT's names ('encoder.' and
    'backbone.' in front are dropped): tables are interpolated, one that all blocks share is given to each, and the first convolution is
    made to fit other channels, so that a grey image gives what the same image in every channel gave.

    UsageError: no such file, or no safetensors. DataError: tensors that are missing or of another shape, by name. A table says how many
    distances there were, not of what grid: those of another size than ours are taken as a square's.
    """
    file = Path(path) / "method.safetensors" if Path(path).is_dir() else Path(path)
    found = {_bare(k): v for k, v in read_tensors(file).items()}
    shared = found.get("rel_pos_bias.relative_position_bias_table")
    own, filled = backbone.state_dict(), {}
    for name, mine in own.items():
        table = name.endswith("relative_position_bias_table")
        given = found.get(name, shared if table else None)
        if given is None:
            raise DataError("this file lacks a tensor of the transformer", where=file, found=f"no {name}")
        if table and given.shape != mine.shape and given.shape[1:] == mine.shape[1:]:
            side = (math.isqrt(max(0, len(given) - 3)) + 1) // 2
            given = resized_table(given, (side, side), backbone.grid) if len(given) == distances((side, side)) + 3 else given
        if name == "patch_embed.proj.weight" and given.ndim == 4 and given.shape[1] != mine.shape[1]:
            given = given.sum(1, keepdim=True).expand(-1, mine.shape[1], -1, -1) / mine.shape[1]
        if given.shape != mine.shape:
            fix = "both need the same dim, depth, heads and patch"
            raise DataError(f"tensor '{name}' has another shape", where=file, found=tuple(given.shape), allowed=tuple(mine.shape), fix=fix)
        filled[name] = given.to(mine.dtype)
    backbone.load_state_dict(filled)


def _bare(name: str) -> str:
    for head in ("method/network.", "encoder.", "backbone."):
        name = name.removeprefix(head)
    return name
