"""Screening: a cheap look at every window says which windows are worth a forward; the others are skipped.

The maps are averaged over the windows that were looked at, with the sliding window's own weights, so a skipped neighbour takes nothing
away from what a kept window found. Where no window was looked at there is nothing to average: the caller says what that means.

Source: the cascade of Wu et al., Glance and Focus Reinforcement for Pan-cancer Screening, ICLR 2026, for any pair of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import RunError, UsageError
from .sliding import Maps, SlidingWindow


@dataclass(frozen=True, kw_only=True)
class Screened(SlidingWindow):
    """``glance(windows (B, C, *patch))`` gives (B,), how likely each is worth a look, ``glances`` windows at a time; those of ``least``
    or more get a forward (0: all). Mirroring is the forward's: a glance sees windows as they are."""

    glance: Callable[[Tensor], Tensor]
    least: float = 0.5
    glances: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.least <= 1:
            raise UsageError("this is a probability", where="least", found=self.least, allowed="0 to 1")
        if self.glances < 1:
            raise UsageError("a glance sees at least one window", where="glances", found=self.glances, allowed=">= 1")

    def __call__(
        self,
        forward: Callable[..., Tensor | Mapping[str, Tensor]],
        image: Tensor,
        *,
        condition: Any = None,
        progress: Callable[[int], object] | None = None,
    ) -> Maps:
        """Maps (K, *s) by name ('logits' when the forward gives one tensor), 0 where nothing was looked at and absent when no window was;
        'looked' (1, *s) bool: where a window was; 'chance' (n,): what the glance gave each window, on the CPU; 'corner' (n, d): their
        first voxels (negative where the image is shorter than the window). Raises what ``SlidingWindow`` raises, and RunError for a
        glance that is not one number a window."""
        shape = self._check(image)
        places = self.places(shape)
        chance = torch.cat([self._glanced(image, places[k : k + self.glances]) for k in range(0, len(places), self.glances)])
        kept = {place for place, c in zip(places, chance.tolist()) if c >= self.least}
        maps = super().__call__(_marked(forward), image, condition=condition, progress=progress, only=kept)
        if progress is not None:
            progress(len(places) - len(kept))
        share = maps.pop("looked") if kept else image.new_zeros((1, *shape), dtype=torch.float32)
        looked = share > 0
        averaged = {name: torch.where(looked, m / share, 0.0) for name, m in maps.items()}
        return {**averaged, "looked": looked, "chance": chance, "corner": torch.tensor(self.corners(shape, places))}

    def _glanced(self, image: Tensor, places: list[tuple[int, ...]]) -> Tensor:
        chance = self.glance(self.windows(image, places))
        if tuple(chance.shape) != (len(places),):
            raise RunError("a glance gives one number a window", where="screening", found=tuple(chance.shape), allowed=(len(places),))
        return chance.float().cpu()


def _marked(forward: Callable[..., Tensor | Mapping[str, Tensor]]) -> Callable[..., Any]:
    """The forward, with one more map of ones: blended, it is the share of the weights that was looked at."""

    def marked(windows: Tensor, *condition: Any) -> Any:
        found = forward(windows, *condition)
        maps = {"logits": found} if isinstance(found, Tensor) else found
        return {**maps, "looked": torch.ones_like(windows[:, :1])} if isinstance(maps, Mapping) else maps

    return marked
