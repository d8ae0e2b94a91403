"""Images as they travel: encoded once and kept in the project's cache; of a large volume a coarse one is had sooner."""

from __future__ import annotations

import threading
from pathlib import Path

from .. import io
from ..core.case import Case
from ..core.errors import UsageError
from .active import Pictures
from .records import Missing
from .store import Project
from .wire import check_weight, encode, in_folder

MOST_COARSE = 128  # voxels that a side of a coarse image has at most


class Images:
    """Files of a project's images; ``seen`` takes every case that is read. One image is read and encoded at a time: memory."""

    def __init__(self, project: Project, seen: Pictures):
        self.project, self.seen, self._turn = project, seen, threading.Lock()
        self._held: tuple[Path, Case] | None = None  # what a coarse image was made of: the whole one is asked for next

    def whole(self, case: str, channel: str) -> Path:
        """The image on its own grid. Raises Missing for one the case does not have, and what reading it raises."""
        with self._turn:
            target = self._target(case, channel, "")
            if not target.exists():
                image = self._read(case, channel, target).images[channel]
                self._held = None
                io.atomic_write_bytes(target, encode(image.data, image.geometry))
            return in_folder(target, self.project.folder)

    def coarse(self, case: str, channel: str) -> tuple[Path, tuple[int, ...]]:
        """Every n-th voxel of the image, and that n of each axis. Raises as ``whole``."""
        with self._turn:
            every = tuple(-(-n // MOST_COARSE) for n in self.project.geometry(case).shape)
            target, whole = (self._target(case, channel, end) for end in ("-coarse", ""))
            if not target.exists():
                read = self._read(case, channel, whole)
                self._held = None if whole.exists() else (whole, read)
                image = read.images[channel].every(every)
                io.atomic_write_bytes(target, encode(image.data, image.geometry))
            return in_folder(target, self.project.folder), every

    def _target(self, case: str, channel: str, end: str) -> Path:
        entry = self.project.entry(case)
        names = self.project.originals.channels(entry)
        if channel not in names:
            raise Missing("the case has no such image", fix="open the case again")
        name = f"{names.index(channel)}-{self.project.originals.stamp(entry, channel)}{end}.nii.gz"
        return self.project.folder / "cache" / entry.id / name

    def _read(self, case: str, channel: str, whole: Path) -> Case:
        if self._held is not None and self._held[0] == whole:
            return self._held[1]
        promised = self.project.originals.promise(self.project.entry(case), channel)
        if promised is not None:
            check_weight(*promised)
        read = self.project.read(case)
        if read.lazy:
            raise UsageError("whole slides cannot be annotated here yet")
        self.seen.look(case, lambda: read)
        return read
