"""Scores of predictions against references, on the original grid: of a case in memory, and of a folder that any tool wrote, in parallel.

A folder holds a label file a case (``<case>.nii.gz``; nnU-Net, Vesalius, most tools), or a folder a case with a mask file a structure
(``<case>/liver.nii.gz``; TotalSegmentator). Whatever does not fit is a ``Problem`` with a name, and a row without a value.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.case import Case, LabelMap
from ..core.errors import DataError, GeometryError, ResourceError, UsageError, nearest
from ..core.machine import cores
from ..core.manifest import CaseRef, Manifest
from ..core.prediction import Prediction, Score
from ..datasets import open_dataset, read_case
from ..datasets.plain import dims_of, label_values
from ..datasets.stems import MASK_SUFFIX, ending, images_in, stem
from ..io import VesaliusNote, read_image, read_labels
from ..metrics import DEFAULT as RULES
from ..metrics import TOLERANCE, check_metrics, metric, pool, score_prediction
from .pairs import fixed_side
from .progress import Progress

PROBABILITY = "_probability"  # <case>_probability.nii.gz beside <case>.nii.gz, as 'vesalius predict --probability' writes it
IN_FLIGHT = 4  # cases handed out ahead, per worker
NO_SUBGROUP = ("fold", "spacing_mm", "spacing_xyz", "pixel_mm")  # table columns that say nothing of patients
FEW = 32  # so many cases are scored in this process: starting workers would take longer
What = Literal[
    "missing prediction",
    "extra prediction",
    "duplicate id",
    "other grid",
    "other labels",
    "unreadable file",
    "NaN probability",
    "empty reference",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the predictions of a folder: an 'error' leaves a case without values, a 'note' does not."""

    what: What
    case: str
    level: Literal["error", "note"]
    where: str = ""
    details: str = ""

    def __str__(self) -> str:
        return f"{self.what}: case '{self.case}'" + "".join(f", {text}" for text in (self.where, self.details) if text)

    def to_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The scores of one folder, and what was wrong with it."""

    name: str
    manifest: Manifest
    metrics: tuple[str, ...]
    rows: list[Score]
    problems: list[Problem] = field(default_factory=list)
    folder: Path | None = None
    values: Mapping[str, int] | None = None

    @property
    def failed(self) -> bool:
        """Whether a problem leaves a case without values: a command that scores should not end in success then."""
        return any(p.level == "error" for p in self.problems)

    def records(self) -> list[dict]:
        """Rows of the report: ``Score.to_json()`` with ``method``."""
        return [{**r.to_json(), "method": self.name} for r in self.rows]

    def write(self, out: str | Path, *, command: str = "") -> Path:
        """report.html, scores.csv, summary.json and the other files of ``report.tables.write_tables``; returns the page."""
        from ..report.page import write_report

        records = self.records()
        cases = sorted({r["case"] for r in records})
        patients = len({self.manifest[c].patient for c in cases})
        facts = {"name": self.manifest.name, "licence": self.manifest.licence, "cases": len(cases), "patients": patients}
        return write_report(
            out,
            title=f"{self.name} against {self.manifest.name}",
            rows=records,
            methods={self.name: {}},
            cases=Pictures(self.manifest, {self.name: [self.folder]} if self.folder else {}, self.values),
            manifest=facts | {"labels": ", ".join(self.manifest.names[1:])},
            plan={"command": command},
            columns=case_columns(self.manifest, cases),
            problems=[p.to_json() for p in self.problems],
            pooled=pooled(records, self.metrics),
        )


def pooled(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict]:
    """Values over all cases of the metrics that are pooled, a row a method and seed (its folds together)."""
    mine: dict[tuple, list[Mapping[str, Any]]] = {}
    for r in records:
        if r["metric"] in metrics and metric(r["metric"]).pooled:
            mine.setdefault((r["method"], r.get("seed")), []).append(r)
    several = len({seed for _, seed in mine}) > 1
    out = []
    for (method, seed), rows in mine.items():
        group = {"group": f"seed {seed}"} if several else {}
        out += [{**r.to_json(), "method": method, "seed": seed, "label": metric(r.metric).label, **group} for r in pool(rows)]
    return out


def case_columns(manifest: Manifest, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What subgroups are made of: column -> case -> value, of the data set's table and its sources (sites)."""
    out: dict[str, dict[str, Any]] = {}
    for case in cases:
        ref = manifest[case]
        for name, value in {"source": ref.source or None, **ref.table}.items():
            if value is not None and name not in NO_SUBGROUP:
                out.setdefault(name, {})[case] = value
    return out


class Pictures(Mapping):
    """Case -> ``CasePicture``, read from the files when it is asked for: image, reference, and the predictions of each method's folders
    (the first that has the case). A case that cannot be shown is not in it; references without an image are shown on black."""

    def __init__(self, manifest: Manifest, folders: Mapping[str, Sequence[Path]], values: Mapping[str, int] | None = None):
        self.manifest, self.folders, self.values = manifest, folders, values
        self._found: dict[Path, dict[str, Path]] = {}

    def __iter__(self) -> Iterator[str]:
        return (c.id for c in self.manifest.cases)

    def __len__(self) -> int:
        return len(self.manifest.cases)

    def __getitem__(self, case_id: str) -> Any:
        from ..report.page import CasePicture

        try:
            case = read_case(self.manifest, case_id)
        except (DataError, UsageError):  # pairs are no cases of the data set
            raise KeyError(case_id) from None
        reference = case.label
        if reference is None or reference.overlapping or reference.geometry.ndim not in (2, 3):
            raise KeyError(case_id)
        grid = reference.geometry.canonical()
        shown = next((i for i in case.images.values() if i.geometry.ndim == grid.ndim), None)
        image = np.zeros((1, *grid.shape), np.float32) if shown is None else np.asarray(shown.on(grid, "nearest").data)
        answers = {m: self._answer(folders, case, reference) for m, folders in self.folders.items()}
        given = {m: np.asarray(a.semantic.on(grid).data) for m, a in answers.items() if a is not None}
        return CasePicture(case_id, image, grid.spacing, np.asarray(reference.semantic.on(grid).data), given, self.manifest.names)

    def _answer(self, folders: Sequence[Path], case: Case, reference: LabelMap) -> LabelMap | None:
        for folder in folders:
            if folder not in self._found:
                self._found[folder] = find_predictions(folder, list(self))[0] if folder.is_dir() else {}
            path = self._found[folder].get(case.id)
            if path is None:
                continue
            job = _Job(self.manifest, folder, {}, (), TOLERANCE, self.values)
            try:
                given = _on_reference(_structure_masks(job, path, reference) if path.is_dir() else _label_file(job, path), reference, path)
            except DataError:
                return None
            if given.overlapping:  # one colour a voxel: the later structure lies above
                flat = np.zeros(given.geometry.shape, np.int16)
                for k, mask in enumerate(np.asarray(given.data), 1):
                    flat[mask > 0] = k
                return LabelMap(flat, given.geometry, self.manifest.names)
            return given
        return None


# ------------------------------------------------------------------------------------------------------------------------------ one case
def score(
    prediction: Prediction,
    case: Case,
    *,
    metrics: Sequence[str] = RULES,
    patient: str = "",
    tolerances: float | Mapping[str, float] = TOLERANCE,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Score]:
    """``metrics.score_prediction``, each row of a structure with its volume in reference and prediction (ml, in 2D mm^2). The labels of a
    pair's moving case, laid on the fixed grid, are scored against those of the fixed case. A rater who spoke of a part of the case alone
    (scribbles) is left out where another spoke of all of it."""
    case = _whole(fixed_side(case))
    rows = score_prediction(prediction, case, metrics=tuple(metrics), tolerances=tolerances, targets=targets, patient=patient)
    label = prediction.label
    if label is None or case.label is None or not label.geometry.close(case.label.geometry):
        return rows
    return [r for rater in dict.fromkeys(r.rater for r in rows) for r in _with_volumes([r for r in rows if r.rater == rater], label, case)]


def _whole(case: Case) -> Case:
    """The case without the labels that say nothing of some voxels, if any say something of all."""
    if len(case.labels) < 2:
        return case
    whole = {name: x for name, x in case.labels.items() if x.overlapping or (np.asarray(x.data) >= 0).all()}
    return replace(case, labels=whole) if whole and len(whole) < len(case.labels) else case


def _with_volumes(rows: list[Score], prediction: LabelMap, case: Case) -> list[Score]:
    """Rows of one rater; those of no rater or structure stay as they are."""
    reference = case.labels.get(rows[0].rater)
    if reference is None:
        return rows
    voxel, unit = reference.geometry.voxel_volume, "mm2" if reference.geometry.ndim == 2 else "ml"
    voxel /= 1 if unit == "mm2" else 1000
    known = None if reference.overlapping else np.asarray(reference.data) >= 0
    theirs, ours = _voxels(reference.semantic, None), _voxels(prediction.semantic, known)
    return [
        replace(r, extra={**r.extra, f"reference_{unit}": theirs[r.structure] * voxel, f"predicted_{unit}": ours[r.structure] * voxel})
        if r.structure in theirs and r.structure in ours
        else r
        for r in rows
    ]


def _voxels(labels: LabelMap, known: np.ndarray | None) -> dict[str, int]:
    """Voxels by structure, of those that somebody spoke for."""
    data = np.asarray(labels.data)
    if labels.overlapping:
        names = labels.names[len(labels.names) - len(data) :]
        return {n: int(np.count_nonzero(mask if known is None else mask & known)) for n, mask in zip(names, data > 0, strict=True)}
    counts = np.bincount(
        (data if known is None or known.all() else data[known]).ravel().astype(np.intp) + 1, minlength=len(labels.names) + 1
    )
    return {n: int(counts[k + 1]) for k, n in enumerate(labels.names)}


def mean_dsc(rows: Sequence[Score]) -> float:
    """Over structures and cases where it is defined; NaN when nowhere."""
    values = [r.value for r in rows if r.metric == "dsc" and r.value is not None]
    return float(np.mean(values)) if values else float("nan")


# -------------------------------------------------------------------------------------------------------------------------------- folders
def evaluate(
    pred: str | Path,
    ref: str | Path | Manifest,
    *,
    metrics: Sequence[str] = RULES,
    tolerances: float | Mapping[str, float] = TOLERANCE,
    split: str | None = None,
    labels: Mapping[str, int] | None = None,
    workers: int | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Score the folder ``pred``, whoever made it, against ``ref``: a data set, or a plain folder of label files.

    ``split``: only these cases (where all predictions are of test cases: those, unless said). ``labels``: structure -> value in the
    prediction files, where it is not that of the reference; other values are background then. For a plain folder ``labels`` is the label
    table of both. ``workers``: processes (0: none; default: one a core from 32 cases on); the rows do not depend on it. Raises UsageError
    and DataError for what concerns all cases; what is wrong with one is a ``Problem``.
    """
    folder = Path(pred)
    if not folder.is_dir():
        raise DataError("the folder of predictions does not exist", where=folder)
    manifest, named = references(ref, folder, labels)
    check_metrics(metrics, manifest)
    ids = [c.id for c in manifest.cases if split is None or c.split == split]
    if not ids:
        raise UsageError("no case to score", where="--split", found=split, allowed="train, val, test")
    files, problems = find_predictions(folder, [c.id for c in manifest.cases])
    if not files and not any(p.what == "duplicate id" for p in problems):
        raise DataError(
            "no file in this folder goes with a case of the references",
            where=folder,
            found=", ".join(p.case for p in problems[:4]) or "no label file",
            allowed=", ".join(ids[:4]) + (", ..." if len(ids) > 4 else ""),
            fix="name every label file like its case",
        )
    tests = set(manifest.where("test"))
    if split is None and tests and set(files) and set(files) <= tests:
        ids = [i for i in ids if i in tests]
    progress = progress or Progress(quiet=True)
    job = _Job(manifest, folder, {i: files[i] for i in ids if i in files}, tuple(metrics), tolerances, named)
    with progress.task("scoring", len(ids)) as advance:
        rows, found = _score_all(job, ids, workers, lambda: advance(1))
    doubled = {p.case for p in problems if p.what == "duplicate id"}
    found = [p for p in found if not (p.what == "missing prediction" and p.case in doubled)]
    wanted = set(ids)
    problems = [p for p in problems if p.what == "extra prediction" or p.case in wanted]
    return Evaluation(name or folder.resolve().name, manifest, tuple(metrics), rows, [*problems, *found], folder, named)


def references(ref: str | Path | Manifest, pred: Path, labels: Mapping[str, int] | None) -> tuple[Manifest, dict[str, int] | None]:
    """The references, and the values of the prediction files by structure where they are other ones.

    A folder of label files alone gets its label table from ``labels``, from a dataset.json (of nnU-Net) in it, above it or beside the
    predictions, or from the values in its files.
    """
    manifest = ref if isinstance(ref, Manifest) else open_dataset(ref)
    if any(c.labels for c in manifest.cases):
        unknown = [n for n in labels or {} if n not in manifest.names]
        if unknown:
            raise UsageError(
                f"the references have no structure '{unknown[0]}'", where="labels", fix=nearest(unknown[0], manifest.names[1:])
            )
        return manifest, dict(labels) if labels else None
    if isinstance(ref, Manifest) or manifest.layout != "plain" or not Path(ref).is_dir():
        raise DataError("the data set has no references to score against", where=manifest.name)
    root = Path(ref)
    found = images_in(root)
    by_stem: dict[str, Path] = {}
    for file in found:
        if stem(file) in by_stem:
            raise DataError("two references have the same name", where=root, found=f"{by_stem[stem(file)].name}, {file.name}")
        by_stem[stem(file)] = file
    table = {"background": 0, **labels} if labels else _declared_labels(root, root.parent, pred) or label_values(found)
    cases = tuple(CaseRef(s, s, labels={"reference": f.name}) for s, f in by_stem.items())
    return Manifest(root.resolve().name, root, dims_of(found[0]), (), table, cases, layout="plain"), None


def _declared_labels(*folders: Path) -> dict[str, int] | None:
    """The label table of the first dataset.json of nnU-Net; tables with regions (several values a name) are not for exclusive classes."""
    for folder in folders:
        try:
            table = json.loads((folder / "dataset.json").read_text())["labels"]
            found = {str(name): int(value) for name, value in table.items() if not isinstance(value, list)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if len(found) == len(table) and 0 in found.values():
            return dict(sorted(found.items(), key=lambda item: item[1]))
    return None


def find_predictions(folder: Path, ids: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Case -> its label file, or its folder of one mask a structure; and duplicates and files that match no case.

    A file goes with the case of its name, or else of its name without a suffix such as '_seg'. An .npz beside another file is the
    probabilities that nnU-Net keeps, and is left out, as is ``<case>_probability``.
    """
    known, by_case = set(ids), {}
    problems: list[Problem] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or ending(path)):
            continue
        name = path.name if path.is_dir() else stem(path)
        case = name if name in known else MASK_SUFFIX.sub("", name)
        if name.removesuffix(PROBABILITY) in known and name not in known:
            continue
        if case in known:
            by_case.setdefault(case, []).append(path)
        elif path.is_file() or images_in(path):
            problems.append(Problem("extra prediction", name, "note", str(path), "matches no case of the references"))
    files = {}
    for case, paths in by_case.items():
        paths = [p for p in paths if ending(p) != ".npz"] or paths
        if len(paths) == 1:
            files[case] = paths[0]
        else:
            problems.append(Problem("duplicate id", case, "error", str(folder), "which one? " + ", ".join(p.name for p in paths)))
    return files, problems


# ------------------------------------------------------------------------------------------------------------------ one case of a folder
@dataclass(frozen=True)
class _Job:
    """What every worker knows."""

    manifest: Manifest
    folder: Path
    files: Mapping[str, Path]
    metrics: tuple[str, ...]
    tolerances: float | Mapping[str, float]
    values: Mapping[str, int] | None


def _score_file(job: _Job, case_id: str) -> tuple[list[Score], list[Problem]]:
    """Rows and problems of a case; no problem stops the others."""
    ref = job.manifest[case_id]
    if not ref.labels and job.manifest.built_in is None:
        return [], []
    path = job.files.get(case_id)
    try:
        case = read_references(job.manifest, case_id)
    except DataError as e:
        return _nothing(job, ref, f"reference: {e}"), [_problem("unreadable file", ref, e, path)]
    if not case.labels:
        return [], []
    structures = [n for n in job.manifest.names[1:]]
    if path is None:
        note = "no prediction"
        return _nothing(job, ref, note, structures, case), [Problem("missing prediction", case_id, "error", str(job.folder))]
    notes: list[Problem] = []
    try:
        prediction, notes = _read(job, case, path)
        rows = score(prediction, case, metrics=job.metrics, tolerances=job.tolerances, targets=job.manifest.targets)
    except GeometryError as e:
        return _nothing(job, ref, str(e), structures, case), [_problem("other grid", ref, e, path)]
    except DataError as e:
        labels = "label table" in e.what or "whole numbers" in e.what or "different classes" in e.what or "no mask" in e.what
        return _nothing(job, ref, str(e), structures, case), [_problem("other labels" if labels else "unreadable file", ref, e, path)]
    return rows, notes + _empty(case, job.manifest.names[1:])


def _nothing(job: _Job, ref: CaseRef, note: str, structures: Sequence[str] = ("",), case: Case | None = None) -> list[Score]:
    """Rows without a value, of the same structures, raters and metrics as a scored case has."""
    raters = list(_whole(case).labels) if case is not None else [""]
    facts = {m: metric(m) for m in job.metrics}
    return [
        Score(ref.id, m, None, s, ref.patient, rater=rater, kind=f.kind, note=note, extra={"unit": f.unit, "better": f.better})
        for rater in raters
        for s in structures
        for m, f in facts.items()
    ]


def _problem(what: What, ref: CaseRef, error: DataError, path: Path | None) -> Problem:
    return Problem(what, ref.id, "error", str(path or ""), str(error))


def _empty(case: Case, structures: Sequence[str]) -> list[Problem]:
    """Structures that no voxel of a reference has: values that need one are undefined."""
    out = []
    for rater, reference in case.labels.items():
        found = _voxels(reference.semantic, None)
        empty = [n for n in structures if found.get(n) == 0 and (reference.annotated is None or n in reference.annotated)]
        if empty and len(empty) == len(structures):
            out.append(Problem("empty reference", case.id, "note", details=f"rater '{rater}' marked nothing"))
    return out


def read_references(manifest: Manifest, case_id: str) -> Case:
    """The case with its labels; images are read only where the label files carry no geometry of their own."""
    ref = manifest[case_id]
    own = all(ending(str(address).partition(":")[0]) in (".nii", ".nii.gz", ".mha", ".nrrd", ".dcm") for address in ref.labels.values())
    if manifest.built_in is not None or not own:
        return read_case(manifest, case_id)
    return read_case(replace(manifest, cases=(replace(ref, images={}, rois={}),)), case_id)


def _read(job: _Job, case: Case, path: Path) -> tuple[Prediction, list[Problem]]:
    reference = case.label
    given = _structure_masks(job, path, reference) if path.is_dir() else _label_file(job, path)
    given = _on_reference(given, reference, path)
    image, problems = _probability(job, case, reference)
    return Prediction(labels={"prediction": given}, probability=image), problems


def _label_file(job: _Job, path: Path) -> LabelMap:
    m = job.manifest
    if job.values is None:
        table = {"values": m.values, "names": m.names, "ignore": m.ignore, "instances": m.instances}
        return read_labels(path, **table, spacing=m.spacing_mm)
    ids = read_labels(path, values=(), names=("background",), instances=True, spacing=m.spacing_mm)
    data, out = np.asarray(ids.data), np.zeros(ids.geometry.shape, np.int16)
    for name, value in job.values.items():
        out[data == value] = m.names.index(name)
    return LabelMap(out, ids.geometry, m.names)


def _structure_masks(job: _Job, folder: Path, reference: LabelMap) -> LabelMap:
    """A mask file for each structure of the reference; other files in the folder (the tool's other structures) count for nothing."""
    by_name = {stem(f): f for f in images_in(folder)}
    wanted = job.manifest.names[1:]
    missing = [n for n in wanted if n not in by_name]
    if missing:
        raise DataError(f"no mask of '{missing[0]}'", where=folder, found=", ".join(sorted(by_name)[:8]), allowed=", ".join(wanted))
    read = {"values": (), "instances": True, "spacing": job.manifest.spacing_mm}
    maps = [read_labels(by_name[name], names=("background", name), **read) for name in wanted]
    grid = maps[0].geometry
    for name, ids in zip(wanted, maps, strict=True):
        if not ids.geometry.close(grid):
            raise GeometryError("masks of one case lie on different grids", where=by_name[name], found=ids.geometry.describe())
    masks = [np.asarray(ids.data) > 0 for ids in maps]
    if len(masks) == 1:
        return LabelMap(masks[0].astype(np.uint8), grid, reference.names)
    return LabelMap(np.stack(masks), grid, reference.names, overlapping=True)


def _probability(job: _Job, case: Case, reference: LabelMap) -> tuple[Any, list[Problem]]:
    """The probabilities beside the label file, where there are any; NaN or another grid makes them unusable, not the labels."""
    path = job.folder / f"{case.id}{PROBABILITY}.nii.gz"
    if not path.is_file():
        return None, []
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", VesaliusNote)
            image = read_image(path)
            np.asarray(image.data)
    except DataError as e:
        return None, [Problem("unreadable file", case.id, "error", str(path), str(e))]
    odd = [str(n.message) for n in notes if "NaN" in str(n.message)]  # the reader replaces them, with a note
    if odd:
        return None, [Problem("NaN probability", case.id, "error", str(path), odd[0])]
    if not image.geometry.close(reference.geometry):
        return None, [Problem("other grid", case.id, "error", str(path), f"found {image.geometry.describe()}")]
    return replace(image, geometry=reference.geometry), []


def _on_reference(given: LabelMap, reference: LabelMap, path: Path) -> LabelMap:
    """Files without geometry (PNG, NPZ) take the reference's when the shape is the same; others must lie on its grid."""
    if given.geometry == reference.geometry or given.geometry.close(reference.geometry):
        return replace(given, geometry=reference.geometry)
    plain = path.suffix.lower() in (".png", ".bmp", ".tif", ".tiff", ".npz", ".npy")
    if plain and given.geometry.shape == reference.geometry.shape:
        return replace(given, geometry=reference.geometry)
    raise GeometryError(
        "the prediction does not lie on the reference's grid",
        where=path,
        found=given.geometry.describe(),
        allowed=reference.geometry.describe(),
        fix="resample the prediction to the reference's grid, or correct its header",
    )


# ------------------------------------------------------------------------------------------------------------------------------- workers
def _score_all(job: _Job, ids: Sequence[str], workers: int | None, each: Callable[[], None]) -> tuple[list[Score], list[Problem]]:
    if workers is None:
        workers = min(cores(), 8) if len(ids) >= FEW else 0
    if workers < 0:
        raise UsageError("a number of worker processes", where="--workers", found=workers, allowed="0 or more")
    in_process = workers < 2 or job.manifest.built_in is not None  # phantoms are made, not read: they may not cross process borders
    rows: list[Score] = []
    problems: list[Problem] = []
    for found, wrong in (_score_file(job, i) for i in ids) if in_process else _in_workers(job, ids, workers):
        rows += found
        problems += wrong
        each()
    return rows, problems


def _in_workers(job: _Job, ids: Sequence[str], workers: int) -> Iterator[tuple[list[Score], list[Problem]]]:
    """In the order of ``ids``; a few cases ahead of what was taken, so that results never pile up. Ctrl-C ends it."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (job,))
    waiting: deque[tuple[str, Future]] = deque()
    try:
        for n, case_id in enumerate(ids):
            with _deaf() if n < workers else nullcontext():  # each of the first tasks starts a process
                waiting.append((case_id, pool.submit(_work, case_id)))
            if len(waiting) >= IN_FLIGHT * workers:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()
    except BrokenProcessPool:
        raise ResourceError(
            "a scoring worker died, most likely for want of memory",
            found=f"while at one of {', '.join(i for i, _ in list(waiting)[: workers + 1])}",
            fix="say --workers 0, or use a machine with more memory",
        ) from None
    except KeyboardInterrupt:  # a worker that is still starting would be waited for
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: _Job | None = None  # of this worker process


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C, which is the parent's business. (Only a main thread can say so.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker(job: _Job) -> None:
    """Ctrl-C is the parent's business, and a worker whose parent died ends."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _job = job


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(case_id: str) -> tuple[list[Score], list[Problem]]:
    return _score_file(_job, case_id)
