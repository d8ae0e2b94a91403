"""Writing cases as a dataset folder that ``open_dataset`` reads back: same ids, patients, splits, labels, voxels and grids, as far as the
layout can say.

What a layout cannot say: nnU-Net and Decathlon have no patients (beyond what the case ids give away), tables, texts, points, boxes or ROIs,
one label a case, and class indices as file values; nnU-Net keeps a 'val' split in splits_final.json; 2D nnU-Net files have no spacing;
Decathlon's test images have no labels and only volumes exist. A 4D dataset is written as 3D: frames are channels, each frame's label a
label of its own. In cases.csv, text that a spreadsheet would run begins with a '.
"""

from __future__ import annotations

import csv
import io as text_io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import io
from ..core.case import IGNORE, Case, LabelMap
from ..core.errors import DataError, UsageError, nearest
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from ..core.spreadsheet import guarded
from .layouts import open_dataset
from .marks import boxes_json, points_json
from .pairs import COLUMNS as PAIR_COLUMNS
from .pairs import FILE as PAIRS
from .rows import SPLITS
from .stems import usable_id


def write_dataset(folder: str | Path, manifest: Manifest, cases: Iterable[Case], *, kind: str = "vesalius") -> Manifest:
    """Write ``cases`` (native grids, one at a time) into an empty or new folder; ``manifest`` gives their splits, labels and facts.

    ``kind``: vesalius | nnunet | msd. The describing file is written last, so a broken-off export is no dataset. Returns the manifest of
    what was written. Raises UsageError (unknown kind), DataError (folder in use, a case the layout cannot hold) and ResourceError (disk).
    """
    writers: dict[str, Callable] = {"vesalius": _vesalius, "nnunet": _nnunet, "msd": _msd}
    if kind not in writers:
        raise UsageError(f"unknown layout '{kind}' to write", allowed=", ".join(writers), fix=nearest(kind, writers))
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("the folder is not empty", where=folder, fix="name a new one: exports never write over data")
    writers[kind](folder, manifest, _known(manifest, cases))
    return open_dataset(folder, layout=kind)


def _known(manifest: Manifest, cases: Iterable[Case]) -> Iterable[tuple[CaseRef, Case]]:
    for case in cases:
        if not usable_id(case.id):
            raise DataError("the case id could not name a file", where=f"case {case.id}")
        yield manifest[case.id], case


# ------------------------------------------------------------------------------------------------------------------- Vesalius' own layout
def _vesalius(folder: Path, manifest: Manifest, cases: Iterable[tuple[CaseRef, Case]]) -> None:
    rows: list[dict[str, Any]] = []
    spacing: tuple[float, ...] | None = None
    ignore = manifest.ignore
    for ref, case in cases:
        row: dict[str, Any] = {"case": case.id, "patient": case.patient, "split": ref.split, "exam": case.exam, "source": case.source}
        for name, image in case.images.items():
            data = np.asarray(image.data)
            if image.geometry.ndim == 2 and spacing is None and _bare(image.geometry, image.geometry.spacing):
                spacing = image.geometry.spacing
            path = f"images/{_safe(name)}/{case.id}{_ending(data, image.geometry, spacing)}"
            io.write_image(folder / path, data, image.geometry)
            row[f"image:{name}"] = path
        for name, label in case.labels.items():
            ignore = _ignore_value(manifest, label) if ignore is None else ignore
            row[f"label:{name}"] = _write_map(folder, f"labels/{_safe(name)}/{case.id}", label, manifest, ignore, spacing)
        for name, roi in case.rois.items():
            row[f"roi:{name}"] = _write_map(folder, f"rois/{_safe(name)}/{case.id}", roi, None, None, spacing)
        for column, group, record in (("points", case.points, points_json), ("boxes", case.boxes, boxes_json)):
            for name, marks in group.items():
                row[f"{column}:{name}"] = path = f"{column}/{_safe(name)}/{case.id}.json"
                io.atomic_write_json(folder / path, record(marks))
        row |= {f"text:{name}": text for name, text in case.text.items()}
        rows.append(row | {k: v for k, v in case.table.items() if v is not None})
    if not rows:
        raise DataError("there is no case to write", where=folder)
    labels = [(name, value) for name, value in manifest.labels.items()]
    labels = [(n, "1..") if manifest.instances and k else (n, v) for k, (n, v) in enumerate(labels)]
    labels += [("ignore", ignore)] if ignore is not None else []
    _write_csv(folder / "cases.csv", rows)
    written = {row["case"] for row in rows}
    if kept := [pair for pair in manifest.pairs or () if written.issuperset(pair)]:
        _write_csv(folder / PAIRS, [dict(zip(PAIR_COLUMNS, pair, strict=True)) for pair in kept])
    io.atomic_write_text(
        folder / "dataset.toml", _toml(manifest, labels, spacing or (manifest.spacing_mm if manifest.dims == 2 else None), rows)
    )


def _bare(geometry: Geometry, spacing: tuple[float, ...] | None) -> bool:
    """Whether a file without geometry and a spacing from dataset.toml say all there is."""
    return spacing is not None and geometry == Geometry.of(geometry.shape, spacing)


def _ending(data: np.ndarray, geometry: Geometry, spacing: tuple[float, ...] | None) -> str:
    """.nii.gz for volumes; .png for pictures that PNG holds exactly, on the dataset's spacing; else .npz, which holds any grid."""
    if geometry.ndim == 3:
        return ".nii.gz"
    png = data.dtype == np.uint8 and len(data) in (1, 3) or data.dtype == np.uint16 and len(data) == 1
    return ".png" if png and _bare(geometry, spacing) else ".npz"


def _write_map(
    folder: Path, path: str, label: LabelMap, manifest: Manifest | None, ignore: int | None, spacing: tuple[float, ...] | None
) -> str:
    """Write a label map (``manifest`` None: an ROI mask) and return its path with the ending that fits."""
    data, values, names = _file_classes(label, manifest, ignore, path)
    small = np.zeros((1, *data.shape), np.uint16 if max(values or [int(data.max())]) < 65536 and min(values or [0]) >= 0 else np.int32)
    path += _ending(small, label.geometry, spacing)
    io.write_labels(folder / path, data, label.geometry, values=values, names=names)
    return path


def _file_classes(
    label: LabelMap, manifest: Manifest | None, ignore: int | None, where: str
) -> tuple[np.ndarray, list[int] | None, list[str] | None]:
    """Class indices with ``IGNORE`` as one class more, and the file's values and names (None: as they are)."""
    if label.overlapping:
        raise DataError("overlapping structures cannot be written as one label map", where=where, fix="write them as separate labels")
    data = np.asarray(label.data)
    if manifest is None:
        return (data > 0).astype(np.uint8), None, None
    if label.instances:
        return (data, None, None) if ignore is None else (np.where(data == IGNORE, ignore, data), None, None)
    if tuple(label.names) != manifest.names:
        raise DataError(
            "the label's classes are not the dataset's", where=where, found=", ".join(label.names), allowed=", ".join(manifest.names)
        )
    values, names = list(manifest.values), list(manifest.names)
    if ignore is None:
        return data, values, names
    return np.where(data == IGNORE, len(values), data), [*values, ignore], [*names, "ignore"]


def _ignore_value(manifest: Manifest, label: LabelMap) -> int | None:
    """A value for voxels that nobody spoke for, where the dataset names none but the label has such voxels."""
    if label.overlapping or label.instances or not (np.asarray(label.data) == IGNORE).any():
        return None
    return max(manifest.values) + 1


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(c for row in rows for c in row))
    columns = [c for c in columns if c in ("case", "patient", "split") or any(row.get(c) not in (None, "") for row in rows)]
    order = ("case", "patient", "split", "exam", "source")
    columns.sort(key=lambda c: order.index(c) if c in order else len(order) + (":" not in c))
    out = text_io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: guarded(v) for k, v in row.items()} for row in rows)
    io.atomic_write_text(path, out.getvalue())


def _toml(manifest: Manifest, labels: list[tuple[str, Any]], spacing: tuple[float, ...] | None, rows: list[dict[str, Any]]) -> str:
    quoted = lambda text: json.dumps(str(text), ensure_ascii=False)
    lines = [f"{key} = {quoted(getattr(manifest, key))}" for key in ("name", "modality", "licence", "source", "note")]
    lines.insert(2, f"dims = {min(manifest.dims, 3)}")
    if spacing is not None:
        lines.append(f"spacing_mm = {json.dumps(list(spacing))}")
    if manifest.labels:
        lines += ["", "[labels]"] + [f"{quoted(n)} = {quoted(v) if isinstance(v, str) else v}" for n, v in labels]
    kept = {c: t for c, t in manifest.targets.items() if any(c in row for row in rows)}
    if kept:
        lines += ["", "[targets]"]
        for column, target in kept.items():
            levels = f", levels = {json.dumps([str(v) for v in target['levels']], ensure_ascii=False)}" if target.get("levels") else ""
            lines.append(f"{quoted(column)} = {{kind = {quoted(target['kind'])}{levels}}}")
    if manifest.mirror:
        lines += ["", "[mirror]"] + [f"{quoted(a)} = {quoted(b)}" for a, b in manifest.mirror]
    return "\n".join(lines) + "\n"


def _safe(name: str) -> str:
    """A folder name for an image or label name; distinct names stay distinct."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda hit: f"%{ord(hit[0]):x}", name)


# --------------------------------------------------------------------------------------------------------------- nnU-Net and Decathlon
def _nnunet(folder: Path, manifest: Manifest, cases: Iterable[tuple[CaseRef, Case]]) -> None:
    of, names, ending, ignored = {s: [] for s in ("", *SPLITS)}, None, None, False
    for ref, case in cases:
        stacked, grid, here = _channels(case)
        names, ending = names or here, ending or (".nii.gz" if grid.ndim == 3 else ".tif")
        if here != names or ending != (".nii.gz" if grid.ndim == 3 else ".tif"):
            raise DataError(
                "nnU-Net wants the same channels and dimensions in every case",
                where=f"case {case.id}",
                found=", ".join(here),
                allowed=", ".join(names),
            )
        part = "Ts" if ref.split == "test" else "Tr"
        for k, channel in enumerate(stacked):
            io.write_image(folder / f"images{part}/{case.id}_{k:04d}{ending}", channel[None], grid)
        label = _reference(case, manifest)
        if label is not None:
            data, has = _indices(label, manifest)
            ignored |= has
            io.write_labels(folder / f"labels{part}/{case.id}{ending}", data, label.geometry)
        of[ref.split].append(case.id)
    if names is None:
        raise DataError("there is no case to write", where=folder)
    index = {v: k for k, v in enumerate(manifest.values)}
    labels: dict[str, Any] = {n: k for k, n in enumerate(manifest.names)}
    if manifest.regions:
        labels = {manifest.names[0]: 0} | {n: [index[v] for v in values] for n, values in manifest.regions.items()}
    record: dict[str, Any] = {"name": manifest.name, "licence": manifest.licence, "reference": manifest.source}
    record |= {
        "channel_names": {str(k): n for k, n in enumerate(names)},
        "labels": labels,
        "numTraining": sum(map(len, of.values())) - len(of["test"]),
    }
    record |= {"file_ending": ending}
    if manifest.ignore is not None or ignored:
        labels["ignore"] = manifest.classes
    if manifest.regions:
        record["regions_class_order"] = list(range(1, len(manifest.regions) + 1))
    if of["val"]:
        io.atomic_write_json(folder / "splits_final.json", [{"train": of[""] + of["train"], "val": of["val"]}])
    io.atomic_write_json(folder / "dataset.json", record)


def _msd(folder: Path, manifest: Manifest, cases: Iterable[tuple[CaseRef, Case]]) -> None:
    training, test, names, ignored = [], [], None, False
    for ref, case in cases:
        stacked, grid, here = _channels(case)
        names = names or here
        if here != names or grid.ndim != 3:
            raise DataError(
                "the Decathlon layout wants volumes with the same channels in every case",
                where=f"case {case.id}",
                found=f"{grid.ndim}D, {', '.join(here)}",
            )
        part = "Ts" if ref.split == "test" else "Tr"
        io.write_image(folder / f"images{part}/{case.id}.nii.gz", stacked, grid)
        if part == "Ts":
            test.append(f"./imagesTs/{case.id}.nii.gz")
            continue
        label = _reference(case, manifest)
        if label is None:
            raise DataError("the Decathlon layout wants a label for every training case", where=f"case {case.id}")
        data, has = _indices(label, manifest)
        ignored |= has
        io.write_labels(folder / f"labelsTr/{case.id}.nii.gz", data, label.geometry)
        training.append({"image": f"./imagesTr/{case.id}.nii.gz", "label": f"./labelsTr/{case.id}.nii.gz"})
    if names is None:
        raise DataError("there is no case to write", where=folder)
    classes = [*manifest.names, *(["ignore"] if manifest.ignore is not None or ignored else [])]
    record = {
        "name": manifest.name,
        "licence": manifest.licence,
        "reference": manifest.source,
        "tensorImageSize": "4D" if len(names) > 1 else "3D",
        "modality": {str(k): n for k, n in enumerate(names)},
        "labels": {str(k): n for k, n in enumerate(classes)},
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
    }
    io.atomic_write_json(folder / "dataset.json", record)


def _channels(case: Case) -> tuple[np.ndarray, Geometry, list[str]]:
    """All images as (C, *spatial), their grid, and a name a channel."""
    if not case.images:
        raise DataError("this layout wants an image", where=f"case {case.id}")
    if any(image.geometry != case.geometry for image in case.images.values()):
        raise DataError("this layout wants all images of a case on one grid", where=f"case {case.id}", found=", ".join(case.images))
    parts = [np.asarray(image.data) for image in case.images.values()]
    names = [n if len(p) == 1 else f"{n}_{c}" for n, p in zip(case.images, parts, strict=True) for c in range(len(p))]
    return np.concatenate(parts), case.geometry, names


def _reference(case: Case, manifest: Manifest) -> LabelMap | None:
    """The label called 'reference', or the only one."""
    if not case.labels:
        return None
    if "reference" not in case.labels and len(case.labels) > 1:
        raise DataError(
            "this layout holds one label a case",
            where=f"case {case.id}",
            found=", ".join(case.labels),
            fix="keep one, or call it 'reference'",
        )
    label = case.labels.get("reference") or next(iter(case.labels.values()))
    if label.instances:
        raise DataError("this layout has no object ids", where=f"case {case.id}")
    return label


def _indices(label: LabelMap, manifest: Manifest) -> tuple[np.ndarray, bool]:
    """Class indices as this layout's file values, ``IGNORE`` as the number after the last; whether there are such voxels."""
    plain = replace(manifest, labels={n: k for k, n in enumerate(manifest.names)})
    data, _, _ = _file_classes(label, plain, manifest.classes, manifest.name)
    return data, bool((data == manifest.classes).any())
