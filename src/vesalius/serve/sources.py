"""What is given to annotate: a dataset, or image files and DICOM series that lie about."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from .. import io
from ..core.errors import DataError, UsageError
from ..core.manifest import CaseRef, Manifest
from ..datasets import open_dataset
from ..datasets.stems import series_in
from ..io.files import WRITABLE
from ..io.notes import note
from .frames import framed

_IMAGE = "image"  # the channel of a file that comes without a dataset


def manifest_of(data: str | Path | Sequence[str | Path]) -> Manifest:
    """A dataset, or image files (and folders of them) that lie about: each is a case named after its file, or each of its frames is."""
    given = [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)]
    if not given:
        raise UsageError("nothing to annotate", fix="name a dataset, a folder or image files")
    if len(given) == 1 and not Path(given[0]).is_file() and not _is_of_series(Path(given[0])):
        try:
            return framed(open_dataset(given[0]))
        except DataError:
            if not _loose_files(Path(given[0])):
                raise
    files = [file for one in given for file in (_loose_files(Path(one)) if Path(one).is_dir() else [Path(one)])]
    return _manifest_of_files(files)


def _loose_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, and DICOM series, also those of its folders."""
    endings = (*WRITABLE, ".jpg", ".jpeg", ".tiff", ".bmp", ".pgm")
    seen = sorted(p for p in folder.glob("*") if not p.name.startswith("."))
    files = [p for p in seen if p.is_file() and p.name.lower().endswith(endings)]
    return files + [series for p in (folder, *(p for p in seen if p.is_dir())) for series in _series(p)]


def _series(folder: Path) -> list[Path]:
    """The DICOM series of one of several folders; one whose DICOM files are no images is named and left out."""
    try:
        return series_in(folder)
    except DataError as error:
        if error.what != "no DICOM image in this folder":  # damaged ones are refused
            raise
        note(f"left out: {error.what}", folder)
        return []


def _is_of_series(folder: Path) -> bool:
    """Whether a folder without a dataset's description holds DICOM series, itself or in its folders: not pictures, one a slice."""
    if not folder.is_dir() or any((folder / name).exists() for name in ("dataset.toml", "dataset.json", "cases.csv", "images")):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", io.VesaliusNote)  # said when they are opened
        return any(not p.is_file() for one in (folder, *folder.glob("*/")) for p in _series(one))


def _manifest_of_files(files: Sequence[Path]) -> Manifest:
    """Raises DataError for a file that is not there or is no image, and for pictures among volumes."""
    rows, taken, dims = [], set(), set()
    for file in files:
        if not file.exists() and "#" not in file.name:
            raise DataError("there is no such file or folder", where=file)
        whole = file.name.partition("#")[0]  # of a series; its UID is not shown
        stem = file.resolve().name if file.is_dir() else re.sub(r"(\.nii)?\.[A-Za-z0-9]+$", "", whole) or whole
        name = next(n for n in (stem, whole, *(f"{stem} ({k})" for k in range(2, len(files) + 2))) if n not in taken)
        taken.add(name)
        dims.add(io.header(file)[1].ndim)
        rows.append(CaseRef(name, name, images={_IMAGE: str(file.resolve())}))
    if len(dims) > 1:
        raise DataError("pictures and volumes cannot be annotated in one project", fix="name either the ones or the others")
    root, labels = files[0].parent.resolve(), {"background": 0, "foreground": 1}
    return framed(Manifest("images", root, dims.pop(), (_IMAGE,), labels, tuple(rows), layout="files"))
