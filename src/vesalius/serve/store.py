"""A project: a folder with an SQLite database and one mask file a saved version.

    project.sqlite          cases, labels, versions with their parents, comments, models
    masks/<case>/<version>.nii.gz
    doubt/<case>/<version>.nii.gz   how unsure the model was whose answer the version is, in percent
    cache/ exports/ runs/ uploads/

Nobody overwrites anybody: a version is written once and never changed, and a case's head moves only if it is still the version that the
person started from. Otherwise both versions stay, and the second person is told (``Conflict``).

A version's mask is on the disk before its row is, so a crash leaves at most a file without a row; opening the project takes such files in
as versions of their case ('recovered'), beside its head. The folder's name, cases' names and users' texts never become part of a path.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql

from .. import io
from ..core.case import Case, LabelMap
from ..core.errors import DataError, GeometryError, ResourceError, UsageError, VesaliusError
from ..core.geometry import Geometry
from ..core.manifest import Manifest
from ..datasets import read_case
from .database import CASES, COMMENTS, FACTS, MODELS, VERSIONS, Database, fact
from .imports import taken_in
from .labels import Label, LabelsChanged, checked, first_labels, indices_of, labels_version
from .originals import Originals
from .records import Conflict, Entry, Missing, Version

STATUSES = ("todo", "draft", "done", "reviewed")
MOST_TEXT = 4000  # characters of a comment
KEPT_EXPORTS = 7 * 86400.0  # seconds that an export's archive stays in the project


class Project:
    """Open with ``Project(folder, manifest)``; every method may be called from any thread."""

    def __init__(self, folder: str | Path, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest
        self.originals = Originals(manifest)
        self._grids: dict[str, Geometry] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError("the project folder cannot be made", where=folder, found=error.strerror) from error
        self.database = Database(self.folder / "project.sqlite")
        self._take_in()
        self._recover()
        self._clean()

    def close(self) -> None:
        self.database.close()

    def _take_in(self) -> None:
        """Rows for the manifest's cases that have none yet, and the label table of a new project."""
        with self.database.writing() as db:
            known = set(db.scalars(sql.select(CASES.c.name)))
            given = set(db.scalars(sql.select(CASES.c.name).where(CASES.c.upload.is_(None))))
            if given and not given & set(self.originals.refs):
                fix = "choose another --project, or give the data it was made for"
                raise UsageError("this project was made for other data", where=self.folder, found=", ".join(sorted(given)[:3]), fix=fix)
            new = [{"name": ref.id, "status": "todo", "updated": time.time()} for ref in self.manifest.cases if ref.id not in known]
            if new:
                db.execute(sql.insert(CASES), new)
            if fact(db, "labels") is None:
                labels = [asdict(x) for x in first_labels(self.manifest.labels)]
                db.execute(sql.insert(FACTS).values(key="labels", value=labels))
            if fact(db, "id") is None:
                db.execute(sql.insert(FACTS).values(key="id", value=secrets.token_hex(8)))

    @property
    def id(self) -> str:
        """Random, and the project's for ever."""
        with self.database.reading() as db:
            return fact(db, "id")

    def _clean(self) -> None:
        """Old exports go, and what trainings and exports that were broken off left: copies of what the project has."""
        oldest = time.time() - KEPT_EXPORTS
        for path in (*self.folder.glob("exports/*"), *self.folder.glob("datasets/*")):
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.lstat().st_mtime < oldest:
                    path.unlink()

    def _recover(self) -> None:
        """Mask files whose row a crash prevented become versions beside the head; what was half-written goes."""
        masks = self.folder / "masks"
        for temporary in masks.glob("*/.tmp-*"):
            temporary.unlink(missing_ok=True)
        with self.database.writing() as db:
            known, cases = set(db.scalars(sql.select(VERSIONS.c.id))), set(db.scalars(sql.select(CASES.c.number)))
            for path in masks.glob("c*/*.nii.gz"):
                name, number = path.name.removesuffix(".nii.gz"), path.parent.name[1:]
                if name not in known and number.isdigit() and int(number) in cases and re.fullmatch(r"[0-9a-f]{16}", name):
                    row = {"id": name, "case": int(number), "parent": None, "user": "", "at": path.stat().st_mtime}
                    note = "saved just before the server stopped"
                    db.execute(sql.insert(VERSIONS).values(**row, origin={"kind": "recovered"}, note=note))

    # ---------------------------------------------------------------------------------------------------------------------- labels
    @property
    def labels(self) -> tuple[Label, ...]:
        with self.database.reading() as db:
            return tuple(Label(**row) for row in fact(db, "labels"))

    def set_labels(self, rows: Sequence[Mapping[str, Any]], known: str | None = None) -> tuple[Label, ...]:
        """Replace the label table. Names and values are unique; a value that a saved version may hold cannot go. ``known`` is the version
        of the table that these were made from: raises LabelsChanged where there is another one now, which is not this one."""
        labels = checked(rows)
        with self.database.writing() as db:
            now = tuple(Label(**row) for row in fact(db, "labels"))
            if known not in (None, labels_version(now)) and now != labels:
                raise LabelsChanged(now)
            gone = {x.value for x in now} - {x.value for x in labels}
            if gone and db.scalar(sql.select(sql.func.count()).select_from(VERSIONS)):
                raise UsageError("labels of saved masks cannot be removed", found=sorted(gone), fix="rename them instead")
            db.execute(sql.update(FACTS).where(FACTS.c.key == "labels").values(value=[asdict(x) for x in labels]))
        return labels

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by class index, background first."""
        return ("background", *(label.name for label in self.labels))

    @property
    def values(self) -> tuple[int, ...]:
        return (0, *(label.value for label in self.labels))

    # ----------------------------------------------------------------------------------------------------------------------- cases
    def entries(self) -> list[Entry]:
        """All cases, without their versions and comments."""
        with self.database.reading() as db:
            return [_entry(row) for row in db.execute(sql.select(CASES).order_by(CASES.c.number))]

    def entry(self, case: str) -> Entry:
        """A case with its versions, oldest first, and comments. Raises Missing."""
        with self.database.reading() as db:
            row = db.execute(sql.select(CASES).where(CASES.c.number == _number(case))).first()
            if row is None:
                raise Missing("there is no such case", fix="open the list of cases again")
            versions = db.execute(sql.select(VERSIONS).where(VERSIONS.c.case == row.number).order_by(VERSIONS.c.at))
            comments = db.execute(sql.select(COMMENTS).where(COMMENTS.c.case == row.number).order_by(COMMENTS.c.id))
            return replace(
                _entry(row),
                versions=tuple(Version(v.id, v.parent, v.user, v.at, v.origin, v.note) for v in versions),
                comments=tuple({"user": c.user, "at": c.at, "text": c.text} for c in comments),
            )

    def read(self, case: str) -> Case:
        """The case's images on their own grid, without the dataset's labels."""
        entry = self.entry(case)
        with self.database.reading() as db:
            upload = db.scalar(sql.select(CASES.c.upload).where(CASES.c.number == _number(case)))
        if upload:
            return Case(entry.name, entry.name, images={self.manifest.channels[0]: io.read_image(self.folder / "uploads" / upload)})
        return read_case(self.manifest, entry.name, labels=False).without_labels()

    def reference(self, case: str) -> LabelMap | None:
        """The label that the dataset itself brings, if any and if it is a plain map of the project's structures."""
        return self.originals.reference(self.entry(case), self.names)

    def geometry(self, case: str) -> Geometry:
        """The case's grid, from headers where there are files."""
        entry = self.entry(case)
        found = self.glance(entry)
        if found is None:
            found = self._grids[entry.id] = self.read(case).geometry
        return found

    def glance(self, entry: Entry) -> Geometry | None:
        """The case's grid where it is known or in a header; None where the case would have to be read."""
        if entry.id not in self._grids:
            grid = self.originals.grid(entry)
            if grid is not None:
                self._grids[entry.id] = grid
        return self._grids.get(entry.id)

    def add(self, name: str, content: bytes) -> str:
        """A new case from an uploaded NIfTI file, which is read before it is taken in; its id."""
        path, _ = taken_in(content, self.folder / "uploads", self.manifest)
        try:
            with self.database.writing() as db:
                row = {"name": name[:100] or path.name[:8], "status": "todo", "updated": time.time(), "upload": path.name}
                taken = set(db.scalars(sql.select(CASES.c.name)))
                row["name"] = next(n for n in (row["name"], *(f"{row['name']} ({k})" for k in range(2, len(taken) + 3))) if n not in taken)
                return f"c{db.execute(sql.insert(CASES).values(**row)).inserted_primary_key[0]}"
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def set_status(self, case: str, status: str) -> None:
        if status not in STATUSES:
            raise UsageError("no such status", found=str(status)[:20], allowed=", ".join(STATUSES))
        self._update(case, status=status, updated=time.time())

    def set_priority(self, case: str, priority: float) -> None:
        """How much is to be learnt from the case: a model's uncertainty about it."""
        self._update(case, priority=float(priority))

    def comment(self, case: str, user: str, text: str) -> None:
        if not 0 < len(text.strip()) <= MOST_TEXT:
            raise UsageError("a comment has some text", found=f"{len(text)} letters", allowed=f"1 to {MOST_TEXT}")
        entry = self.entry(case)
        with self.database.writing() as db:
            db.execute(sql.insert(COMMENTS).values(case=_number(entry.id), user=user, at=time.time(), text=text.strip()))

    def _update(self, case: str, **fields: Any) -> None:
        with self.database.writing() as db:
            if not db.execute(sql.update(CASES).where(CASES.c.number == _number(case)).values(**fields)).rowcount:
                raise Missing("there is no such case")

    # -------------------------------------------------------------------------------------------------------------------- versions
    def save(
        self, case: str, mask: np.ndarray, parent: str | None, *, user: str, origin: Mapping[str, Any] | None = None, note: str = ""
    ) -> Version:
        """Keep ``mask`` (*spatial), label values on the case's grid, as a new version made from ``parent``; the case becomes a draft, also
        one that was done where the mask is another. The mask of the newest version, sent again by the same person, is that version.

        Raises GeometryError (other shape), DataError (values without a label), Missing (case or parent unknown), ResourceError (disk:
        nothing was kept) and Conflict (kept, but another version is the head)."""
        geometry, entry = self.geometry(case), self.entry(case)
        if parent is not None and parent not in {v.id for v in entry.versions}:
            raise Missing("the version this one was made from is not one of this case's", fix="open the case again")
        if mask.shape != geometry.shape:
            raise GeometryError("the mask does not lie on the case's grid", found=mask.shape, allowed=geometry.shape)
        odd = sorted(set(np.unique(mask).tolist()) - set(self.values))
        if odd:
            fix = "add the labels first"
            raise DataError(
                "values that are no label", found=", ".join(map(str, odd[:8])), allowed=", ".join(map(str, self.values)), fix=fix
            )
        version = Version(secrets.token_hex(8), parent, user, time.time(), dict(origin or {"kind": "manual"}), note)
        path = self.folder / "masks" / entry.id / f"{version.id}.nii.gz"
        io.write_labels(path, mask, geometry)
        try:
            with self.database.writing() as db:
                number = _number(entry.id)
                head, status = db.execute(sql.select(CASES.c.head, CASES.c.status).where(CASES.c.number == number)).one()
                if head != parent and head is not None:
                    row = db.execute(sql.select(VERSIONS).where(VERSIONS.c.id == head)).one()
                    if (row.parent, row.user) == (parent, user) and self._holds(entry.id, head, mask):
                        path.unlink()
                        return Version(row.id, row.parent, row.user, row.at, row.origin, row.note)
                db.execute(sql.insert(VERSIONS).values(**asdict(version), case=number))
                changes: dict[str, Any] = {"updated": version.at} | ({"head": version.id} if head == parent else {})
                if status == "todo" or status != "draft" and head == parent and not self._holds(entry.id, head, mask):
                    changes["status"] = "draft"
                db.execute(sql.update(CASES).where(CASES.c.number == number).values(**changes))
        except Exception:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        if head != parent:
            raise Conflict(head, version.id)
        return version

    def _holds(self, case: str, version: str | None, mask: np.ndarray) -> bool:
        """Whether a version is this mask; one that cannot be read is not."""
        with suppress(VesaliusError):
            return np.array_equal(io.read_image(self.folder / "masks" / case / f"{version}.nii.gz").data[0], mask)
        return False

    def mask_path(self, case: str, version: str | None = None) -> Path:
        """The file of a version (None: the head). Raises Missing."""
        entry = self.entry(case)
        version = version or entry.head
        if version is None or version not in {v.id for v in entry.versions}:
            raise Missing("the case has no such version" if version else "nothing was saved for this case yet")
        return self.folder / "masks" / entry.id / f"{version}.nii.gz"

    def doubt_path(self, case: str, version: str | None = None) -> Path:
        """The file of a model's doubt in its answer: of a version (None: the head), else of the nearest one that this was made from. Raises
        Missing."""
        entry = self.entry(case)
        known, version = {v.id: v.parent for v in entry.versions}, version or entry.head
        while version in known:
            path = self.folder / "doubt" / entry.id / f"{version}.nii.gz"
            if path.exists():
                return path
            version = known[version]
        raise Missing("no model said how sure it is of this version", fix="run a trained model on the case")

    def mask(self, case: str, version: str | None = None) -> np.ndarray:
        """(*spatial) label values of a version."""
        data = np.asarray(io.read_image(self.mask_path(case, version)).data[0])
        return data if data.dtype == np.uint8 else data.astype(np.uint16)

    def label_map(self, case: str, version: str | None = None) -> LabelMap:
        """A version as class indices, with the project's structures as classes."""
        labels = self.labels
        indices = indices_of(self.mask(case, version), labels)
        return LabelMap(indices, self.geometry(case), ("background", *(label.name for label in labels)))

    # ---------------------------------------------------------------------------------------------------------------------- models
    def runs(self) -> list[tuple[str, str, Path]]:
        """(id, title, run folder) of the runs that the project knows."""
        with self.database.reading() as db:
            return [(m.id, m.title, Path(m.run)) for m in db.execute(sql.select(MODELS))]

    def add_run(self, run: str | Path, title: str) -> str:
        """Make a run folder a model of this project; its id."""
        path = str(Path(run).resolve())
        with self.database.writing() as db:
            known = db.scalar(sql.select(MODELS.c.id).where(MODELS.c.run == path))
            if known is None:
                known = f"run-{secrets.token_hex(4)}"
                db.execute(sql.insert(MODELS).values(id=known, title=title, run=path))
        return known


def _number(case: str) -> int:
    if not re.fullmatch(r"c\d{1,9}", str(case)):
        raise Missing("there is no such case", fix="open the list of cases again")
    return int(case[1:])


def _entry(row: Any) -> Entry:
    return Entry(f"c{row.number}", row.name, row.status, row.head, row.updated, row.priority)
