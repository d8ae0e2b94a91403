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

from ..core.case import Case, Query
from ..core.errors import DataError, ResourceError, UsageError
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..methods.learned import LearnedMethod
from . import checkpoint
from .answers import Answers, Masks, answers_of, beside, kind_of
from .fit import Interrupted
from .infer import accelerate_if_worth_it, can_be_cut, infer, infer_in_blocks, middle, need_gib
from .inputs import Job, jobs_of, paired
from .progress import Progress
from .record import Ledger, read_json
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

    ``format``: an ending, or 'dicomseg' or 'rtstruct' for inputs that are DICOM series, which the objects then refer to; of a case in which
    nothing was found there is no such object, and that is said.

    A method that takes expressions answers those of a dataset (queries.csv) and ``texts``, as text1, text2, ..., for every input: a folder
    <case>/ of masks, one an expression, and <case>.json with their scores.
    """
    progress = progress or Progress(quiet=True)
    trained = run if isinstance(run, Trained) else open_run(run, device=device)
    kind = answers_of(trained.record["method"], trained.manifest)
    kind.check(trained.plan.dims, format, probability)
    if trained.method.unit == "pair":
        jobs = paired(inputs, pairs, trained.plan, trained.manifest, reader, split=split, progress=progress)
    elif pairs is not None:
        raise UsageError("pairs are for registration, and this model answers single cases", where="--pairs", fix="leave --pairs out")
    else:
        jobs = jobs_of(inputs, trained.plan, trained.manifest, reader, split=split, progress=progress)
    if not jobs:
        raise UsageError("nothing to predict", found="no input file or case")
    if texts:
        if not isinstance(kind, Masks):
            raise UsageError("this model takes no expressions", where="--text", found=trained.record["method"], fix="leave --text out")
        jobs = [replace(job, read=partial(_asked, job.read, tuple(texts))) for job in jobs]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _mirroring(trained, tta) as plan:
        return _predict(replace(trained, plan=plan), kind, jobs, out, format, probability, overwrite, backend, seed, progress, texts)


def _predict(
    trained: Trained, kind: Answers, jobs: Sequence[Job], out: Path, format, probability, overwrite, backend, seed, progress, texts
) -> list[Path]:
    ledger, failed = Ledger(out, _identity(trained, seed, texts)), []
    todo: dict[Path, Job] = {}
    for job in jobs:
        target = out / f"{job.name}{kind.ending(job, format)}"
        if target in todo:
            fix = "predict them into different folders"
            failed.append(str(DataError("two inputs have the same name", where=job.where, found=todo[target].where, fix=fix)))
        else:
            todo[target] = job
    kept = [t for t in todo if not overwrite and ledger.wrote(t) and (not probability or beside(t, "probability").exists())]
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
                answer = _answer(trained, job, seed=seed, probability=probability, progress=progress)
                for note in (*answer.notes, *kind.left_out(answer)):
                    progress.say(f"{job.name}: {note}")
                files = kind.files(target, answer, job, format, probability)
                for path in files:
                    _may_write(path, job, overwrite or ledger.wrote(path))
                for path, write in files.items():
                    _write(path, write, ledger)
                if target in files:
                    written.add(target)
                else:
                    target.unlink(missing_ok=True)  # of an earlier prediction
                    progress.say(f"{job.name}: nothing was found, and a {format} of nothing is not valid: none is written")
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


def _write(path: Path, write: Callable[[], object], ledger: Ledger) -> None:
    """A new file is entered beforehand, so that one of ours is never taken for another's; what stood there, once it is replaced."""
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    if new:
        ledger.add(path)
    write()
    if not new:
        ledger.add(path)


def answers(run: str | Path) -> str:
    """What a run's predictions are called."""
    record, plan = (read_json(Path(run) / name) for name in ("run.json", "plan.json"))
    return kind_of(record["method"], plan["dims"]).noun


def _asked(read: Callable[[], Case], texts: Sequence[str]) -> Case:
    """The case with further expressions."""
    case = read()
    return case.with_(queries=(*case.queries, *(Query(f"text{n}", text) for n, text in enumerate(texts, 1))))


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
