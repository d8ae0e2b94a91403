"""TransDAE: a hierarchical transformer whose blocks look twice, over channels and over space, and whose skips are weighed by large kernels.

The first attention makes a small summary of all positions (keys are a distribution over positions, queries one over channels) and reads
from it, at a cost linear in the number of tokens; the second lets every token look at a coarser copy of the map, 64 to 4 times as small.
On the way up, encoder and decoder features are joined and multiplied by a map that a decomposed 23-pixel kernel makes of them.

Azad, Adibfar and Fu, TransDAE: Dual attention mechanism in a hierarchical transformer for efficient medical image segmentation, 2024,
https://arxiv.org/abs/2409.02018; its ancestor is Azad et al., DAE-Former, 2022, https://arxiv.org/abs/2212.13504, code
https://github.com/mindflow-institue/DAEFormer. Inferred, thus options: the widths, depths and heads (the
ancestor's), the reductions 8, 4, 2. Where we had to choose:

* The inter-scale module joins by concatenation and 1x1 convolution; its kernel is depthwise 5x5, then depthwise 7x7 with dilation 3.
* Grey images are not tripled: the first convolution takes what there is.
* Volumes are taken slice by slice, as the paper does: across the axis along which the planned window is thinnest, or ``axis``.
* Weights start as in the ancestor's decoder (Glorot; its encoder has torch's start), each filter of a depthwise convolution by itself,
  and the inter-scale weights about 1: with torch's own start, attention and interaction at first add next to nothing.
* The ancestor's loss, 0.4 cross-entropy + 0.6 Dice; its Dice has squared sums and counts the background, ours is the project's. AdamW at
  1e-3 with a warm-up stands for its SGD over 400 epochs (optimizer=sgd, lr=0.05, weight_decay=1e-4, schedule=poly, warmup=0, clip=0).
  Input size and augmentation are the plan's.

Key components: ``EfficientAttention``, ``ReducedAttention``, ``DualBlock``, ``InterScale``.

Good to know: there are no position codes; where something is, only the overlapping and depthwise convolutions tell. Maps of stride 4 are
the finest that attention sees: structures of a few pixels are drawn by the last expansion alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..core.errors import UsageError
from .blocks.norm import ChannelNorm
from .blocks.padding import check_multiple
from .blocks.slices import from_slices, thin_axis, to_slices
from .blocks.start import glorot_uniform

ATTENTION = ("dual", "channel", "spatial", "off")


class TransDAE(nn.Module):
    """Logits (B, out_channels, *s) of pictures, or of the slices of volumes. Height and width are multiples of 32.

    ``widths``, ``heads`` and ``reductions`` (of the spatial attention's keys, per axis) of the three stages at strides 4, 8 and 16, with
    ``depth`` blocks each. ``attention``: 'dual' is the paper; 'channel' and 'spatial' look twice in one way; 'off' leaves the feed-forward
    networks. ``skips``: 'interact' is the paper, 'plain' joins and does not weigh. ``axis``: volumes are cut across it; -1: the
    shortest side of ``window``, the last of several or where there is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        widths: tuple[int, ...] = (128, 320, 512),
        depth: int = 2,
        heads: tuple[int, ...] = (2, 5, 8),
        reductions: tuple[int, ...] = (8, 4, 2),
        attention: Literal["dual", "channel", "spatial", "off"] = "dual",
        skips: Literal["interact", "plain"] = "interact",
        axis: int = -1,
        window: tuple[int, ...] = (),
    ):
        super().__init__()
        if not len(widths) == len(heads) == len(reductions) == 3 or depth < 1 or min(*widths, *heads, *reductions) < 1:
            raise UsageError("TransDAE has three stages", where="widths, heads, reductions, depth", found=(*widths, depth))
        if any(w % 2 or w % h for w, h in zip(widths, heads)) or any(32 // s % r for s, r in zip((4, 8, 16), reductions)):
            allowed = "even widths that the heads share, reductions that divide 8, 4 and 2"
            found = (widths, heads, reductions)
            raise UsageError("these stages do not fit", where="widths, heads, reductions", found=found, allowed=allowed)
        if attention not in ATTENTION or skips not in ("interact", "plain"):
            allowed = f"{', '.join(ATTENTION)}; interact, plain"
            raise UsageError("unknown attention or skips", where="attention, skips", found=(attention, skips), allowed=allowed)
        self.axis = thin_axis(axis, window)
        self.multiple = (32, 32) if spatial_dims == 2 else tuple(1 if a == self.axis else 32 for a in range(3))
        stage = lambda i: nn.Sequential(*[DualBlock(widths[i], heads[i], reductions[i], attention) for _ in range(depth)])
        embeds = [_embed(in_channels, widths[0], 7, 4), *(_embed(a, b, 3, 2) for a, b in zip(widths, widths[1:]))]
        self.down = nn.ModuleList(nn.Sequential(e, *stage(i), ChannelNorm(widths[i])) for i, e in enumerate(embeds))
        self.expand = nn.ModuleList(_expand(widths[i + 1], 2 * widths[i + 1], 2) for i in (1, 0))
        self.join = nn.ModuleList(nn.Conv2d(widths[i] + widths[i + 1] // 2, widths[i], 1) for i in (1, 0))
        self.interact = nn.ModuleList(InterScale(widths[i]) if skips == "interact" else nn.Identity() for i in (1, 0))
        self.up = nn.ModuleList(stage(i) for i in (1, 0))
        self.last = nn.Sequential(_expand(widths[0], 16 * widths[0], 4), nn.Conv2d(widths[0], out_channels, 1))
        self.apply(glorot_uniform)
        self.apply(_open)

    @property
    def bottleneck(self) -> nn.Module:
        """The coarsest stage (feature taps)."""
        return self.down[-1]

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "TransDAE")
        if x.ndim == 5:
            y = x.movedim(2 + self.axis, -1)
            return from_slices(self.picture(to_slices(y)), y.shape[-1]).movedim(-1, 2 + self.axis)
        return self.picture(x)

    def picture(self, x: Tensor) -> Tensor:
        found = []
        for stage in self.down:
            x = stage(x)
            found.append(x)
        for expand, join, interact, up, skip in zip(self.expand, self.join, self.interact, self.up, found[-2::-1], strict=True):
            x = up(interact(join(torch.cat([skip, expand(x)], 1))))
        return self.last(x)


class DualBlock(nn.Module):
    """x + channel attention, + feed-forward, + spatial attention, + feed-forward, each of the normalised map: (B, C, h, w) -> the same."""

    def __init__(self, dim: int, heads: int, reduction: int, attention: str = "dual"):
        super().__init__()
        kinds = {"dual": "cs", "channel": "cc", "spatial": "ss", "off": ""}[attention]
        parts: list[nn.Module] = []
        for i in range(2):
            if kinds:
                parts.append(EfficientAttention(dim) if kinds[i] == "c" else ReducedAttention(dim, heads, reduction))
            parts.append(MixFFN(dim))
        self.parts, self.norms = nn.ModuleList(parts), nn.ModuleList(ChannelNorm(dim) for _ in parts)

    def forward(self, x: Tensor) -> Tensor:
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = x + part(norm(x))
        return x


class EfficientAttention(nn.Module):
    """rho_q(Q) (rho_k(K)^T V) with rho_q a softmax over channels and rho_k one over positions (Shen et al., WACV 2021): the C x C summary
    of all positions comes first, so that the cost is linear in their number. (B, C, h, w) -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.query(x).flatten(2).softmax(1), self.key(x).flatten(2).softmax(2)
        summary = k @ self.value(x).flatten(2).transpose(1, 2)  # (B, keys, values)
        return self.out((summary.transpose(1, 2) @ q).view(x.shape))


class ReducedAttention(nn.Module):
    """Softmax attention of every position to a copy of the map that a strided convolution made ``reduction`` times smaller along each axis
    (Wang et al., PVT, ICCV 2021); 1: to all positions. (B, C, h, w) -> the same."""

    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        coarse = (nn.Conv2d(dim, dim, reduction, reduction), ChannelNorm(dim))
        self.reduce = nn.Sequential(*(coarse if reduction > 1 else ()))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.reduce(x)
        parts = (self.query(x), self.key(seen), self.value(seen))
        apart = [y.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for y in parts]
        return self.out(scaled_dot_product_attention(*apart).transpose(2, 3).reshape(x.shape))


class MixFFN(nn.Module):
    """1x1 to four times the channels; a depthwise 3x3, added to its input and normalised; GELU; 1x1 back."""

    def __init__(self, dim: int):
        super().__init__()
        inner = 4 * dim
        self.wide, self.narrow = nn.Conv2d(dim, inner, 1), nn.Conv2d(inner, dim, 1)
        self.around, self.norm, self.act = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), ChannelNorm(inner), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.narrow(self.act(self.norm(self.around(x) + x)))


class InterScale(nn.Module):
    """x + out(x * weight(x)), the weight from a large kernel in three parts (Guo et al., Visual attention network, 2022): depthwise 5x5,
    depthwise 7x7 with dilation 3, 1x1."""

    def __init__(self, dim: int):
        super().__init__()
        near = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        far = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.weight, self.out = nn.Sequential(near, far, nn.Conv2d(dim, dim, 1)), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weighed(x)

    def weighed(self, x: Tensor) -> Tensor:
        return self.out(x * self.weight(x))


def _open(m: nn.Module) -> None:
    """For ``module.apply``: an inter-scale module starts with weights about 1."""
    if isinstance(m, InterScale):
        nn.init.ones_(m.weight[-1].bias)


def _embed(inp: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    """Overlapping patches."""
    return nn.Sequential(nn.Conv2d(inp, out, kernel, stride, kernel // 2), ChannelNorm(out))


def _expand(inp: int, middle: int, times: int) -> nn.Sequential:
    """A linear map to ``middle`` channels, laid out as a map ``times`` as fine with middle / times^2 channels."""
    return nn.Sequential(nn.Conv2d(inp, middle, 1, bias=False), nn.PixelShuffle(times), ChannelNorm(middle // times**2))
