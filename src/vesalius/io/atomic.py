"""Writing files so that a reader sees the old content or the new, never half of it.

Everything is written to a temporary file in the same folder, flushed to the disk (fsync), renamed over the target (one atomic step on
POSIX and NTFS), and the folder entry is flushed as well.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..core.errors import DataError, ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same extension); on success it replaces ``path``, on any failure it is removed.

    ``size``: bytes to be written, if known: refused beforehand when the disk has less, and named when the disk fills up.
    Missing parent folders are made. Raises ResourceError for a full or read-only disk; the previous file then stays as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError("a folder stands where the file is to be written", where=path, fix="choose another name or remove the folder")
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(6)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is not None and size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, "not enough free space")
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL + _DENIED:
            raise _resource_error(path, error, size) from error
        raise


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, wholly or not at all."""
    with atomic(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8, line ends as given)."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, record: Any, *, indent: int | None = 2) -> None:
    """Replace ``path`` by strict JSON (UTF-8; NaN and infinity are refused, since JSON has none)."""
    try:
        text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError("this record cannot be written as JSON", where=path, found=str(error)) from error
    atomic_write_text(path, text + "\n")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot flush a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def _resource_error(path: Path, error: OSError, size: int | None) -> ResourceError:
    if error.errno in _DENIED:
        return ResourceError("the folder cannot be written to", where=path, found=error.strerror, fix="choose another folder")
    folder = next((p for p in (path.parent, *path.parent.parents) if p.exists()), Path("."))
    free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    needed = f", {size / 1e6:.1f} MB needed" if size is not None else ""
    return ResourceError(
        "the disk is full", where=path, found=free + needed, fix="free some space and run again; the previous file is unchanged"
    )
