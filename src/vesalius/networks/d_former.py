"""D-Former: attention in windows that are by turns a neighbourhood and a sieve over the whole volume.

Every second block lets the tokens of a small contiguous group look at each other; the blocks between take for a group tokens that lie a
fixed interval apart, so that one of the same size, at the same cost, spans the volume. Positions are told by a depthwise convolution at the
start of each stage, hence there is no size that a network was made for.

Wu et al., D-Former: a U-shaped dilated transformer for 3D medical image segmentation, Neural Computing and Applications 2022,
https://arxiv.org/abs/2201.00462, code https://github.com/kkk55596/D-Former. Where we had to choose:

* The interval follows from the map: as many tokens as a group is wide span it (the published code lists 8, 4, 2, 1 as well, but
  they only decide how much is padded). Padding is never looked at, along any axis.
* Volumes whose map has odd sides are padded where neighbours are merged and cropped again.
* Groups and patches are given thin axis first: that is the shortest side of the planned window, or ``axis``.
* In training, the decoder's coarser levels give logits of finer voxels than their own, a patch each, by one linear map.
* ``drop_path`` is 0: the released network has it but leaves it at that (a comment says 0.2), and short trainings need every block.
* Dice + cross-entropy over three levels. AdamW at 1e-3 with a warm-up stands for the authors' SGD over 3000 epochs, whose numbers are
  recalled, not verified (optimizer=sgd, lr=0.01, betas=0.99,0.999, weight_decay=3e-5, schedule=poly, warmup=0, clip=12).

Key components: ``Groups``, ``GroupAttention``, ``Position``.

Good to know: a local and a dilated block together reach every token along an axis only where the interval is no wider than a group,
so with groups of 2 on a thin axis of 4 tokens; later stages see the rest. Nothing finer than a patch takes part in attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from ..core.errors import UsageError
from .blocks.drop_path import kept
from .blocks.padding import check_multiple
from .blocks.slices import thin_axis
from .blocks.start import truncated_linear

SECOND = {"alternating": "dilated", "local": "local", "shifted": "shifted"}  # scopes -> what every second block is


class DFormer(nn.Module):
    """Logits (B, out_channels, *s) of volumes; in training a list: full size first, then halved sides for each coarser decoder level.
    Sides are multiples of ``patch``.

    ``width``: channels of the first stage, doubled in each; ``depths``, ``heads``: blocks and heads of the stages. ``patch``: voxels of a
    token, ``group``: tokens of a group, both along the thin ``axis`` first (-1: the shortest side of ``window``, the last of
    several). ``scopes``: 'alternating' is the paper (local, dilated, ...); 'local' never dilates; 'shifted' moves every second grid of
    groups by half a group instead. ``positions``: the depthwise position code. ``drop_path``: probability in training that the deepest
    stage's last block is skipped, for each of its two branches; it grows linearly from 0 at the first block, and on the way up a stage has
    the rates that it had on the way down.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        patch: tuple[int, ...] = (2, 4, 4),
        group: tuple[int, ...] = (2, 7, 7),
        scopes: Literal["alternating", "local", "shifted"] = "alternating",
        positions: bool = True,
        drop_path: float = 0.0,
        axis: int = -1,
        window: tuple[int, ...] = (),
    ):
        super().__init__()
        dims = [width * 2**i for i in range(len(depths))]
        if spatial_dims != 3:
            raise UsageError("D-Former works on volumes", where="spatial_dims", found=spatial_dims, allowed=3)
        if len(depths) < 2 or len(depths) != len(heads) or min(*depths, *heads) < 1 or any(c % h for c, h in zip(dims, heads)):
            allowed = "as many heads as depths, at least two, sharing width, 2 width, ..."
            raise UsageError("these stages do not fit", where="width, depths, heads", found=(width, depths, heads), allowed=allowed)
        if len(patch) != 3 or len(group) != 3 or min(*patch, *group) < 1:
            raise UsageError("a patch and a group have three sides", where="patch, group", found=(patch, group))
        if scopes not in SECOND:
            raise UsageError("unknown scopes", where="scopes", found=scopes, allowed=", ".join(SECOND))
        if not 0 <= drop_path < 1:
            raise UsageError("this is no probability", where="drop_path", found=drop_path, allowed="0 to below 1")
        self.axis = thin_axis(axis, window)
        self.multiple = patch = _thin(patch, self.axis)
        rates = [[drop_path * (sum(depths[:i]) + j) / (sum(depths) - 1) for j in range(n)] for i, n in enumerate(depths)]
        stage = lambda i: Stage(dims[i], heads[i], _thin(group, self.axis), scopes, rates[i], positions=positions)
        coarser = range(len(dims) - 2, -1, -1)
        self.embed, self.embed_norm = nn.Conv3d(in_channels, width, patch, patch), nn.LayerNorm(width)
        self.down = nn.ModuleList(stage(i) for i in range(len(dims)))
        self.merge = nn.ModuleList(Merge(c) for c in dims[:-1])
        self.middle = nn.LayerNorm(dims[-1])
        self.expand = nn.ModuleList(nn.Sequential(Expand(2 * dims[i], dims[i]), nn.LayerNorm(dims[i])) for i in coarser)
        self.join = nn.ModuleList(nn.Linear(2 * dims[i], dims[i]) for i in coarser)
        self.up = nn.ModuleList(stage(i) for i in coarser)
        final = (nn.LayerNorm(width), Expand(width, width, patch), nn.LayerNorm(width), nn.Linear(width, out_channels))
        self.heads = nn.ModuleList([*(Expand(dims[i], out_channels, patch, bias=True) for i in coarser[:-1]), nn.Sequential(*final)])
        self.apply(truncated_linear)

    @property
    def bottleneck(self) -> nn.Module:
        """The coarsest stage (feature taps): (B, *s, C)."""
        return self.down[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_multiple(x, self.multiple, "D-Former")
        size, skips = x.shape[2:], []
        x = self.embed_norm(self.embed(x).movedim(1, -1))
        for stage, merge in zip(self.down, self.merge):
            skips.append(x)  # what enters a stage, as published
            x = merge(stage(x))
        x, found = self.middle(self.down[-1](x)), []
        for expand, join, stage in zip(self.expand, self.join, self.up, strict=True):
            skip = skips.pop()
            x = stage(join(torch.cat([_cropped(expand(x), skip.shape[1:-1]), skip], -1)))
            found.append(x)
        if not self.training:
            return self.heads[-1](x).movedim(-1, 1)
        times = [2**i for i in range(len(found) - 1, -1, -1)]
        maps = [_cropped(h(f), [-(-n // t) for n in size]) for h, f, t in zip(self.heads, found, times, strict=True)]
        return [m.movedim(-1, 1) for m in reversed(maps)]


class Stage(nn.Module):
    """The position code, then a block for each of ``rates``, those of dropping it: (B, *s, C) -> the same."""

    def __init__(self, dim: int, heads: int, group: Sequence[int], scopes: str, rates: Sequence[float], *, positions: bool):
        super().__init__()
        self.position = Position(dim) if positions else nn.Identity()
        scope = lambda i: SECOND[scopes] if i % 2 else "local"
        self.blocks = nn.Sequential(*[Block(dim, heads, group, scope(i), rate) for i, rate in enumerate(rates)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.position(x))


class Position(nn.Module):
    """x + a depthwise 3x3x3 convolution of it: zeros beyond the border tell where that is (Chu et al., 2021)."""

    def __init__(self, dim: int):
        super().__init__()
        self.around = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.around(x.movedim(-1, 1)).movedim(1, -1)


class Block(nn.Module):
    """x + attention in groups, then x + perceptron, each of the normalised map: (B, *s, C) -> the same. In training each is left out
    with probability ``rate``."""

    def __init__(self, dim: int, heads: int, group: Sequence[int], scope: str, rate: float = 0.0):
        super().__init__()
        self.rate = rate
        self.norm1, self.attention = nn.LayerNorm(dim), GroupAttention(dim, heads, group, scope)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + kept(self.attention(self.norm1(x)), self.rate, self.training)
        return x + kept(self.mlp(self.norm2(x)), self.rate, self.training)


class GroupAttention(nn.Module):
    """Every token looks at those of its group, without position bias: (B, *s, C) -> the same. ``scope``: 'local', 'shifted', 'dilated'."""

    def __init__(self, dim: int, heads: int, group: Sequence[int], scope: str):
        super().__init__()
        self.heads, self.group, self.scope = heads, tuple(group), scope
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        groups = Groups.of(x.shape[1:-1], self.group, self.scope)
        q, k, v = groups.split(self.qkv(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        real = groups.real(x.device)
        mask = None if real is None else real.repeat(len(x), 1)[:, None, None]
        seen = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(groups.join(seen.transpose(1, 2).flatten(2)))


@dataclass(frozen=True)
class Groups:
    """A map of ``shape`` in ``number`` groups an axis of ``size`` tokens, ``before`` it as much padding. ``dilated``: a group's tokens lie
    ``number`` apart, so that this is the interval; else they are neighbours."""

    shape: tuple[int, ...]
    number: tuple[int, ...]
    size: tuple[int, ...]
    before: tuple[int, ...]
    dilated: bool

    @classmethod
    def of(cls, shape: Sequence[int], group: Sequence[int], scope: str) -> Groups:
        """Groups of at most ``group`` tokens an axis: an axis that is not longer is one group's."""
        if scope == "dilated":
            number = tuple(-(-n // g) for n, g in zip(shape, group, strict=True))
            size = tuple(-(-n // k) for n, k in zip(shape, number, strict=True))
            return cls(tuple(shape), number, size, (0,) * len(size), True)
        size = tuple(min(n, g) for n, g in zip(shape, group, strict=True))
        before = tuple(g // 2 if scope == "shifted" and g < n else 0 for n, g in zip(shape, size, strict=True))
        number = tuple(-(-(n + b) // g) for n, b, g in zip(shape, before, size, strict=True))
        return cls(tuple(shape), number, size, before, False)

    def split(self, x: Tensor) -> Tensor:
        """(B, *shape, C) -> (B groups, members, C), zeros where there is only padding."""
        ends = [k * g - n - b for n, k, g, b in zip(self.shape, self.number, self.size, self.before, strict=True)]
        if any(ends) or any(self.before):
            x = pad(x, [0, 0, *(side for b, e in zip(self.before[::-1], ends[::-1], strict=True) for side in (b, e))])
        return x.reshape(len(x), *self._parts, x.shape[-1]).permute(self._order).reshape(-1, prod(self.size), x.shape[-1])

    def join(self, y: Tensor) -> Tensor:
        """The inverse of ``split``."""
        y = y.view(-1, *self.number, *self.size, y.shape[-1])
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        y = y.permute(back).reshape(len(y), *(k * g for k, g in zip(self.number, self.size, strict=True)), y.shape[-1])
        return y[(slice(None), *(slice(b, b + n) for b, n in zip(self.before, self.shape, strict=True)))]

    def real(self, device: torch.device | None = None) -> Tensor | None:
        """(groups, members) bool: what is not padding; None where nothing is."""
        if prod(self.number) * prod(self.size) == prod(self.shape):
            return None
        return self.split(torch.ones(1, *self.shape, 1, device=device))[..., 0] > 0

    @property
    def _parts(self) -> list[int]:
        pairs = zip(self.size, self.number) if self.dilated else zip(self.number, self.size)
        return [n for pair in pairs for n in pair]

    @property
    def _order(self) -> tuple[int, ...]:
        """Where the axes of ``_parts`` (and batch and channels) go: those that number the groups first."""
        d = len(self.shape)
        first, second = range(1, 2 * d, 2), range(2, 2 * d + 1, 2)
        return (0, *second, *first, 2 * d + 1) if self.dilated else (0, *first, *second, 2 * d + 1)


class Merge(nn.Module):
    """Eight neighbours become one token of twice the channels: (B, *s, C) -> (B, *ceil(s / 2), 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(8 * dim), nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pairs = Groups.of([n + n % 2 for n in x.shape[1:-1]], (2, 2, 2), "local")
        x = pad(x, [0, 0, *(side for n in reversed(x.shape[1:-1]) for side in (0, n % 2))])
        eight = pairs.split(x).flatten(1).view(len(x), *pairs.number, -1)
        return self.reduce(self.norm(eight))


class Expand(nn.Module):
    """A linear map of a token to ``times`` tokens of ``out`` channels, laid out in space: (B, *s, C) -> (B, *(s times), out)."""

    def __init__(self, dim: int, out: int, times: Sequence[int] = (2, 2, 2), *, bias: bool = False):
        super().__init__()
        self.times, self.out = tuple(times), out
        self.linear = nn.Linear(dim, out * prod(times), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        shape, number = [n * t for n, t in zip(x.shape[1:-1], self.times, strict=True)], tuple(x.shape[1:-1])
        parts = Groups(tuple(shape), number, self.times, (0, 0, 0), False)
        return parts.join(self.linear(x).reshape(-1, prod(self.times), self.out))


def _cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[(slice(None), *(slice(n) for n in size))]


def _thin(sides: Sequence[int], axis: int) -> tuple[int, ...]:
    """``sides`` with the first one moved to ``axis``."""
    rest = list(sides[1:])
    return tuple([*rest[:axis], sides[0], *rest[axis:]])
