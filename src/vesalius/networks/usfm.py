"""USFM's network: BEiT's transformer (``networks.blocks.beit``), and two heads that segment from its levels.

'upernet' makes four scales of four blocks' tokens, pools the coarsest, and joins them (Xiao et al. 2018); 'segvit' asks with one query a
class, and where a query looks is the class's mask (Zhang et al. 2022).

Jiao et al., USFM: A universal ultrasound foundation model generalized to tasks and organs towards label efficient image analysis, Medical
Image Analysis 2024, doi:10.1016/j.media.2024.103202, code https://github.com/openmedlab/USFM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from ..core.errors import UsageError
from .blocks.beit import Beit
from .blocks.conv import conv_norm_relu
from .blocks.padding import check_multiple
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
