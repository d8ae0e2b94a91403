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

import hashlib
import json
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql
from sqlalchemy.exc import OperationalError

from .. import io
from ..core.case import Case, Image, LabelMap
from ..core.errors import DataError, GeometryError, ResourceError, UsageError, VesaliusError
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from ..datasets import open_dataset, read_case
from ..datasets.cases import file_of, header_of, spacing_of
from ..datasets.stems import series_in
from ..io.files import WRITABLE
from ..io.notes import note
from .frames import framed
from .wire import check_weight

STATUSES = ("todo", "draft", "done", "reviewed")
COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
    "#469990",
    "#dcbeff",
    "#9a6324",
)
IMAGE = "image"  # the channel of a file that comes without a dataset
MOST_TEXT = 4000  # characters of a comment
KEPT_EXPORTS = 7 * 86400.0  # seconds that an export's archive stays in the project
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_TABLES = sql.MetaData()
_facts = sql.Table("facts", _TABLES, sql.Column("key", sql.String, primary_key=True), sql.Column("value", sql.JSON))
_cases = sql.Table(
    "cases",
    _TABLES,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("name", sql.String, unique=True, nullable=False),
    sql.Column("status", sql.String, nullable=False, default="todo"),
    sql.Column("head", sql.String),
    sql.Column("updated", sql.Float),
    sql.Column("priority", sql.Float),
    sql.Column("upload", sql.String),
)
_versions = sql.Table(
    "versions",
    _TABLES,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("case", sql.Integer, sql.ForeignKey("cases.number"), nullable=False, index=True),
    sql.Column("parent", sql.String),
    sql.Column("user", sql.String, nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("origin", sql.JSON, nullable=False),
    sql.Column("note", sql.String, nullable=False, default=""),
)
_comments = sql.Table(
    "comments",
    _TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("case", sql.Integer, sql.ForeignKey("cases.number"), nullable=False, index=True),
    sql.Column("user", sql.String, nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("text", sql.String, nullable=False),
)
_models = sql.Table(
    "models",
    _TABLES,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("title", sql.String, nullable=False),
    sql.Column("run", sql.String, nullable=False),
)


class Missing(UsageError):
    """An id that the project does not know."""


class Conflict(VesaliusError):
    """Another version was saved first: ``head`` is that one, ``yours`` the one that was kept beside it."""

    def __init__(self, head: str | None, yours: str):
        super().__init__("someone saved another version of this case first; both are kept", fix="compare them and save the one you want")
        self.head, self.yours = head, yours


class LabelsChanged(VesaliusError):
    """Another table of labels was saved first: ``labels`` is that one."""

    def __init__(self, labels: tuple[Label, ...]):
        super().__init__("someone changed the labels meanwhile", fix="look at the table as it is now, and change it again")
        self.labels = labels


@dataclass(frozen=True)
class Label:
    """A structure: its value in mask files, and how it is shown."""

    name: str
    value: int
    color: str


def labels_version(labels: Sequence[Label]) -> str:
    """Names a table of labels by what is in it."""
    return hashlib.sha256(json.dumps([asdict(x) for x in labels]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Version:
    id: str
    parent: str | None
    user: str
    at: float
    origin: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A case's row: ``id`` is opaque ('c12'), ``head`` its newest agreed version."""

    id: str
    name: str
    status: str
    head: str | None
    updated: float | None
    priority: float | None
    versions: tuple[Version, ...] = ()
    comments: tuple[Mapping[str, Any], ...] = field(default=())


def manifest_of(data: str | Path | Sequence[str | Path]) -> Manifest:
    """A dataset, or image files (and folders of them) that lie about: each is a case named after its file, or each of its frames is."""
    given = [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)]
    if not given:
        raise UsageError("nothing to annotate", fix="name a dataset, a folder or image files")
    if len(given) == 1 and not Path(given[0]).is_file() and not _is_of_series(Path(given[0])):
        try:
            return framed(open_dataset(given[0]))
        except DataError:
            if not _loose(Path(given[0])):
                raise
    files = [file for one in given for file in (_loose(Path(one)) if Path(one).is_dir() else [Path(one)])]
    return _of_files(files)


def _loose(folder: Path) -> list[Path]:
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


def _of_files(files: Sequence[Path]) -> Manifest:
    rows, taken, dims = [], set(), set()
    for file in files:
        if not file.exists() and "#" not in file.name:
            raise DataError("there is no such file or folder", where=file)
        whole = file.name.partition("#")[0]  # of a series; its UID is not shown
        stem = file.resolve().name if file.is_dir() else re.sub(r"(\.nii)?\.[A-Za-z0-9]+$", "", whole) or whole
        name = next(n for n in (stem, whole, *(f"{stem} ({k})" for k in range(2, len(files) + 2))) if n not in taken)
        taken.add(name)
        dims.add(io.header(file)[1].ndim)
        rows.append(CaseRef(name, name, images={IMAGE: str(file.resolve())}))
    if len(dims) > 1:
        raise DataError("pictures and volumes cannot be annotated in one project", fix="name either the ones or the others")
    root, labels = files[0].parent.resolve(), {"background": 0, "foreground": 1}
    return framed(Manifest("images", root, dims.pop(), (IMAGE,), labels, tuple(rows), layout="files"))


class Project:
    """Open with ``Project(folder, manifest)``; every method may be called from any thread."""

    def __init__(self, folder: str | Path, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest
        self._refs = {ref.id: ref for ref in manifest.cases}
        self._grids: dict[str, Geometry] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError("the project folder cannot be made", where=folder, found=error.strerror) from error
        self.engine = sql.create_engine(f"sqlite:///{self.folder / 'project.sqlite'}", connect_args={"timeout": 20})
        sql.event.listen(self.engine, "connect", _prepare)
        sql.event.listen(self.engine, "begin", _begin)
        with self._writing() as db:
            _TABLES.create_all(db)
            self._take_in(db)
        self._recover()
        self._clean()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        """A transaction that nobody else writes beside. Raises ResourceError where the disk is full or cannot be written to."""
        try:
            with self.engine.connect().execution_options(writes=True) as db, db.begin():
                yield db
        except OperationalError as error:
            text = str(error.orig)
            if any(word in text for word in ("full", "disk I/O", "readonly", "locked")):
                raise ResourceError("the project's database cannot be written", found=text, fix="free some space and save again") from error
            raise

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with self.engine.connect() as db, db.begin():
            yield db

    def _take_in(self, db: sql.Connection) -> None:
        """Rows for the manifest's cases that have none yet, and the label table of a new project."""
        known = set(db.scalars(sql.select(_cases.c.name)))
        given = set(db.scalars(sql.select(_cases.c.name).where(_cases.c.upload.is_(None))))
        if given and not given & set(self._refs):
            fix = "choose another --project, or give the data it was made for"
            raise UsageError("this project was made for other data", where=self.folder, found=", ".join(sorted(given)[:3]), fix=fix)
        new = [{"name": ref.id, "status": "todo", "updated": time.time()} for ref in self.manifest.cases if ref.id not in known]
        if new:
            db.execute(sql.insert(_cases), new)
        if db.scalar(sql.select(_facts.c.value).where(_facts.c.key == "labels")) is None:
            named = [(n, v) for k, (n, v) in enumerate(self.manifest.labels.items()) if k] or [("foreground", 1)]
            labels = [asdict(Label(n, int(v), COLOURS[k % len(COLOURS)])) for k, (n, v) in enumerate(named)]
            db.execute(sql.insert(_facts).values(key="labels", value=labels))
        if db.scalar(sql.select(_facts.c.value).where(_facts.c.key == "id")) is None:
            db.execute(sql.insert(_facts).values(key="id", value=secrets.token_hex(8)))

    @property
    def id(self) -> str:
        """Random, and the project's for ever."""
        with self._reading() as db:
            return db.scalar(sql.select(_facts.c.value).where(_facts.c.key == "id"))

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
        with self._writing() as db:
            known, cases = set(db.scalars(sql.select(_versions.c.id))), set(db.scalars(sql.select(_cases.c.number)))
            for path in masks.glob("c*/*.nii.gz"):
                name, number = path.name.removesuffix(".nii.gz"), path.parent.name[1:]
                if name not in known and number.isdigit() and int(number) in cases and re.fullmatch(r"[0-9a-f]{16}", name):
                    row = {"id": name, "case": int(number), "parent": None, "user": "", "at": path.stat().st_mtime}
                    note = "saved just before the server stopped"
                    db.execute(sql.insert(_versions).values(**row, origin={"kind": "recovered"}, note=note))

    # ---------------------------------------------------------------------------------------------------------------------- labels
    @property
    def labels(self) -> tuple[Label, ...]:
        with self._reading() as db:
            return tuple(Label(**row) for row in db.scalar(sql.select(_facts.c.value).where(_facts.c.key == "labels")))

    def set_labels(self, rows: Sequence[Mapping[str, Any]], known: str | None = None) -> tuple[Label, ...]:
        """Replace the label table. Names and values are unique; a value that a saved version may hold cannot go. ``known`` is the version
        of the table that these were made from: raises LabelsChanged where there is another one now, which is not this one."""
        labels = []
        for k, row in enumerate(rows):
            name, value, colour = (
                str(row.get("name", "")).strip(),
                row.get("value"),
                str(row.get("color", COLOURS[k % len(COLOURS)])).lower(),
            )
            if not 0 < len(name) <= 100 or any(ord(c) < 32 for c in name):
                raise UsageError("a label has a name of 1 to 100 letters", found=len(name))
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
                raise UsageError("a label's value is a whole number", found=value, allowed="1 to 65535")
            if not _COLOUR.fullmatch(colour):
                raise UsageError("a label's colour is written #rrggbb", found=colour[:20])
            labels.append(Label(name, value, colour))
        if not labels or len({x.value for x in labels}) < len(labels) or len({x.name for x in labels}) < len(labels):
            raise UsageError("labels have different names and values, and there is at least one")
        with self._writing() as db:
            now = tuple(Label(**row) for row in db.scalar(sql.select(_facts.c.value).where(_facts.c.key == "labels")))
            if known not in (None, labels_version(now)) and now != tuple(labels):
                raise LabelsChanged(now)
            gone = {x.value for x in now} - {x.value for x in labels}
            if gone and db.scalar(sql.select(sql.func.count()).select_from(_versions)):
                raise UsageError("labels of saved masks cannot be removed", found=sorted(gone), fix="rename them instead")
            db.execute(sql.update(_facts).where(_facts.c.key == "labels").values(value=[asdict(x) for x in labels]))
        return tuple(labels)

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
        with self._reading() as db:
            return [_entry(row) for row in db.execute(sql.select(_cases).order_by(_cases.c.number))]

    def entry(self, case: str) -> Entry:
        """A case with its versions, oldest first, and comments. Raises Missing."""
        with self._reading() as db:
            row = db.execute(sql.select(_cases).where(_cases.c.number == _number(case))).first()
            if row is None:
                raise Missing("there is no such case", fix="open the list of cases again")
            versions = db.execute(sql.select(_versions).where(_versions.c.case == row.number).order_by(_versions.c.at))
            comments = db.execute(sql.select(_comments).where(_comments.c.case == row.number).order_by(_comments.c.id))
            return replace(
                _entry(row),
                versions=tuple(Version(v.id, v.parent, v.user, v.at, v.origin, v.note) for v in versions),
                comments=tuple({"user": c.user, "at": c.at, "text": c.text} for c in comments),
            )

    def read(self, case: str) -> Case:
        """The case's images on their own grid, without the dataset's labels."""
        entry = self.entry(case)
        with self._reading() as db:
            upload = db.scalar(sql.select(_cases.c.upload).where(_cases.c.number == _number(case)))
        if upload:
            return Case(entry.name, entry.name, images={self.manifest.channels[0]: io.read_image(self.folder / "uploads" / upload)})
        return read_case(self.manifest, entry.name, labels=False).without_labels()

    def reference(self, case: str) -> LabelMap | None:
        """The label that the dataset itself brings, if any and if it is a plain map of the project's structures."""
        entry = self.entry(case)
        if entry.name not in self._refs:
            return None
        label = read_case(self.manifest, entry.name).label
        known = set(self.names)
        if label is None or label.overlapping or label.instances or not known.issuperset(label.names[1:]):
            return None
        return label

    def geometry(self, case: str) -> Geometry:
        """The case's grid, from headers where there are files."""
        entry = self.entry(case)
        found = self.glance(entry)
        if found is None:
            found = self._grids[entry.id] = self.read(case).geometry
        return found

    def glance(self, entry: Entry) -> Geometry | None:
        """The case's grid where it is known or in a header; None where the case would have to be read."""
        ref = self._refs.get(entry.name)
        if entry.id not in self._grids and ref is not None and ref.images and self.manifest.built_in is None:
            with suppress(DataError, OSError):
                file = file_of(self.manifest, next(iter(ref.images.values())))[0]
                grid = header_of(file, spacing_of(self.manifest, ref))[1]
                if grid.ndim == min(self.manifest.dims, 3):  # else reading decides what it is
                    self._grids[entry.id] = grid
        return self._grids.get(entry.id)

    def channels(self, entry: Entry) -> tuple[str, ...]:
        """The names of a case's images."""
        ref = self._refs.get(entry.name)
        if ref is None:
            return self.manifest.channels[:1]
        return tuple(ref.images) or self.manifest.channels

    def brings_label(self, entry: Entry) -> bool:
        """Whether the dataset has a label for a case."""
        ref = self._refs.get(entry.name)
        return ref is not None and bool(ref.labels)

    def source(self, entry: Entry) -> Path | None:
        """The file that a case's first image was read from; None where that is no file of its own."""
        ref = self._refs.get(entry.name)
        file = Path(file_of(self.manifest, next(iter(ref.images.values())))[0]) if ref is not None and ref.images else None
        return file if file is not None and file.is_file() else None

    def series(self, entry: Entry, format: str) -> str:
        """The address of the DICOM series that a case was read from. Raises DataError, naming the case, where it was read from none."""
        ref = self._refs.get(entry.name)
        address = next(iter(ref.images.values()), "") if ref is not None and self.manifest.built_in is None else ""
        file = file_of(self.manifest, address)[0] if address else ""
        if not file or not io.is_dicom(file):
            fix = "export NIfTI label maps, or choose other cases"
            raise DataError(f"case '{entry.name}' was not read from a DICOM series, which a {format} refers to", fix=fix)
        return file

    def stamp(self, entry: Entry, channel: str) -> str:
        """Changes when the file behind an image does."""
        ref = self._refs.get(entry.name)
        if ref is None or channel not in ref.images:
            return entry.id
        file = Path(file_of(self.manifest, ref.images[channel])[0].partition(":")[0])
        facts = f"{file.stat().st_mtime_ns} {file.stat().st_size}" if file.exists() else ""
        return hashlib.sha256(f"{ref.images[channel]} {facts}".encode()).hexdigest()[:16]

    def promise(self, entry: Entry, channel: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape (C, *spatial) and type of an image, by its header; None where there is none, which reading decides."""
        ref = self._refs.get(entry.name)
        if ref is not None and channel in ref.images:
            with suppress(DataError, OSError):
                file, one = file_of(self.manifest, ref.images[channel])
                sides, _, dtype = header_of(file, spacing_of(self.manifest, ref))
                return sides if one is None else (1, *sides[1:]), dtype
        return None

    def add(self, name: str, content: bytes) -> str:
        """A new case from an uploaded NIfTI file, which is read before it is taken in; its id."""
        path, _ = self.taken_in(content, self.folder / "uploads")
        try:
            with self._writing() as db:
                row = {"name": name[:100] or path.name[:8], "status": "todo", "updated": time.time(), "upload": path.name}
                taken = set(db.scalars(sql.select(_cases.c.name)))
                row["name"] = next(n for n in (row["name"], *(f"{row['name']} ({k})" for k in range(2, len(taken) + 3))) if n not in taken)
                return f"c{db.execute(sql.insert(_cases).values(**row)).inserted_primary_key[0]}"
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def taken_in(self, content: bytes, folder: Path) -> tuple[Path, Image]:
        """The file that an uploaded NIfTI becomes, and its image, which fits this project; one that cannot be read leaves no file."""
        path = folder / (secrets.token_hex(8) + (".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"))
        io.atomic_write_bytes(path, content)
        try:
            sides, grid, dtype = io.header(path)
            check_weight(sides, dtype)
            if grid.ndim != min(self.manifest.dims, 3):
                raise GeometryError("the image has other dimensions than this project's", found=f"{grid.ndim}D")
            return path, io.read_image(path)
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
        with self._writing() as db:
            db.execute(sql.insert(_comments).values(case=_number(entry.id), user=user, at=time.time(), text=text.strip()))

    def _update(self, case: str, **fields: Any) -> None:
        with self._writing() as db:
            if not db.execute(sql.update(_cases).where(_cases.c.number == _number(case)).values(**fields)).rowcount:
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
            with self._writing() as db:
                number = _number(entry.id)
                head, status = db.execute(sql.select(_cases.c.head, _cases.c.status).where(_cases.c.number == number)).one()
                if head != parent and head is not None:
                    row = db.execute(sql.select(_versions).where(_versions.c.id == head)).one()
                    if (row.parent, row.user) == (parent, user) and self._holds(entry.id, head, mask):
                        path.unlink()
                        return Version(row.id, row.parent, row.user, row.at, row.origin, row.note)
                db.execute(sql.insert(_versions).values(**asdict(version), case=number))
                changes: dict[str, Any] = {"updated": version.at} | ({"head": version.id} if head == parent else {})
                if status == "todo" or status != "draft" and head == parent and not self._holds(entry.id, head, mask):
                    changes["status"] = "draft"
                db.execute(sql.update(_cases).where(_cases.c.number == number).values(**changes))
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
        labels, values = self.labels, self.mask(case, version)
        table = np.zeros(65536, np.uint16)
        for k, label in enumerate(labels, 1):
            table[label.value] = k
        return LabelMap(table[values].astype(np.int32), self.geometry(case), ("background", *(label.name for label in labels)))

    def to_values(self, label: LabelMap) -> np.ndarray:
        """Class indices of a model's answer -> the project's label values, by name; structures that the project has not are left out."""
        known = {x.name: x.value for x in self.labels}
        only = [x.value for x in self.labels]
        data = np.asarray(label.data)
        if label.overlapping:
            out = np.zeros(data.shape[1:], np.uint16)
            for name, on in zip(label.names[-len(data) :], data, strict=True):
                out[np.asarray(on, bool)] = known.get(name, 0)
            return out
        named = list(label.semantic.names)
        table = np.array([0, *(known.get(n, only[0] if len(named) == 2 and len(only) == 1 else 0) for n in named[1:])], np.uint16)
        return table[np.maximum(np.asarray(label.semantic.data), 0)]

    # ---------------------------------------------------------------------------------------------------------------------- models
    def runs(self) -> list[tuple[str, str, Path]]:
        """(id, title, run folder) of the runs that the project knows."""
        with self._reading() as db:
            return [(m.id, m.title, Path(m.run)) for m in db.execute(sql.select(_models))]

    def add_run(self, run: str | Path, title: str) -> str:
        """Make a run folder a model of this project; its id."""
        path = str(Path(run).resolve())
        with self._writing() as db:
            known = db.scalar(sql.select(_models.c.id).where(_models.c.run == path))
            if known is None:
                known = f"run-{secrets.token_hex(4)}"
                db.execute(sql.insert(_models).values(id=known, title=title, run=path))
        return known


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sql.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _number(case: str) -> int:
    if not re.fullmatch(r"c\d{1,9}", str(case)):
        raise Missing("there is no such case", fix="open the list of cases again")
    return int(case[1:])


def _entry(row: Any) -> Entry:
    return Entry(f"c{row.number}", row.name, row.status, row.head, row.updated, row.priority)
