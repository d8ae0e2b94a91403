"""Two label maps cut into structures, and per structure what a metric's function is handed, each computed once when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import Any

import numpy as np

from ..core.case import IGNORE, LabelMap
from ..core.errors import DataError, GeometryError
from ..ops.components import bounding_box
from .detection import Matched, Matching, Objects, match, objects
from .overlap import Counts, counts
from .surface import BorderDistances, SurfaceDistances, border_distances, surfaces

Box = tuple[slice, ...]
Masks = tuple[np.ndarray, np.ndarray]


@dataclass
class Structure:
    """One structure of a prediction and a reference. ``cut(box)`` gives both masks inside a box (Ellipsis: the whole image), False where
    the reference ignores; ``box`` holds the foreground of both, None when there is none; ``ids()`` gives the objects' ids in the whole
    image, where they are known."""

    name: str
    spacing: tuple[float, ...]
    counts: Counts
    box: Box | None
    cut: Callable[[Box | EllipsisType], Masks]
    matching: Matching = Matching()
    ids: Callable[[], Masks] | None = None

    def arguments(self, need: str) -> tuple[Any, ...]:
        """What a function of that need is called with."""
        if need == "counts":
            return (self.counts,)
        if need == "masks":
            return self.whole
        if need == "masks in mm":
            return (*self.cropped, self.spacing)
        return (getattr(self, need.replace(" ", "_")),)

    @cached_property
    def whole(self) -> Masks:
        return self.cut(...)

    @cached_property
    def cropped(self) -> Masks:
        return self.cut(self.box if self.box is not None else (slice(0, 0),) * len(self.spacing))

    @cached_property
    def objects(self) -> Objects:
        """The given objects, or the components of the masks."""
        if self.ids is not None:
            return objects(*self.ids(), self.spacing)
        from ..ops.components import components

        return objects(*(components(mask)[0] if mask.any() else mask.astype(np.int32) for mask in self.cropped), self.spacing)

    @property
    def why_undefined(self) -> str:
        empty = [name for name, n in (("prediction", self.counts.prediction), ("reference", self.counts.reference)) if n == 0]
        return f"empty {' and '.join(empty)}" if empty else "nothing to divide by"

    @cached_property
    def surfaces(self) -> SurfaceDistances:
        return surfaces(*self.cropped, self.spacing)

    @cached_property
    def borders(self) -> BorderDistances:
        return border_distances(*self.cropped, self.spacing)

    @cached_property
    def open_borders(self) -> BorderDistances:
        return border_distances(*self.whole, self.spacing, closed=False)

    @cached_property
    def instances(self) -> Matched:
        return match(self.objects, self.matching)


def structures(prediction: LabelMap, reference: LabelMap, case: str, matching: Matching = Matching()) -> Iterator[Structure]:
    """Every structure the reference speaks for, without background. Raises GeometryError and DataError for maps that do not fit."""
    if prediction.instances or reference.instances:
        raise DataError("instance maps have no classes to compare", where=f"case {case}", fix="score instances with detection metrics")
    if prediction.names != reference.names:
        raise DataError(
            "prediction and reference name different classes", where=f"case {case}", found=prediction.names, allowed=reference.names
        )
    if not prediction.geometry.close(reference.geometry):
        raise GeometryError(
            "prediction and reference lie on different grids",
            where=f"case {case}",
            found=prediction.geometry.describe(),
            allowed=reference.geometry.describe(),
            fix="restore the prediction to the original grid before scoring",
        )
    cut = _exclusive if not (prediction.overlapping or reference.overlapping) else _overlapping
    spacing = reference.geometry.spacing
    for name, c, box, masks in cut(_data(prediction, case), _data(reference, case), prediction, reference):
        yield Structure(name, spacing, c, box, masks, matching)


def asked(reference: LabelMap) -> Iterator[tuple[int, str]]:
    """Index and name of the structures a reference speaks for."""
    for index, name in enumerate(reference.names):
        background = name == "background" or (index == 0 and not reference.overlapping)
        if not background and (reference.annotated is None or name in reference.annotated):
            yield index, name


def mask_of(labels: LabelMap, data: np.ndarray, index: int) -> np.ndarray:
    """The bool mask of a class by its index in ``names``; overlapping maps may leave out the background's channel."""
    if not labels.overlapping:
        return data == index
    return data[index - (len(labels.names) - data.shape[0])] > 0


def _data(labels: LabelMap, case: str) -> np.ndarray:
    data = np.asarray(labels.data)
    if not labels.overlapping:
        if data.shape != labels.geometry.shape:
            raise GeometryError("labels do not lie on their grid", where=f"case {case}", found=data.shape, allowed=labels.geometry.shape)
        return data
    missing = len(labels.names) - data.shape[0]
    if data.shape[1:] != labels.geometry.shape or missing not in (0, 1) or (missing and labels.names[0] != "background"):
        raise GeometryError("overlapping labels are one mask a class", where=f"case {case}", found=data.shape, allowed=labels.names)
    return data


def _exclusive(p: np.ndarray, r: np.ndarray, prediction: LabelMap, reference: LabelMap):
    """One pass over both volumes for the counts and boxes of all classes; masks are cut from the boxes when asked for."""
    voxels, boxes, ignored = _tally(p, r, len(reference.names))
    spoken = r.size - ignored

    def cut(index: int, box: Box | EllipsisType) -> Masks:
        ours, theirs = p[box], r[box]
        mask = ours == index
        return (mask & (theirs != IGNORE) if ignored else mask), theirs == index

    for index, name in asked(reference):
        both, in_p, in_r = (int(v) for v in voxels[index])
        c = Counts(both, in_p - both, in_r - both, spoken - in_p - in_r + both)
        yield name, c, boxes[index], lambda box, index=index: cut(index, box)


def _tally(p: np.ndarray, r: np.ndarray, classes: int) -> tuple[np.ndarray, list[Box | None], int]:
    from ._distance import tally  # numba compiles (or loads its cache) on first use

    turned = p.flags.f_contiguous and r.flags.f_contiguous and p.ndim > 1
    a, b = (_plain(x.T if turned else x) for x in (p, r))
    lead = (1,) * (3 - a.ndim)
    voxels, ends, ignored = tally(a.reshape(lead + a.shape), b.reshape(lead + b.shape), classes, IGNORE)
    boxes: list[Box | None] = []
    for low, high in ends.tolist():
        box = tuple(slice(first, last + 1) for first, last in zip(low[len(lead) :], high[len(lead) :], strict=True))
        boxes.append(None if high[0] < 0 else box[::-1] if turned else box)
    return voxels, boxes, ignored


def _plain(data: np.ndarray) -> np.ndarray:
    """C-ordered integers; a float that is no whole number is no class (-2)."""
    if data.dtype.kind == "f":
        data = np.where(data == np.rint(data), data, -2).astype(np.int32)
    return np.ascontiguousarray(data)


def _overlapping(p: np.ndarray, r: np.ndarray, prediction: LabelMap, reference: LabelMap):
    ignored = None if reference.overlapping else r == IGNORE
    hidden = 0 if ignored is None else int(np.count_nonzero(ignored))
    for index, name in asked(reference):
        ours, theirs = mask_of(prediction, p, index), mask_of(reference, r, index)
        if hidden:
            ours = ours & ~ignored
        c = counts(ours, theirs)
        c = Counts(c.tp, c.fp, c.fn, c.tn - hidden)
        yield name, c, bounding_box(ours | theirs), lambda box, pair=(ours, theirs): (pair[0][box], pair[1][box])
