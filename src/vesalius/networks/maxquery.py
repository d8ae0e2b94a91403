"""MaxQuery: object queries as cluster centres; a voxel that resembles none of them is unlike all that was trained on.

A transformer lets a few learnt queries look at the levels of a U-Net until they fit what the image holds. Every voxel is then given to the
queries, as far as its features agree with theirs, and each query says which class its voxels are of. The best agreement of a voxel, taken
negative, is how far it lies from every known centre: the MaxQuery score of rare things that no label was ever given to.

Yuan et al., Devil is in the queries: Advancing mask transformers for real-world medical image segmentation and out-of-distribution
localization, CVPR 2023, https://arxiv.org/abs/2304.00212. No code was released; sizes and training are of the same laboratory's
https://github.com/alibaba-damo-academy/pixel-lesion-patient-network. Inferred, thus options: the number of queries (32) and their share
in the groups, the normalisation of the agreement, how queries are updated. Where we had to choose:

* The U-Net is the planned one, without deep supervision; the queries see its bottleneck and the next coarsest levels, one a layer.
* Every layer's answer is supervised, all with the same weight, their mean is the loss.
* There are no position codes: a query stands for what something looks like, not for where it is.
* The map is blurred by 1 mm and shown as the logistic of the score within the predicted foreground, 0 outside (the order is the score's).

Key components: ``MaxQuery``, ``QueryLayer``, ``score``; ``objectives.maxquery`` (query-distribution loss); ``methods.networks.maxquery``
(what gives the map and the case's number).

Good to know: raw agreement grows with the length of a voxel's features, so that a very bright thing may look familiar; with
``--set agreement=l2`` only the direction counts. The score ranks voxels within one model; it is no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, normalize, one_hot

from ..core.errors import UsageError
from .blocks.conv import conv
from .blocks.padding import check_multiple
from .sam import Attention
from .unet import UNet

AGREEMENT = ("none", "l2", "instance")


class Clusters(NamedTuple):
    """What one set of queries says of the voxels: ``agreement`` (B, N, *s) with each query, ``assignment`` (B, N, *s), its softmax over the
    queries, and the ``logits`` (B, K, *s) of the classes."""

    agreement: Tensor
    assignment: Tensor
    logits: Tensor


def score(agreement: Tensor) -> Tensor:
    """MaxQuery (B, 1, *s) of agreement (B, N, *s): the negative of the best one, the higher the stranger."""
    return -agreement.amax(1, keepdim=True)


class MaxQuery(nn.Module):
    """Logits (B, out_channels, *s); ``clusters`` gives what every decoder layer says.

    ``queries``: how many in the groups of background, organ and lesions. ``width`` of queries and voxel features, ``layers`` of ``heads``
    heads and an ``expansion`` times as wide feed-forward network. ``levels`` of the U-Net that are looked at, coarsest first. ``update``:
    queries look by 'attention', or each takes the mean of the places that are nearest to it ('kmeans'). ``agreement``: inner products as
    they are ('none'), of both made of length 1 and scaled ('l2'), or of instance-normalised voxel features. The U-Net: ``networks.unet``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        queries: tuple[int, ...] = (12, 8, 12),
        width: int = 64,
        layers: int = 3,
        heads: int = 8,
        expansion: int = 8,
        levels: int = 3,
        update: Literal["attention", "kmeans"] = "attention",
        agreement: Literal["none", "l2", "instance"] = "none",
        features: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        if len(queries) != 3 or min(queries) < 1:
            raise UsageError(
                "background, organ and lesions have queries each", where="queries", found=tuple(queries), allowed="three numbers"
            )
        if min(width, layers, heads, expansion, levels) < 1 or width % heads:
            allowed = "1 or more, width a multiple of heads"
            raise UsageError("no such decoder", where="maxquery", found=(width, layers, heads, expansion, levels), allowed=allowed)
        if update not in ("attention", "kmeans") or agreement not in AGREEMENT:
            allowed = f"attention, kmeans; {', '.join(AGREEMENT)}"
            raise UsageError("no such clustering", where="update, agreement", found=(update, agreement), allowed=allowed)
        if len(features) < 2:
            raise UsageError(
                "queries look at a coarser level than the voxels'", where="features", found=tuple(features), allowed="two or more"
            )
        self.sizes, self.agreement = tuple(queries), agreement
        self.body = UNet(in_channels, out_channels, spatial_dims=spatial_dims, features=features, strides=strides, kernels=kernels)
        self.body.heads = nn.ModuleList()  # the clusters classify
        self.multiple = self.body.multiple
        self.voxels = conv(spatial_dims, features[0], width, 1)
        looked = list(reversed(features))[: min(levels, layers, len(features) - 1)]
        self.places = nn.ModuleList(conv(spatial_dims, n, width, 1) for n in looked)
        self.queries = nn.Parameter(torch.randn(sum(queries), width))
        self.layers = nn.ModuleList(QueryLayer(width, heads, expansion, update) for _ in range(layers))
        self.classes = nn.Linear(width, out_channels)
        self.scale = nn.Parameter(torch.tensor(10.0)) if agreement == "l2" else None

    @property
    def bottleneck(self) -> nn.Module:
        """The U-Net's deepest stage (feature taps)."""
        return self.body.bottleneck

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x).logits

    def answer(self, x: Tensor) -> Clusters:
        """Of the last decoder layer."""
        queries, voxels = self.fitted(x)
        return self.grouped(queries[-1], voxels)

    def clusters(self, x: Tensor) -> list[Clusters]:
        """Of every decoder layer, the last one is the answer."""
        queries, voxels = self.fitted(x)
        return [self.grouped(q, voxels) for q in queries]

    def fitted(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The queries (B, N, width) after each layer, and the voxels' features (B, width, *s)."""
        check_multiple(x, self.multiple, "MaxQuery")
        seen = list(self.body.decode(self.body.encode(x)))  # coarsest first
        places = [place(level).flatten(2).transpose(1, 2) for place, level in zip(self.places, seen, strict=False)]
        queries, found = self.queries.expand(len(x), -1, -1), []
        for i, layer in enumerate(self.layers):
            queries = layer(queries, places[i % len(places)])
            found.append(queries)
        voxels = self.voxels(seen[-1])
        return found, instance_norm(voxels) if self.agreement == "instance" else voxels

    def grouped(self, queries: Tensor, voxels: Tensor) -> Clusters:
        """Two stages: (B, N, C) queries take (B, C, *s) voxels by agreement; then each query's class weights are spread over its own."""
        if self.scale is not None:
            agreement = self.scale * torch.einsum("bnc,bc...->bn...", normalize(queries, dim=-1), normalize(voxels, dim=1))
        else:
            agreement = torch.einsum("bnc,bc...->bn...", queries, voxels)
        assignment = agreement.softmax(1)
        return Clusters(agreement, assignment, torch.einsum("bnk,bn...->bk...", self.classes(queries), assignment))


class QueryLayer(nn.Module):
    """Queries (B, N, C) look at places (B, M, C), then at each other, then think; each step is added and normalised."""

    def __init__(self, dim: int, heads: int, expansion: int, update: str):
        super().__init__()
        self.look = Attention(dim, heads, dim) if update == "attention" else KMeans(dim)
        self.talk = Attention(dim, heads, dim)
        self.think = nn.Sequential(nn.Linear(dim, expansion * dim), nn.ReLU(), nn.Linear(expansion * dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, queries: Tensor, places: Tensor) -> Tensor:
        looked, talked, thought = self.norms
        queries = looked(queries + self.look(queries, places, places))
        queries = talked(queries + self.talk(queries, queries, queries))
        return thought(queries + self.think(queries))


class KMeans(nn.Module):
    """Each place goes to the query that it agrees with most; a query gets the mean of its places' values, or nothing."""

    def __init__(self, dim: int):
        super().__init__()
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, places: Tensor, values: Tensor) -> Tensor:
        nearest = (queries @ places.transpose(1, 2)).argmax(1)
        own = one_hot(nearest, queries.shape[1]).transpose(1, 2).to(values.dtype)
        return self.out(own @ self.value(values) / own.sum(-1, keepdim=True).clamp_min(1))
