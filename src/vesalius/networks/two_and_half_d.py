"""Volumes segmented by something between a 2D and a 3D U-Net: seven families on one backbone, so that only the bridge differs.

Zhang, Liao, Ding and Zhang, Bridging 2D and 3D segmentation networks for computation efficient volumetric medical image segmentation: an
empirical study of 2.5D solutions, 2020, https://arxiv.org/abs/2010.06163. ``bridge`` makes the network of a family. All take volumes
(B, C, *s), give logits (B, K, *s), and look at slices across ``axis``; a slice at the end of a volume is its own missing neighbour.

The text that this follows names the families and not their formulas. Ours: the recurrent family reads the last feature maps of the slices
in both directions and adds to them; attention multiplies a slice's last feature maps by 1 + a(what its two neighbours were taken for);
fused encoders share a two-dimensional decoder, their three-dimensional maps repeated along the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, one_hot

from ..core.errors import UsageError
from .blocks.conv import ConvNormAct, ConvStack, conv
from .blocks.slices import from_slices, in_plane, to_slices, with_neighbours
from .unet import UNet

ARMS = ("2d", "slices", "views", "recurrent", "attention", "fused", "3d")
Levels = dict[str, Sequence]


def bridge(
    in_channels: int,
    out_channels: int,
    *,
    arm: str,
    axis: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]] = (),
    kernels: Sequence[Sequence[int]] = (),
    slices: int = 3,
    vote: Literal["majority", "weighted", "learned"] = "learned",
    weight: float = 2.0,
    see_image: bool = False,
    guide: Literal["shape", "border"] = "shape",
    meet: Literal["encoder", "output"] = "output",
    join: Literal["add", "se"] = "add",
) -> nn.Module:
    """The network of ``arm``, one of ``ARMS``; ``features``, ``strides`` and ``kernels`` are a 3D U-Net's, slices leave out their axis."""
    levels = {"features": features, "strides": strides, "kernels": kernels}
    if arm == "3d":
        return UNet(in_channels, out_channels, spatial_dims=3, **levels)
    if arm in ("2d", "slices"):
        return Slices(in_channels, out_channels, axis=axis, slices=1 if arm == "2d" else slices, **levels)
    if arm == "views":
        return Views(in_channels, out_channels, axis=axis, vote=vote, weight=weight, see_image=see_image, **levels)
    if arm == "recurrent":
        return Recurrent(in_channels, out_channels, axis=axis, **levels)
    if arm == "attention":
        return Guided(in_channels, out_channels, axis=axis, guide=guide, **levels)
    if arm == "fused":
        return (FusedEncoders if meet == "encoder" else FusedOutputs)(in_channels, out_channels, axis=axis, join=join, **levels)
    raise UsageError("unknown family", where="arm", found=arm, allowed=", ".join(ARMS))


# --------------------------------------------------------------------------------------------------------------------------- slices alone
def cut(x: Tensor, axis: int) -> Tensor:
    """Volumes (B, C, *s) -> their slices across ``axis`` (B n, C, h, w), those of one volume after each other."""
    return to_slices(x.movedim(2 + axis, -1))


def stack(x: Tensor, axis: int, n: int) -> Tensor:
    """Slices (B n, C, h, w) -> volumes (B, C, *s); the inverse of ``cut``."""
    return from_slices(x, n).movedim(-1, 2 + axis)


def across(axis: int, levels: Levels) -> Levels:
    """Features, strides and kernels of a 2D U-Net on slices across ``axis``."""
    return {**levels, "strides": in_plane(levels["strides"], axis), "kernels": in_plane(levels["kernels"], axis)}


class Slices(nn.Module):
    """A 2D U-Net that sees each slice with its neighbours as channels, ``slices`` in all (odd); 1 is the plain 2D network."""

    def __init__(self, in_channels: int, out_channels: int, *, axis: int, slices: int = 1, **levels: Sequence):
        super().__init__()
        if slices < 1 or slices % 2 == 0:
            raise UsageError("a slice has as many neighbours on either side", where="slices", found=slices, allowed="1, 3, 5, ...")
        self.axis, self.reach = axis, slices // 2
        self.unet = UNet(slices * in_channels, out_channels, spatial_dims=2, **across(axis, levels))
        self.multiple = (*self.unet.multiple[:axis], 1, *self.unet.multiple[axis:])

    def forward(self, x: Tensor) -> Tensor:
        seen = with_neighbours(x.movedim(2 + self.axis, -1), self.reach)
        return stack(self.unet(to_slices(seen)), self.axis, seen.shape[-1])


# -------------------------------------------------------------------------------------------------------------------------- several views
class Views(nn.Module):
    """Three 2D U-Nets, each on the slices across another axis, and what they agree on. In training the list of their logits.

    ``vote``: 'majority' counts their labels, 'weighted' counts that of the view across ``axis`` ``weight`` times, 'learned' is a small 3D
    network on their probabilities (and the image with ``see_image``), which learns beside them and teaches them nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        axis: int,
        vote: Literal["majority", "weighted", "learned"] = "learned",
        weight: float = 2.0,
        see_image: bool = False,
        **levels: Sequence,
    ):
        super().__init__()
        self.views = nn.ModuleList(Slices(in_channels, out_channels, axis=a, **levels) for a in range(3))
        self.multiple = tuple(max(v.multiple[a] for v in self.views) for a in range(3))
        self.weights = tuple(weight if vote == "weighted" and a == axis else 1.0 for a in range(3))
        self.fusion, self.see_image = None, see_image
        if vote == "learned":
            width = 2 * levels["features"][0]
            first = ConvNormAct(3, 3 * out_channels + in_channels * see_image, width)
            self.fusion = nn.Sequential(first, ConvNormAct(3, width, width), conv(3, width, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = [view(x) for view in self.views]
        if self.fusion is None:
            return maps if self.training else vote([m.float().softmax(1) for m in maps], self.weights)
        fused = self.fusion(torch.cat([*(m.detach().softmax(1) for m in maps), *([x] if self.see_image else [])], 1))
        return [fused, *maps] if self.training else fused


def vote(probabilities: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Logits (B, K, *s) of a vote: the log of each class's share of the views' labels. Mean probabilities (B, K, *s) settle ties alone."""
    classes = probabilities[0].shape[1]
    cast = sum(w * one_hot(p.argmax(1), classes).movedim(-1, 1) for w, p in zip(weights, probabilities, strict=True))
    believed = sum(w * p for w, p in zip(weights, probabilities, strict=True))
    return ((cast + 1e-3 * believed) / (1.001 * sum(weights))).clamp_min(1e-6).log()


# ------------------------------------------------------------------------------------------------------------- what neighbours have to say
class _Sequence(nn.Module):
    """A 2D U-Net that gives feature maps of slices, and their ``head``. ``alone``: the logits of slices that know of no other."""

    def __init__(self, in_channels: int, out_channels: int, axis: int, levels: Levels):
        super().__init__()
        self.axis, self.width = axis, levels["features"][0]
        self.unet = UNet(in_channels, self.width, spatial_dims=2, **across(axis, levels))
        self.head = conv(2, self.width, out_channels, 1)
        self.multiple = (*self.unet.multiple[:axis], 1, *self.unet.multiple[axis:])

    def alone(self, x: Tensor) -> Tensor:
        return stack(self.head(self.unet(cut(x, self.axis))), self.axis, x.shape[2 + self.axis])


class Recurrent(_Sequence):
    """A convolutional LSTM reads the slices' feature maps in both directions, and what it makes of them is added; at first nothing."""

    def __init__(self, in_channels: int, out_channels: int, *, axis: int, **levels: Sequence):
        super().__init__(in_channels, out_channels, axis, levels)
        self.onward, self.back = ConvLSTM(self.width, self.width), ConvLSTM(self.width, self.width)
        self.add = conv(2, 2 * self.width, self.width, 1)
        nn.init.zeros_(self.add.weight)
        nn.init.zeros_(self.add.bias)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2 + self.axis]
        maps = self.unet(cut(x, self.axis))
        sequence = maps.unflatten(0, (-1, n))
        both = torch.cat([self.onward(sequence), self.back(sequence.flip(1)).flip(1)], 2)
        return stack(self.head(maps + self.add(both.flatten(0, 1))), self.axis, n)


class ConvLSTM(nn.Module):
    """(B, n, C, h, w) -> hidden states (B, n, hidden, h, w), from the first slice on; 3x3 gates (Shi et al. 2015, without peepholes)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.of_input, self.of_state = conv(2, channels, 4 * hidden), conv(2, hidden, 4 * hidden, bias=False)
        nn.init.zeros_(self.of_input.bias)
        nn.init.ones_(self.of_input.bias[hidden : 2 * hidden])  # remember, until told otherwise

    def forward(self, x: Tensor) -> Tensor:
        gates = self.of_input(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        state = cell = torch.zeros_like(gates[:, 0].chunk(4, 1)[0])
        states = []
        for gate in gates.unbind(1):
            take, keep, show, new = (gate + self.of_state(state)).chunk(4, 1)
            cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            state = show.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, 1)


class Guided(_Sequence):
    """What the slices before and after were taken for, its ``guide`` 'shape' or its 'border', tells where to look; then they are taken
    again. In training both answers, the last first; the guide is taken as it is, no gradient goes through it."""

    def __init__(self, in_channels: int, out_channels: int, *, axis: int, guide: Literal["shape", "border"] = "shape", **levels: Sequence):
        super().__init__(in_channels, out_channels, axis, levels)
        self.guide = guide
        self.attend = conv(2, 2 * (out_channels - 1), self.width)
        self.again = nn.Sequential(ConvStack(2, self.width, self.width), conv(2, self.width, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        n = x.shape[2 + self.axis]
        maps = self.unet(cut(x, self.axis))
        first = self.head(maps)
        organ = first.detach().float().softmax(1)[:, 1:].to(maps.dtype)
        seen = (organ if self.guide == "shape" else border(organ)).unflatten(0, (-1, n))
        before, after = torch.cat([seen[:, :1], seen[:, :-1]], 1), torch.cat([seen[:, 1:], seen[:, -1:]], 1)
        around = torch.cat([before, after], 2).flatten(0, 1)
        again = stack(self.again(maps * (1 + self.attend(around).sigmoid())), self.axis, n)
        return [again, stack(first, self.axis, n)] if self.training else again


def border(p: Tensor) -> Tensor:
    """The morphological gradient of probability maps (B, K, h, w): 1 within a pixel of a sure border, 0 where nothing changes."""
    return max_pool2d(p, 3, 1, 1) + max_pool2d(-p, 3, 1, 1)


# ---------------------------------------------------------------------------------------------------------- both dimensions in one network
class Join(nn.Module):
    """Two maps (B, C, *s) of one place: their sum ('add'), or both weighed channel by channel by squeeze-and-excitation ('se')."""

    def __init__(self, channels: int, how: Literal["add", "se"]):
        super().__init__()
        self.excite = self.mix = None
        if how == "se":
            inner = max(2, channels // 2)
            self.excite = nn.Sequential(nn.Linear(2 * channels, inner), nn.ReLU(), nn.Linear(inner, 2 * channels), nn.Sigmoid())
            self.mix = conv(3, 2 * channels, channels, 1)

    def forward(self, flat: Tensor, deep: Tensor) -> Tensor:
        if self.mix is None:
            return flat + deep
        both = torch.cat([flat, deep], 1)
        return self.mix(both * self.excite(both.mean((2, 3, 4)))[..., None, None, None])


class FusedOutputs(nn.Module):
    """A 2D U-Net on slices and a 3D U-Net side by side; their last feature maps are joined."""

    def __init__(self, in_channels: int, out_channels: int, *, axis: int, join: Literal["add", "se"] = "add", **levels: Sequence):
        super().__init__()
        width = levels["features"][0]
        self.flat = Slices(in_channels, width, axis=axis, **levels)
        self.deep = UNet(in_channels, width, spatial_dims=3, **levels)
        self.join, self.head = Join(width, join), conv(3, width, out_channels, 1)
        self.multiple = self.deep.multiple

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self.flat(x), self.deep(x)))


class FusedEncoders(nn.Module):
    """A 2D encoder of slices and a 3D encoder, joined at every level, and one 2D decoder of slices."""

    def __init__(self, in_channels: int, out_channels: int, *, axis: int, join: Literal["add", "se"] = "add", **levels: Sequence):
        super().__init__()
        self.axis, features = axis, levels["features"]
        self.unet = UNet(in_channels, out_channels, spatial_dims=2, **across(axis, levels))
        deep = UNet(in_channels, 1, spatial_dims=3, **levels)
        self.deep, self.multiple = deep.down, deep.multiple
        self.join = nn.ModuleList(Join(f, join) for f in features)

    def forward(self, x: Tensor) -> Tensor:
        n, along = x.shape[2 + self.axis], 2 + self.axis
        flat, deep, maps = cut(x, self.axis), x, []
        for two, three, join in zip(self.unet.down, self.deep, self.join, strict=True):
            flat, deep = two(flat), three(deep)
            level = join(stack(flat, self.axis, n), deep.repeat_interleave(n // deep.shape[along], along))
            maps.append(cut(level, self.axis))
        *_, y = self.unet.decode(maps)
        return stack(self.unet.heads[-1](y), self.axis, n)
