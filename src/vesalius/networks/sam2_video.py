"""Segment Anything 2 with its memory: an object that was outlined in some frames is found in the next one.

Ravi et al., SAM 2: segment anything in images and videos, https://arxiv.org/abs/2408.00714, section 4 and appendix D.1. A frame's coarsest
map looks at what is remembered: maps of the frames that a person outlined and of the last six others, each made of the frame and the mask
in it, and a pointer to the object from each of the last frames. What is found is remembered in turn. ``from_transformers`` gives the
tensors of a ``Sam2VideoModel`` of the transformers library our names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, relu, scaled_dot_product_attention

from ..core.prompt import Asked
from .blocks.norm import ChannelNorm
from .blocks.transformer import coordinates, rotate, rotation
from .sam import Perceptron
from .sam2 import Maps, Sam2, named

ABSENT = -1024.0  # logit of every pixel where the object is not


@dataclass(frozen=True)
class Kept:
    """What is remembered of K objects in a frame: ``map`` (K, memory, g, g) in bfloat16, as published, and ``pointer`` (K, dim)."""

    map: Tensor
    pointer: Tensor


@dataclass(frozen=True)
class Bank:
    """Frames by their place along the way: ``given`` by a person, ``found`` by the model."""

    given: Mapping[int, Kept] = field(default_factory=dict)
    found: Mapping[int, Kept] = field(default_factory=dict)


class Sam2Video(Sam2):
    """``memory``: channels of what is remembered; ``frames``: the maps that are looked at, one for all given ones; ``pointers``: how far
    back pointers go. ``timed``: pointers say how long ago; ``absence``: a map says that the object is not there (both since 2.1).
    ``scale``, ``bias``: of masks before they are encoded."""

    def __init__(
        self,
        *,
        dim: int = 256,
        memory: int = 64,
        frames: int = 7,
        pointers: int = 16,
        layers: int = 4,
        hidden: int = 2048,
        timed: bool = True,
        absence: bool = True,
        scale: float = 20.0,
        bias: float = -10.0,
        **image,
    ):
        super().__init__(dim=dim, **image)
        self.frames, self.pointers, self.scale, self.bias = frames, pointers, scale, bias
        self.mask_decoder.pred_obj_score_head = Perceptron(dim, dim, 1)
        self.memory_attention = MemoryAttention(dim, memory, layers, hidden)
        self.memory_encoder = MemoryEncoder(dim, memory)
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(frames, 1, 1, memory))
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.object_pointer_proj = Perceptron(dim, dim, dim)
        self.no_object_pointer = nn.Parameter(torch.zeros(1, dim))
        self.temporal_positional_encoding_projection_layer = nn.Linear(dim, memory) if timed else None
        self.occlusion_spatial_embedding_parameter = nn.Parameter(torch.zeros(1, memory)) if absence else None

    def keep(self, maps: Maps, masks: Tensor) -> Kept:
        """Of a frame's ``look`` and a person's masks (K, side, side) in [0, 1]."""
        masks = masks.unsqueeze(1)
        there = masks.flatten(1).amax(1, keepdim=True) > 0
        _, _, pointer = self._answer(maps, self.mask_downsample(masks))
        pointer = torch.where(there, pointer, self.no_object_pointer)
        return Kept(self._remembered(maps, (masks > 0.5).to(masks.dtype), there), pointer)

    def track(self, maps: Maps, bank: Bank, at: int) -> tuple[Tensor, Kept]:
        """((K, side / 4, side / 4) logits in the frame at place ``at``, what to remember of it)."""
        fine, middle, coarse = maps
        memory, places, pointing = self._memory(bank, at)
        seen = self.memory_attention(coarse.expand(memory.shape[0], -1, -1, -1), memory, places, pointing)
        logits, there, pointer = self._answer((fine, middle, seen), None)
        soft = interpolate(logits.unsqueeze(1), self.size, mode="bilinear", align_corners=False).sigmoid()
        return logits, Kept(self._remembered(maps, soft, there), pointer)

    def follow(self, bank: Bank, kept: Kept, at: int) -> Bank:
        """``bank`` with what was found at place ``at``, without what is never looked at again."""
        found = {t: k for t, k in bank.found.items() if at - t < max(self.frames, self.pointers)}
        return replace(bank, found={**found, at: kept})

    def _answer(self, maps: Maps, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The best of three masks (K, g, g), whether the object is there (K, 1), and the pointer to it (K, dim)."""
        count = len(maps[2]) if mask is None else len(mask)
        nowhere = maps[2].new_zeros(count, 1, 2), torch.full((count, 1), -1, device=maps[2].device)
        asked = Asked(*nowhere, None, mask)
        masks, quality, tokens = self.answers(maps, asked)
        row, best = torch.arange(count, device=quality.device), quality[:, 1:].argmax(1) + 1
        there = self.mask_decoder.pred_obj_score_head(tokens[:, 0]) > 0
        pointer = torch.where(there, self.object_pointer_proj(tokens[row, 2 + best]), self.no_object_pointer)
        return torch.where(there.unsqueeze(-1), masks[row, best], ABSENT), there, pointer

    def _remembered(self, maps: Maps, masks: Tensor, there: Tensor) -> Tensor:
        found = self.memory_encoder(maps[2].expand(len(masks), -1, -1, -1), masks * self.scale + self.bias)
        if self.occlusion_spatial_embedding_parameter is not None:
            found = found + torch.where(there, 0.0, self.occlusion_spatial_embedding_parameter)[..., None, None]
        return found.bfloat16()

    def _memory(self, bank: Bank, at: int) -> tuple[Tensor, Tensor, int]:
        """(tokens (K, N, memory), their codes (1, N, memory), how many of them, the last ones, are pointers)."""
        when = self.memory_temporal_positional_encoding[:, 0]
        maps = [(kept, when[-1]) for kept in bank.given.values()]
        maps += [(bank.found[at - ago], when[ago - 1]) for ago in range(self.frames - 1, 0, -1) if at - ago in bank.found]
        grid = waves(maps[0][0].map.shape[-2:], maps[0][0].map.shape[1], when)
        tokens = [kept.map.float().flatten(2).transpose(1, 2) for kept, _ in maps]
        codes = [grid + code for _, code in maps]
        past = {at - t: k.pointer for t, k in bank.given.items() if t <= at}
        past |= {at - t: k.pointer for t, k in bank.found.items() if 0 < at - t < self.pointers}
        if not past:
            return torch.cat(tokens, 1), torch.cat(codes)[None], 0
        pointers = torch.stack(list(past.values()), 1)
        split = pointers.shape[-1] // tokens[0].shape[-1]
        tokens.append(pointers.unflatten(-1, (split, -1)).flatten(1, 2))
        codes.append(self._ages(list(past), pointers).repeat_interleave(split, 0))
        return torch.cat(tokens, 1), torch.cat(codes)[None], split * len(past)

    def _ages(self, ages: list[int], like: Tensor) -> Tensor:
        """(n, memory): how long ago, as sines."""
        if self.temporal_positional_encoding_projection_layer is None:
            return like.new_zeros(len(ages), self.memory_temporal_positional_encoding.shape[-1])
        rate = _rates(like.shape[-1] // 2, like)
        phase = torch.tensor(ages, dtype=like.dtype, device=like.device)[:, None] / max(self.pointers - 1, 1) / rate
        return self.temporal_positional_encoding_projection_layer(torch.cat([phase.sin(), phase.cos()], -1))


def waves(grid: tuple[int, int], channels: int, like: Tensor) -> Tensor:
    """(h w, channels): sines and cosines in turn of a row's and then a column's place, from 0 to 2 pi over the grid (DETR's code)."""
    rate, axes = _rates(channels // 2, like), []
    for n in grid:
        phase = torch.arange(1, n + 1, dtype=like.dtype, device=like.device)[:, None] / (n + 1e-6) * 2 * torch.pi / rate
        axes.append(torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], -1).flatten(1))
    rows, columns = axes
    h, w = grid
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], -1).flatten(0, 1)


def _rates(count: int, like: Tensor) -> Tensor:
    """(count,), in equal pairs from 1 to nearly 10000: what phases are divided by."""
    return 10000 ** (2 * (torch.arange(count, device=like.device) // 2) / count)


class MemoryAttention(nn.Module):
    """A map (K, dim, g, g) after it has looked at itself and at memory (K, N, memory), ``layers`` times."""

    def __init__(self, dim: int, memory: int, layers: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(dim, memory, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor, memory: Tensor, codes: Tensor, pointing: int) -> Tensor:
        grid = image.shape[-2:]
        x = image.flatten(2).transpose(1, 2)
        x = x + 0.1 * waves(grid, x.shape[-1], x)
        turn = turns(grid, x.shape[-1], x)
        for layer in self.layers:
            x = layer(x, memory, codes, turn, pointing)
        return self.norm(x).transpose(1, 2).reshape(image.shape)


class MemoryLayer(nn.Module):
    """Self-attention, attention to memory, a perceptron; each after a layer norm, and added."""

    def __init__(self, dim: int, memory: int, hidden: int):
        super().__init__()
        self.self_attn, self.cross_attn_image = TurnedAttention(dim, dim), TurnedAttention(dim, memory)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, codes: Tensor, turn: tuple[Tensor, Tensor], pointing: int) -> Tensor:
        own = self.norm1(x)
        x = x + self.self_attn(own, own, own, turn, 0)
        x = x + self.cross_attn_image(self.norm2(x), memory + codes, memory, turn, pointing)
        return x + self.linear2(relu(self.linear1(self.norm3(x))))


class TurnedAttention(nn.Module):
    """One head; queries and keys are turned by their place (rotary codes), the last ``apart`` keys, which have none, are not."""

    def __init__(self, dim: int, inp: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(inp, dim), nn.Linear(inp, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], apart: int) -> Tensor:
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        placed = k.shape[1] - apart
        again = tuple(t.repeat(placed // q.shape[1], 1) for t in turn)
        k = torch.cat([rotate(k[:, :placed], again), k[:, placed:]], 1)
        return self.out_proj(scaled_dot_product_attention(rotate(q, turn)[:, None], k[:, None], v[:, None])[:, 0])


def turns(grid: tuple[int, int], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (h w, channels / 2): each pair of channels is turned by the column in the first half, by the row in the second."""
    return rotation(coordinates(grid, grid, like.device).flip(-1), channels // 4)


class MemoryEncoder(nn.Module):
    """(map (K, dim, g, g), masks (K, 1, 16 g, 16 g)) -> (K, memory, g, g)."""

    def __init__(self, dim: int, memory: int):
        super().__init__()
        self.mask_downsampler, self.memory_fuser = nn.Module(), nn.Module()
        self.mask_downsampler.layers = nn.ModuleList(_Halving(4**i) for i in range(4))
        self.mask_downsampler.final_conv = nn.Conv2d(4**4, dim, 1)
        self.feature_projection = nn.Conv2d(dim, dim, 1)
        self.memory_fuser.layers = nn.ModuleList(_Fusing(dim) for _ in range(2))
        self.projection = nn.Conv2d(dim, memory, 1)

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        for layer in self.mask_downsampler.layers:
            masks = layer(masks)
        x = self.feature_projection(image) + self.mask_downsampler.final_conv(masks)
        for layer in self.memory_fuser.layers:
            x = layer(x)
        return self.projection(x)


class _Halving(nn.Module):
    def __init__(self, inp: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inp, 4 * inp, 3, 2, 1), ChannelNorm(4 * inp)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.norm(self.conv(x)))


class _Fusing(nn.Module):
    """ConvNeXt's block."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise_conv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), ChannelNorm(dim)
        self.pointwise_conv1, self.pointwise_conv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.depthwise_conv(x)).permute(0, 2, 3, 1)
        return x + (self.scale * self.pointwise_conv2(gelu(self.pointwise_conv1(inner)))).permute(0, 3, 1, 2)


def from_transformers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SAM 2 model of the transformers library, its memory included, by the names of ``Sam2Video``. Raises DataError for a
    checkpoint that is no SAM 2's."""
    return named({k: v for k, v in found.items() if k != "no_memory_positional_encoding"})
