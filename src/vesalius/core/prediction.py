"""What a method gives: a mirror of the case; and one row of a result table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .case import Boxes, Image, LabelMap, Points


@dataclass(frozen=True)
class Prediction:
    """Every spatial field carries its own geometry; after ``engine.infer`` all lie on the original grid.

    ``probability`` is what ``restore`` resamples before it decides on the original grid. ``threshold`` None: one channel per class,
    background first, the most probable wins; a number: each channel is a structure of its own, present from there on. ``names`` are
    the channels' (empty: the plan's classes, without the background when there is a threshold). ``labels`` given by a method itself
    are resampled as label maps and stand above ``probability``. Fields on another grid than the prepared one stay on theirs.
    ``samples`` is (S, K, *spatial).
    ``outlines`` are polygons (n, 2) and ``meshes`` (vertices, faces), both in world mm; outlines are filled on the original grid where
    there is neither a label map nor a probability.
    ``displacement`` (d, *spatial) is in world mm. ``table``: column -> probability (binary), {level: probability} (nominal, ordinal) or
    number (real). ``notes`` are sentences for the person (no marker found, fell back to...).
    """

    labels: Mapping[str, LabelMap] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    probability: Image | None = None
    names: tuple[str, ...] = ()
    threshold: float | None = None
    uncertainty: Image | None = None
    samples: Image | None = None
    points: Mapping[str, Points] = field(default_factory=dict)
    boxes: Mapping[str, Boxes] = field(default_factory=dict)
    instances: LabelMap | None = None
    outlines: Mapping[str, np.ndarray] = field(default_factory=dict)
    meshes: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    displacement: Image | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def with_(self, **fields: Any) -> Prediction:
        return replace(self, **fields)

    def decide(self, classes: tuple[str, ...]) -> Prediction:
        """With ``labels`` taken from ``probability`` on its own grid, where the method gave none; ``classes`` are the plan's."""
        if self.labels or self.probability is None:
            return self
        p, grid = self.probability.data, self.probability.geometry
        if self.threshold is None:
            label = LabelMap(p.argmax(0).astype(np.int16), grid, self.names or classes)
        else:
            names = self.names or classes[1:]
            on = p >= self.threshold
            many = len(on) > 1
            label = LabelMap(on if many else on[0].astype(np.int16), grid, names if many else ("background", *names), overlapping=many)
        return self.with_(labels={"prediction": label})

    @property
    def label(self) -> LabelMap | None:
        """The main label map."""
        return next(iter(self.labels.values()), None)


@dataclass(frozen=True)
class Score:
    """One row: a metric of a structure in a case. ``value`` None is undefined (an empty mask), counted and shown, never replaced."""

    case: str
    metric: str
    value: float | None
    structure: str = ""
    patient: str = ""
    query: str = ""
    rater: str = ""
    step: int | None = None
    kind: Literal["quality", "cost"] = "quality"
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict:
        row = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "extra"}
        return {**{k: v for k, v in row.items() if v not in ("", None) or k == "value"}, **self.extra}
