"""Kvasir-SEG in its native layout: ``images/*.jpg``, ``masks/*.jpg`` of the same names and ``kavsir_bboxes.json`` (spelt so there).

Masks are JPEG, so their edges are grey: what is brighter than 127 is polyp. The JSON holds ``{name: {height, width, bbox: [{label, xmin,
ymin, xmax, ymax}]}}``; a box is taken to include its last pixel. Lists ``train.txt``, ``val.txt`` and ``test.txt`` of base names beside the
folders become the splits, as for the customary 880 and 120 frames. Some frames show the endoscope's position in a green inset, lower left:
``blank_inset`` blackens it. Patients are not recorded: every frame stands for one.

Jha et al., Kvasir-SEG: a segmented polyp dataset, MMM 2020, https://arxiv.org/abs/1911.07069, data at https://datasets.simula.no/kvasir-seg.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import io
from ..core.case import Case, LabelMap
from ..core.errors import DataError, GeometryError
from ..core.manifest import CaseRef, Manifest
from ..ops.components import bounding_box, components
from .cases import read_case
from .stems import images_in, stem

BOXES = ("kavsir_bboxes.json", "kvasir_bboxes.json")
SPLITS = ("train", "val", "test")
GREY = 127  # of a JPEG mask: above is polyp
LABELS = {"background": 0, "polyp": 1}
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_INSET = (0.02, 0.2, 0.7)  # share of the frame at least and at most, share of its bounding box that is green


@dataclass(frozen=True, repr=False)
class Frames:
    """CaseRef -> Case: the frame, its mask from a JPEG, its boxes."""

    files: Manifest
    blank_inset: bool

    def __repr__(self) -> str:  # the same in every process: caches go by it
        return f"kvasir-seg{' without insets' if self.blank_inset else ''}"

    def __call__(self, ref: CaseRef) -> Case:
        case = read_case(replace(self.files, cases=(replace(ref, labels={}),)), ref.id)
        if self.blank_inset:
            image = case.images["RGB"]
            case = replace(case, images={"RGB": replace(image, source=without_inset(np.asarray(image.data)))})
        address = ref.labels["reference"]
        mask = binary(np.asarray(io.read_image(self.files.root / address).data))
        if mask.shape != case.geometry.shape:
            raise GeometryError(
                "the mask is not as large as its frame",
                where=self.files.root / address,
                found=" x ".join(map(str, mask.shape)),
                allowed=" x ".join(map(str, case.geometry.shape)),
            )
        return replace(case, labels={"reference": LabelMap(mask.astype(np.uint8), case.geometry, tuple(LABELS))})


def missing_kvasir_seg(path: Path) -> str:
    """What a path lacks to be Kvasir-SEG; '' when nothing."""
    lacks = [f"{name}/" for name in ("images", "masks") if not (path / name).is_dir()]
    return ", ".join(f"no {name}" for name in (*lacks, *([] if _boxes_file(path) else BOXES[:1])))


def open_kvasir_seg(path: Path, *, blank_inset: bool = False) -> Manifest:
    """The manifest: image 'RGB', label 'reference', boxes 'polyp'. No pixel is read. Raises DataError for frames without a mask, masks
    without a frame, boxes of frames that are not there or are no boxes, and lists that name a frame twice or one that is not there."""
    path = Path(path)
    if missing_kvasir_seg(path):
        raise DataError("this is no Kvasir-SEG data", where=path, found=missing_kvasir_seg(path))
    frames, masks = ({stem(f): f for f in images_in(path / name)} for name in ("images", "masks"))
    file = _boxes_file(path)
    boxes, splits = _boxes(file), _splits(path)
    for found, allowed, what in (
        (frames, masks, "frames without a mask"),
        (masks, frames, "masks without a frame"),
        (boxes, frames, f"boxes of frames that are not there ({file.name})"),
        (splits, frames, "listed frames that are not there"),
    ):
        lost = sorted(set(found) - set(allowed))
        if lost:
            raise DataError(what, where=path, found=", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else ""))
    refs = tuple(
        CaseRef(
            name,
            name,
            splits.get(name, ""),
            images={"RGB": frames[name].relative_to(path).as_posix()},
            labels={"reference": masks[name].relative_to(path).as_posix()},
            boxes={"polyp": boxes[name]} if name in boxes else {},
        )
        for name in sorted(frames)
    )
    files = Manifest(
        name="kvasir-seg",
        root=path,
        dims=2,
        channels=("RGB",),
        labels=LABELS,
        cases=refs,
        modality="endoscopy",
        licence="free for research and education, with citation",
        source="Kvasir-SEG, https://datasets.simula.no/kvasir-seg",
        note="patients are not recorded: every frame counts as one",
        layout="kvasir-seg",
    )
    return replace(files, built_in=Frames(files, blank_inset))


# ----------------------------------------------------------------------------------------------------------------------------- the pixels
def binary(picture: np.ndarray) -> np.ndarray:
    """bool (rows, columns): where a JPEG mask (C, rows, columns) of 0..255 is polyp."""
    return picture.astype(np.float32).mean(0) > GREY


def without_inset(rgb: np.ndarray) -> np.ndarray:
    """The frame (3, rows, columns) with its green inset black; the frame itself where there is none. [inferred] A green rectangle in the
    lower left quarter."""
    r, g, b = rgb.astype(np.int16)
    top, right = rgb.shape[1] // 2, rgb.shape[2] // 2
    labels, sizes = components(((g > r + 15) & (g > b))[top:, :right])
    if not len(sizes):
        return rgb
    mask = labels == int(np.argmax(sizes)) + 1
    rows, columns = bounding_box(mask)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    least, most, filled = _INSET
    if not least * r.size <= area <= most * r.size or mask.sum() < filled * area:
        return rgb
    out = rgb.copy()
    out[:, top + rows.start : top + rows.stop, columns] = 0
    return out


def boxes_of(mask: np.ndarray) -> list[dict[str, Any]]:
    """The published JSON's 'bbox' of a bool mask (rows, columns): a tight box of pixels, both ends included, for each component."""
    labels, sizes = components(mask)
    spans = (bounding_box(labels == k + 1) for k in range(len(sizes)))
    return [{"label": "polyp", **dict(zip(_EDGES, (x.start, y.start, x.stop - 1, y.stop - 1), strict=True))} for y, x in spans]


def boxes_json(masks: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """The published JSON of masks by name, to be written beside ``images`` and ``masks``."""
    return {name: {"height": m.shape[0], "width": m.shape[1], "bbox": boxes_of(m)} for name, m in masks.items()}


# ------------------------------------------------------------------------------------------------------------------------------ the files
def _boxes_file(path: Path) -> Path | None:
    return next((path / name for name in BOXES if (path / name).is_file()), None)


def _boxes(file: Path) -> dict[str, str]:
    """Frame -> its ``boxes:`` cell in pixels. Raises DataError."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("this is no JSON", where=file, found=str(error)) from error
    shape = "{name: {height, width, bbox: [{label, xmin, ymin, xmax, ymax}]}}"
    if not isinstance(record, dict):
        raise DataError("boxes stand under the names of their frames", where=file, found=type(record).__name__, allowed=shape)
    return {name: _cell(entry, f"{file} '{name}'", shape) for name, entry in record.items()}


def _cell(entry: Any, where: str, shape: str) -> str:
    try:
        height, width = float(entry["height"]), float(entry["width"])
        edges = np.array([[float(box[e]) for e in _EDGES] for box in entry["bbox"]]).reshape(-1, 4)
        labels = [str(box["label"]) for box in entry["bbox"]]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError("this is no entry of boxes", where=where, found=f"{type(error).__name__} {error}", allowed=shape) from error
    low, high = edges[:, 1::-1], edges[:, 3:1:-1]  # (y, x), as the array's axes
    if (low < 0).any() or (high < low).any() or (high > (height, width)).any():
        raise DataError(
            "a box does not lie in its frame", where=where, found=edges.tolist(), allowed=f"within {width:g} x {height:g} pixels"
        )
    return json.dumps({"low": (low - 0.5).tolist(), "high": (high + 0.5).tolist(), "labels": labels, "space": "index"})


def _splits(path: Path) -> dict[str, str]:
    """Frame -> split, by the lists that are there."""
    out: dict[str, str] = {}
    for split in SPLITS:
        file = path / f"{split}.txt"
        names: Sequence[str] = file.read_text(encoding="utf-8").split() if file.is_file() else ()
        for name in (n.removesuffix(".jpg") for n in names):
            if name in out:
                raise DataError("a frame is listed twice", where=file, found=name, allowed="one split a frame")
            out[name] = split
    return out
