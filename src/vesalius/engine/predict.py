"""Prediction of files, folders and data sets: what is read, by whom, and what is written for each kind of answer."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from .. import catalog
from ..core.case import Case, Query
from ..core.errors import DataError, ResourceError, UsageError
from ..core.geometry import Geometry
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..io import header, write_displacement, write_image, write_labels
from ..io.files import WRITABLE
from ..io.wsi import is_slide, write_geojson
from ..methods.learned import LearnedMethod
from ..ops.polygons import annotations
from . import checkpoint
from .fit import Interrupted
from .infer import accelerate_if_worth_it, can_be_cut, infer, infer_in_blocks, middle, need_gib
from .inputs import Job, jobs_of, paired
from .progress import Progress
from .record import Ledger, read_json, write_json
from .runs import Trained, open_run, out_of_memory, reader


def predict(
    run: str | Path | Trained,
    inputs: str | Path | Iterable[str | Path] | Manifest,
    out: str | Path,
    *,
    pairs: str | Path | None = None,
    texts: Sequence[str] = (),
    format: str | None = None,
    probability: bool = False,
    overwrite: bool = False,
    tta: bool | None = None,
    backend: str = "auto",
    device: str = "auto",
    seed: int = 0,
    split: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Label files on each input's own grid with the data set's label values; returns their paths.

    ``inputs``: image files, folders of them, a dataset folder, or a Manifest (``engine.inputs.jobs_of``). What this run wrote into ``out``
    before is kept, so that a prediction that was stopped goes on; another file in the way is refused; ``overwrite`` predicts everything
    anew. ``tta``: average over mirrored windows or not (None: as planned). One bad input is reported at the end and does not stop the
    others (``DataError`` naming all of them, after everything else was written).

    A registration answers pairs: those that a dataset declares, the first with the second of two files, else every input with every other
    (of a dataset: of its split). ``pairs``: a CSV with the columns fixed and moving that names pairs of the inputs, or, without inputs,
    image files. Of each pair it writes <fixed>__<moving>.nii.gz, the displacement in world mm on the fixed grid, and beside it the warped
    moving image (.._warped) and, of a dataset, the warped moving labels (.._labels).

    A method that takes expressions answers those of a dataset (queries.csv) and ``texts``, as text1, text2, ..., for every input: a folder
    <case>/ of masks, one an expression, and <case>.json with their scores.
    """
    progress = progress or Progress(quiet=True)
    trained = run if isinstance(run, Trained) else open_run(run, device=device)
    if format is not None and format not in (endings := _endings(trained.plan.dims)):
        raise UsageError("predictions are not written as this", where="--format", found=format, allowed=", ".join(endings))
    if trained.method.unit == "pair":
        _check_fields(format, probability)
        jobs = paired(inputs, pairs, trained.plan, trained.manifest, reader, split=split, progress=progress)
    elif pairs is not None:
        raise UsageError("pairs are for registration, and this model answers single cases", where="--pairs", fix="leave --pairs out")
    else:
        jobs = jobs_of(inputs, trained.plan, trained.manifest, reader, split=split, progress=progress)
    if not jobs:
        raise UsageError("nothing to predict", found="no input file or case")
    asked = _takes(trained.record["method"], "queries")
    if asked and probability:
        raise UsageError("the scores of expressions are in <case>.json", where="--probability", fix="leave --probability out")
    if texts:
        if not asked:
            raise UsageError("this model takes no expressions", where="--text", found=trained.record["method"], fix="leave --text out")
        jobs = [replace(job, read=partial(_asked, job.read, tuple(texts))) for job in jobs]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _mirroring(trained, tta) as plan:
        return _predict(replace(trained, plan=plan), jobs, out, format, probability, overwrite, backend, seed, progress, texts)


def _predict(
    trained: Trained, jobs: Sequence[Job], out: Path, format, probability, overwrite, backend, seed, progress, texts: Sequence[str] = ()
) -> list[Path]:
    ledger, failed, fields = Ledger(out, _identity(trained, seed, texts)), [], trained.method.unit == "pair"
    asked = _takes(trained.record["method"], "queries")
    maps = _gives_maps(trained.record["method"]) and not asked
    todo: dict[Path, Job] = {}
    for job in jobs:
        target = out / f"{job.name}{(format or job.ending) if maps or fields else '.json'}"
        if target in todo:
            fix = "predict them into different folders"
            failed.append(str(DataError("two inputs have the same name", where=job.where, found=todo[target].where, fix=fix)))
        else:
            todo[target] = job
    kept = [t for t in todo if not overwrite and ledger.wrote(t) and (not probability or _beside(t).exists())]
    written = set(kept)
    left = {t: job for t, job in todo.items() if t not in written}
    if kept:
        progress.say(f"{len(kept)} of {len(jobs)} are there already (--overwrite predicts them anew)")
    if left:
        _accelerate(trained, list(left.values()), backend, progress)
    with progress.task("predicting", len(todo), len(kept)) as advance, _stopping(progress) as stopped:
        for target, job in left.items():
            if stopped():
                raise Interrupted("interrupted; what was predicted is kept", where=out, fix="give the same command again to go on")
            try:
                _may_write(target, job, overwrite or ledger.wrote(target))
                new = not target.exists()
                answer = _answer(trained, job, seed=seed, probability=probability, progress=progress)
                for note in answer.notes:
                    progress.say(f"{job.name}: {note}")
                if new:
                    ledger.add(target)  # beforehand, so that a file of ours is never taken for another's
                if fields:
                    _write_field(target, answer, trained.manifest, progress)
                elif maps:
                    data, grid = np.asarray(answer.label.data), answer.label.geometry
                    write_labels(target, data, grid, values=trained.manifest.values, names=trained.manifest.names)
                    _write_images(target, answer, trained.record["method"])
                    if job.files and is_slide(job.files[0]):
                        _outline(target, answer, header(job.files[0], spacing=trained.manifest.spacing_mm)[1])
                else:
                    if asked:
                        _write_masks(target.with_suffix(""), answer, format or job.ending)
                    write_json(target, {"text": dict(answer.text), "table": dict(answer.table), "notes": list(answer.notes)})
                if not new:
                    ledger.add(target)
                if probability and answer.probability is not None:
                    write_image(_beside(target), np.asarray(answer.probability.data), answer.probability.geometry)
                written.add(target)
            except (DataError, ResourceError) as e:
                failed.append(str(e))
            except (MemoryError, RuntimeError) as e:
                if not out_of_memory(e):
                    raise
                failed.append(f"{job.where}: not enough memory.")
            advance(1, job.where[-30:])
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise DataError(f"{len(failed)} of {len(jobs)} inputs could not be predicted: {failed[0]}{more}", where=out)
    return [t for t in todo if t in written]


def _gives_maps(method: str) -> bool:
    """Whether a method answers with label maps; the answers of others (texts, columns of the table) are written as JSON."""
    return method not in catalog.cards() or bool({"labels", "probability"} & set(catalog.get(method).gives))


def _takes(method: str, field: str) -> bool:
    return method in catalog.cards() and field in catalog.get(method).takes


def _asked(read: Callable[[], Case], texts: Sequence[str]) -> Case:
    """The case with further expressions."""
    case = read()
    return case.with_(queries=(*case.queries, *(Query(f"text{n}", text) for n, text in enumerate(texts, 1))))


def _write_masks(folder: Path, answer: Prediction, ending: str) -> None:
    """One label file an expression, 255 where it is meant."""
    folder.mkdir(exist_ok=True)
    label, data = answer.label, np.asarray(answer.label.data)
    names, masks = (label.names, data) if label.overlapping else (label.names[1:], [data])
    for name, mask in zip(names, masks, strict=True):
        write_labels(folder / f"{name}{ending}", (np.asarray(mask) > 0).astype(np.uint8), label.geometry, values=(0, 255))


def _write_images(target: Path, answer: Prediction, method: str) -> None:
    """The images that a method's card says it gives ('images:pseudo MR'), beside the label file, on their own grids."""
    gives = catalog.get(method).gives if method in catalog.cards() else ()
    for name in (g.removeprefix("images:") for g in gives if g.startswith("images:")):
        if name in answer.images:
            image = answer.images[name]
            write_image(_beside(target, name.replace(" ", "_")), np.asarray(image.data), image.geometry)


def answers(run: str | Path) -> str:
    """What a run's predictions are called."""
    slug = read_json(Path(run) / "run.json")["method"]
    return "displacement fields" if slug in catalog.cards() and "displacement" in catalog.get(slug).gives else "label files"


def _check_fields(format: str | None, probability: bool) -> None:
    """Refuses what a displacement field cannot be."""
    if format not in (None, ".nii", ".nii.gz"):
        raise UsageError("displacement fields are not written as this", where="--format", found=format, allowed=".nii.gz, .nii")
    if probability:
        raise UsageError("a registration has no class probabilities", where="--probability", fix="leave --probability out")


def _write_field(target: Path, answer: Prediction, manifest: Manifest, progress: Progress) -> None:
    """The displacement, and beside it the moving image and labels as it lays them on the fixed grid."""
    kind = _kind(target)
    warped = {k.removeprefix("warped:"): v for k, v in answer.images.items() if k.startswith("warped:")}
    for name, image in warped.items():
        data, what = np.asarray(image.data), "warped" if len(warped) == 1 else f"warped_{name}"
        holds = image.geometry.ndim == 3 or len(data) == 1  # a 2D NIfTI has one channel
        write_image(_beside(target, what, kind if holds else ".npz"), data, image.geometry)
    for name, label in answer.labels.items():
        data, what = np.asarray(label.data), "labels" if len(answer.labels) == 1 else f"labels_{name}"
        if label.overlapping or data.min() < 0 or label.names != manifest.names:
            progress.say(f"{target.name}: the moving label map '{name}' is no map of the model's classes and was not written")
            continue
        write_labels(_beside(target, what), data, label.geometry, values=manifest.values, names=manifest.names)
    write_displacement(target, np.asarray(answer.displacement.data), answer.displacement.geometry)


@contextmanager
def _stopping(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM stop between two cases, where nothing is half-done; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        progress.say("stopping after this case; Ctrl-C stops at once")

    main = threading.current_thread() is threading.main_thread()
    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def _endings(dims: int) -> tuple[str, ...]:
    flat = (".png", ".tif")
    return tuple(e for e in WRITABLE if (dims == 2 or e not in flat))


def _beside(target: Path, what: str = "probability", kind: str = ".nii.gz") -> Path:
    """Where what goes with a label file or field is written."""
    return target.with_name(f"{target.name.removesuffix(_kind(target))}_{what}{kind}")


def _kind(target: Path) -> str:
    return next(e for e in WRITABLE if target.name.endswith(e))


def _may_write(target: Path, job: Job, overwrite: bool) -> None:
    if any(target.resolve() == file.resolve() for file in job.files):
        raise DataError("the prediction would replace its own input", where=target, fix="choose another --out")
    if target.exists() and not overwrite:
        fix = "choose another --out, or say --overwrite"
        raise DataError("the prediction exists, and this run did not write it", where=target, fix=fix)


def _identity(trained: Trained, seed: int, texts: Sequence[str] = ()) -> str:
    """What decides the numbers of a prediction, as a digest: weights, plan, seed and what is asked."""
    tensors, facts = checkpoint.method_tensors(trained.method)
    digest = hashlib.sha256(json.dumps([trained.record["method"], facts, trained.plan.to_json(), seed, *texts], default=str).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()[:20]


@contextmanager
def _mirroring(trained: Trained, tta: bool | None) -> Iterator[Plan]:
    """The plan with or without mirrored windows at test time, for the method and its parts, as long as the context lasts."""
    plan = trained.plan
    if tta is None:
        yield plan
        return
    if tta and plan.mirror_pairs:
        fix = "leave --tta out"
        raise UsageError("this model tells left from right, so mirrored windows cannot be averaged", where="--tta", fix=fix)
    axes = (plan.test_mirror or plan.mirror_axes) if tta else ()
    methods = list(_with_parts(trained.method))
    before = [m.plan for m in methods]
    try:
        for m in methods:
            m.plan = m.plan.derive(test_mirror=axes)
        yield plan.derive(test_mirror=axes)
    finally:
        for m, old in zip(methods, before, strict=True):
            m.plan = old


def _with_parts(method: Method) -> Iterator[Method]:
    yield method
    for part in method.parts.values():
        yield from _with_parts(part)


def _accelerate(trained: Trained, jobs: Sequence[Job], backend: str, progress: Progress) -> None:
    """A faster forward where the cases ahead are worth it; cases whose grid is not known count as the first one."""
    plan, first = trained.plan, cache(jobs[0].read)
    known = [j.geometry for j in jobs if j.geometry is not None]
    unknown = len(jobs) - len(known)
    if unknown and backend != "torch" and isinstance(trained.method, LearnedMethod):
        with suppress(DataError, ResourceError):  # said when the case's turn comes
            known += [first().geometry] * unknown
    shapes = [plan.grid.of(g.canonical()).shape for g in known]

    def probe() -> Case:
        case = first()
        return middle(case, plan) if need_gib(plan, case.geometry) > _free_gib() else case

    try:
        choice = accelerate_if_worth_it(trained.method, plan, shapes, probe, backend=backend)
    except (DataError, ResourceError, MemoryError):
        return
    if choice:
        progress.say(f"inference: {choice['backend']} {choice['precision']} (agreement {choice['agreement']:.4f} with torch fp32)")


def _outline(target: Path, answer: Prediction, geometry: Geometry) -> None:
    """A slide's polygons beside its label file, as QuPath reads them, in the slide's finest pixels."""
    found, ids = answer.label, answer.instances
    parts, names = annotations(found.data, found.geometry, found.names, None if ids is None else ids.data)
    write_geojson(target.with_suffix(".geojson"), parts, geometry, names)


def _answer(trained: Trained, job: Job, *, seed: int, probability: bool, progress: Progress) -> Prediction:
    """In blocks where the whole does not fit into memory; a method that cannot be cut so is refused before the work begins. What runs out
    of memory all the same is tried once more: on the CPU after a GPU, in smaller blocks else."""
    plan, method = trained.plan, trained.method
    free, need = _free_gib(), need_gib(plan, job.geometry) if job.geometry else 0.0
    if need > free and not _cuttable(method, probability):
        raise _too_large(job, need, free)
    case = job.read()
    if job.geometry is None and case.images and not case.lazy:
        need = need_gib(plan, case.geometry)
        if need > free and not _cuttable(method, probability):
            raise _too_large(job, need, free)
    on_gpu = isinstance(method, LearnedMethod) and next(method.parameters()).is_cuda
    try:
        if need <= free:
            return infer(method, case, plan, seed=seed, probability=probability)
        return infer_in_blocks(method, case, plan, gib=0.5 * _free_gib(), seed=seed)
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        if not on_gpu and not _cuttable(method, probability):
            raise _too_large(job, need, free) from e
    if on_gpu:
        progress.say(f"{job.name}: the GPU's memory does not suffice; going on on the CPU")
        method.to("cpu")
        return _answer(trained, job, seed=seed, probability=probability, progress=progress)
    return infer_in_blocks(method, case, plan, gib=0.25 * min(need, free), seed=seed)


def _free_gib() -> float:
    import psutil

    return psutil.virtual_memory().available / 2**30


def _cuttable(method: Method, probability: bool) -> bool:
    return not probability and can_be_cut(method)


def _too_large(job: Job, need: float, free: float) -> ResourceError:
    return ResourceError(
        "this image does not fit into memory",
        where=job.where,
        found=f"about {need:.1f} GiB needed",
        allowed=f"{free:.1f} GiB free",
        fix="crop or resample it, leave --probability out, or use a machine with more memory",
    )
