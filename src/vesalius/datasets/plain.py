"""A plain folder: ``images/`` beside ``labels/`` or ``masks/``, matched by file name; or images alone, to predict on; or one image file.

A folder of DICOM slices is one image, named after the folder. A label is the image's name, optionally with _mask, _seg, _label and the
like; labels with such a suffix may also stand beside the images.
The label table is found by reading every label file once: one value besides 0 is 'foreground', several are 'class_<value>'.
Patients: the file name, unless every name starts with a patient of its own ('sub-01_T1', 'patient002_frame01').
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from .. import io
from ..core.errors import DataError
from ..core.manifest import CaseRef, Manifest
from .stems import MASK_SUFFIX, ending, images_in, patients_of, series_in, stem

IMAGES, LABELS = ("images", "imgs", "image"), ("labels", "masks", "label", "mask", "segmentations")
MOST_CLASSES = 256  # more values than this are object ids or a grey image


def open_plain(path: Path) -> Manifest:
    """The manifest of a plain folder (or a single image file). Raises DataError for labels without an image and for odd label values."""
    root = path if path.is_dir() else path.parent
    images, labels = _files(path)
    pairs = _pairs(images, labels, root)
    patients = patients_of(pairs)
    table = label_values([l for _, l in pairs.values() if l]) if any(l for _, l in pairs.values()) else {}
    return Manifest(
        name=stem(path.resolve()),
        root=root,
        dims=dims_of(next(iter(pairs.values()))[0]),
        channels=("image",),
        labels=table,
        cases=tuple(
            CaseRef(name, patients[name], images={"image": _under(i, root)}, labels={"reference": _under(l, root)} if l else {})
            for name, (i, l) in pairs.items()
        ),
        layout="plain",
    )


def folders(path: Path) -> tuple[Path | None, Path | None]:
    """(image folder, label folder) of a plain dataset, None where absent; the folder itself when it holds images directly."""
    inside = {p.name.lower(): p for p in sorted(path.iterdir()) if p.is_dir()} if path.is_dir() else {}
    images = next((inside[n] for n in IMAGES if n in inside), None)
    labels = next((inside[n] for n in LABELS if n in inside), None)
    own = images is None and path.is_dir() and (images_in(path) or _with_series(path))  # the former without opening a file
    return images or (path if own else None), labels


def label_values(files: Iterable[Path | str]) -> dict[str, int]:
    """The label table by reading all label files: background first. Raises DataError when the values cannot be a label table."""
    count: Counter[int] = Counter()
    for file in files:
        ids = io.read_labels(file, values=(), names=(), instances=True).data
        count.update(int(v) for v in np.unique(ids))
        values = sorted(v for v in count if v)
        if len(values) > MOST_CLASSES or (255 in values and len(values) > 1):
            shown = ", ".join(map(str, values[:12])) + (" ..." if len(values) > 12 else "")
            raise DataError(
                "the label values do not look like a label table",
                where=file,
                found=shown,
                allowed="0 and one value, or 0 and class numbers",
                fix="export a mask with soft edges without smoothing; for object ids or a named table write a dataset.toml with [labels]",
            )
    values = sorted(v for v in count if v)
    if len(values) <= 1:
        return {"background": 0, "foreground": values[0] if values else 1}
    return {"background": 0, **{f"class_{v}": v for v in values}}


def dims_of(file: Path | str) -> int:
    """2 or 3: the dimensions of an image file; a volume of one slice is a picture."""
    _, geometry, _ = io.header(file)
    return 2 if 1 in geometry.shape and geometry.ndim == 3 else geometry.ndim


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    if path.is_file():
        return [path], []
    image_folder, label_folder = folders(path)
    if image_folder is None:
        raise DataError("no image files", where=path, allowed=f"a folder {' or '.join(IMAGES)}, or images directly in it")
    files = _with_series(image_folder)
    if not files:
        raise DataError("the image folder is empty", where=image_folder)
    if label_folder is not None:
        return files, images_in(label_folder)
    names = {stem(f) for f in files}
    beside = [f for f in files if MASK_SUFFIX.search(stem(f)) and MASK_SUFFIX.sub("", stem(f)) in names]
    return [f for f in files if f not in beside], beside


def _with_series(folder: Path) -> list[Path]:
    """Image files directly in a folder, and DICOM series: the folder's own slices, or folders of slices in it."""
    own = series_in(folder)
    if any("#" in p.name for p in own):
        fix = "give each series a folder of its own"
        raise DataError("slices of several DICOM series in one folder", where=folder, found=f"{len(own)} series", fix=fix)
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    whole = [series for p in inside for series in series_in(p) if series == p]
    slices = own == [folder]  # what is named .dcm and is none stays, to be told of by name when it is read
    loose = [p for p in images_in(folder) if p not in own and not (slices and ending(p) == ".dcm" and io.is_dicom(p))]
    return loose + own + whole


def _pairs(images: list[Path], labels: list[Path], root: Path) -> Mapping[str, tuple[Path, Path | None]]:
    """Case id -> (image, label or None)."""
    by_stem: dict[str, Path] = {}
    for image in images:
        if stem(image) in by_stem:
            raise DataError("two images have the same name", where=root, found=f"{by_stem[stem(image)].name}, {image.name}")
        by_stem[stem(image)] = image
    of: dict[str, Path] = {}
    lost = []
    for label in labels:
        name = stem(label) if stem(label) in by_stem else MASK_SUFFIX.sub("", stem(label))
        if name not in by_stem:
            lost.append(label.name)
        elif name in of:
            raise DataError(
                "two labels go with one image",
                where=root,
                found=f"{of[name].name}, {label.name}",
                fix="for several raters or masks an image, write a dataset.toml and a cases.csv",
            )
        else:
            of[name] = label
    if lost:
        raise DataError(
            "labels without an image of the same name",
            where=root,
            found=", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else ""),
            fix="rename them like their image, or remove them",
        )
    if labels and not of:
        raise DataError("no label goes with any image", where=root)
    return {name: (image, of.get(name)) for name, image in by_stem.items()}


def _under(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
