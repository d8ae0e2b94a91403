"""Decoded voxels kept as raw .npy files, so that the second read of a file is a memory map.

An entry's name is a hash of the file's path, size, modification time, first kilobyte and last eight bytes (in a gzip file the latter are
the CRC-32 and length of its content); it changes whenever the file does. Entries are written atomically and hold no names or headers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ..core.errors import ResourceError
from .arrays import save_npy
from .atomic import atomic
from .notes import note


def entry(folder: Path, path: Path) -> Path:
    """Where the decoded voxels of ``path``, as it is now, are kept."""
    stat = path.stat()
    with open(path, "rb") as file:
        head = file.read(1024)
        file.seek(max(0, stat.st_size - 8))
        tail = file.read(8)
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|".encode() + head + tail)
    return Path(folder) / f"{key.hexdigest()[:32]}.npy"


def load(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The entry as a read-only memory map, or None when there is none or it is not of the expected shape."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return data if data.shape == shape and data.dtype == dtype else None


def store(path: Path, data: np.ndarray) -> None:
    """Keep ``data``; a full or read-only disk is a note, since the read itself succeeded."""
    try:
        with atomic(path, size=data.nbytes) as temporary, open(temporary, "wb") as file:
            save_npy(file, data)
    except ResourceError as error:
        note(f"not cached: {error}")
