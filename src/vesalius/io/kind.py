"""Which format a file is of, by its content and not by its name; and the checks that come before reading any file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from ..core.errors import DataError

KINDS = ("nifti", "nifti.gz", "dicom", "mha", "nrrd", "png", "jpeg", "tiff", "bmp", "pgm", "hdf5", "npz", "npy")

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"BM": "bmp",
    b"P2": "pgm",
    b"P5": "pgm",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PK\x03\x04": "npz",
    b"\x93NUMPY": "npy",
    b"NRRD000": "nrrd",
}


def checked_file(path: str | Path) -> Path:
    """``path`` if it is a readable file with content; else a DataError that says which of the four things is wrong."""
    path = Path(path)
    if not path.exists():
        if path.is_symlink():
            raise DataError("the link points to nothing", where=path, found=f"-> {os.readlink(path)}", fix="restore its target or the link")
        raise DataError("there is no such file", where=path)
    if path.is_dir():
        raise DataError("this is a folder, not a file", where=path, fix="name a file in it, or a folder of one DICOM series as an image")
    if not path.is_file():
        raise DataError("this is a device or pipe, not a file", where=path)
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except PermissionError as error:
        raise DataError("you may not read this file", where=path, fix="change its permissions (chmod u+r)") from error
    except OSError as error:
        raise DataError("this file cannot be read", where=path, found=error.strerror) from error
    if empty:
        raise DataError("the file is empty (0 bytes)", where=path, fix="copy or download it again")
    return path


def sniff(path: str | Path) -> str:
    """The kind of a file by its first bytes, one of ``KINDS``. Raises DataError when it is none of them or cannot be read."""
    path = checked_file(path)
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:2] == b"\x1f\x8b":
        if _is_nifti(_inflated(head)):
            return "nifti.gz"
        raise DataError("a gzip file that holds no NIfTI image", where=path, allowed=", ".join(KINDS))
    if head[128:132] == b"DICM":  # first: the preamble may be that of another format
        return "dicom"
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "bmp" and not (len(head) >= 26 and struct.unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124)):
        kind = None
    if kind is None:
        kind = _by_structure(head)
    if kind is None:
        raise DataError(
            "the content is of no format that Vesalius reads", where=path, found=f"first bytes {head[:8]!r}", allowed=", ".join(KINDS)
        )
    return kind


def is_dicom(where: str | Path) -> bool:
    """Whether ``where`` names DICOM: a file, the folder of a series, or 'folder#SeriesInstanceUID'."""
    if Path(where).is_dir() or (not Path(where).exists() and Path(str(where).rpartition("#")[0] or where).is_dir()):
        return True
    try:
        return sniff(where) == "dicom"
    except DataError:
        return False


def _by_structure(head: bytes) -> str | None:
    if _is_nifti(head):
        return "nifti"
    if _is_bare_dicom(head):
        return "dicom"
    first = head[:64].lstrip().lower()
    if first.startswith((b"objecttype", b"ndims", b"comment =")) and b"ndims" in head.lower():
        return "mha"
    return None


def _is_nifti(head: bytes) -> bool:
    """A NIfTI-1 or NIfTI-2 header in either byte order (magic, or at least its size field and dimension count)."""
    if len(head) < 348:
        return False
    sizes = {struct.unpack_from(order + "i", head)[0] for order in "<>"}
    return (348 in sizes and head[344:348] in (b"n+1\0", b"ni1\0")) or (540 in sizes and head[4:8] in (b"n+2\0", b"ni2\0"))


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without preamble: it starts with a low group, an even element and, if explicit, a known VR."""
    if len(head) < 16:
        return False
    for order in "<>":
        group, element = struct.unpack_from(order + "HH", head)
        if group in (0x0002, 0x0008) and element <= 0x0100:
            length = struct.unpack_from(order + "I", head, 4)[0]
            if head[4:6] in (b"UL", b"UI", b"CS", b"OB", b"DA", b"TM", b"SH", b"LO") or length <= 256:
                return True
    return False


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error:
        return b""
