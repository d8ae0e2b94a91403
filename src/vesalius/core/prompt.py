"""What a person points at, in the original image's world coordinates (mm); and how a model sees and answers it, as tensors on its grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .case import Case, LabelMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Point:
    """A click; ``positive`` is on the object. ``frame`` binds it to one frame of a sequence, ``object`` to one of several objects."""

    xyz: tuple[float, ...]
    positive: bool = True
    object: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Box:
    low: tuple[float, ...]
    high: tuple[float, ...]
    object: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Scribble:
    """A polyline (n, d) in mm."""

    xyz: np.ndarray
    positive: bool = True
    object: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Lasso:
    """A closed outline (n, 2) of a 2D image in mm: the object is inside, if only roughly."""

    xyz: np.ndarray
    object: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Mask:
    mask: LabelMap
    object: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Text:
    text: str
    object: str = ""


@dataclass(frozen=True)
class Exemplar:
    """A labelled example of what is wanted."""

    case: Case
    object: str = ""


Prompt = Point | Box | Scribble | Lasso | Mask | Text | Exemplar


@dataclass(frozen=True)
class Asked:
    """One turn's prompts of B objects on a model's grid, in voxels (centres at integers).

    ``points`` (B, N, d) float and ``signs`` (B, N) long: 1 on the object, 0 beside it, -1 no point (padding); ``boxes`` (B, 2, d) float,
    low and high, NaN for an object without one; ``masks`` (B, 1, *s) float in [0, 1]. None: nobody was asked so.
    """

    points: Tensor
    signs: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class Turn:
    """``prompts`` given at the sight of ``logits`` (B, 1, *s), the answer of the turn before (None: the first turn)."""

    prompts: Asked
    logits: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """What a model answers to a turn: ``logits`` (B, M, *s) of M masks an object, and ``quality`` (B, M), how good it thinks each is."""

    logits: Tensor
    quality: Tensor

    def best(self) -> Tensor:
        """(B, 1, *s): the mask of each object that the model itself ranks first."""
        index = self.quality.argmax(1).view(-1, 1, *(1,) * (self.logits.ndim - 2))
        return self.logits.take_along_dim(index.expand(-1, 1, *self.logits.shape[2:]), 1)
