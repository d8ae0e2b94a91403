"""File names: which files are images, what a case is called, and which patient a name gives away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

ENDINGS = (
    ".nii.gz",
    ".nii",
    ".mha",
    ".nrrd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".pgm",
    ".dcm",
    ".npy",
    ".npz",
    ".h5",
    ".svs",
)
MASK_SUFFIX = re.compile(r"[ _.-](mask|masks|seg|segmentation|label|labels|gt|annotation|manual)\d*$", re.IGNORECASE)
_PATIENT = re.compile(r"(sub-[A-Za-z0-9]+|(?:patient|pat|subject|subj|case)[_-]?\d+)(?=[_.-]|$)", re.IGNORECASE)
_BAD_ID = re.compile(r"[/\\\x00-\x1f\x7f]|^\.|^\s*$")


def ending(path: str | Path) -> str:
    """The image ending of a file name ('.nii.gz' counts as one), or ''."""
    name = Path(path).name.lower()
    return next((e for e in ENDINGS if name.endswith(e)), "")


def stem(path: str | Path) -> str:
    """The file name without its image ending."""
    name = Path(path).name
    return name[: len(name) - len(ending(name))] if ending(name) else name


def images_in(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; hidden files are left out. An absent folder holds none."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and ending(p) and not p.name.startswith("."))


def series_in(folder: Path) -> list[Path]:
    """The DICOM series directly in ``folder``, as addresses that ``io`` reads: the folder itself where there is one, 'folder#UID' where
    there are several. Files that are a series each by themselves (pictures, multi-frame volumes) come as files."""
    from ..io import dicom, is_dicom

    files = [p for p in sorted(folder.glob("*")) if p.is_file() and not p.name.startswith(".") and ending(p) in ("", ".dcm")]
    files = [p for p in files if is_dicom(p)]
    counts = dicom.series(folder) if files else {}
    if len(counts) == len(files):
        return files
    return [folder] if len(counts) == 1 else [Path(f"{folder}#{uid}") for uid in counts]


def patients_of(stems: Iterable[str]) -> Mapping[str, str]:
    """stem -> patient. The part before an underscore or dash is the patient only where *every* name says so itself ('sub-01_T1',
    'patient002_frame01'); otherwise each name is a patient of its own."""
    stems = list(stems)
    hits = [_PATIENT.match(s) for s in stems]
    if stems and all(hits):
        return {s: hit[1] for s, hit in zip(stems, hits, strict=True)}
    return {s: s for s in stems}


def usable_id(case: str) -> bool:
    """Whether a case id can also name a file: no separator, control character or leading dot, and at most 150 characters."""
    return len(case) <= 150 and not _BAD_ID.search(case)
