"""HybridGNet: an image is read by convolutions, an anatomy is written by graph convolutions as ordered points on closed contours.

Convolutions bring the image down to a small random code; a linear layer turns the code into features of the points of a coarse contour
graph, and six graph convolutions, with a doubling of the points half way, turn those into coordinates. What comes out is always one closed
contour an organ, also where the image shows nothing of it.

Gaggion et al., Hybrid graph convolutional neural networks for landmark-based anatomical segmentation, MICCAI 2021,
https://arxiv.org/abs/2106.09832, code https://github.com/ngaggion/HybridGNet. Where we differ or had to choose:

* Published at 1024 px with 120 or 166 points of three or five organs; here the plan's patch, rounded up to 32 px (``size``), and the points
  the data set has. Data with masks alone get points sampled along their contours (``ops.contour``).
* The published rate 1e-4 is for 2,500 epochs; the default here is ten times that for the far shorter runs (``lr=1e-4`` gives it back).
  It falls by a tenth fifty times, as published, over whatever budget there is.
* The code starts with a standard deviation of 0.05 instead of 1, the noise of which the first thousands of updates would learn to ignore.
* Augmentation is the plan's without mirroring (a mirrored right lung is no left lung), not the paper's scalings and 3 degrees.
* Where skips add features, the weights that take them up start at 0 (``hybridgnet-igsc``).
* Batch normalisation without running averages, as in the code: a case predicted alone is normalised by itself.

Key components: residual ``Encoder``; ``GraphDecoder`` of Chebyshev convolutions (``blocks.graph``); a variational code (``latent`` numbers,
its divergence from a normal weighed by ``kl``); ``decoder=dense`` replaces the graph by fully connected layers, the paper's control.

Good to know: contours are closed and in one piece as point lists, but nothing keeps a contour from crossing itself, and a self-crossing
one is filled by parity and may then have several pieces. The code is global, so fine detail is smoothed; ``hybridgnet-igsc`` looks at the
image again. Organs that some training cases lack teach nothing there. A structure is drawn even where it is absent from the image.
``nodes`` is the number of points of each structure; points given with the data must be that many in every case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from ..core.errors import GeometryError
from .blocks.graph import ChebConv, contours, halved, normed, pooled, pooling, unpooling

WIDTHS = (16, 16, 16, 32, 32, 32, 2)  # features of the points from the code to the coordinates
START = -6.0  # logarithm of the code's variance before training
COARSE = 3  # so many of the six convolutions are on the halved contours


class HybridGNet(nn.Module):
    """``nodes``: points of each closed contour, N in all; ``size``: the image's sides, multiples of ``multiple``.

    ``forward`` (B, C, *size) -> {'points': (B, N, 2) as fractions of the sides, (row, column), 'mu', 'logvar': (B, latent)}.
    ``channels`` of the encoder's levels, each at half the resolution of the one before; ``order``: terms of a graph convolution.
    """

    def __init__(
        self,
        in_channels: int,
        nodes: Sequence[int],
        size: Sequence[int],
        *,
        channels: tuple[int, ...] = (8, 16, 32, 64, 128, 128),
        latent: int = 64,
        order: int = 6,
        decoder: Literal["graph", "dense"] = "graph",
        skips: Mapping[int, nn.Module] | None = None,
    ):
        super().__init__()
        self.multiple = (2 ** (len(channels) - 1),) * 2
        if len(size) != 2 or any(n < 2 * m or n % m for n, m in zip(size, self.multiple, strict=False)):
            allowed = f"multiples of {self.multiple[0]}, at least twice that"  # one pixel alone has no variance to normalise by
            raise GeometryError("HybridGNet cannot halve these sides", where="size", found=tuple(size), allowed=allowed)
        self.size = tuple(size)
        self.encoder = Encoder(in_channels, channels)
        flat = channels[-1] * (size[0] // self.multiple[0]) * (size[1] // self.multiple[1])
        self.mu, self.logvar = nn.Linear(flat, latent), nn.Linear(flat, latent)
        nn.init.constant_(self.logvar.bias, START)
        self.register_buffer("pool", pooling(nodes), persistent=False)
        self.decoder = GraphDecoder(nodes, latent, order, skips or {}) if decoder == "graph" else DenseDecoder(nodes, latent)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest level (feature taps)."""
        return self.encoder.blocks[-1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if tuple(image.shape[2:]) != self.size:
            raise GeometryError("the code is laid out for one size of image", found=tuple(image.shape[2:]), allowed=self.size)
        maps = self.encoder(image)
        flat = maps[-1].flatten(1)
        with torch.autocast(image.device.type, enabled=False):  # coordinates want more digits than bf16 has
            mu, logvar = self.mu(flat.float()), self.logvar(flat.float())
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
            return {**self.decoder(z, [m.float() for m in maps]), "mu": mu, "logvar": logvar}


class Encoder(nn.Module):
    """Residual blocks with max pooling between them: (B, C, *s) -> the maps of all levels, the finest first."""

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        self.blocks = nn.ModuleList(Block(a, b) for a, b in pairwise((in_channels, *channels)))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(max_pool2d(maps[-1], 2) if maps else x))
        return maps


class Block(nn.Module):
    """Norm, ReLU, 3 x 3, norm, ReLU, 3 x 3, plus the (projected and normed) input, then ReLU."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        norm = lambda n: nn.BatchNorm2d(n, track_running_stats=False)
        first, second = nn.Conv2d(inp, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.body = nn.Sequential(norm(inp), nn.ReLU(), first, norm(out), nn.ReLU(), second)
        self.skip = nn.Sequential(nn.Conv2d(inp, out, 1, bias=False), norm(out)) if inp != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.body(x) + self.skip(x))


class GraphDecoder(nn.Module):
    """Code (B, latent) -> points. Before convolution i a module ``skips[i]`` may add to the features what it finds in the encoder's maps:
    (features, maps) -> (features with ``extra`` more, where the points are by then); these places come out as 'points before i'."""

    def __init__(self, nodes: Sequence[int], latent: int, order: int, skips: Mapping[int, nn.Module]):
        super().__init__()
        self.start = nn.Linear(latent, sum(halved(nodes)) * WIDTHS[0])
        nn.init.normal_(self.start.weight, 0, 0.1)
        self.register_buffer("spread", unpooling(nodes), persistent=False)
        self.skips = nn.ModuleDict({str(i): skip for i, skip in skips.items()})
        graph = contours(nodes)
        coarse = pooled(graph, pooling(nodes))
        self.convs, last = nn.ModuleList(), len(WIDTHS) - 2
        for i, (inp, out) in enumerate(pairwise(WIDTHS)):
            more = skips[i].extra if i in skips else 0
            conv = ChebConv(coarse if i < COARSE else graph, inp + more, out, 1 if i == last else order, bias=i != last)
            with torch.no_grad():  # what skips add counts for nothing yet: training starts as without them
                conv.mix.weight.view(out, conv.order, inp + more)[..., inp:] = 0
            self.convs.append(conv)

    def forward(self, z: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        x, places = relu(self.start(z)).unflatten(1, (-1, WIDTHS[0])), {}
        for i, conv in enumerate(self.convs):
            if i == COARSE:
                x = self.spread @ x
            if str(i) in self.skips:
                x, places[f"points before {i}"] = self.skips[str(i)](x, maps)
            x = conv(x)
            if i < len(self.convs) - 1:
                x = relu(normed(x))
        return {"points": x, **places}


class DenseDecoder(nn.Module):
    """The control: two linear layers that know of no contour."""

    def __init__(self, nodes: Sequence[int], latent: int, hidden: int = 256):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 2 * sum(nodes)))

    def forward(self, z: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"points": self.layers(z).unflatten(1, (-1, 2))}
