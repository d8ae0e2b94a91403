"""A network that carries masks from frame to frame: a key encoder looks at the image, a value encoder at image and mask, a decoder reads.

The layout of XMem (Cheng and Schwing, ECCV 2022, https://arxiv.org/abs/2207.07115, section 3 and figure 2): keys are an image's own and
shared by all objects; each object has values and a sensory memory, a small recurrent state. Written from the paper at any size: published
are ResNet-50 and ResNet-18 to stride 16, keys of 64, values of 512 and a state of 64 channels; here residual stages of ``features``
channels, of which the first keeps the image's grid. The adapters of iMOS are zero at first and change nothing. B images, K objects in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, softplus

from ..core.errors import UsageError
from .blocks.conv import ConvNormAct, ResidualBlock
from .blocks.memory import Elements


@dataclass(frozen=True)
class Look:
    """What is seen of images: ``key`` (B, C, *g), ``shrinkage`` (B, 1, *g), ``selection`` (B, C, *g), and features (B, F, *s), fine to
    coarse."""

    key: Tensor
    shrinkage: Tensor
    selection: Tensor
    features: tuple[Tensor, ...]

    def at(self, index: int | Tensor) -> Look:
        """Those of some of the images, in a batch of their own."""
        index = torch.as_tensor([index] if isinstance(index, int) else index)
        return Look(self.key[index], self.shrinkage[index], self.selection[index], tuple(f[index] for f in self.features))

    def elements(self, value: Tensor, b: int = 0) -> Elements:
        """Image ``b`` and its objects' values (K, V, *g) as elements of a memory."""
        return Elements(self.key[b].flatten(1), self.shrinkage[b].flatten(1), self.selection[b].flatten(1), value.flatten(2))


class MaskMemoryNet(nn.Module):
    """``look`` at images, ``write`` masks down as values, ``answer`` with logits to values read from memory. ``reach``: a key
    also says where it lies, and what lies within so many voxels is found first (0: keys of appearance alone, as published). ``adapters``:
    small residual bottlenecks after the encoders' stages."""

    def __init__(
        self,
        in_channels: int,
        *,
        features: Sequence[int] = (16, 32, 64),
        key: int = 32,
        value: int = 64,
        hidden: int = 16,
        reach: float = 8.0,
        adapters: bool = False,
    ):
        super().__init__()
        if len(features) < 2:
            raise UsageError(
                "a memory of masks lies on a coarser grid than the image", found=f"features {features}", allowed="two stages or more"
            )
        steps = list(zip(features[:-1], features[1:], strict=True))
        self.multiple, self.hidden, deep = (2 ** len(steps),) * 2, hidden, features[-1]
        first = _block(in_channels, features[0], 1)
        self.sight = nn.ModuleList([first, *(_block(a, b, 2) for a, b in steps)])
        self.mind = nn.ModuleList([_block(in_channels + 2 if i == 0 else a, b, 2) for i, (a, b) in enumerate(steps)])
        wide = list(features) if adapters else []
        self.sight_adapters = nn.ModuleList(Adapter(f) for f in wide)
        self.mind_adapters = nn.ModuleList(Adapter(f) for f in wide[1:])
        self.reach, self.channels = reach, key + 2 * bool(reach)
        self.to_key, self.to_shrinkage, self.to_selection = (nn.Conv2d(deep, n, 3, padding=1) for n in (key, 1, self.channels))
        self.fuse = _block(2 * deep + hidden, value, 1)
        self.deep_update, self.light_update = Recurrence(value, hidden), Recurrence(deep + 1, hidden)
        self.meet = _block(value + hidden + deep, deep, 1)
        self.up = nn.ModuleList(Up(b, a) for a, b in reversed(steps))
        self.to_mask = nn.Conv2d(features[0], 1, 3, padding=1)

    def look(self, image: Tensor) -> Look:
        """(B, C, h, w), sides multiples of ``multiple``."""
        features = _through(image, self.sight, self.sight_adapters)
        deep = features[-1]
        key, selection = self.to_key(deep), self.to_selection(deep).sigmoid()
        if self.reach:
            key = torch.cat([key, self._place(deep)], 1)
        return Look(key, 1 + softplus(self.to_shrinkage(deep)), selection, tuple(features))

    def _place(self, deep: Tensor) -> Tensor:
        """(B, 2, *g): where a cell lies, in ``reach`` voxels from the middle; scaled so that similarity falls by shrinkage x selection x
        the squared distance, however many channels a key has."""
        axes = [self.multiple[0] * (torch.arange(n, device=deep.device, dtype=deep.dtype) - (n - 1) / 2) for n in deep.shape[2:]]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij")) * (self.channels**0.25 / self.reach)
        return place.expand(len(deep), -1, -1, -1)

    def blank(self, look: Look, objects: int) -> Tensor:
        """(B, K, H, *g): a sensory memory that has felt nothing."""
        b, _, *g = look.key.shape
        return look.key.new_zeros(b, objects, self.hidden, *g)

    def write(self, image: Tensor, look: Look, sensory: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, K, V, *g) of masks (B, K, h, w) in [0, 1], and the sensory memory after the deep update with them."""
        others = masks.sum(1, keepdim=True) - masks
        seen = torch.cat([_each(image, masks.shape[1]), torch.stack([masks, others], 2)], 2).flatten(0, 1)
        deep = _through(seen, self.mind, self.mind_adapters)[-1]
        around = _each(look.features[-1], masks.shape[1]).flatten(0, 1)
        value = self.fuse(torch.cat([deep, around, sensory.flatten(0, 1)], 1))
        after = self.deep_update(value, sensory.flatten(0, 1))
        return value.unflatten(0, masks.shape[:2]), after.unflatten(0, masks.shape[:2])

    def answer(self, look: Look, sensory: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, h, w) of each object by itself from values (B, K, V, *g), and the sensory memory after the light update."""
        shape = read.shape[:2]
        before = sensory.flatten(0, 1)
        x = deep = self.meet(torch.cat([read.flatten(0, 1), before, _each(look.features[-1], shape[1]).flatten(0, 1)], 1))
        for up, skip in zip(self.up, reversed(look.features[:-1]), strict=True):
            x = up(x, skip, shape[1])
        logits = self.to_mask(x)
        small = adaptive_avg_pool2d(logits.sigmoid(), deep.shape[2:])
        after = self.light_update(torch.cat([deep, small], 1), before)
        return logits[:, 0].unflatten(0, shape), after.unflatten(0, shape)


class Recurrence(nn.Module):
    """A gated recurrent unit on maps: (B, X, *g) and state (B, H, *g) -> state."""

    def __init__(self, inp: int, hidden: int):
        super().__init__()
        self.gates = nn.Conv2d(inp + hidden, 3 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        forget, update, fresh = self.gates(torch.cat([x, state], 1)).chunk(3, 1)
        forget, update = forget.sigmoid(), update.sigmoid()
        return forget * state * (1 - update) + update * fresh.tanh()


class Up(nn.Module):
    """Twice as fine, with the image's own features of that size beside every object's."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.skip, self.block = nn.Conv2d(out, out, 3, padding=1), _block(inp + out, out, 1)

    def forward(self, x: Tensor, skip: Tensor, objects: int) -> Tensor:
        finer = interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(torch.cat([finer, _each(self.skip(skip), objects).flatten(0, 1)], 1))


class Adapter(nn.Module):
    """x + up(relu(down(x))); nothing is added before it is trained."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        inner = max(1, channels // reduction)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x).relu())


def _block(inp: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(ConvNormAct(2, inp, out, 3, stride, "group"), ResidualBlock(2, out, out, norm="group"))


def _through(x: Tensor, stages: nn.ModuleList, adapters: nn.ModuleList) -> list[Tensor]:
    out = []
    for i, stage in enumerate(stages):
        x = stage(x)
        x = adapters[i](x) if len(adapters) else x
        out.append(x)
    return out


def _each(x: Tensor, objects: int) -> Tensor:
    """(B, C, *s) -> (B, K, C, *s): the same for every object."""
    return x.unsqueeze(1).expand(-1, objects, *x.shape[1:])
