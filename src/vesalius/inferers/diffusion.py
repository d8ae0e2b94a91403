"""Diffusion: what noise is added to (``Schedule``), and how a network takes it out again, in one step or in many (``Sampler``).

A schedule mixes a signal x_0 with standard normal noise, x_t = a_t x_0 + s_t eps with a_t^2 + s_t^2 = 1, from hardly any noise at t = 0
to hardly any signal at t = T - 1. A network that sees x_t and t answers with the noise, the signal or the velocity a_t eps - s_t x_0; each
tells the other two. How many steps a prediction takes belongs to the sampler: the same weights serve all of them.

Ho et al., Denoising diffusion probabilistic models, 2020, https://arxiv.org/abs/2006.11239; Song et al., Denoising diffusion implicit
models (eq. 12, without added noise), 2021, https://arxiv.org/abs/2010.02502; velocity after Salimans and Ho, Progressive distillation for
fast sampling of diffusion models, 2022, https://arxiv.org/abs/2202.00512.

Equal to diffusers' DDIMScheduler with trailing time steps (a test holds it), but without state and for a time of its own per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import UsageError

Predicts = Literal["noise", "signal", "velocity"]


@dataclass(frozen=True)
class Schedule:
    """``times`` T; betas run from ``first`` to ``last``: evenly ('linear'), or evenly in their root ('scaled', latent diffusion's)."""

    times: int = 1000
    first: float = 0.0015
    last: float = 0.0155
    kind: Literal["scaled", "linear"] = "scaled"

    def __post_init__(self):
        if self.times < 1 or not 0 < self.first <= self.last < 1:
            raise UsageError("betas grow, between 0 and 1", where="schedule", found=(self.times, self.first, self.last))

    @cached_property
    def kept(self) -> Tensor:
        """(T,) float64: a_t^2, the share of variance that is still signal (the papers' alpha bar)."""
        power = 2 if self.kind == "scaled" else 1
        betas = torch.linspace(self.first ** (1 / power), self.last ** (1 / power), self.times, dtype=torch.float64) ** power
        return torch.cumprod(1 - betas, 0)

    def weights(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a_t, s_t) of times ``t`` (B,), each (B, 1, ...) as ``like`` (B, ...)."""
        kept = self.kept[t.cpu()].view(-1, *(1,) * (like.ndim - 1))
        return kept.sqrt().to(like), (1 - kept).sqrt().to(like)

    def noisy(self, signal: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of signals and noise (B, ...) at times ``t`` (B,)."""
        a, s = self.weights(t, signal)
        return a * signal + s * noise

    def split(self, answer: Tensor, noisy: Tensor, t: Tensor, predicts: Predicts = "noise") -> tuple[Tensor, Tensor]:
        """(signal, noise) as a network's ``answer`` to ``noisy`` at ``t`` has them."""
        a, s = self.weights(t, noisy)
        if predicts == "noise":
            return (noisy - s * answer) / a, answer
        if predicts == "signal":
            return answer, (noisy - a * answer) / s
        return a * noisy - s * answer, s * noisy + a * answer


@dataclass(frozen=True)
class Sampler:
    """Noise to signal in ``steps`` evenly spaced times from T - 1 on. One step is one call of the network, whose signal is the answer."""

    schedule: Schedule
    steps: int = 1
    predicts: Predicts = "noise"

    def __post_init__(self):
        if not 1 <= self.steps <= self.schedule.times:
            raise UsageError("no such number of reverse steps", where="steps", found=self.steps, allowed=f"1 to {self.schedule.times}")

    @property
    def times(self) -> list[int]:
        """The times visited, T - 1 first."""
        every = self.schedule.times / self.steps
        return [round(self.schedule.times - i * every) - 1 for i in range(self.steps)]

    def __call__(self, network: Callable[[Tensor, Tensor], Tensor], start: Tensor) -> Tensor:
        """``network(x_t, t (B,))`` -> its answer; ``start`` (B, ...) standard normal -> the signal (B, ...). Nothing else is random."""
        x, times = start, self.times
        for t, after in zip(times, (*times[1:], None)):
            now = torch.full((len(x),), t, device=x.device)
            signal, noise = self.schedule.split(network(x, now), x, now, self.predicts)
            if after is not None:
                x = self.schedule.noisy(signal, noise, torch.full_like(now, after))
        return signal


def seeded_noise(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers that depend on shape and seed alone: a case's generator, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
