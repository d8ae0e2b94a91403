"""MPU-Net: a U-shape whose deepest voxels all see each other, with gated skips and an answer that is the mean over all scales.

Position attention weighs every voxel of the coarsest map against every other one; on the way up an additive gate decides, from what comes
from below, how much of each level passes; each level gives a map of its own, and the mean of their probabilities is the answer.

Yu et al., 3D Medical Image Segmentation based on multi-scale MPU-Net, 2023, https://arxiv.org/abs/2307.05799, code
https://github.com/Stefan-Yu404/MP-UNet; the attention after Fu et al., DANet, CVPR 2019, the residual U-shape it grew from is that of
many entries to LiTS. Loss: ``objectives/tversky_ce.py``. Where we had to choose:

* The residual of the first stage is the mean of the input's channels; with one channel that is the published sum.
* The exponential units saturate at -1; in the published code a stray argument makes that minus the number of channels.
* Adam starts at 1e-3 and follows a cosine. ``lr=1e-4`` is the authors', halved every 100 of 600 epochs; some hundred steps of that leave
  everything background.
* 'Image serialization' is in the published code the flattening of the coarsest map into tokens (``form='volume'``). ``form='slices'`` reads
  it as a series of slices: each is segmented in 2D with its ``context`` neighbours on either side as further channels.

Key components: ``PositionAttention``, ``AttentionGate``, ``joined``.

Good to know: attention costs the square of the coarsest map's voxels (1/8 of every side of the window). In slices, those at the ends of a
window see copies of the last one for neighbours; overlapping windows make up for it. The sides are halved three times, thin ones too. The
published code swaps false positives and false negatives where it scores: its precision is sensitivity, its specificity the negative
predictive value; DSC, IoU, accuracy and MCC are what they are called.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, scaled_dot_product_attention

from ..core.errors import UsageError
from .blocks.conv import CONV, CONV_TRANSPOSE, MAX_POOL, NORMS, AttentionGate, conv
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.resize import resize_like
from .blocks.slices import from_slices, thin_axis, to_slices, with_neighbours


class MPUNet(nn.Module):
    """Logits (B, out_channels, *s): the log of the mean probability. In training a list, that map first, then those of the coarser three
    levels, finest first, all at full size. Sides are multiples of 8 (in slices: but across ``axis``).

    ``width``: channels of the first of five stages, doubled in each. ``attention``, ``gates``: without them the coarsest map or the
    skips go on as they are. ``joined``: False takes the finest level's map alone. ``form``: 'volume' or 'slices' of a volume with
    ``context`` neighbours each side, cut across ``axis`` (-1: the shortest side of ``window``, the last of several).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        width: int = 16,
        attention: bool = True,
        gates: bool = True,
        joined: bool = True,
        dropout: float = 0.2,
        form: Literal["volume", "slices"] = "volume",
        context: int = 1,
        axis: int = -1,
        window: tuple[int, ...] = (),
    ):
        super().__init__()
        if width < 1 or not 0 <= dropout < 1 or context < 0:
            found = (width, dropout, context)
            raise UsageError("these are out of range", where="width, dropout, context", found=found, allowed="1 up, 0 to below 1, 0 up")
        if form not in ("volume", "slices") or (form == "slices" and spatial_dims != 3):
            raise UsageError("unknown form", where="form", found=f"{form} in {spatial_dims}D", allowed="volume, or slices of a 3D volume")
        self.form, self.context, self.joined = form, context, joined
        self.axis = thin_axis(axis, window)
        sliced = form == "slices"
        self.multiple = tuple(1 if sliced and a == self.axis else 8 for a in range(spatial_dims))
        d, w = (2 if sliced else spatial_dims), [width * 2**i for i in range(6)]
        first = in_channels * (2 * context + 1 if sliced else 1)
        self.stages = nn.ModuleList(Stage(d, w[i] if i else first, w[i], 2) for i in range(5))
        self.lower = nn.ModuleList(_lower(d, w[i], w[i + 1], halve=i < 3) for i in range(5))
        within = PositionAttention(w[4]) if attention else nn.Identity()
        self.middle = nn.Sequential(_unit(d, w[5], w[4]), within, _unit(d, w[4], w[4]))
        wide = w[4:0:-1]  # of the decoder's levels, coarsest first
        seen = [w[3], *(wide[i] + w[3 - i] for i in range(1, 4))]
        self.higher = nn.ModuleList(nn.Sequential(CONV_TRANSPOSE[d](a, b, 2, 2), nn.PReLU(b)) for a, b in zip(wide, wide[1:]))
        self.levels = nn.ModuleList(Stage(d, seen[i], wide[i], 3) for i in range(4))
        self.gates = nn.ModuleList(AttentionGate(d, n, n, norm="batch") if gates else First() for n in wide)
        self.heads = nn.ModuleList(conv(d, n, out_channels, 1) for n in (wide if joined else wide[-1:]))
        self.dropout = nn.Dropout(dropout)
        for m in self.modules():
            if isinstance(m, (CONV[d], CONV_TRANSPOSE[d])):
                nn.init.kaiming_normal_(m.weight, a=0.25)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    @property
    def bottleneck(self) -> nn.Module:
        """What attention stands in (feature taps)."""
        return self.middle

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_multiple(x, self.multiple, "MPU-Net")
        if self.form == "volume":
            maps = self.maps(x)
        else:
            y = with_neighbours(x.movedim(2 + self.axis, -1), self.context)
            maps = [from_slices(m, y.shape[-1]).movedim(-1, 2 + self.axis) for m in self.maps(to_slices(y))]
        if not self.joined:
            return maps[0]
        return [joined(maps), *maps[1:]] if self.training else joined(maps)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Logits of every level at the size of ``x``, finest first."""
        check_batch(self, x, 8)
        image, skips = x, []
        for stage, lower in zip(self.stages, self.lower, strict=True):
            x = stage(x, x if skips else x.mean(1, keepdim=True))
            x = self.dropout(x) if skips else x
            skips.append(x)
            x = lower(x)
        below, found = self.middle(x), []
        for i, (level, gate) in enumerate(zip(self.levels, self.gates, strict=True)):
            below = self.higher[i - 1](below) if i else below
            seen = torch.cat([below, skips[3 - i]], 1) if i else skips[3]
            below = gate(level(seen, below), below)
            below = self.dropout(below) if i < 3 else below
            found.append(below)
        maps = [head(f) for head, f in zip(self.heads, found[-len(self.heads) :], strict=True)]
        return [resize_like(m, image) for m in reversed(maps)]


def joined(maps: list[Tensor]) -> Tensor:
    """The log of the mean over ``maps`` (logits, all of one size) of their softmax: its own softmax is that mean."""
    return torch.stack([log_softmax(m.float(), 1) for m in maps]).logsumexp(0) - math.log(len(maps))


class PositionAttention(nn.Module):
    """x + gamma * sum_j softmax_j(q_i . k_j) v_j over all positions of (B, C, *s), unscaled, with C / 8 channels in q and k; gamma starts
    at 0 (Fu et al., Dual attention network, CVPR 2019)."""

    def __init__(self, dim: int):
        super().__init__()
        self.query, self.key = nn.Linear(dim, max(1, dim // 8)), nn.Linear(dim, max(1, dim // 8))
        self.value, self.gamma = nn.Linear(dim, dim), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.gamma * self.attended(tokens).transpose(1, 2).reshape(x.shape)

    def attended(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> what each of N tokens reads from all of them."""
        return scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens), scale=1.0)


class Stage(nn.Module):
    """``n`` times convolution and PReLU, plus a map that passes by: (B, inp, *s), (B, out or 1, *s) -> (B, out, *s)."""

    def __init__(self, dims: int, inp: int, out: int, n: int):
        super().__init__()
        self.layers = nn.Sequential(*[layer for i in range(n) for layer in (conv(dims, out if i else inp, out), nn.PReLU(out))])

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return self.layers(x) + by


class First(nn.Module):
    """Hands on the first of two maps: no gate."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return x


def _unit(dims: int, inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(conv(dims, inp, out), NORMS["batch"][dims](out), nn.PReLU())


def _lower(dims: int, inp: int, out: int, *, halve: bool) -> nn.Sequential:
    """Maximum of the neighbourhood, then a convolution: of each 2^d voxels, or of 3^d around every one."""
    step = CONV[dims](inp, out, 2, 2) if halve else conv(dims, inp, out)
    return nn.Sequential(MAX_POOL[dims](3, 1, 1), step, NORMS["batch"][dims](out), nn.ELU())
