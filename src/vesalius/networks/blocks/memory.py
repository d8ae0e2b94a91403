"""Memory of frames seen: keys say where to look, values what was there; frames become prototypes where there are too many.

Cheng and Schwing, XMem: Long-term video object segmentation with an Atkinson-Shiffrin memory model, ECCV 2022,
https://arxiv.org/abs/2207.07115, sections 3.2 to 3.4; soft aggregation of several objects: Oh et al., STM, ICCV 2019. Keys are shared by
all objects, values are an object's own. B batch, C channels of a key, V of a value, M elements in memory, N places that ask, K objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

EPS = 1e-6


def similarity(keys: Tensor, shrinkage: Tensor, queries: Tensor, selection: Tensor) -> Tensor:
    """(B, M, N): -s_m sum_c e_cn (k_cm - q_cn)^2 / sqrt(C), equation 2. ``keys`` (B, C, M), ``shrinkage`` s (B, 1, M) from 1 on, how sure
    an element is; ``queries`` (B, C, N), ``selection`` e (B, C, N) in [0, 1], which channels matter to a place that asks."""
    keyed = keys.transpose(1, 2)
    distance = keyed.square() @ selection - 2 * keyed @ (queries * selection) + (selection * queries.square()).sum(1, keepdim=True)
    return -shrinkage.transpose(1, 2) * distance / keys.shape[1] ** 0.5


def affinity(similar: Tensor, top: int | None = None) -> Tensor:
    """(B, M, N) weights that sum to 1 over the memory: the softmax over the ``top`` most similar elements of each place, 0 elsewhere."""
    if top is None or top >= similar.shape[1]:
        return similar.softmax(1)
    best, index = similar.topk(top, 1)
    return torch.zeros_like(similar).scatter(1, index, best.softmax(1))


def readout(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (B, M, N), values (B, K, V, M) -> (B, K, V, N)."""
    return values @ weights.unsqueeze(1)


def aggregate(probability: Tensor) -> Tensor:
    """(B, K, *s) independent probabilities of objects -> (B, K + 1, *s) logits, background first, whose softmax says which it is:
    p_0 = prod (1 - p_k), logits log(p / (1 - p))."""
    p = torch.cat([(1 - probability).prod(1, keepdim=True), probability], 1).clamp(EPS, 1 - EPS)
    return p.log() - (1 - p).log()


@dataclass(frozen=True)
class Elements:
    """``key`` (C, M), ``shrinkage`` (1, M), ``selection`` (C, M), ``value`` (K, V, M); ``used`` (M,) the weight that readings gave each,
    and ``age`` (M,) how many readings it has seen."""

    key: Tensor
    shrinkage: Tensor
    selection: Tensor
    value: Tensor
    used: Tensor = field(default=None)
    age: Tensor = field(default=None)

    def __post_init__(self):
        if self.used is None:
            object.__setattr__(self, "used", self.key.new_zeros(self.key.shape[1]))
            object.__setattr__(self, "age", self.key.new_zeros(self.key.shape[1]))

    def __len__(self) -> int:
        return self.key.shape[1]

    @property
    def worth(self) -> Tensor:
        return self.used / self.age.clamp_min(1)

    def at(self, index: Tensor) -> Elements:
        return Elements(*(getattr(self, f)[..., index] for f in self.__dataclass_fields__))

    @classmethod
    def cat(cls, parts: list[Elements]) -> Elements:
        return cls(*(torch.cat([getattr(p, f) for p in parts], -1) for f in cls.__dataclass_fields__))


class MemoryBank:
    """What one walk through a sequence has seen. Frames that were ``keep`` stay; of the others at most ``most`` are held as they are: then
    all but the newest ``least`` become ``prototypes`` elements of a long-term memory, of at most ``capacity`` elements."""

    def __init__(self, *, top: int | None = 30, least: int = 5, most: int = 10, prototypes: int = 128, capacity: int = 10_000):
        self.top, self.least, self.most, self.prototypes, self.capacity = top, least, most, prototypes, capacity
        self.kept: list[Elements] = []
        self.working: list[Elements] = []
        self.long: list[Elements] = []  # one, or none yet

    def __len__(self) -> int:
        return sum(map(len, self._all))

    @property
    def _all(self) -> list[Elements]:
        return [*self.long, *self.kept, *self.working]

    def add(self, frame: Elements, *, keep: bool = False) -> None:
        (self.kept if keep else self.working).append(frame)
        if len(self.working) > self.most:
            old, self.working = self.working[: -self.least], self.working[-self.least :]
            self._consolidate(Elements.cat(old))

    def read(self, queries: Tensor, selection: Tensor) -> Tensor:
        """(K, V, N) values for places (C, N); the bank notes what was used."""
        memory = Elements.cat(self._all)
        weights = affinity(similarity(memory.key[None], memory.shrinkage[None], queries[None], selection[None]), self.top)
        self._note(weights[0].sum(1))
        return readout(weights, memory.value[None])[0]

    def _note(self, used: Tensor) -> None:
        parts = iter(used.split([len(e) for e in self._all]))
        for group in (self.long, self.kept, self.working):
            group[:] = [replace(e, used=e.used + next(parts), age=e.age + 1) for e in group]

    def _consolidate(self, old: Elements) -> None:
        """The most used elements become prototypes; each takes on the values around it by its affinity to all of ``old``."""
        chosen = old.at(old.worth.topk(min(self.prototypes, self.capacity, len(old))).indices)
        weights = potentiation(old, chosen)
        value = readout(weights[None], old.value[None])[0]
        shrinkage = (old.shrinkage @ weights).clamp_min(1)
        fresh = Elements(chosen.key, shrinkage, chosen.selection, value)
        if self.long:
            room = self.capacity - len(fresh)
            known = self.long[0]
            if len(known) > room:
                known = known.at(known.worth.topk(room).indices.sort().values)
            fresh = Elements.cat([known, fresh])
        self.long = [fresh]


def potentiation(old: Elements, prototypes: Elements) -> Tensor:
    """(M, P): how much of each element of ``old`` goes into each prototype; columns sum to 1."""
    return affinity(similarity(old.key[None], old.shrinkage[None], prototypes.key[None], prototypes.selection[None]))[0]
