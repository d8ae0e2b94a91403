"""What a person points at, in the original image's world coordinates (mm)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .case import Case, LabelMap


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


Prompt = Point | Box | Scribble | Mask | Text | Exemplar
