"""Polyp-PVT: a pyramid transformer whose deep levels say where a polyp is and whose first level says how it looks.

Cascaded fusion joins the three deeper levels into one feature. Camouflage identification weighs the channels and places of the first level,
which sees colour and texture. Similarity aggregation lets sixteen places of the fused feature exchange what they know over a small graph.

Dong et al., Polyp-PVT: Polyp segmentation with pyramid vision transformers (2021), https://arxiv.org/abs/2108.06932, code
https://github.com/DengPingFan/Polyp-PVT. With PVT v2 b2 it is the teacher, with b0 the student of ``methods.networks.kdas``.
Interpolation is bilinear between pixel centres (published: between corners); several structures have a map each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ..core.errors import UsageError
from .blocks.conv import conv_norm
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.partial_decoder import PartialDecoder
from .blocks.pvt_v2 import PVTv2
from .blocks.resize import resize_like


class PolypPVT(nn.Module):
    """Logits (B, out_channels, H, W), the sum of two maps; in training the list of the two. H and W are multiples of 32.

    ``width`` and ``depths`` of the backbone (see ``PVTv2``; the defaults are b0), ``channels`` of the decoder.
    """

    multiple = (32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 32,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        channels: int = 32,
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("Polyp-PVT is a 2D network", where="polyp-pvt", found=f"{spatial_dims}D data")
        if len(depths) != 4 or min(depths) < 1 or width < 1 or channels < 2:
            found = (depths, width, channels)
            raise UsageError("Polyp-PVT has four stages of one block or more", where="depths, width, channels", found=found)
        self.backbone = PVTv2(in_channels, width=width, depths=depths)
        first, *deep = self.backbone.features
        self.narrow = nn.ModuleList(conv_norm(n, channels, 1) for n in deep)
        self.fuse, self.look = CascadedFusion(channels), nn.Sequential(Camouflage(first), conv_norm(first, channels, 1))
        self.aggregate = Aggregation(channels, max(1, channels // 2))
        self.heads = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for _ in range(2))

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest level, narrowed (feature taps)."""
        return self.narrow[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.maps(x)
        return maps if self.training else maps[0] + maps[1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """[P1, P2], logits (B, out_channels, H, W): of the fused feature, and of what the graph made of it."""
        check_multiple(x, self.multiple, "Polyp-PVT")
        check_batch(self, x, 32)
        first, *deep = self.backbone(x)
        fused = self.fuse(*(f(level) for f, level in zip(self.narrow, deep, strict=True)))
        aggregated = self.aggregate(fused, resize_like(self.look(first), fused))
        return [resize_like(head(f), x) for head, f in zip(self.heads, (fused, aggregated), strict=True)]


class CascadedFusion(PartialDecoder):
    """Three levels at ``channels``, finest first -> (B, channels, h, w): PraNet's partial decoder that ends in a feature, not in logits."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)
        self.head = conv_norm(3 * channels, channels, 3)


class Camouflage(nn.Module):
    """x weighed by channel (an MLP on mean and maximum over the map), then by place (7x7 on mean and maximum over channels)."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        inner = max(1, channels // ratio)
        self.mlp = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.ReLU(), nn.Conv2d(inner, channels, 1, bias=False))
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        return x * self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class Aggregation(nn.Module):
    """A fused feature (B, C, h, w) and the detail of the first level, alike in shape -> the feature plus what a graph adds to it.

    The second of the detail's channels after a softmax over channels masks the projected feature. Its means over the inner 4 x 4 of a 6 x 6
    grid are the nodes; every pixel belongs to them by a softmax of products; nodes exchange their states once.
    """

    def __init__(self, channels: int, states: int, side: int = 4):
        super().__init__()
        self.side = side
        self.state, self.project = nn.Conv2d(channels, states, 1), nn.Conv2d(channels, states, 1)
        self.between_nodes = nn.Conv1d(side**2, side**2, 1)
        self.between_states = nn.Conv1d(states, states, 1, bias=False)
        self.extend = nn.Conv2d(states, channels, 1, bias=False)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        edge = detail.softmax(1)[:, 1:2]
        projected = self.project(x)
        anchors = adaptive_avg_pool2d(projected * edge, self.side + 2)[:, :, 1:-1, 1:-1].flatten(2)
        belongs = (anchors.transpose(1, 2) @ projected.flatten(2)).softmax(1)  # (B, nodes, pixels)
        nodes = self.state(x).flatten(2) @ belongs.transpose(1, 2)  # (B, states, nodes)
        mixed = self.between_nodes(nodes.transpose(1, 2)).transpose(1, 2)
        nodes = torch.relu(self.between_states(mixed - nodes))
        return x + self.extend((nodes @ belongs).unflatten(2, x.shape[2:]))
