"""USFM's network: a vision transformer that knows places by distances alone, and two heads that segment from its levels.

Tokens of 16 pixels and one class token attend to each other; each block adds a learnt number a head for how far two tokens are apart
(``relative_bias``), which is all it knows of places, so that another image size needs another table and nothing else. 'upernet' makes four
scales of four blocks' tokens, pools the coarsest, and joins them (Xiao et al. 2018); 'segvit' asks with one query a class, and where a
query looks is the class's mask (Zhang et al. 2022).

Jiao et al., USFM: A universal ultrasound foundation model generalized to tasks and organs towards label efficient image analysis, Medical
Image Analysis 2024, doi:10.1016/j.media.2024.103202, code https://github.com/openmedlab/USFM. The transformer is BEiT's (Bao et al. 2022,
https://arxiv.org/abs/2106.08254), with its names of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, interpolate, linear, relu, scaled_dot_product_attention

from ..core.errors import DataError, UsageError
from .blocks.conv import conv_norm_relu
from .blocks.drop_path import kept
from .blocks.padding import check_multiple
from .blocks.pretrained import read_tensors
from .blocks.resize import resize_like

LEVELS = {"upernet": (1 / 3, 1 / 2, 2 / 3, 1), "segvit": (1 / 2, 2 / 3, 1)}  # of the depth: blocks 3, 5, 7, 11 and 5, 7, 11 of 12, from 0
STRIDES, POOLS = (4, 8, 16, 32), (1, 2, 3, 6)
PATCHES = (4, 8, 16, 32)


class USFM(nn.Module):
    """Logits (B, out_channels, H, W); in training the list that the head's loss takes: 'upernet' those and the auxiliary head's, 'segvit'
    each level's (class logits (B, K, K + 1), mask logits (B, K, H, W)), the last first.

    ``window``: the size that positions are laid out for, rounded up to whole tokens; others interpolate the tables. ``width``: channels of
    the head (0: 768 of 'upernet', 384 of 'segvit'); ``head_heads`` and ``layers``: of 'segvit'. ``levels``: the blocks, counted from 0,
    whose tokens the head sees, the last block's last (empty: as published, for any depth). ``layer_scale`` 0: none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        window: Sequence[int] = (512, 512),
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        drop_path: float = 0.1,
        layer_scale: float = 0.1,
        head: Literal["upernet", "segvit"] = "upernet",
        levels: tuple[int, ...] = (),
        width: int = 0,
        head_heads: int = 12,
        layers: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("USFM is a 2D network", where="eus-usfm", found=f"{spatial_dims}D data")
        if head not in LEVELS or patch not in PATCHES:
            allowed = f"{', '.join(LEVELS)}; {', '.join(map(str, PATCHES))}"
            raise UsageError("no such head or patch", where="head, patch", found=f"{head}, {patch}", allowed=allowed)
        if min(dim, depth, heads) < 1 or dim % heads:
            raise UsageError("heads share the channels", where="dim, depth, heads", found=(dim, depth, heads), allowed="dim a multiple")
        levels = tuple(levels) or tuple(math.ceil(depth * share - 1e-9) - 1 for share in LEVELS[head])
        if list(levels) != sorted(levels) or levels[0] < 0 or levels[-1] != depth - 1 or head == "upernet" and len(levels) != 4:
            allowed = f"{'four' if head == 'upernet' else 'some'} in order, the last {depth - 1}"
            raise UsageError("the head cannot see these blocks", where="levels", found=levels, allowed=allowed)
        grid = tuple(-(-n // patch) for n in window)
        self.backbone = Beit(in_channels, grid, patch, dim, depth, heads, levels, drop_path=drop_path, layer_scale=layer_scale)
        self.multiple = (max(patch, STRIDES[-1]) if head == "upernet" else patch,) * 2
        if head == "upernet":
            self.head: nn.Module = UPerNet(dim, out_channels, patch, width or 768, dropout)
        else:
            self.head = AttentionToMask(dim, out_channels, len(levels), width or 384, head_heads, layers, dropout)

    @property
    def bottleneck(self) -> nn.Module:
        """The transformer's last block (feature taps): tokens (B, 1 + N, dim)."""
        return self.backbone.blocks[-1]

    def forward(self, x: Tensor) -> Tensor | list:
        check_multiple(x, self.multiple, "USFM")
        answers = self.head(self.backbone(x))
        return [self.head.enlarge(a, x) for a in answers] if self.training else self.head.read(answers[0], x)


# ------------------------------------------------------------------------------------------------------------------------ the transformer
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
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
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


# ------------------------------------------------------------------------------------------------------------------------------ the heads
class UPerNet(nn.Module):
    """Four levels of tokens -> [logits at stride 4] and, in training, those of an auxiliary head on the third level."""

    def __init__(self, dim: int, out: int, patch: int, width: int, dropout: float, auxiliary: int = 256):
        super().__init__()
        self.scale = nn.ModuleList(rescale(dim, patch, stride) for stride in STRIDES)
        self.pooled = nn.ModuleList(conv_norm_relu(dim, width, 1) for _ in POOLS)
        self.joined = conv_norm_relu(dim + len(POOLS) * width, width)
        self.lateral = nn.ModuleList(conv_norm_relu(dim, width, 1) for _ in STRIDES[:-1])
        self.smooth = nn.ModuleList(conv_norm_relu(width, width) for _ in STRIDES[:-1])
        self.fused = conv_norm_relu(len(STRIDES) * width, width)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, out, 1))
        narrow = min(auxiliary, width)
        self.auxiliary = nn.Sequential(conv_norm_relu(dim, narrow), nn.Dropout2d(dropout), nn.Conv2d(narrow, out, 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        if self.training and len(levels[0]) < 2:
            fix = "set batch to 2 or more, or say --set head=segvit"
            raise UsageError("UPerNet pools whole images: its batch norm needs more than one", where="batch", found=1, fix=fix)
        levels = [scale(x) for scale, x in zip(self.scale, levels, strict=True)]
        deepest = levels[-1]
        pooled = [resize_like(net(adaptive_avg_pool2d(deepest, n)), deepest) for n, net in zip(POOLS, self.pooled, strict=True)]
        maps = [*(net(x) for net, x in zip(self.lateral, levels)), self.joined(torch.cat([deepest, *pooled], 1))]
        for i in (2, 1, 0):
            maps[i] = maps[i] + resize_like(maps[i + 1], maps[i])
        maps[:-1] = [net(x) for net, x in zip(self.smooth, maps)]
        logits = self.classify(self.fused(torch.cat([resize_like(m, maps[0]) for m in maps], 1)))
        return [logits, self.auxiliary(levels[2])] if self.training else [logits]

    def enlarge(self, answer: Tensor, image: Tensor) -> Tensor:
        return resize_like(answer, image)

    read = enlarge


def rescale(dim: int, patch: int, stride: int) -> nn.Sequential:
    """From tokens of ``patch`` pixels to a map of ``stride``: transposed convolutions with batch norm and GELU between, or max pooling."""
    if stride >= patch:
        return nn.Sequential(nn.MaxPool2d(stride // patch) if stride > patch else nn.Identity())
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(patch // stride))):
        layers += [nn.ConvTranspose2d(dim, dim, 2, 2), nn.BatchNorm2d(dim), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class AttentionToMask(nn.Module):
    """Levels of tokens -> each level's (class logits (B, K, K + 1), the last class 'not there'; mask logits (B, K, h, w)), the last first.

    One query a class walks from the deepest level to the first; what it looks at there, summed over the levels so far, is its mask.
    """

    def __init__(self, dim: int, out: int, levels: int, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        if width % heads or layers < 1:
            raise UsageError("heads share the head's channels", where="width, head_heads, layers", found=(width, heads, layers))
        self.queries = nn.Embedding(out, width)
        self.enter = nn.ModuleList(nn.Sequential(nn.Linear(dim, width), nn.LayerNorm(width)) for _ in range(levels))
        self.stages = nn.ModuleList(nn.ModuleList(Asking(width, heads, dropout) for _ in range(layers)) for _ in range(levels))
        self.classify = nn.Linear(width, out + 1)

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        queries, masks, answers = self.queries.weight.expand(len(levels[0]), -1, -1), 0, []
        for enter, stage, level in zip(self.enter, self.stages, reversed(levels), strict=True):
            tokens = enter(level.flatten(2).transpose(1, 2))
            for layer in stage:
                queries, looked = layer(queries, tokens)
            masks = masks + looked.unflatten(-1, level.shape[2:])
            answers.insert(0, (self.classify(queries), masks))
        return answers

    def enlarge(self, answer: tuple[Tensor, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        return answer[0], resize_like(answer[1], image)

    def read(self, answer: tuple[Tensor, Tensor], image: Tensor) -> Tensor:
        """Logarithms of the scores sum over queries of p(class) p(mask), whose softmax is their share."""
        classes, masks = self.enlarge(answer, image)
        score = torch.einsum("bqk,bqhw->bkhw", classes.float().softmax(-1)[..., :-1], masks.float().sigmoid())
        return score.clamp_min(1e-6).log()


class Asking(nn.Module):
    """Queries (B, K, n) look at each other, at tokens (B, N, n) and at themselves, each with a norm after; and where they looked (B, K, N),
    the mean over heads of the scaled products before the softmax."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.among = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.inner, self.outer, self.dropout = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norms[0](queries + self.dropout(self.among(queries, queries, queries, need_weights=False)[0]))
        asked = ((self.query, queries), (self.key, tokens), (self.value, tokens))
        q, k, v = (net(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for net, x in asked)
        products = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        seen = self.dropout(products.softmax(-1)) @ v
        queries = self.norms[1](queries + self.dropout(self.out(seen.transpose(1, 2).flatten(2))))
        inner = self.outer(self.dropout(relu(self.inner(queries))))
        return self.norms[2](queries + self.dropout(inner)), products.mean(1)


# ---------------------------------------------------------------------------------------------------------------------------- its weights
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
