"""Reverse classification accuracy: how good a segmentation is, predicted without its ground truth.

The predicted segmentation of a new image becomes an atlas: the image is registered to reference images whose labels are known, its
segmentation is carried along, and the overlap with the reference's labels tells how good it was. If it fits none, it is wrong.
Valindria et al. 2017, doi:10.1109/TMI.2017.2665165; with references chosen by similarity and the best and mean overlap kept: Gaggion et
al. 2024 (CheXmask), doi:10.1038/s41597-024-03358-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..core.case import IGNORE, Case, Image, LabelMap
from ..core.errors import DataError
from ..core.geometry import Geometry, LongestSide
from .register import Transform, register

Overlap = Callable[[np.ndarray, np.ndarray], float | None]
Kind = Literal["rigid", "affine", "deformable"]


def working(image: Image, longest: int) -> Image:
    """The channels' mean, with a longest side of at most ``longest`` voxels: what registration sees."""
    grid = image.geometry
    if max(grid.shape) > longest:
        grid = LongestSide(longest).of(grid)
    mean = Image(np.asarray(image.data, np.float32).mean(0, keepdims=True), image.geometry, name=image.name)
    return mean.on(grid, antialias=True) if grid is not image.geometry else mean


def signature(image: Image, side: int = 16) -> np.ndarray:
    """(side^d,) float32 of unit length: the image at a few voxels a side, standardised. A dot product of two is their correlation."""
    small = image.on(image.geometry.resized([side] * image.geometry.ndim), antialias=True).data.mean(0).ravel()
    return unit(small - small.mean())


def unit(code: np.ndarray) -> np.ndarray:
    """The vector at length 1; zeros stay."""
    return (code / max(float(np.linalg.norm(code)), 1e-12)).astype(np.float32)


def evenly(items: Sequence[str], number: int) -> list[str]:
    """At most ``number`` of the items, spread evenly."""
    picks = np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).astype(int)) if items else []
    return [items[i] for i in picks]


@dataclass(frozen=True, eq=False)
class Bank:
    """Reference ``images`` with ``labels`` on the same grids, and ``codes`` (n, e) of unit length by whose dot product they are chosen."""

    images: tuple[Image, ...]
    labels: tuple[LabelMap, ...]
    codes: np.ndarray

    def __post_init__(self):
        if not self.images:
            raise DataError("reverse classification needs references with labels", found="none", fix="train on labelled cases")

    def choose(self, code: np.ndarray, number: int, structures: Sequence[str]) -> tuple[int, ...]:
        """The ``number`` most similar references that speak for each of the structures, most similar first."""
        order = np.argsort(-(self.codes @ unit(code)), kind="stable")
        chosen = set()
        for name in structures:
            speaks = [i for i in order if self.labels[i].annotated is None or name in self.labels[i].annotated]
            chosen.update(speaks[:number])
        return tuple(int(i) for i in order if i in chosen)

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """What a method that holds a bank adds to its own state: arrays 'bank.*' (images as float16) and JSON facts 'bank'."""
        tensors: dict[str, np.ndarray] = {"bank.codes": self.codes.astype(np.float32)}
        facts: list[dict] = []
        for n, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            tensors[f"bank.image.{n:04d}"] = np.asarray(image.data).astype(np.float16)
            tensors[f"bank.label.{n:04d}"] = np.asarray(label.data).astype(np.int16)
            annotated = None if label.annotated is None else sorted(label.annotated)
            facts.append({"geometry": image.geometry.to_json(), "names": list(label.names), "annotated": annotated})
        return tensors, {"bank": facts}

    @classmethod
    def of(cls, cases: Iterable[Case], channel: str, longest: int, code: Callable[[Case, Image], np.ndarray]) -> Bank:
        """From prepared cases with labels (the reference of each): images at the working size, standardised, and each one's ``code``."""
        images, labels, codes = [], [], []
        for case in cases:
            image = working(case.images[channel], longest)
            spread = float(image.data.std()) or 1.0
            kept = ((image.data - image.data.mean()) / spread).astype(np.float16).astype(np.float32)  # as it comes back from a file
            images.append(replace(image, source=kept))
            labels.append(case.label.on(images[-1].geometry))
            codes.append(code(case, images[-1]))
        return cls(tuple(images), tuple(labels), np.array(codes))

    @classmethod
    def from_state(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Bank | None:
        """The inverse of ``state``; None where there is no bank in it."""
        if "bank" not in facts:
            return None
        images, labels = [], []
        for n, f in enumerate(facts["bank"]):
            grid = Geometry.from_json(f["geometry"])
            annotated = None if f["annotated"] is None else frozenset(f["annotated"])
            images.append(Image(np.asarray(tensors[f"bank.image.{n:04d}"]).astype(np.float32), grid))
            labels.append(LabelMap(np.asarray(tensors[f"bank.label.{n:04d}"]), grid, tuple(f["names"]), annotated=annotated))
        return cls(tuple(images), tuple(labels), np.asarray(tensors["bank.codes"]))


@dataclass(frozen=True)
class Estimate:
    """Predicted overlap of one structure: over the references, the ``best``, the ``mean`` and each (None: the reference cannot say)."""

    best: float | None
    mean: float | None
    values: tuple[float | None, ...]


def align(image: Image, bank: Bank, chosen: Sequence[int], *, kind: Kind = "affine", **settings: Any) -> tuple[Transform, ...]:
    """The transforms that lay a (working) image over each chosen reference; ``settings`` go to ``register``."""
    return tuple(register(bank.images[i], image, kind=kind, **settings) for i in chosen)


def reverse_accuracy(
    predicted: LabelMap, bank: Bank, chosen: Sequence[int], transforms: Sequence[Transform], overlap: Overlap
) -> dict[str, Estimate]:
    """By structure, the overlap of the carried prediction with each chosen reference. ``overlap(mask, reference)`` is a metric of two
    boolean masks that is None where undefined (both empty); voxels the reference says nothing about count for nothing."""
    values: dict[str, list[float | None]] = {name: [] for name in predicted.names if name != "background"}
    for i, transform in zip(chosen, transforms, strict=True):
        reference = bank.labels[i]
        data = np.asarray(reference.data)
        moved = np.asarray(transform.apply(predicted, reference.geometry).data)
        for name, found in values.items():
            spoken = name in reference.names and (reference.annotated is None or name in reference.annotated)
            if not spoken:
                found.append(None)
                continue
            mask = moved[predicted.names.index(name)] if predicted.overlapping else moved == predicted.names.index(name)
            found.append(overlap((mask > 0) & (data != IGNORE), data == reference.names.index(name)))
    return {name: _estimate(found) for name, found in values.items()}


def _estimate(values: Sequence[float | None]) -> Estimate:
    known = [v for v in values if v is not None]
    return Estimate(max(known, default=None), float(np.mean(known)) if known else None, tuple(values))
