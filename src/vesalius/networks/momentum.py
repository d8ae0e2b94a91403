"""Residual blocks with momentum, and their way back.

v_{n+1} = gamma v_n + (1 - gamma) f(x_n), x_{n+1} = x_n + v_{n+1} (Sander et al., ICML 2021, https://arxiv.org/abs/2102.07870); gamma = 0 is
a residual network. From the end follows the start, x_n = x_{n+1} - v_{n+1} and v_n = (v_{n+1} - (1 - gamma) f(x_n)) / gamma: activations
need not be stored. In floating point that loses bits: gamma < 1 shrinks v, and dividing by it brings rounding errors back as large as
gamma^-N. Here states are integers (fixed point) and gamma a ratio p / q; what a multiplication by p / q cuts off is kept in another
integer per value, which fills the room that the next multiplications make (Maclaurin et al., ICML 2015,
https://arxiv.org/abs/1502.03492). The way back is exact to the bit. Batch norm sees a batch on both ways and counts it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..core.errors import UsageError

UNIT = 2.0**30  # fixed point: units in 1
BITS = 61  # of the integers that keep what multiplications cut off


class Momentum:
    """Blocks f_0, f_1, ... of one shape applied to x with a velocity. ``gamma`` is taken as the nearest ratio with a denominator up to 100.
    ``blocks``: the most that will follow each other, for which the integers of 'reversible' must do."""

    def __init__(self, gamma: float, *, start: str = "zero", memory: str = "stored", blocks: int = 1):
        if not 0 <= gamma < 1:
            raise UsageError("no such momentum", where="gamma", found=gamma, allowed="0 to below 1")
        if start not in ("zero", "first") or memory not in ("stored", "reversible"):
            allowed = "zero, first; stored, reversible"
            raise UsageError("unknown start or memory", where="start, memory", found=(start, memory), allowed=allowed)
        self.ratio = Fraction(gamma).limit_denominator(100)
        self.gamma, self.start, self.memory = float(self.ratio), start, memory
        if memory == "reversible":
            if not self.ratio:
                raise UsageError("without momentum the way back is unknown", where="gamma", found=gamma, allowed="0.01 or more")
            most = int((BITS - math.log2(self.ratio.denominator)) / -math.log2(self.gamma))
            if blocks > most:
                allowed = f"{most} blocks a stage at gamma {self.gamma:g}"
                raise UsageError("too many blocks to be reversed exactly", where="depths", found=blocks, allowed=allowed)

    def __call__(self, x: Tensor, blocks: Sequence[nn.Module], v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Position and velocity after the blocks. ``v``: a velocity to go on with; None where none is known, or none is left."""
        if not blocks:
            return x, v
        if v is None:
            v = torch.zeros_like(x) if self.start == "zero" else blocks[0](x)
        if self.memory == "reversible" and torch.is_grad_enabled():
            weights = [p for f in blocks for p in f.parameters() if p.requires_grad]
            return Reversible.apply(x, v, self.ratio, tuple(blocks), *weights)
        for f in blocks:
            v = self.gamma * v + (1 - self.gamma) * f(x)
            x = x + v
        return x, v


def advance(x: Tensor, v: Tensor, cut: Tensor, push: Tensor, ratio: Fraction) -> tuple[Tensor, Tensor, Tensor]:
    """One step of integer states: v <- (p / q) v + push and x <- x + v, with what the ratio cuts off moved into ``cut``."""
    p, q = ratio.numerator, ratio.denominator
    whole, rest = _divmod(v, q)
    cut, low = _divmod(cut * q + rest, p)
    v = p * whole + low + push
    return x + v, v, cut


def retreat(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The position before a step, and the velocity that led away from it."""
    return x - v, v


def unpush(v: Tensor, cut: Tensor, push: Tensor, ratio: Fraction) -> tuple[Tensor, Tensor]:
    """The velocity before a step and what had been cut off by then: the exact inverse of ``advance`` in v and ``cut``."""
    p, q = ratio.numerator, ratio.denominator
    whole, low = _divmod(v - push, p)
    cut, rest = _divmod(cut * p + low, q)
    return whole * q + rest, cut


def _divmod(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    whole = a.div(b, rounding_mode="floor")
    return whole, a - b * whole


class Reversible(torch.autograd.Function):
    """The blocks' last x and v, with a backward that walks back from them. Stores three integers per value, however many blocks there are.

    Values that are no numbers or beyond 2^31 have no integers: then every answer is NaN, which the training loop notices."""

    @staticmethod
    def forward(ctx, x: Tensor, v: Tensor, ratio: Fraction, blocks: tuple[nn.Module, ...], *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.blocks, ctx.ratio, ctx.kind = blocks, ratio, x.dtype
        ctx.cast = dict(device_type=x.device.type, dtype=torch.get_autocast_dtype(x.device.type))
        ctx.cast["enabled"] = torch.is_autocast_enabled(x.device.type)
        at, speed = _fixed(x), _fixed(v)
        cut, sound = torch.zeros_like(at), _sound(x) & _sound(v)
        for f in blocks:
            y = f(_floating(at, x.dtype))
            at, speed, cut = advance(at, speed, cut, _push(y, ratio), ratio)
            sound = sound & _sound(y) & (at.abs() < 2**61).all()
        ctx.end = at, speed, cut
        return tuple(_floating(end, x.dtype).masked_fill(~sound, math.nan) for end in (at, speed))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gx: Tensor, gv: Tensor):
        (at, speed, cut), ratio = ctx.end, ctx.ratio
        pull, found = float(1 - ratio), []
        for f in reversed(ctx.blocks):
            at, speed = retreat(at, speed)
            with torch.enable_grad(), torch.autocast(**ctx.cast), counted_once(f):
                x = _floating(at, ctx.kind).requires_grad_()
                y = f(x)
            speed, cut = unpush(speed, cut, _push(y.detach(), ratio), ratio)
            g = gx + gv  # of v after the step
            mine = [p for p in f.parameters() if p.requires_grad]
            dx, *dw = torch.autograd.grad(y, [x, *mine], (pull * g).to(y.dtype), allow_unused=True)
            gx, gv = gx + dx, float(ratio) * g
            found = [*dw, *found]
        return gx, gv, None, None, *found


@contextmanager
def counted_once(f: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training use the batch's statistics and keep no account of them."""
    norms = [m for m in f.modules() if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats]
    with ExitStack() as after:
        for m in norms:
            m.track_running_stats = False
            after.callback(setattr, m, "track_running_stats", True)
        yield


def _fixed(x: Tensor) -> Tensor:
    return (x.double() * UNIT).round().long()


def _sound(x: Tensor) -> Tensor:
    return (x.abs() < 2.0**31).all()


def _floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.double() / UNIT).to(dtype)


def _push(y: Tensor, ratio: Fraction) -> Tensor:
    return _fixed(y.double() * float(1 - ratio))
