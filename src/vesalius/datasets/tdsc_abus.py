"""TDSC-ABUS in its native layout: automated 3D breast ultrasound with masks, boxes and malignancy.

``Train``, ``Validation`` and ``Test`` (or one of them) hold ``DATA/DATA_000.nrrd``, ``MASK/MASK_000.nrrd``, ``labels.csv`` (case_id, label
M or B) and ``bbx_labels.csv`` (id, centre and full extent, in voxels). Two things the files do not say:

* **Spacing.** The headers hold the identity. The published 0.200 x 0.073 x 0.475674 mm belong to the sides in the order in which they are
  published (843 x 546 x 270 to 865 x 682 x 354), which are the headers' own order: the field of view is then 169-173 mm across, 40-50 mm
  deep and 128-168 mm along the sweep, what the scanner covers (15.4 x 17.0 cm, up to 5 cm deep). No other order of the spacings gives a
  depth that the scanner has. Without a stated ``spacing`` the first volume is held against that.
* **Axes of the boxes.** The table's x, y, z are the array axes last to first (``BOX_AXES``): ``box_axes_of`` finds the order in which a
  mask's own box fits. Some projects that used the data read the first side as depth; the option is there to disagree.

Identity directions are kept: across is left-right, deep is anterior-posterior, the sweep runs upwards. Source: Luo et al.,
https://arxiv.org/abs/2501.15588.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from .. import io
from ..core.case import Boxes, Case
from ..core.errors import DataError, GeometryError, UsageError
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from ..ops.components import bounding_box
from .cases import read_case
from .marks import read_boxes
from .rows import Rows, read_rows

SPACING = (0.200, 0.073, 0.475674)  # mm along the header's axes: across, deep, along the sweep
BOX_AXES = "zyx"  # the table's axis along each array axis
FIELD = ((140.0, 200.0), (30.0, 55.0), (100.0, 190.0))  # mm: what the scanner can cover along each axis, with room
SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True, repr=False)
class Injected:
    """CaseRef -> Case with the true spacing instead of the header's identity; boxes from voxels to mm with it."""

    files: Manifest
    spacing: tuple[float, ...]

    def __repr__(self) -> str:  # the same in every process: caches go by it
        return f"tdsc-abus at {self.spacing} mm"

    def __call__(self, ref: CaseRef) -> Case:
        case = read_case(replace(self.files, cases=(replace(ref, boxes={}),)), ref.id)
        grid = with_spacing(case.geometry, self.spacing)
        return replace(
            case,
            images={k: replace(v, geometry=grid) for k, v in case.images.items()},
            labels={k: replace(v, geometry=grid) for k, v in case.labels.items()},
            boxes={k: read_boxes(cell, self.files.root, 3, lambda: grid) for k, cell in ref.boxes.items()},
        )


def with_spacing(grid: Geometry, spacing: Sequence[float]) -> Geometry:
    """The grid with the same first voxel and directions, its voxels ``spacing`` mm apart along the index axes."""
    return Geometry.of(grid.shape, spacing, grid.origin, grid.direction)


def missing_tdsc_abus(path: Path) -> str:
    """What a path lacks to be TDSC-ABUS data; '' when nothing."""
    return "" if path.is_dir() and _parts(path) else "no DATA/, labels.csv and bbx_labels.csv"


def open_tdsc_abus(path: Path, *, spacing: Sequence[float] | None = None, box_axes: str = BOX_AXES) -> Manifest:
    """The manifest: image 'ABUS', label 'reference', boxes 'lesion', target 'malignant' (1 malignant, 0 benign).

    ``spacing``: mm along the header's axes (default: the published ones, held against the scanner's field of view); ``box_axes``: the
    table's axis along each array axis, a permutation of 'xyz'. Raises DataError for tables that do not fit the files, GeometryError for a
    field of view that no such scanner has, UsageError for other axes.
    """
    path = Path(path)
    if sorted(box_axes) != ["x", "y", "z"]:
        raise UsageError("the axes of the boxes are an order of x, y and z", where="box_axes", found=box_axes, allowed="for example zyx")
    refs = tuple(ref for split, folder in _parts(path) for ref in _refs(split, folder, path, box_axes))
    if not refs:
        raise DataError("this is no TDSC-ABUS data", where=path, found=missing_tdsc_abus(path) or "no case in labels.csv")
    if spacing is None:
        check_field_of_view(io.header(path / refs[0].images["ABUS"])[1].shape, SPACING, str(path / refs[0].images["ABUS"]))
    spacing = tuple(float(s) for s in (SPACING if spacing is None else spacing))
    files = Manifest(
        name="tdsc-abus",
        root=path,
        dims=3,
        channels=("ABUS",),
        labels={"background": 0, "lesion": 1},
        cases=refs,
        modality="US",
        licence="by agreement with the challenge's organisers",
        source="TDSC-ABUS 2023, https://tdsc-abus2023.grand-challenge.org",
        note=f"headers without spacing; read at {' x '.join(f'{s:g}' for s in spacing)} mm",
        targets={"malignant": {"kind": "binary", "levels": ["0", "1"]}},
        layout="tdsc-abus",
    )
    return replace(files, built_in=Injected(files, spacing))


def check_field_of_view(shape: Sequence[int], spacing: Sequence[float], where: str = "") -> None:
    """GeometryError unless the volume is as wide, deep and long (mm) as the scanner's can be; says which order would be."""
    mm = [n * s for n, s in zip(shape, spacing, strict=True)]
    if _covers(mm):
        return
    fitting = [order for order in permutations(spacing) if _covers([n * s for n, s in zip(shape, order, strict=True)])]
    said = " x ".join(f"{m:.0f}" for m in mm)
    fix = f"open it with spacing={fitting[0]}" if fitting else "open it with the spacing along each axis, in mm"
    allowed = "across x deep x sweep of " + " x ".join(f"{low:g}-{high:g}" for low, high in FIELD) + " mm"
    raise GeometryError("no breast scanner has this field of view", where=where or None, found=f"{said} mm", allowed=allowed, fix=fix)


def _covers(mm: Sequence[float]) -> bool:
    """Whether the extents are those of a scan, in whatever order the file has its axes."""
    return any(all(low <= m <= high for m, (low, high) in zip(mm, order, strict=True)) for order in permutations(FIELD))


def box_axes_of(manifest: Manifest, cases: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """(axes, largest distance in voxels) of every order of the box table's axes against the masks' own boxes, the best first.

    Distances within one voxel are the same box (the table may count its last voxel in or out). Reads the masks of ``cases`` (default: the
    first three). Raises DataError when none of them has a mask and a box.
    """
    path, worst = manifest.root, dict.fromkeys(("".join(p) for p in permutations("xyz")), 0.0)
    chosen = [manifest[c] for c in (cases or [c.id for c in manifest.cases if c.labels and c.boxes][:3])]
    tables = {folder: read_rows(folder / "bbx_labels.csv") for _, folder in _parts(path)}
    for ref in chosen:
        mask = np.asarray(read_case(manifest, ref.id).labels["reference"].data) > 0
        own = np.array([[s.start, s.stop - 1] for s in bounding_box(mask)]).T
        table = next(t for folder, t in tables.items() if (path / ref.images["ABUS"]).is_relative_to(folder))
        centre, size = _box_rows(table)[int(ref.id)][0]
        for axes in worst:
            order = ["xyz".index(a) for a in axes]
            low, high = (centre - size / 2)[order], (centre + size / 2)[order]
            worst[axes] = max(worst[axes], float(np.abs(np.stack([low, high]) - own).max()))
    if not chosen:
        raise DataError("no case has a mask and a box to compare", where=path)
    return sorted(worst.items(), key=lambda item: item[1])


# ----------------------------------------------------------------------------------------------------------------------------- the tables
def _parts(path: Path) -> list[tuple[str, Path]]:
    """(split, folder) of the sets that are there."""
    whole = lambda p: (p / "DATA").is_dir() and (p / "labels.csv").is_file() and (p / "bbx_labels.csv").is_file()
    if whole(path):
        return [(SPLITS.get(path.name.lower(), ""), path)]
    return [(SPLITS[p.name.lower()], p) for p in sorted(path.iterdir()) if p.is_dir() and p.name.lower() in SPLITS and whole(p)]


def _refs(split: str, folder: Path, root: Path, box_axes: str) -> Iterator[CaseRef]:
    labels, boxes = read_rows(folder / "labels.csv"), _box_rows(read_rows(folder / "bbx_labels.csv"))
    for k, row in enumerate(labels.rows):
        row = {name.lower(): value for name, value in row.items()}
        if "case_id" not in row or row.get("label", "").upper() not in ("M", "B"):
            what = "a row has no case_id, or a label that is not M or B"
            raise DataError(what, where=labels.at(k), found=row.get("label"), allowed="M, B")
        number = _number(row["case_id"], labels, k)
        image, mask = (folder / kind / f"{kind}_{number:03d}.nrrd" for kind in ("DATA", "MASK"))
        if not image.is_file():
            raise DataError("the case has no volume", where=labels.at(k), found=image)
        yield CaseRef(
            f"{number:03d}",
            f"{number:03d}",
            split,
            images={"ABUS": image.relative_to(root).as_posix()},
            labels={"reference": mask.relative_to(root).as_posix()} if mask.is_file() else {},
            boxes={"lesion": _cell(boxes[number], box_axes)} if number in boxes else {},
            table={"malignant": int(row["label"].upper() == "M")},
        )


def _box_rows(table: Rows) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Case number -> its boxes as (centre, extent) in voxels, in the table's x, y, z."""
    out: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for k, row in enumerate(table.rows):
        row = {name.lower(): value for name, value in row.items()}
        if not {"id", *_COLUMNS[0], *_COLUMNS[1]} <= set(row):
            raise DataError("the table of boxes lacks columns", where=table.at(k), found=", ".join(row), allowed="id, c_x .. len_z")
        centre, size = (np.array([_number(row[c], table, k, float) for c in columns]) for columns in _COLUMNS)
        out.setdefault(_number(row["id"], table, k), []).append((centre, size))
    return out


_COLUMNS = ("c_x", "c_y", "c_z"), ("len_x", "len_y", "len_z")


def _number(cell: str, table: Rows, row: int, kind: type = int) -> Any:
    try:
        return kind(float(cell))
    except ValueError as error:
        raise DataError("a number is expected", where=table.at(row), found=repr(cell)) from error


def _cell(boxes: Sequence[tuple[np.ndarray, np.ndarray]], axes: str) -> str:
    """Boxes as a ``boxes:`` cell in voxels of the array."""
    order = ["xyz".index(a) for a in axes]
    low, high = ([(c + side * s / 2)[order].tolist() for c, s in boxes] for side in (-1, 1))
    return json.dumps({"low": low, "high": high, "labels": ["lesion"] * len(boxes), "space": "index"})


def boxes_table(boxes: dict[str, Boxes], grids: dict[str, Geometry], *, box_axes: str = BOX_AXES) -> list[dict[str, float | str]]:
    """Predicted boxes (world mm) by case as rows of the challenge's submission: public_id, coordX.. (centre), x_length.., probability, in
    voxels of the case's grid. Boxes of rotated grids become the box around their corners."""
    order = ["xyz".index(a) for a in box_axes]
    rows: list[dict[str, float | str]] = []
    for case, found in boxes.items():
        scores = np.ones(len(found.low)) if found.scores is None else found.scores
        for low, high, score in zip(found.low, found.high, scores, strict=True):
            start, stop = np.empty(3), np.empty(3)
            start[order], stop[order] = grids[case].index_bounds(low, high)
            centre, size = (start + stop) / 2, stop - start
            row: dict[str, float | str] = {"public_id": case}
            row |= {f"coord{a}": float(c) for a, c in zip("XYZ", centre, strict=True)}
            row |= {f"{a}_length": float(s) for a, s in zip("xyz", size, strict=True)}
            rows.append({**row, "probability": float(score)})
    return rows
