"""SCOPE: patches of the image are nodes of a grid graph, and what neighbouring patches say keeps a vessel continuous.

A VGG with side outputs draws features at the image's size. They are pooled over small patches; every patch is a node joined to its eight
neighbours, and a few graph convolutions let it hear of theirs. What a node has heard and what it had seen itself give its class, which is
spread over its pixels and joined to the convolutional network's own map.

Yeganeh et al., SCOPE: Structural continuity preservation for medical image segmentation, 2023, https://arxiv.org/abs/2304.14572; side
outputs after Maninis et al., Deep retinal image understanding (DRIU), MICCAI 2016, https://arxiv.org/abs/1609.01103; graph convolution
after Kipf and Welling, ICLR 2017, https://arxiv.org/abs/1609.02907. No code was released. Inferred, thus options: the patch (4 pixels), how
it is pooled, depth and width of the graph network. Where we differ or had to choose:

* The classes of 4-pixel patches alone cannot draw a vessel of two pixels: by default a 1x1 convolution joins them to the pixels' own
  logits (``detail``; ``--set detail=false`` spreads them and nothing else, as written).
* Nodes and pixels are both taught, each by (1 - a) Dice + a clDice; a node's class is that of any foreground in it (``nodes``). From
  random weights that alone ends in foreground everywhere, so cross-entropy is added (``ce_weight``).
* VGG has group norms, without which it does not start from random weights; ``--set norm=none`` is for ImageNet's.
* A node's graph convolutions start with He weights: with torch's own, behind averages, it hears next to nothing at first.
* Optimiser and rate are ours: none is known. Input size and augmentation are the plan's.

Key components: ``grid_edges``, ``GraphConv``, ``GridGraph``; the loss is ``objectives.cldice``.

Good to know: nodes hear of others ``layers`` patches away and no further, so a gap longer than that is the convolutions' affair. With
patches of one pixel nothing but a smoothing of pixels is left.
"""

from __future__ import annotations

from itertools import product
from math import gcd, lcm
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, interpolate, relu

from ..core.errors import UsageError
from .blocks.padding import check_multiple
from .blocks.resize import resize_like
from .blocks.vgg import VGG

NEIGHBOURS = {"none": (), "four": ((0, 1), (1, 0)), "eight": ((0, 1), (1, 0), (1, 1), (1, -1))}  # each also the other way round
SIDE = 16  # channels of each side output


class Scope(nn.Module):
    """Logits (B, out_channels, H, W); in training a list of those of pixels (where ``detail``) and of nodes (B, out_channels, H/p, W/p).
    H and W are multiples of 8 and of the patch.

    ``width`` of VGG's first stage (64 is VGG-16), whose convolutions are followed by a ``norm``, or by 'none' as published (and as its
    pretrained weights need). ``patch`` pixels a side are a node, ``pooling`` its features; ``layers`` graph convolutions of ``hidden``
    channels; ``edges`` to 'eight' neighbours, to 'four', or to 'none': then every node is on its own. ``graph`` False: the convolutional
    network alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 64,
        norm: Literal["group", "none"] = "group",
        patch: int = 4,
        pooling: Literal["mean", "max"] = "mean",
        layers: int = 3,
        hidden: int = 64,
        edges: Literal["eight", "four", "none"] = "eight",
        graph: bool = True,
        detail: bool = True,
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("SCOPE is a 2D network", where="scope", found=f"{spatial_dims}D data")
        if min(width, patch, layers, hidden) < 1:
            found = (width, patch, layers, hidden)
            raise UsageError("these are 1 or more", where="width, patch, layers, hidden", found=found)
        if norm not in ("group", "none"):
            raise UsageError("unknown normalisation", where="norm", found=norm, allowed="group, none")
        if not (graph or detail):
            raise UsageError("without the graph only the pixels are left", where="graph, detail", found=(graph, detail))
        self.multiple = (lcm(8, patch),) * 2
        widths = tuple(width * m for m in (1, 2, 4, 8))
        self.backbone = VGG(in_channels, widths, (2, 2, 3, 3))
        if norm == "group":
            for name, layer in list(self.backbone.features.named_children()):
                if isinstance(layer, nn.Conv2d):
                    setattr(
                        self.backbone.features, name, nn.Sequential(layer, nn.GroupNorm(gcd(8, layer.out_channels), layer.out_channels))
                    )
        self.sides = nn.ModuleList(nn.Conv2d(n, SIDE, 3, padding=1) for n in widths)
        seen = SIDE * len(widths)
        self.pixels = nn.Conv2d(seen, out_channels, 1) if detail else None
        self.graph = GridGraph(seen, out_channels, patch, pooling, layers, hidden, edges) if graph else None
        self.join = nn.Conv2d(2 * out_channels, out_channels, 1) if graph and detail else None

    @property
    def bottleneck(self) -> nn.Module:
        """VGG's last stage that is used (feature taps)."""
        return self.backbone.features[-2]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_multiple(x, self.multiple, "SCOPE")
        seen = self.look(x)
        if self.graph is None:
            return self.pixels(seen)
        nodes = self.graph(seen)
        spread = interpolate(nodes, x.shape[2:], mode="nearest")
        if self.join is None:
            return [nodes] if self.training else spread
        pixels = self.join(torch.cat([self.pixels(seen), spread], 1))
        return [pixels, nodes] if self.training else pixels

    def look(self, image: Tensor) -> Tensor:
        """(B, 64, H, W): VGG's first four stages, each read before its pooling and enlarged."""
        x, found = image, []
        for layer in self.backbone.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(resize_like(self.sides[len(found)](x), image))
            if len(found) < len(self.sides):
                x = layer(x)
        return torch.cat(found, 1)


class GridGraph(nn.Module):
    """Features (B, C, H, W) -> logits (B, classes, H/p, W/p) of the patches: pooled into nodes, told to their neighbours, and classified by
    what a node has heard beside what it had seen."""

    def __init__(self, inp: int, classes: int, patch: int, pooling: str, layers: int, hidden: int, edges: str):
        super().__init__()
        if pooling not in ("mean", "max") or edges not in NEIGHBOURS:
            allowed = f"mean, max; {', '.join(NEIGHBOURS)}"
            raise UsageError("no such graph", where="pooling, edges", found=(pooling, edges), allowed=allowed)
        self.patch, self.edges = patch, edges
        self.pool = adaptive_avg_pool2d if pooling == "mean" else adaptive_max_pool2d
        self.layers = nn.ModuleList(GraphConv(inp if i == 0 else hidden, hidden) for i in range(layers))
        self.head = nn.Linear(hidden + inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        h, w = (n // self.patch for n in x.shape[2:])
        first = self.pool(x, (h, w)).flatten(2).transpose(1, 2)
        edges, nodes = grid_edges(h, w, self.edges).to(x.device), first
        for layer in self.layers:
            nodes = relu(layer(nodes, edges))
        return self.head(torch.cat([nodes, first], -1)).transpose(1, 2).unflatten(2, (h, w))


class GraphConv(nn.Module):
    """Node features (B, N, inp) and ``edges`` (2, E), each direction an edge of its own, -> (B, N, out): D^-1/2 (A + I) D^-1/2 X W + b, D
    the degrees of A + I (Kipf and Welling, eq. 2). W starts so that a ReLU behind it keeps the variance (He), as averages over neighbours
    are small enough already, and b at 0."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.mix = nn.Linear(inp, out)
        nn.init.kaiming_normal_(self.mix.weight, nonlinearity="relu")
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        told, by = edges
        degree = x.new_ones(x.shape[1]).index_add(0, told, x.new_ones(len(told)))
        sent = x * degree.rsqrt()[:, None]
        heard = sent.index_add(1, told, sent[:, by])  # itself, and its neighbours
        return self.mix(heard * degree.rsqrt()[:, None])


def grid_edges(height: int, width: int, to: Literal["eight", "four", "none"] = "eight") -> Tensor:
    """(2, E) int64: the edges (node, neighbour) of a grid of patches, numbered row by row, without self-loops."""
    index, pairs = torch.arange(height * width).view(height, width), [torch.zeros(2, 0, dtype=torch.long)]
    for (down, right), back in product(NEIGHBOURS[to], (False, True)):
        left, up = slice(max(0, -right), width - max(0, right)), slice(0, height - down)
        pair = torch.stack([index[up, left].flatten(), index[down:, max(0, right) : width + min(0, right)].flatten()])
        pairs.append(pair.flip(0) if back else pair)
    return torch.cat(pairs, 1)
