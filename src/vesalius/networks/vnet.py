"""V-Net (Milletari, Navab, Ahmadi, 3DV 2016, https://arxiv.org/abs/1606.04797) in the form that the semi-supervised papers train.

Stages of 1, 2, 3, 3, 3 convolutions, strided 2^d convolutions down, transposed ones up, and skips that are *added*. The published UA-MT,
SASSNet and TraCoCo code has 3^d kernels with batch norm and ReLU, no residual path in a stage, and dropout at the bottom and before the
head; the original's residual path is ``residual=True``.
"""

from __future__ import annotations

from torch import Tensor, nn

from .blocks.conv import CONV, CONV_TRANSPOSE, NORMS, conv
from .blocks.padding import check_multiple

CONVOLUTIONS = (1, 2, 3, 3, 3)  # a stage, from the finest to the bottom


class VNet(nn.Module):
    """Logits (B, out_channels, *s). ``width`` features at the finest stage, doubled at each of four halvings; input sides must be multiples
    of ``multiple`` (16 each), else GeometryError. ``dropout`` drops whole channels, in training only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 16,
        norm: str = "batch",
        dropout: float = 0.5,
        residual: bool = False,
    ):
        super().__init__()
        d, features = spatial_dims, [width * 2**i for i in range(len(CONVOLUTIONS))]
        self.multiple = (2 ** (len(features) - 1),) * d

        def stage(inp: int, out: int, n: int) -> nn.Module:
            return Stage(d, inp, out, n, norm, residual)

        self.down = nn.ModuleList([stage(in_channels, width, 1)])
        self.shrink, self.grow, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine, coarse, n in zip(features, features[1:], CONVOLUTIONS[1:], strict=False):
            self.shrink.append(_unit(CONV[d](fine, coarse, 2, 2), coarse, d, norm))
            self.down.append(stage(coarse, coarse, n))
        for i in range(len(features) - 2, -1, -1):
            self.grow.append(_unit(CONV_TRANSPOSE[d](features[i + 1], features[i], 2, 2), features[i], d, norm))
            self.up.append(stage(features[i], features[i], CONVOLUTIONS[i]))
        self.dropout = (nn.Dropout2d if d == 2 else nn.Dropout3d)(dropout)
        self.head = conv(d, width, out_channels, 1)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest stage (feature taps)."""
        return self.down[-1]

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "V-Net")
        x, skips = self.down[0](x), []
        for shrink, stage in zip(self.shrink, self.down[1:], strict=True):
            skips.append(x)
            x = stage(shrink(x))
        x = self.dropout(x)
        for grow, stage in zip(self.grow, self.up, strict=True):
            x = stage(grow(x) + skips.pop())
        return self.head(self.dropout(x))


class Stage(nn.Module):
    """``n`` convolutions with norm and ReLU; ``residual`` adds the stage's input, projected to its width, before the last ReLU."""

    def __init__(self, dims: int, inp: int, out: int, n: int, norm: str, residual: bool):
        super().__init__()
        units = [_unit(conv(dims, inp if i == 0 else out, out), out, dims, norm) for i in range(n)]
        self.path = nn.Sequential(*units[:-1], units[-1][:-1])
        self.skip = None if not residual else nn.Identity() if inp == out else conv(dims, inp, out, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.path(x)
        return self.act(y if self.skip is None else y + self.skip(x))


def _unit(layer: nn.Module, out: int, dims: int, norm: str) -> nn.Sequential:
    return nn.Sequential(layer, *([NORMS[norm][dims](out)] if norm != "none" else []), nn.ReLU(inplace=True))
