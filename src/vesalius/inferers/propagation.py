"""Masks of a few frames carried to all others, in both directions.

From every frame that was given, one walk forward and one back, each to the next given frame or the end, with a memory of its own that holds
all that was given (iMOS: separate memories that start from the same references). Between two given frames both walks answer, and count by
nearness. A sequence turned round, with its references, gives the same answer turned round, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import UsageError


class Carrier(Protocol):
    """``memory()``: an empty one; ``remember``: with masks (K, h, w) of a frame in it, ``at`` so many frames ahead of where the walk
    starts (below 0: behind it); ``carry``: (K, h, w) probabilities in the next frame of the walk."""

    def memory(self) -> Any: ...
    def remember(self, frame: Any, masks: Tensor, memory: Any, *, given: bool, at: int) -> Any: ...
    def carry(self, frame: Any, memory: Any) -> tuple[Tensor, Any]: ...


def both_ways(carrier: Carrier, frame: Callable[[int], Any], count: int, given: Mapping[int, Tensor], *, every: int = 5) -> Tensor:
    """(T, K, h, w) probabilities of ``count`` frames: the ``given`` masks (K, h, w) at theirs, elsewhere what was carried there. ``frame``:
    index -> what the carrier sees; every ``every``-th answer is remembered. Raises UsageError without a given frame, or one that is
    none."""
    references = sorted(given)
    if not references or references[0] < 0 or references[-1] >= count:
        raise UsageError("masks are carried on from frames of the sequence", found=references or "none given", allowed=f"0 to {count - 1}")
    found: dict[int, list[tuple[float, Tensor]]] = {t: [(1.0, masks)] for t, masks in given.items()}
    for start in references:
        for way in (1, -1):
            ahead = [t for t in references if (t - start) * way > 0]
            stop = min(ahead, key=lambda t: abs(t - start)) if ahead else (count if way > 0 else -1)
            walk = range(start + way, stop, way)
            for n, (t, masks) in enumerate(_walk(carrier, frame, walk, given, start, way, every), 1):
                found.setdefault(t, []).append((1 - n / (len(walk) + 1) if ahead else 1.0, masks))
    return torch.stack([_blend(found[t]) for t in range(count)])


def _walk(carrier: Carrier, frame: Callable, walk: range, given: Mapping[int, Tensor], start: int, way: int, every: int):
    if not len(walk):
        return
    memory = carrier.memory()
    for t in [*sorted((t for t in given if t != start), reverse=way < 0), start]:  # where the walk starts comes last
        memory = carrier.remember(frame(t), given[t], memory, given=True, at=(t - start) * way)
    for n, t in enumerate(walk, 1):
        masks, memory = carrier.carry(frame(t), memory)
        yield t, masks
        if n % every == 0 and t != walk[-1]:
            memory = carrier.remember(frame(t), masks, memory, given=False, at=n)


def _blend(answers: list[tuple[float, Tensor]]) -> Tensor:
    if len(answers) == 1:
        return answers[0][1]
    (a, one), (b, two) = answers
    return a * one + b * two
