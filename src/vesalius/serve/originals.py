"""What a project's data says of its cases, by their rows and the headers of their files, and the label that it brings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .. import io
from ..core.case import LabelMap
from ..core.errors import DataError
from ..core.geometry import Geometry
from ..core.manifest import Manifest
from ..datasets import read_case
from ..datasets.cases import file_of, header_of, spacing_of
from .records import Entry


class Originals:
    """``refs``: the data's own cases by name. A case that was uploaded has none."""

    def __init__(self, manifest: Manifest):
        self.manifest, self.refs = manifest, {ref.id: ref for ref in manifest.cases}

    def grid(self, entry: Entry) -> Geometry | None:
        """The case's grid, by its header; None where the case would have to be read."""
        ref = self.refs.get(entry.name)
        if ref is not None and ref.images and self.manifest.built_in is None:
            with suppress(DataError, OSError):
                file = file_of(self.manifest, next(iter(ref.images.values())))[0]
                grid = header_of(file, spacing_of(self.manifest, ref))[1]
                if grid.ndim == min(self.manifest.dims, 3):  # else reading decides what it is
                    return grid
        return None

    def channels(self, entry: Entry) -> tuple[str, ...]:
        """The names of a case's images."""
        ref = self.refs.get(entry.name)
        if ref is None:
            return self.manifest.channels[:1]
        return tuple(ref.images) or self.manifest.channels

    def brings_label(self, entry: Entry) -> bool:
        """Whether the dataset has a label for a case."""
        ref = self.refs.get(entry.name)
        return ref is not None and bool(ref.labels)

    def reference(self, entry: Entry, names: Sequence[str]) -> LabelMap | None:
        """The label that the dataset itself brings, if any and if it is a plain map of structures among ``names``."""
        if entry.name not in self.refs:
            return None
        label = read_case(self.manifest, entry.name).label
        known = set(names)
        if label is None or label.overlapping or label.instances or not known.issuperset(label.names[1:]):
            return None
        return label

    def source(self, entry: Entry) -> Path | None:
        """The file that a case's first image was read from; None where that is no file of its own."""
        ref = self.refs.get(entry.name)
        file = Path(file_of(self.manifest, next(iter(ref.images.values())))[0]) if ref is not None and ref.images else None
        return file if file is not None and file.is_file() else None

    def series(self, entry: Entry, format: str) -> str:
        """The address of the DICOM series that a case was read from. Raises DataError, naming the case, where it was read from none."""
        ref = self.refs.get(entry.name)
        address = next(iter(ref.images.values()), "") if ref is not None and self.manifest.built_in is None else ""
        file = file_of(self.manifest, address)[0] if address else ""
        if not file or not io.is_dicom(file):
            fix = "export NIfTI label maps, or choose other cases"
            raise DataError(f"case '{entry.name}' was not read from a DICOM series, which a {format} refers to", fix=fix)
        return file

    def stamp(self, entry: Entry, channel: str) -> str:
        """Changes when the file behind an image does."""
        ref = self.refs.get(entry.name)
        if ref is None or channel not in ref.images:
            return entry.id
        file = Path(file_of(self.manifest, ref.images[channel])[0].partition(":")[0])
        facts = f"{file.stat().st_mtime_ns} {file.stat().st_size}" if file.exists() else ""
        return hashlib.sha256(f"{ref.images[channel]} {facts}".encode()).hexdigest()[:16]

    def promise(self, entry: Entry, channel: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape (C, *spatial) and type of an image, by its header; None where there is none, which reading decides."""
        ref = self.refs.get(entry.name)
        if ref is not None and channel in ref.images:
            with suppress(DataError, OSError):
                file, one = file_of(self.manifest, ref.images[channel])
                sides, _, dtype = header_of(file, spacing_of(self.manifest, ref))
                return sides if one is None else (1, *sides[1:]), dtype
        return None
