"""What MONAI Label's clients rely on and the project does not keep: the version that each began with, the names that it knows its images
by, and the images that sessions bring."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from collections import OrderedDict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request

from .. import io
from ..core.case import Case
from ..core.errors import DataError
from ..io import dicom
from .imports import taken_in
from .records import Entry, Missing
from .security import shown_name
from .store import Project

MOST_SESSIONS = 32
_MOST_KNOWN = 4096  # clients with a case
_UID = re.compile(r"\d+(\.\d+){2,31}")
Who = tuple[str, str]  # the address that a client speaks from, and what it calls itself: '' where the request does not say


def who(request: Request, name: Any = None) -> Who:
    return request.client.host if request.client else "", shown_name(name) if isinstance(name, str) else ""


class Clients:
    """What each client was given last and calls its images, for as long as the server runs."""

    def __init__(self, project: Project):
        self.project, self.lock, self.turn = project, threading.Lock(), count()
        self.given: OrderedDict[tuple[Who, str], tuple[int, str | None]] = OrderedDict()
        self.named: OrderedDict[tuple[Who, str], str] = OrderedDict()
        self.series: dict[str, str] = {}

    def gave(self, client: Who, case: str, version: str | None, *, anew: bool = True) -> None:
        """The client goes on from this version of the case; ``anew`` False: from an earlier one, if one is known: there its work began."""
        with self.lock:
            if anew or self._last(client, case) is None:
                self.given[client, case] = next(self.turn), version
                _trim(self.given)

    def parent(self, client: Who, case: str) -> str | None:
        """The version that the client's next one is made from; the head where nothing is known of it."""
        with self.lock:
            last = self._last(client, case)
        return self.project.entry(case).head if last is None else last[1]

    def _last(self, client: Who, case: str) -> tuple[int, str | None] | None:
        return max((self.given[k] for k in ((client, case), ((client[0], ""), case)) if k in self.given), default=None)

    def case_of(self, image: str, client: Who) -> str:
        """A case by what the client called it when it brought it, by its id, its name, or the UID of its DICOM series. Raises Missing."""
        with self.lock:
            own = self.named.get((client, image))
        entries = self.project.entries()
        for fits in (lambda e: e.id == own, lambda e: e.id == image, lambda e: e.name == image, lambda e: self._is_series(e, image)):
            found = next((e.id for e in entries if fits(e)), None)
            if found is not None:
                return found
        raise Missing("there is no such image", fix="ask /datastore/ for the images")

    def _is_series(self, entry: Entry, uid: str) -> bool:
        if not _UID.fullmatch(uid):
            return False
        if entry.id not in self.series:
            self.series[entry.id] = ""
            with suppress(DataError, OSError):
                self.series[entry.id] = _uid_of(self.project.originals.series(entry, "UID"))
        return self.series[entry.id] == uid

    def offer(self, client: Who, case: str) -> None:
        """The client is given this case by its id, which means it from now on."""
        self.gave(client, case, self.project.entry(case).head, anew=False)
        with self.lock:
            for one in (client, (client[0], "")):
                self.named.pop((one, case), None)

    def bring(self, client: Who, name: str, content: bytes) -> tuple[str, bool]:
        """(the case of an uploaded NIfTI, whether it is new): the same voxels under one name are one case. Raises as ``Project.add``."""
        case = self._same(name[:100], content)
        found = case or self.project.add(name, content)
        with self.lock:
            for one in {client, (client[0], "")} if name else ():
                self.named[one, name] = found
            _trim(self.named)
        return found, case is None

    def _same(self, name: str, content: bytes) -> str | None:
        pattern = re.compile(re.escape(name) + r"( \(\d+\))?")
        alike = [e for e in self.project.entries() if pattern.fullmatch(e.name)] if name else []
        if not alike:
            return None
        path, image = taken_in(content, self.project.folder / "uploads", self.project.manifest)
        path.unlink()
        for entry in alike:
            case = self.project.read(entry.id)
            known = None if case.lazy else next(iter(case.images.values()))
            if known is not None and known.geometry.close(image.geometry) and np.array_equal(known.data, image.data):
                return entry.id
        return None


class Uploads:
    """Images that sessions bring: files beside the project's cases, which go when their session ends, or when the next server starts."""

    def __init__(self, project: Project):
        self.project, self.folder, self.lock = project, project.folder / "uploads" / "sessions", threading.Lock()
        self.held: OrderedDict[str, Path] = OrderedDict()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, content: bytes) -> str:
        """A session with an image; the oldest one ends where there are too many. Raises as ``Project.add``."""
        session, (path, _) = secrets.token_hex(8), taken_in(content, self.folder, self.project.manifest)
        with self.lock:
            self.held[session] = path
            old = [self.held.popitem(last=False)[1] for _ in range(len(self.held) - MOST_SESSIONS)]
        for path in old:
            path.unlink(missing_ok=True)
        return session

    def file(self, session: str) -> Path:
        """Raises Missing for a session that has ended."""
        with self.lock:
            if session not in self.held:
                raise Missing("the session has ended", fix="start a new one")
            return self.held[session]

    def read(self, session: str) -> Case:
        return Case(session, session, images={self.project.manifest.channels[0]: io.read_image(self.file(session))})

    def end(self, session: str) -> None:
        with self.lock:
            path = self.held.pop(session, None)
        if path is not None:
            path.unlink(missing_ok=True)


def _uid_of(address: str) -> str:
    """The SeriesInstanceUID behind an address of DICOM: a file, a folder of one series, or 'folder#UID'."""
    if Path(address).is_dir():
        return next(iter(dicom.series(address)))
    if not Path(address).is_file():
        return address.rpartition("#")[2]
    import pydicom

    head = pydicom.dcmread(address, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True)
    return str(head.get("SeriesInstanceUID", ""))


def _trim(held: OrderedDict) -> None:
    while len(held) > _MOST_KNOWN:
        held.popitem(last=False)
