"""What passes between a phantom's parts: declared options, whose case is drawn, what a sketch settles and what a render gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import UsageError
from ...core.geometry import Geometry

SPLIT_STEP = 100_000  # case index = place in its split + SPLIT_STEP * split number


@dataclass(frozen=True)
class Option:
    """One declared option: its default, what else it may be (a tuple of values, or a type) and one line about it."""

    default: Any
    allowed: tuple | type
    text: str

    def check(self, name: str, value: Any, where: str) -> Any:
        """``value`` if it is allowed; raises UsageError otherwise."""
        if value == self.default and type(value) is type(self.default):
            return value
        if isinstance(self.allowed, tuple):
            ok = any(value == a and type(value) is type(a) for a in self.allowed)
            allowed = ", ".join(map(repr, self.allowed))
        else:
            kinds = (int, float) if self.allowed is float else self.allowed
            ok = isinstance(value, kinds) and not (isinstance(value, bool) and self.allowed is not bool)
            allowed = f"{self.default!r} or any {self.allowed.__name__}"
        if not ok:
            raise UsageError(f"option '{name}' cannot have this value", where=where, found=repr(value), allowed=allowed)
        return value


@dataclass(frozen=True)
class Who:
    """Whose case is drawn: its index, the index of the patient's first case, the split and the phantom's options."""

    seed: int
    index: int
    patient: int
    split: str
    options: Mapping[str, Any]

    def rng(self, stage: int = 0, *, shared: bool = False) -> np.random.Generator:
        """The random stream of one stage of this case; ``shared``: the same for all exams of the patient."""
        return np.random.default_rng([self.seed, self.patient if shared else self.index, stage])

    @property
    def exam(self) -> int:
        """0 for the patient's first case."""
        return self.index - self.patient

    @property
    def place(self) -> int:
        """Place within the split, from 0."""
        return self.index % SPLIT_STEP


@dataclass(frozen=True)
class Scene:
    """What a sketch settles: the case's table of known answers, its source, and whatever the render needs."""

    table: Mapping[str, Any]
    parts: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Drawing:
    """What a render gives: arrays that share one ``geometry``. images (C, *s); labels and rois (*s) ints; points (n, d) world mm."""

    geometry: Geometry
    images: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    rois: Mapping[str, np.ndarray] = field(default_factory=dict)
    points: Mapping[str, np.ndarray] = field(default_factory=dict)
