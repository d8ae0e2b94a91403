"""SAM 2's memory at work: masks of some slices of a volume, or frames of a film, carried to the others.

Ravi et al., SAM 2: segment anything in images and videos, https://arxiv.org/abs/2408.00714; MedSAM2 (Ma et al.,
https://arxiv.org/abs/2504.03600) uses it on volumes, from the middle slice both ways. The walks are those of ``inferers.propagation``;
every frame on the way is remembered, as published, and the memory itself lets go of what is too long ago.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.case import Case
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.plan import Plan
from ..networks.sam2 import Maps
from ..networks.sam2_video import Bank, Sam2Video
from .prompted import SequenceMethod
from .sam2d import upright
from .sam_checkpoint import SamCheckpoint, resized


@dataclass(frozen=True)
class Frame:
    maps: Maps
    size: tuple[int, int]


@dataclass(frozen=True)
class Memory:
    """``at``: where the walk is."""

    bank: Bank = Bank()
    at: int = 0


class SamVideo(SequenceMethod):
    """``model``: a checkpoint with a memory (``model_type`` sam2_video). ``shown``: the volume as its slices are to be seen."""

    every = sys.maxsize  # ``carry`` remembers by itself

    def __init__(self, plan: Plan, manifest: Manifest, *, model: SamCheckpoint, shown: Callable[[Case], Case] = lambda case: case):
        if not isinstance(model.network, Sam2Video):
            raise UsageError("this checkpoint has no memory", found=type(model.network).__name__, allowed="model_type sam2_video")
        super().__init__(plan, manifest)
        self.model, self.shown = model, shown

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        return self.shown(case)

    def embed(self, image: Tensor, condition: object = None) -> Frame:
        image = upright(image)
        return Frame(self.model.mapped(image, self.model.network.look), tuple(image.shape[2:]))

    def memory(self) -> Memory:
        return Memory()

    def remember(self, frame: Frame, masks: Tensor, memory: Memory, *, given: bool, at: int) -> Memory:
        kept = self.model.network.keep(frame.maps, resized(upright(masks)[None].float(), self.model.side)[0])
        return Memory(replace(memory.bank, given={**memory.bank.given, at: kept}), at)

    def carry(self, frame: Frame, memory: Memory) -> tuple[Tensor, Memory]:
        network, at = self.model.network, memory.at + 1
        logits, kept = network.track(frame.maps, memory.bank, at)
        p = interpolate(logits[None], frame.size, mode="bilinear", align_corners=False)[0].sigmoid()
        return upright(p), Memory(network.follow(memory.bank, kept, at), at)
