"""QTSeg: one query a class walks from the coarsest level to the finest, and becomes the classifier of every pixel.

The levels of a feature pyramid are first dealt out anew, so that each holds half of its own and a quarter of each other's. At every
level the queries look at the map through two doors, a spatial and a channel attention, then the map looks back at the queries; a small
network turns each query into one of the next level. At the end a pixel belongs to a class as far as its features agree with the query.

Tran et al., QTSeg: A query token-based dual-mix attention framework with multi-level feature distribution for medical image segmentation,
2024, https://arxiv.org/abs/2412.17241, code https://github.com/tpnam0901/QTSeg (v1.0.0). Where we differ or had to choose:

* Input size, normalisation, augmentation and the schedule are the plan's or ``Recipe``'s; ISIC's conversion to YCrCb is not made.
* The encoder is YOLOv8-n's body. Its published weights are under the AGPL and not used; ``--set pretrained=FILE.safetensors`` fills it from
  a file whose tensors are named as here. The paper then holds it still for 50 epochs: ``--set frozen=true`` holds it still throughout.
* The position codes' random frequencies are drawn once and saved.

Key components: ``Distribution`` (multi-level feature distribution), ``DualMixBlock``, ``QueryDecoder``.

Good to know: the channel branch starts as the identity (gamma 0) and its affinities are sums over all pixels, which large images saturate.
Queries see a whole patch at once: a patch without any structure teaches them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..core.errors import UsageError
from .blocks.norm import ChannelNorm, check_batch
from .blocks.padding import check_multiple
from .blocks.resize import resize_like
from .feature_pyramid import FeaturePyramid, unit
from .sam import Attention, Perceptron

DECODERS = ("dual", "cross", "plain")
DEPTHS = (1, 2, 3)  # blocks at the finest level, the middle one and the coarsest


class QTSeg(nn.Module):
    """Logits (B, out_channels, H, W). H and W are multiples of 32.

    ``width``: channels after the first convolution; the levels have 4, 8 and 16 times as many. ``heads`` and ``hidden`` of the decoder's
    attention and perceptrons. ``decoder``: 'dual' is the paper, 'cross' lets queries look at the map itself, 'plain' has convolutions of
    about the same cost and no queries. ``distribute``: deal the levels out. ``frozen``: the encoder does not learn.
    """

    multiple = (32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 16,
        heads: int = 8,
        hidden: int = 2048,
        decoder: Literal["dual", "cross", "plain"] = "dual",
        distribute: bool = True,
        frozen: bool = False,
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("QTSeg is a 2D network", where="qtseg", found=f"{spatial_dims}D data")
        if width < 4 or heads < 1 or width * 2 % heads or hidden < 1:
            raise UsageError("heads share the channels", where="width, heads", found=(width, heads), allowed="2 width a multiple of heads")
        if decoder not in DECODERS:
            raise UsageError("unknown decoder", where="decoder", found=decoder, allowed=", ".join(DECODERS))
        self.backbone = FeaturePyramid(in_channels, width)
        self.distribute = Distribution(self.backbone.features) if distribute else nn.Identity()
        if decoder == "plain":
            self.decoder: nn.Module = PlainDecoder(self.backbone.features, out_channels)
        else:
            self.decoder = QueryDecoder(self.backbone.features, out_channels, heads, hidden, dual=decoder == "dual")
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> QTSeg:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # its batch statistics stay, too
        return self

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's pooled last map (feature taps)."""
        return self.backbone.pooling

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "QTSeg")
        check_batch(self, x, 32)
        return resize_like(self.decoder(self.distribute(self.backbone(x))), x)


class Distribution(nn.Module):
    """Three levels (B, features[i], h / 2^i, w / 2^i), finest first -> the same sizes and channels, half of each from its own level and a
    quarter from each other: coarser ones through transposed, finer ones through strided convolutions."""

    def __init__(self, features: Sequence[int]):
        super().__init__()
        self.links = nn.ModuleList(
            nn.ModuleList(self.link(n, features[i] // (2 if i == j else 4), j - i) for j, n in enumerate(features))
            for i in range(len(features))
        )

    @staticmethod
    def link(inp: int, out: int, coarser: int) -> nn.Sequential:
        """To a level that is ``coarser`` halvings finer than the one it comes from."""
        if coarser > 0:
            move: nn.Module = nn.ConvTranspose2d(inp, out, 2**coarser, 2**coarser, bias=False)
        else:
            kernel = 3 if coarser else 1
            move = nn.Conv2d(inp, out, kernel, 2**-coarser, kernel // 2, bias=False)
        return nn.Sequential(move, nn.BatchNorm2d(out), nn.SiLU())

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([link(level) for link, level in zip(links, levels, strict=True)], 1) for links in self.links]


class QueryDecoder(nn.Module):
    """Three levels, finest first -> logits (B, classes, 4h, 4w) of the finest, as inner products of queries and features."""

    def __init__(self, features: Sequence[int], classes: int, heads: int, hidden: int, *, dual: bool):
        super().__init__()
        self.queries = nn.Embedding(classes, features[-1])
        self.stages, self.turn, self.enlarge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(features))):
            n, out = features[i], features[max(0, i - 1)]
            self.stages.append(DualMixStage(n, DEPTHS[i], heads, hidden, dual=dual))
            self.turn.append(nn.ModuleList(Perceptron(n, n, out) for _ in range(classes)))
            self.enlarge.append(_enlarge(n, out, last=i == 0))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        queries, below = self.queries.weight.expand(len(levels[0]), -1, -1), 0
        for stage, turn, enlarge, level in zip(self.stages, self.turn, self.enlarge, reversed(levels), strict=True):
            queries, seen = stage(queries, level + below)
            queries = torch.stack([net(queries[:, k]) for k, net in enumerate(turn)], 1)
            below = enlarge(seen)
        return torch.einsum("bkc,bchw->bkhw", queries, below)


class DualMixStage(nn.Module):
    """Queries (B, K, C) and a map (B, C, h, w) -> the same, after ``depth`` blocks and a last look of the queries at the map."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, *, dual: bool):
        super().__init__()
        self.blocks = nn.ModuleList(DualMixBlock(dim, heads, hidden, dual=dual) for _ in range(depth))
        self.look, self.norm = Attention(dim, heads, dim // 2), nn.LayerNorm(dim)
        self.register_buffer("frequencies", torch.randn(2, dim // 2))

    def forward(self, queries: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first, places = queries, self.places(x)
        for block in self.blocks:
            queries, x = block(queries, x, places)
        queries = queries + self.look(queries + first, _tokens(x + places), _tokens(x))
        return self.norm(queries), x

    def places(self, x: Tensor) -> Tensor:
        """(1, C, h, w): sines and cosines, at random frequencies, of where a pixel is between -1 and 1."""
        axes = [(torch.arange(n, device=x.device) + 0.5) / n * 2 - 1 for n in x.shape[2:]]
        phase = 2 * math.pi * torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], -1).movedim(-1, 0)[None]


class DualMixBlock(nn.Module):
    """Queries look at the map through both attentions and think; then every pixel looks at the queries. Not ``dual``: at the map itself."""

    def __init__(self, dim: int, heads: int, hidden: int, *, dual: bool = True):
        super().__init__()
        self.spatial = SpatialAttention() if dual else None
        self.channel = ChannelAttention() if dual else None
        self.to_spatial, self.to_queries = Attention(dim, heads, dim // 2), Attention(dim, heads, dim // 2)
        self.to_channel = Attention(dim, heads, dim // 2) if dual else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.wide, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, queries: Tensor, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        placed = x + places
        if self.spatial is None:
            seen = _tokens(placed)
            found = self.to_spatial(queries, seen, seen)
        else:
            spatial, channel = _tokens(self.spatial(placed)), _tokens(self.channel(placed))
            found = self.to_spatial(queries, spatial, spatial) + self.to_channel(queries, channel, channel)
            seen = spatial + channel
        found = self.norm1(queries + found)
        queries = queries + self.norm2(self.narrow(gelu(self.wide(found))))
        mixed = self.to_queries(seen + _tokens(places), found, found)
        return queries, x + mixed.transpose(1, 2).reshape(x.shape)


class SpatialAttention(nn.Module):
    """x plus x times a weight a pixel, from the mean and the maximum over the channels around it (7x7)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class ChannelAttention(nn.Module):
    """x plus ``gamma`` times a mixture of its channels, to which those weigh most that resemble a channel least (Fu et al., CVPR 2019)."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        alike = flat @ flat.transpose(1, 2)
        weight = (alike.amax(-1, keepdim=True) - alike).softmax(-1)
        return self.gamma * (weight @ flat).view(x.shape) + x


class PlainDecoder(nn.Module):
    """What ``QueryDecoder`` is compared with: the same way up with residual 3x3 convolutions, of which one costs what two blocks do."""

    def __init__(self, features: Sequence[int], classes: int):
        super().__init__()
        order = list(reversed(range(len(features))))
        units = lambda i: [_Residual(features[i]) for _ in range(round((5 * DEPTHS[i] + 1) / 9))]
        self.stages = nn.ModuleList(nn.Sequential(*units(i)) for i in order)
        self.enlarge = nn.ModuleList(_enlarge(features[i], features[max(0, i - 1)], last=i == 0) for i in order)
        self.head = nn.Conv2d(features[0], classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        below: Tensor | int = 0
        for stage, enlarge, level in zip(self.stages, self.enlarge, reversed(levels), strict=True):
            below = enlarge(stage(level + below))
        return self.head(below)


class _Residual(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.unit = unit(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.unit(x)


def _enlarge(inp: int, out: int, *, last: bool) -> nn.Sequential:
    """Transposed convolution to twice the size; the ``last`` one twice, through half of the channels."""
    if last:
        return nn.Sequential(*_enlarge(inp, inp // 2, last=False), *_enlarge(inp // 2, out, last=False))
    return nn.Sequential(nn.ConvTranspose2d(inp, out, 2, 2), ChannelNorm(out), nn.GELU())


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
