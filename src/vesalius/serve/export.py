"""Saved masks as files of other programs, and as a dataset folder that ``vesalius train`` takes at once.

DICOM SEG and RTSTRUCT refer to the series that the masks were drawn on, so they are of cases that were read from one.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import io
from ..core.case import Case
from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from ..datasets import write_dataset
from ..ops.components import bounding_box, components
from .records import Entry
from .store import Project

FORMATS = ("nifti", "dicomseg", "rtstruct", "png", "coco", "dataset")
Step = Callable[[float, str], None]


def export(project: Project, format: str, cases: Sequence[Entry], folder: Path, step: Step) -> Path:
    """The newest versions of ``cases`` written into ``folder`` (new) and packed beside it; the archive. Raises UsageError (format),
    DataError (nothing to write, a case that the format cannot hold) and ResourceError (disk)."""
    check_format(format)
    saved = [e for e in cases if e.head is not None]
    if not saved:
        raise DataError("none of these cases has a saved mask", fix="save masks first, or choose other cases")
    folder.mkdir(parents=True)
    try:
        if format == "dataset":
            as_dataset(project, saved, folder / "dataset", step)
        elif format in ("dicomseg", "rtstruct"):
            _dicom(project, saved, folder, step, format)
        else:
            writers: dict[str, Callable] = {"nifti": _nifti, "png": _png, "coco": _coco}
            writers[format](project, saved, folder, step)
            names = {x.name: x.value for x in project.labels}
            io.atomic_write_json(folder / "labels.json", {"background": 0, **names})
        return _packed(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise UsageError("no such format", found=format[:20], allowed=", ".join(FORMATS))


def file_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Case id -> a name that is safe in every file system and unique whatever the letters' case."""
    out, taken = {}, set()
    for entry in entries:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", entry.name).strip(". ")[:80] or entry.id
        name = (
            name if name.lower() not in taken and not re.match(r"(?i)(con|nul|aux|prn|com\d|lpt\d)(\.|$)", name) else f"{name}_{entry.id}"
        )
        taken.add(name.lower())
        out[entry.id] = name
    return out


def as_dataset(project: Project, entries: Sequence[Entry], folder: Path, step: Step) -> Manifest:
    """Images and masks of the cases as a dataset folder; patients and splits are the original dataset's."""
    names = file_names(entries)
    known = {ref.id: ref for ref in project.manifest.cases}
    rows = []
    for e in entries:
        ref = known.get(e.name, CaseRef(e.name, e.name))
        rows.append(CaseRef(names[e.id], ref.patient, ref.split, ref.exam, ref.source))
    labels = dict(zip(project.names, project.values, strict=True))
    dims = min(project.manifest.dims, 3)
    manifest = replace(
        project.manifest,
        dims=dims,
        labels=labels,
        cases=tuple(rows),
        ignore=None,
        instances=False,
        regions={},
        targets={},
        folds=None,
        pairs=None,
        built_in=None,
        layout="vesalius",
        note="annotated with vesalius annotate",
    )

    def read() -> Iterator[Case]:
        for k, (e, row) in enumerate(zip(entries, rows, strict=True)):
            step(k / len(entries), "writing cases")
            case = project.read(e.id)
            yield Case(row.id, row.patient, row.exam, row.source, images=case.images, labels={"reference": project.label_map(e.id)})

    return write_dataset(folder, manifest, read())


def _nifti(project: Project, entries: Sequence[Entry], folder: Path, step: Step) -> None:
    table = dict(zip(project.values, project.names, strict=True))
    for k, (e, name) in enumerate(zip(entries, file_names(entries).values(), strict=True)):
        step(k / len(entries), "writing label maps")
        label = project.label_map(e.id)
        io.write_labels(folder / f"{name}.nii.gz", label.data, label.geometry, values=tuple(table), names=tuple(table.values()))


def _dicom(project: Project, entries: Sequence[Entry], folder: Path, step: Step, format: str) -> None:
    """An object a case, on the slices of its series; empty masks, of which there is no valid object, are listed in empty.json."""
    sources = [project.originals.series(e, format) for e in entries]
    write = io.write_dicom_seg if format == "dicomseg" else io.write_rtstruct
    colours = {x.name: tuple(bytes.fromhex(x.color[1:])) for x in project.labels}
    empty = []
    for k, (e, name, source) in enumerate(zip(entries, file_names(entries).values(), sources, strict=True)):
        step(k / len(entries), "writing DICOM objects")
        label = project.label_map(e.id)
        if np.asarray(label.data).any():
            write(folder / f"{name}.dcm", label, source, colours=colours, how=how_made(project.entry(e.id)))
        else:
            empty.append(name)
    if len(empty) == len(entries):
        raise DataError(f"these masks are empty, and a {format} of nothing is not valid", fix="export NIfTI label maps")
    if empty:
        io.atomic_write_json(folder / "empty.json", empty)


def how_made(entry: Entry) -> str:
    """manual, automatic (a model's answer as it came) or semiautomatic, by the newest version and those it was made from."""
    known, kinds = {v.id: v for v in entry.versions}, []
    version = known.get(entry.head)
    while version is not None:
        kinds.append(version.origin.get("kind", "manual"))
        version = known.get(version.parent)
    if kinds[0] == "model":
        return "automatic"
    return "manual" if set(kinds) <= {"manual", "recovered"} else "semiautomatic"


def _png(project: Project, entries: Sequence[Entry], folder: Path, step: Step) -> None:
    """A picture a case; of volumes a folder of slices along the last axis, row by row."""
    for k, (e, name) in enumerate(zip(entries, file_names(entries).values(), strict=True)):
        step(k / len(entries), "writing pictures")
        mask, label = project.mask(e.id), project.label_map(e.id)
        if mask.ndim == 2:
            io.write_labels(folder / f"{name}.png", mask, label.geometry)
            continue
        plane = Geometry.of((mask.shape[1], mask.shape[0]), (label.geometry.spacing[1], label.geometry.spacing[0]))
        for s in range(mask.shape[2]):
            io.write_labels(folder / name / f"{s:04d}.png", np.ascontiguousarray(mask[:, :, s].T), plane)


def _coco(project: Project, entries: Sequence[Entry], folder: Path, step: Step) -> None:
    """COCO JSON of pictures by the names of their files: an annotation a connected piece, as run lengths down the columns, which keep
    every pixel and hole."""
    images, annotations, names = [], [], {e.id: project.originals.source(e) for e in entries}
    taken = Counter(file.name for file in names.values() if file is not None)
    for k, e in enumerate(entries, 1):
        step(k / (len(entries) + 1), "writing outlines")
        mask = project.mask(e.id)
        if mask.ndim != 2:
            raise DataError("COCO holds pictures, and this project has volumes", fix="export NIfTI label maps")
        file = names[e.id]
        name = e.id if file is None else file.name if taken[file.name] == 1 else f"{file.parent.name}/{file.name}"
        images.append({"id": k, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        for value in np.unique(mask[mask > 0]):
            pieces, sizes = components(mask == value)
            for piece in range(1, len(sizes) + 1):
                on = pieces == piece
                rows, columns = bounding_box(on)
                box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                record = {"id": len(annotations) + 1, "image_id": k, "category_id": int(value), "iscrowd": 0, "bbox": box}
                annotations.append(record | {"area": int(on.sum()), "segmentation": {"size": list(mask.shape), "counts": run_lengths(on)}})
    categories = [{"id": x.value, "name": x.name} for x in project.labels]
    io.atomic_write_json(folder / "coco.json", {"images": images, "annotations": annotations, "categories": categories}, indent=None)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts of a mask (rows, columns): lengths of runs down the columns, beginning with one of zeros."""
    flat = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return [0] * int(flat[0]) + np.diff([0, *edges, len(flat)]).tolist()


def _packed(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with io.atomic(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            kind = zipfile.ZIP_STORED if file.name.endswith((".gz", ".png")) else zipfile.ZIP_DEFLATED
            archive.write(file, file.relative_to(folder), kind)
    return target


__all__ = ["FORMATS", "as_dataset", "check_format", "export", "file_names", "how_made", "run_lengths"]
