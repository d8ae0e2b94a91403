"""PRISM's network: a convolutional and a transformer encoder side by side, prompts as tokens, several masks each with a predicted Dice.

Li et al., PRISM, MICCAI 2024, https://arxiv.org/abs/2404.15028, code in MedICL-VU/PRISM. The image is encoded once (``embed``); at every
turn (``decode``) its deepest map and the prompts look at each other, a U-Net decoder with the encoder's skips paints fine features, and
each mask token makes the weights of a pixel classifier over them. Where we differ from the code:

* Attention is global in every block: the published windows of 14 tokens are wider than the grid of 8 that a 128^3 patch has.
* The mask token that the published model computes and drops is not built; the position code of prompts is SAM's (sines and cosines of 192
  random frequencies, where the code repeats the sines of 128); activations of the convolutions are LeakyReLU(0.01), not 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, scaled_dot_product_attention

from ..core.errors import UsageError
from ..core.prompt import Asked, Candidates
from .blocks.conv import CONV_TRANSPOSE, ConvStack, conv
from .blocks.norm import ChannelNorm
from .blocks.padding import check_multiple
from .sam import Perceptron, PromptEncoder, TwoWayTransformer


@dataclass(frozen=True)
class Encoded:
    """``deep`` (B, features[-1], *grid) and ``skips``, finest first."""

    deep: Tensor
    skips: tuple[Tensor, ...]


class PrismNet(nn.Module):
    """``size``: sides of the input, multiples of 2^(levels - 1), levels the number of ``features``, which is also a token's side;
    ``dim``, ``depth``, ``heads`` of the transformer; ``masks``: answers to a turn. ``multiple``: what the sides are multiples of."""

    def __init__(
        self,
        in_channels: int,
        *,
        size: Sequence[int],
        features: Sequence[int] = (32, 32, 64, 128, 384),
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        masks: int = 3,
    ):
        super().__init__()
        wide, token = features[-1], 2 ** (len(features) - 1)
        if len(features) < 3 or wide % 16 or dim % heads:
            allowed = "three levels or more, the last of a multiple of 16 channels; dim a multiple of heads"
            raise UsageError("PRISM cannot be built so", where="features, dim, heads", found=(features, dim, heads), allowed=allowed)
        self.size, self.multiple, grid = tuple(size), (token,) * 3, [n // token for n in size]
        pairs = list(zip((in_channels, *features), features))
        self.stages = nn.ModuleList(ConvStack(3, a, b) for a, b in pairs)
        self.vit = VisionTransformer(in_channels, dim, depth, heads, token, grid)
        self.neck = nn.Sequential(conv(3, dim, wide, 1), ChannelNorm(wide), nn.GELU(), conv(3, wide, wide), ChannelNorm(wide), nn.GELU())
        inner = len(features) - 2  # levels between the finest and the deepest
        self.after = [max(1, depth * (k + 1) // (inner + 1)) for k in range(inner)]  # blocks whose tokens join them
        self.joins = nn.ModuleList(painter(dim, features[k + 1 : -1][::-1]) for k in range(inner))
        self.prompt_encoder = PromptEncoder(wide, size, grid)
        self.score_token, self.mask_tokens = nn.Embedding(1, wide), nn.Embedding(masks, wide)
        self.transformer = TwoWayTransformer(wide, hidden=16 * wide // 3)
        down = list(zip(features[:0:-1], features[-2::-1]))  # (from, to), deepest first
        self.up = nn.ModuleList(CONV_TRANSPOSE[3](a, b, 2, 2) for a, b in down)
        self.merge = nn.ModuleList(ConvStack(3, 2 * b, b) for _, b in down)
        self.classifiers = nn.ModuleList(Perceptron(wide, wide, features[0]) for _ in range(masks))
        self.score = Perceptron(wide, 2 * wide // 3, masks)

    def embed(self, image: Tensor) -> Encoded:
        check_multiple(image, self.multiple, "PRISM")
        maps, x = [], image
        for k, stage in enumerate(self.stages):
            x = stage(x if k == 0 else max_pool3d(x, 2))
            maps.append(x)
        for k, tokens in enumerate(self.vit(image), 1):
            for level, (after, join) in enumerate(zip(self.after, self.joins, strict=True), 1):
                if k == after:
                    maps[level] = maps[level] + join(tokens)
        return Encoded(maps[-1] + self.neck(tokens), tuple(maps[:-1]))

    def decode(self, encoded: Encoded, asked: Asked, previous: Tensor | None = None) -> Candidates:
        """``masks`` answers (B, M, *size) to the prompts of one turn and the logits (B, 1, *size) they were given at the sight of;
        qualities in (0, 1). One image is decoded for any number of objects."""
        tokens, dense = self._prompts(replace(asked, masks=previous))
        own = torch.cat([self.score_token.weight, self.mask_tokens.weight]).expand(len(tokens), -1, -1)
        tokens, seen = self.transformer(encoded.deep + dense, self.prompt_encoder.places(), torch.cat([own, tokens], 1))
        x = seen.transpose(1, 2).reshape(len(tokens), *encoded.deep.shape[1:])
        for up, merge, skip in zip(self.up, self.merge, reversed(encoded.skips), strict=True):
            x = merge(torch.cat([up(x), skip.expand(len(x), *skip.shape[1:])], 1))
        weights = torch.stack([net(tokens[:, 1 + k]) for k, net in enumerate(self.classifiers)], 1)
        return Candidates(torch.einsum("bmc,bc...->bm...", weights, x), self.score(tokens[:, 0]).sigmoid())

    def _prompts(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Tokens and map; the corners of an object without a box are tokens that say so."""
        if asked.boxes is None:
            return self.prompt_encoder(asked)
        absent = asked.boxes.isnan().any((1, 2))
        tokens, dense = self.prompt_encoder(replace(asked, boxes=asked.boxes.nan_to_num()))
        corners = torch.where(absent.view(-1, 1, 1), self.prompt_encoder.not_a_point_embed.weight, tokens[:, -2:])
        return torch.cat([tokens[:, :-2], corners], 1), dense


def painter(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Tokens (B, dim, *g) -> (B, widths[-1], *(g 2^n)): n times a convolution and a transposed one that doubles."""
    layers: list[nn.Module] = []
    for a, b in zip((dim, *widths), widths):
        layers += [conv(3, a, b), ChannelNorm(b), nn.GELU(), CONV_TRANSPOSE[3](b, b, 2, 2), ChannelNorm(b), nn.GELU()]
    return nn.Sequential(*layers)


class VisionTransformer(nn.Module):
    """(B, C, *s) -> the token maps (B, dim, *grid) after each block, one after the other. Learned positions, and relative ones in every
    block (Li et al., MViTv2, CVPR 2022, section 4.1), as SAM's encoder has them."""

    def __init__(self, in_channels: int, dim: int, depth: int, heads: int, token: int, grid: Sequence[int]):
        super().__init__()
        self.tokenizer = nn.Conv3d(in_channels, dim, token, token)
        self.position = nn.Parameter(torch.empty(1, dim, *grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, grid) for _ in range(depth))

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        x = self.tokenizer(image) + self.position
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens.transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x))."""

    def __init__(self, dim: int, heads: int, grid: Sequence[int], ratio: int = 4):
        super().__init__()
        self.heads, self.grid = heads, tuple(grid)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))
        self.relative = nn.ParameterList(nn.Parameter(torch.zeros(2 * n - 1, dim // heads)) for n in grid)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q))
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def _bias(self, q: Tensor) -> Tensor:
        """(B, heads, N, N): for each axis the query times the code of how far apart the two tokens are along it."""
        q, total = q.unflatten(2, self.grid), 0.0
        for axis, (n, table) in enumerate(zip(self.grid, self.relative, strict=True)):
            place = torch.arange(n, device=q.device)
            codes = table[place[:, None] - place + n - 1]  # (n, n, e)
            along = torch.einsum("bh...qe,qke->bh...qk", q.movedim(2 + axis, -2), codes).movedim(-2, 2 + axis)  # (B, h, *grid, n)
            total = total + along.reshape(*along.shape[:-1], *(n if a == axis else 1 for a in range(len(self.grid))))
        return total.flatten(5).flatten(2, 4)
