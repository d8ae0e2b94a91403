"""What a method answers - label maps, masks of expressions, values, displacement fields - and the files that each kind is written as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from .. import catalog
from ..core.card import Card
from ..core.case import LabelMap
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.prediction import Prediction
from ..io import header, is_dicom, write_dicom_seg, write_displacement, write_image, write_labels, write_rtstruct
from ..io.files import WRITABLE
from ..io.wsi import is_slide, write_geojson
from ..ops.polygons import annotations
from .inputs import Job
from .record import write_json

DERIVED = {"dicomseg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}  # formats that refer to the DICOM series they were drawn on
Files = dict[Path, Callable[[], object]]  # where each file goes and what writes it; the last one tells that the case is done


@dataclass(frozen=True)
class Answers:
    """How one model's answers are written. ``noun``: what its files are called; ``refusal``: why it has no probability maps, if so."""

    manifest: Manifest
    card: Card | None
    noun: ClassVar[str] = "answers"
    refusal: ClassVar[str] = ""

    def check(self, dims: int, format: str | None, probability: bool) -> None:
        """Refuses a ``--format`` or ``--probability`` that this kind has not."""
        if format is not None and format not in (allowed := self.formats(dims)):
            raise UsageError(f"{self.noun} are not written as this", where="--format", found=format, allowed=", ".join(allowed))
        if probability and self.refusal:
            raise UsageError(self.refusal, where="--probability", fix="leave --probability out")

    def formats(self, dims: int) -> tuple[str, ...]:
        return tuple(e for e in WRITABLE if dims == 2 or e not in (".png", ".tif"))

    def ending(self, job: Job, format: str | None) -> str:
        """Of the file that is named after the case. Raises UsageError for an input that the format cannot refer to."""
        return format or job.ending

    def left_out(self, answer: Prediction) -> list[str]:
        """What of an answer cannot be written, one sentence each."""
        return []

    def files(self, target: Path, answer: Prediction, job: Job, format: str | None, probability: bool) -> Files:
        """What one case's answer is written as; without ``target`` where there is nothing that the format could hold."""
        raise NotImplementedError


class LabelMaps(Answers):
    """A label file on the input's own grid, or a DICOM object that refers to the input's series; beside it the probability, images that the
    card names, and a slide's polygons."""

    noun = "label files"

    def formats(self, dims):
        return (*super().formats(dims), *(DERIVED if dims == 3 else ("dicomseg",)))  # contours need a place in space

    def ending(self, job, format):
        if format in DERIVED and not (job.files and is_dicom(job.files[0])):
            fix = "leave --format out, or give the folder of the DICOM series"
            raise UsageError(f"a {format} refers to a DICOM series, and this input is none", where=job.where, fix=fix)
        return DERIVED.get(format, format) or job.ending

    def files(self, target, answer, job, format, probability):
        values, names = self.manifest.values, self.manifest.names
        out: Files = {}
        if probability and answer.probability is not None:
            map_ = answer.probability
            out[beside(target, "probability")] = partial(write_image, beside(target, "probability"), np.asarray(map_.data), map_.geometry)
        for name in (g.removeprefix("images:") for g in (self.card.gives if self.card else ()) if g.startswith("images:")):
            if name in answer.images:
                image, path = answer.images[name], beside(target, name.replace(" ", "_"))
                out[path] = partial(write_image, path, np.asarray(image.data), image.geometry)
        if job.files and is_slide(job.files[0]):
            path = target.with_suffix(".geojson")
            out[path] = partial(self._outline, path, answer, job)
        label = answer.label
        if format not in DERIVED:
            out[target] = partial(write_labels, target, np.asarray(label.data), label.geometry, values=values, names=names)
        elif (np.asarray(label.data) > 0).any():  # without a structure there is no valid one
            write = write_dicom_seg if format == "dicomseg" else write_rtstruct
            out[target] = partial(write, target, label, str(job.files[0]), algorithm=self.card.slug if self.card else "Vesalius")
        return out

    def _outline(self, path: Path, answer: Prediction, job: Job) -> None:
        """A slide's polygons as QuPath reads them, in the slide's finest pixels."""
        found, ids = answer.label, answer.instances
        parts, names = annotations(found.data, found.geometry, found.names, None if ids is None else ids.data)
        write_geojson(path, parts, header(job.files[0], spacing=self.manifest.spacing_mm)[1], names)


class Values(Answers):
    """Texts and columns of the table, as <case>.json."""

    refusal = "this model gives no class probabilities"

    def formats(self, dims):
        return (".json",)

    def ending(self, job, format):
        return ".json"

    def files(self, target, answer, job, format, probability):
        said = {"text": dict(answer.text), "table": dict(answer.table), "notes": list(answer.notes)}
        return {target: partial(write_json, target, said)}


class Masks(Values):
    """One label file an expression, 255 where it is meant, in a folder named after the case; their scores as <case>.json."""

    refusal = "the scores of expressions are in <case>.json"

    def formats(self, dims):
        return Answers.formats(self, dims)

    def files(self, target, answer, job, format, probability):
        label, data = answer.label, np.asarray(answer.label.data)
        out: Files = {}
        for name, mask in zip(*((label.names, data) if label.overlapping else (label.names[1:], [data])), strict=True):
            path = target.with_suffix("") / f"{name}{format or job.ending}"
            out[path] = partial(write_labels, path, (np.asarray(mask) > 0).astype(np.uint8), label.geometry, values=(0, 255))
        return out | super().files(target, answer, job, format, probability)


class Fields(Answers):
    """The displacement on the fixed grid, and beside it the moving image and labels as it lays them there."""

    noun, refusal = "displacement fields", "a registration has no class probabilities"

    def formats(self, dims):
        return (".nii.gz", ".nii")

    def files(self, target, answer, job, format, probability):
        kind, out = _kind(target), {}
        warped = {k.removeprefix("warped:"): v for k, v in answer.images.items() if k.startswith("warped:")}
        for name, image in warped.items():
            data, what = np.asarray(image.data), "warped" if len(warped) == 1 else f"warped_{name}"
            holds = image.geometry.ndim == 3 or len(data) == 1  # a 2D NIfTI has one channel
            path = beside(target, what, kind if holds else ".npz")
            out[path] = partial(write_image, path, data, image.geometry)
        for name, label in answer.labels.items():
            if self._strange(label):
                continue
            path = beside(target, "labels" if len(answer.labels) == 1 else f"labels_{name}")
            values, names = self.manifest.values, self.manifest.names
            out[path] = partial(write_labels, path, np.asarray(label.data), label.geometry, values=values, names=names)
        field = answer.displacement
        return out | {target: partial(write_displacement, target, np.asarray(field.data), field.geometry)}

    def left_out(self, answer):
        strange = [name for name, label in answer.labels.items() if self._strange(label)]
        return [f"the moving label map '{name}' is no map of the model's classes and was not written" for name in strange]

    def _strange(self, label: LabelMap) -> bool:
        return label.overlapping or np.asarray(label.data).min() < 0 or label.names != self.manifest.names


def answers_of(method: str, manifest: Manifest) -> Answers:
    """How the answers of a method, trained on such data, are written."""
    return kind_of(method, manifest.dims)(manifest, catalog.cards().get(method))


def kind_of(method: str, dims: int) -> type[Answers]:
    """The kind of answer that a method's card tells; a method without a card answers images with label maps."""
    card = catalog.cards().get(method)
    if card is None:
        return LabelMaps if dims else Values
    if "displacement" in card.gives:
        return Fields
    if "queries" in card.takes:
        return Masks
    return LabelMaps if {"labels", "probability"} & set(card.gives) else Values


def beside(target: Path, what: str, kind: str = ".nii.gz") -> Path:
    """Where what goes with a label file or field is written."""
    return target.with_name(f"{target.name.removesuffix(_kind(target))}_{what}{kind}")


def _kind(target: Path) -> str:
    return next(e for e in (*WRITABLE, *DERIVED.values()) if target.name.endswith(e))
