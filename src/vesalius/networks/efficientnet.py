"""EfficientNet, a 2D backbone with feature taps (Tan and Le, ICML 2019, https://arxiv.org/abs/1905.11946).

Inverted bottlenecks with squeeze-and-excitation; one pair of factors makes a family of it: ``width`` scales the channels (to multiples of
8), ``depth`` the repeats. B0 is (1.0, 1.0), B1 (1.0, 1.1), B2 (1.1, 1.2), B3 (1.2, 1.4), B4 (1.4, 1.8), B5 (1.6, 2.2); factors below 1
make small ones for a CPU. Parameters are named as in the published PyTorch weights (timm's ``efficientnet_b0`` and so on), so that a local
safetensors copy fits (``blocks.pretrained.load_backbone``). Padding is symmetric, which is what those weights were trained with.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.drop_path import kept

STAGES = (  # kernel, stride, expansion, channels and repeats of B0 (the paper's table 1)
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280  # channels
SQUEEZE = 0.25  # channels inside an excitation over those of the block's input


class EfficientNet(nn.Module):
    """(B, in_channels, H, W) -> (B, ``channels``, H / stride, W / stride), sides rounded up: the last map, before pooling and classifier.

    ``features``: channels of the five maps of ``levels``. ``stride``: 32, or 16 or 8 for small pictures: maps get no coarser from there on.
    ``drop_path``: probability of leaving out the last block's branch in training, growing linearly from 0 at the first (stochastic depth).
    """

    def __init__(self, in_channels: int, *, width: float = 1.0, depth: float = 1.0, stride: int = 32, drop_path: float = 0.2):
        super().__init__()
        if width <= 0 or depth <= 0 or not 0 <= drop_path < 1 or stride not in (8, 16, 32):
            found = f"width {width}, depth {depth}, stride {stride}, drop_path {drop_path}"
            allowed = "width and depth above 0, stride 8, 16 or 32, 0 <= drop_path < 1"
            raise UsageError("no such EfficientNet", where="width, depth, stride, drop_path", found=found, allowed=allowed)
        inp = scaled(STEM, width)
        self.channels = scaled(HEAD, width)
        self.conv_stem, self.bn1 = _conv(in_channels, inp, 3, 2), nn.BatchNorm2d(inp)
        repeats = [math.ceil(n * depth) for *_, n in STAGES]
        stages, done, so_far = [], 0, 2
        for (kernel, step, expand, channels, _), number in zip(STAGES, repeats, strict=True):
            out, blocks = scaled(channels, width), []
            step = step if so_far < stride else 1
            for i in range(number):
                rate = drop_path * done / sum(repeats)
                blocks.append(MBConv(inp, out, kernel, step if i == 0 else 1, expand, drop_path=rate))
                inp, done = out, done + 1
            so_far *= step
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = _conv(inp, self.channels, 1), nn.BatchNorm2d(self.channels)
        self.act = nn.SiLU()
        ends = [i for i, (_, step, *_) in enumerate(STAGES[1:]) if step == 2]
        self._taps = (*ends, len(STAGES) - 1)  # the last stage at each of B0's strides
        self.features = tuple(scaled(STAGES[i][3], width) for i in self._taps)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv_head(self.levels(x)[-1])))

    def levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps at strides 2, 4, 8, 16 and 32 (or at most ``stride``) with ``features`` channels."""
        x, found = self.act(self.bn1(self.conv_stem(x))), []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in self._taps:
                found.append(x)
        return tuple(found)


class MBConv(nn.Sequential):
    """Inverted bottleneck: 1x1 to ``expand`` times the channels (left out at 1), depthwise ``kernel``, squeeze-and-excitation, linear 1x1
    to ``out``; with the input added where size and channels stay."""

    def __init__(self, inp: int, out: int, kernel: int = 3, stride: int = 1, expand: int = 6, *, drop_path: float = 0.0):
        mid = inp * expand
        layers: dict[str, nn.Module] = {}
        if expand != 1:
            layers |= {"conv_pw": _conv(inp, mid, 1), "bn1": nn.BatchNorm2d(mid), "act1": nn.SiLU()}
        second, third = ("2", "3") if expand != 1 else ("1", "2")
        layers |= {"conv_dw": _conv(mid, mid, kernel, stride, groups=mid), f"bn{second}": nn.BatchNorm2d(mid), f"act{second}": nn.SiLU()}
        layers |= {"se": SqueezeExcite(mid, max(1, int(inp * SQUEEZE)))}
        layers |= {"conv_pwl" if expand != 1 else "conv_pw": _conv(mid, out, 1), f"bn{third}": nn.BatchNorm2d(out)}
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.residual, self.drop_path = stride == 1 and inp == out, drop_path

    def forward(self, x: Tensor) -> Tensor:
        branch = super().forward(x)
        if not self.residual:
            return branch
        return x + kept(branch, self.drop_path, self.training)


class SqueezeExcite(nn.Module):
    """x times a weight in 0..1 a channel, from the means of all channels through ``inner`` of them."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.conv_reduce, self.act, self.conv_expand = nn.Conv2d(channels, inner, 1), nn.SiLU(), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


def head(channels: int, blocks: int, outputs: int, dropout: float = 0.2) -> nn.Sequential:
    """From the last map (B, channels, h, w) to (B, outputs): ``blocks`` MBConvs (kernel 3, stride 2, expansion 2), the mean over the map,
    dropout and one linear layer."""
    top = [MBConv(channels, channels, 3, 2, 2) for _ in range(blocks)]
    out = nn.Sequential(*top, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, outputs))
    _initialise(out)
    return out


def scaled(channels: int, width: float) -> int:
    """The multiple of 8 nearest to ``channels * width``, at least 8 and never below nine tenths of it."""
    wanted = channels * width
    near = max(8, int(wanted + 4) // 8 * 8)
    return near + 8 if near < 0.9 * wanted else near


def _conv(inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def _initialise(net: nn.Module) -> None:
    """Normal weights that keep the variance of gradients (fan-out, per group)."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            fan = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            nn.init.normal_(m.weight, 0.0, math.sqrt(2 / fan))
            if m.bias is not None:
                nn.init.zeros_(m.bias)
