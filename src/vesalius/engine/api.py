"""The verbs: train, predict, evaluate, compare. The command line and Python call the same functions."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case
from ..core.errors import DataError, ResourceError, RunError, UsageError, VesaliusError
from ..core.geometry import Geometry
from ..core.manifest import Manifest, Split
from ..core.method import Method
from ..core.plan import Fingerprint, Plan
from ..core.prediction import Prediction, Score
from ..datasets import open_dataset, read_case
from ..io import header, write_image, write_labels
from ..io.files import WRITABLE
from ..io.wsi import is_slide, write_geojson
from ..methods.learned import LearnedMethod
from ..metrics import PROBABLE, metric
from ..ops.polygons import annotations
from . import checkpoint
from .evaluate import RULES, evaluate, mean_dsc, score
from .fingerprint import fingerprint
from .fit import Budget, Interrupted, Training
from .infer import accelerate_if_worth_it, can_be_cut, infer, infer_in_blocks, middle, need_gib
from .inputs import Job, jobs_of
from .plan import make_plan
from .progress import Progress
from .record import RUN_VERSION, Ledger, Lock, machine, peak_memory_gib, read_json, reset_peak_memory, versions, write_json

_VALIDATION_CASES = 12


@dataclass
class Trained:
    """A method with what it was trained on; ``folder`` is its run."""

    method: Method
    plan: Plan
    manifest: Manifest
    split: Split
    folder: Path
    record: dict


def hide_labels(manifest: Manifest, train: Sequence[str], labelled: int, seed: int) -> Manifest:
    """Keep the labels of ``labelled`` training patients' cases only (semi-supervised experiments); who keeps them depends on ``seed``."""
    patients = sorted({manifest[c].patient for c in train if manifest[c].labels})
    if not 0 < labelled <= len(patients):
        raise UsageError("--labelled is a number of training patients", found=labelled, allowed=f"1 to {len(patients)}")
    order = np.random.default_rng([seed, 23]).permutation(len(patients))
    keep = {patients[i] for i in order[:labelled]}
    cases = tuple(replace(c, labels={}) if c.id in set(train) and c.patient not in keep else c for c in manifest.cases)
    return replace(manifest, cases=cases)


def reader(manifest: Manifest) -> Callable[[str], Case]:
    """Reads a case as the (possibly label-hiding) manifest says."""

    def read(case: str) -> Case:
        found = read_case(manifest, case)
        return found if manifest.built_in is None or manifest[case].labels else replace(found, labels={})

    return read


def plan_for(
    manifest: Manifest, split: Split, *, device: str = "auto", overrides: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> tuple[Plan, Fingerprint]:
    """Fingerprint of the training cases and the plan made from it."""
    device = _device(device)
    read = reader(manifest)
    progress = progress or Progress(quiet=True)
    with progress.task("fingerprint", len(split.train)) as advance:

        def each(case: str) -> Case:
            advance(1)
            return read(case)

        facts = fingerprint(manifest, split.train, each)
    return make_plan(manifest, facts, device=device.partition(":")[0], **dict(overrides or {})), facts


def train(
    method: str | type,
    data: str | Path | Manifest,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    parts: Mapping[str, str] | None = None,
    seed: int = 0,
    iterations: int | None = None,
    minutes: float | None = None,
    patience: int | None = None,
    validations: int = 5,
    fold: int | None = None,
    folds: int | None = None,
    labelled: int | None = None,
    resume: bool = False,
    device: str = "auto",
    plan: Plan | None = None,
    split: Split | None = None,
    plan_overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train one method on one split and leave a run folder. A finished run with ``resume`` is simply opened.

    ``fold`` of ``folds``: the folds that the dataset declares, else drawn ones (default 5); see ``Manifest.split``.
    """
    progress = progress or Progress(quiet=True)
    out, device = Path(out), _device(device)
    slug = method if isinstance(method, str) else method.__name__
    if out.exists() and (out / "run.json").exists() and not resume:
        raise RunError("this run folder exists", where=out, fix="continue it with --resume, or choose another --out")
    if out.exists() and not out.is_dir():
        raise RunError("the run folder is a file", where=out, fix="choose another --out")
    manifest = data if isinstance(data, Manifest) else open_dataset(data)
    if isinstance(method, str):
        catalog.coerce(method, options or {})  # refuse typos before any work
    if split is None and not (out / "run.json").exists():
        split = manifest.split(fold, folds, seed=seed)
    with _folder(out), Lock(out):
        record = read_json(out / "run.json") if resume and (out / "run.json").exists() else None
        if record is not None:
            _same_run(record, slug, manifest, seed, options, iterations, minutes, out)
            plan, split = Plan.from_json(read_json(out / "plan.json"), out / "plan.json"), Split.from_json(record["split"])
            record["device"] = device
        if labelled is not None:
            manifest = hide_labels(manifest, split.train, labelled, seed)
        if manifest.regions:
            progress.say(manifest.regions_rule)
        if plan is None:
            plan, _ = plan_for(manifest, split, device=device, overrides=plan_overrides, progress=progress)
        plan = _for_card(plan, method)
        subs = {n: catalog.build(s, plan, manifest) for n, s in (parts or {}).items()}
        import torch

        torch.manual_seed(seed)
        built = _build(method, plan, manifest, subs, options)
        if record is None:
            record = {
                "version": RUN_VERSION,
                "method": slug,
                "options": dict(options or {}),
                "parts": dict(parts or {}),
                "seed": seed,
                "data": {
                    "name": manifest.name,
                    "root": str(manifest.root),
                    "digest": manifest.digest(),
                    "licence": manifest.licence,
                    "spacing_mm": manifest.spacing_mm,
                    "targets": dict(manifest.targets),
                },
                "labels": dict(manifest.labels),
                "labelled": labelled,
                "budget": {"iterations": iterations, "minutes": minutes, "patience": patience, "checks": validations},
                "split": split.to_json(),
                "device": device,
                "status": "started",
                "versions": versions(),
                "machine": machine(),
                "command": " ".join(sys.argv),
                "facts": {"notes": [manifest.regions_rule]} if manifest.regions else {},
                "seconds": 0.0,
            }
            plan.write(out / "plan.json")
            write_json(out / "run.json", record)
        if record["status"] == "finished":
            _load(built, out)
            return Trained(built, _working(built, plan), manifest, split, out, record)
        return _fit(built, plan, manifest, split, out, record, Budget(**record["budget"]), progress, resume)


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The run's folder; not left behind when nothing came of it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            out.rmdir()  # refuses what is not empty


def _fit(method, plan, manifest, split, out, record, budget, progress, resume) -> Trained:
    started, before = time.monotonic(), float(record["seconds"])
    reset_peak_memory()
    read = reader(manifest)

    def score_cases(m: Method, ids: Sequence[str]) -> float:
        rows: list[Score] = []
        for i in list(ids)[:_VALIDATION_CASES]:
            case = read(i)
            if case.labels:
                rows += score(infer(m, case, m.plan), case, metrics=("dsc",))
        return mean_dsc(rows)

    def save() -> None:
        record["seconds"] = before + time.monotonic() - started
        write_json(out / "run.json", record)

    run = Training(
        out,
        manifest,
        plan,
        read,
        method,
        record["seed"],
        budget,
        record["device"],
        score_cases,
        score,
        save,
        progress,
        record["facts"],
        resume,
    )
    try:
        method.fit(split.train, split.val, run)
    except (RuntimeError, ValueError, MemoryError) as e:
        explained = _explained(e, out)
        if explained is None:
            raise
        raise explained from e
    plan = _post_process(method, plan, split, read, record)
    tensors, facts = checkpoint.method_tensors(method)
    checkpoint.write(out / "method.safetensors", tensors, {"facts": facts, "method": record["method"]})
    plan.write(out / "plan.json")
    record["status"] = "finished"
    record["peak_memory_gib"] = peak_memory_gib()
    record["parameters"] = sum(int(v.size) for k, v in tensors.items() if "ema." not in k)
    save()
    return Trained(method, _working(method, plan), manifest, split, out, record)


def _working(method: Method, plan: Plan) -> Plan:
    """What cases are prepared by: the method's own plan (it may have changed the common one), with the run's post-processing."""
    return method.plan.derive(largest_component=plan.largest_component)


def _post_process(method: Method, plan: Plan, split: Split, read, record: dict) -> Plan:
    """Keep only the largest component of a class where that raises the validation DSC (as nnU-Net decides it)."""
    cases = [c for c in (read(i) for i in list(split.val)[:_VALIDATION_CASES]) if c.labels]
    names = plan.classes[1:]
    if len(cases) < 3 or len(names) > 20 or method.manifest.instances:
        return plan
    from ..ops.components import largest

    chosen = []
    answers = [(c, infer(method, c, method.plan)) for c in cases]
    for k, name in enumerate(names, start=1):
        gains = []
        for case, answer in answers:
            reference, mask = np.asarray(next(iter(case.labels.values())).semantic.data) == k, np.asarray(answer.label.data) == k
            if reference.any() and mask.any():
                gains.append(_dice(largest(mask, 1), reference) - _dice(mask, reference))
        if gains and np.mean(gains) > 1e-4 and min(gains) > -0.01:
            chosen.append(name)
    record["facts"]["largest_component"] = chosen
    return plan.derive(largest_component=tuple(chosen))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    from ..metrics.overlap import dsc

    return dsc(a, b) or 0.0


def _device(device: str) -> str:
    """A device that is there: 'cpu', 'cuda' or 'cuda:N'. One device trains or predicts at a time."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ", ".join(["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{k}" for k in range(gpus) if gpus > 1)])
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if re.fullmatch(r"(cuda|gpu)?:?\d+(,(cuda:)?\d+)+", device):
        fix = "start one run for each GPU (folds and seeds are independent)"
        raise UsageError("a run uses one device", where="--device", found=device, allowed=allowed, fix=fix)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError("no such device", where="--device", found=device, allowed=allowed)
    if device.startswith("cuda") and not gpus:
        raise UsageError("there is no GPU that torch can use", where="--device", found=device, allowed=allowed)
    if device.startswith("cuda:") and int(device[5:]) >= gpus:
        raise UsageError("there is no such GPU", where="--device", found=device, allowed=allowed)
    return device


def _explained(error: Exception, where: str | Path) -> VesaliusError | None:
    """What torch's own errors about memory, loading workers and normalisation mean to a person; None for any other."""
    text = str(error)
    if _out_of_memory(error):
        fix = "set a smaller patch or batch in plan.json and say --resume, close other programs, or use a machine with more"
        return ResourceError("not enough memory", where=where, found=text.partition("\n")[0][:160] or None, fix=fix)
    if "shared memory" in text or "/dev/shm" in text or "Bus error" in text:
        fix = "enlarge /dev/shm (docker: --shm-size=2g), or set workers to 0 in plan.json, and say --resume"
        return ResourceError("the loading workers have too little shared memory", where=where, fix=fix)
    if "DataLoader worker" in text:
        fix = "free some memory, or set fewer workers in plan.json, and say --resume"
        return ResourceError("a loading worker died, most likely for want of memory", where=where, fix=fix)
    if "Expected more than 1" in text:
        fix = "use a larger patch or batch, fewer stages (features in plan.json), or another normalisation (--set norm=group)"
        return RunError("there is one value to normalise at the network's coarsest stage", where=where, fix=fix)
    return None


def _out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _for_card(plan: Plan, method: str | type) -> Plan:
    """The intensities a card asks for (a level set wants grey values 0..255); a deviation the report prints."""
    intensity = catalog.get(method).intensity if isinstance(method, str) else getattr(method, "intensity", "")
    return plan.derive(normalise={c: intensity for c in plan.normalise}) if intensity else plan


def _build(method: str | type, plan: Plan, manifest: Manifest, parts: Mapping[str, Method], options) -> Method:
    if isinstance(method, str):
        return catalog.build(method, plan, manifest, parts, options)
    return method(plan, manifest, parts=parts, **dict(options or {}))


def _same_run(record: Mapping, slug: str, manifest: Manifest, seed: int, options, iterations, minutes, out: Path) -> None:
    """A run is continued with what it was started with; a budget that is not given stays as it was."""
    if record.get("version") != RUN_VERSION:
        raise RunError("the run was made by another version", where=out, found=record.get("version"), allowed=RUN_VERSION)
    pairs = {
        "method": (record["method"], slug),
        "seed": (record["seed"], seed),
        "options": (record["options"], json.loads(json.dumps(dict(options or {})))),
        "data": (record["data"]["digest"], manifest.digest()),
    }
    if iterations is not None or minutes is not None:
        pairs["budget"] = ({k: record["budget"][k] for k in ("iterations", "minutes")}, {"iterations": iterations, "minutes": minutes})
    other = [k for k, (a, b) in pairs.items() if a != b]
    if other:
        k = other[0]
        raise RunError(
            f"the run was started with another {k}",
            where=out,
            found=pairs[k][1],
            allowed=pairs[k][0],
            fix="resume with the same, or start a new run",
        )


def _load(method: Method, out: Path) -> None:
    tensors, record = checkpoint.read(out / "method.safetensors")
    checkpoint.load_method(method, tensors, record["facts"], out / "method.safetensors")
    if hasattr(method, "eval"):
        method.eval()


def open_run(folder: str | Path, *, device: str = "auto") -> Trained:
    """A finished run, ready to predict. Needs the run folder only, not the data it was trained on."""
    folder, device = Path(folder), _device(device)
    if not folder.exists():
        raise RunError("there is no such run folder", where=folder)
    record = read_json(folder / "run.json")
    if record.get("version") != RUN_VERSION:
        raise RunError("the run was made by another version", where=folder, found=record.get("version"), allowed=RUN_VERSION)
    if not (folder / "method.safetensors").exists():
        raise RunError("this training has not finished", where=folder, fix="continue it with 'vesalius train ... --resume'")
    plan = Plan.from_json(read_json(folder / "plan.json"), folder / "plan.json")
    manifest = Manifest(
        record["data"]["name"],
        Path(record["data"]["root"]),
        plan.dims,
        plan.channels,
        record["labels"],
        (),
        licence=record["data"]["licence"],
        spacing_mm=record["data"].get("spacing_mm"),
        targets=record["data"].get("targets", {}),
    )
    parts = {n: catalog.build(s, plan, manifest) for n, s in record["parts"].items()}
    method = catalog.build(record["method"], plan, manifest, parts, record["options"])
    _load(method, folder)
    if hasattr(method, "to"):
        method.to(device)
    return Trained(method, _working(method, plan), manifest, Split.from_json(record["split"]), folder, record)


def predict(
    run: str | Path | Trained,
    inputs: str | Path | Iterable[str | Path] | Manifest,
    out: str | Path,
    *,
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
    """
    progress = progress or Progress(quiet=True)
    trained = run if isinstance(run, Trained) else open_run(run, device=device)
    if format is not None and format not in (endings := _endings(trained.plan.dims)):
        raise UsageError("predictions are not written as this", where="--format", found=format, allowed=", ".join(endings))
    jobs = jobs_of(inputs, trained.plan, trained.manifest, reader, split=split, progress=progress)
    if not jobs:
        raise UsageError("nothing to predict", found="no input file or case")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _mirroring(trained, tta) as plan:
        return _predict(replace(trained, plan=plan), jobs, out, format, probability, overwrite, backend, seed, progress)


def _predict(trained: Trained, jobs: Sequence[Job], out: Path, format, probability, overwrite, backend, seed, progress) -> list[Path]:
    ledger, failed, maps = Ledger(out, _identity(trained, seed)), [], _gives_maps(trained.record["method"])
    todo: dict[Path, Job] = {}
    for job in jobs:
        target = out / f"{job.name}{(format or job.ending) if maps else '.json'}"
        if target in todo:
            fix = "predict them into different folders"
            failed.append(str(DataError("two inputs have the same name", where=job.where, found=todo[target].where, fix=fix)))
        else:
            todo[target] = job
    kept = [t for t in todo if not overwrite and ledger.wrote(t) and (not probability or _beside(t).exists())]
    left = {t: job for t, job in todo.items() if t not in set(kept)}
    if kept:
        progress.say(f"{len(kept)} of {len(jobs)} are there already (--overwrite predicts them anew)")
    if left:
        _accelerate(trained, list(left.values()), backend, progress)
    written = set(kept)
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
                if maps:
                    data, grid = np.asarray(answer.label.data), answer.label.geometry
                    write_labels(target, data, grid, values=trained.manifest.values, names=trained.manifest.names)
                    if job.files and is_slide(job.files[0]):
                        _outline(target, answer, header(job.files[0], spacing=trained.manifest.spacing_mm)[1])
                else:
                    write_json(target, {"text": dict(answer.text), "table": dict(answer.table), "notes": list(answer.notes)})
                if not new:
                    ledger.add(target)
                if probability and answer.probability is not None:
                    write_image(_beside(target), np.asarray(answer.probability.data), answer.probability.geometry)
                written.add(target)
            except (DataError, ResourceError) as e:
                failed.append(str(e))
            except (MemoryError, RuntimeError) as e:
                if not _out_of_memory(e):
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


def _beside(target: Path) -> Path:
    """Where the class probabilities of a label file are written."""
    return target.with_name(f"{target.name.removesuffix(_kind(target))}_probability.nii.gz")


def _kind(target: Path) -> str:
    return next(e for e in WRITABLE if target.name.endswith(e))


def _may_write(target: Path, job: Job, overwrite: bool) -> None:
    if any(target.resolve() == file.resolve() for file in job.files):
        raise DataError("the prediction would replace its own input", where=target, fix="choose another --out")
    if target.exists() and not overwrite:
        fix = "choose another --out, or say --overwrite"
        raise DataError("the prediction exists, and this run did not write it", where=target, fix=fix)


def _identity(trained: Trained, seed: int) -> str:
    """What decides the numbers of a prediction, as a digest: weights, plan and seed."""
    tensors, facts = checkpoint.method_tensors(trained.method)
    digest = hashlib.sha256(json.dumps([trained.record["method"], facts, trained.plan.to_json(), seed], default=str).encode())
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
        if not _out_of_memory(e):
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


def score_split(trained: Trained, ids: Sequence[str], *, seed: int = 0, progress: Progress | None = None, metrics=RULES):
    """Predict and score cases of the trained manifest. Yields (case, prediction, rows, seconds)."""
    read, targets = reader(trained.manifest), trained.manifest.targets
    progress = progress or Progress(quiet=True)
    probable = any(metric(m).needs in PROBABLE for m in metrics)
    with progress.task("testing", len(ids)) as advance:
        for i in ids:
            case = read(i)
            tick = time.perf_counter()
            answer = infer(trained.method, case, trained.plan, seed=seed, probability=probable)
            seconds = time.perf_counter() - tick
            rows = score(answer, case, metrics=metrics, targets=targets) if case.labels or targets or case.points else []
            advance(1)
            yield case, answer, rows, seconds


def compare(methods: Sequence[str], data: str | Path | Manifest, out: str | Path, **settings: Any) -> Path:
    """Train and test several methods under one split and plan and write the report. See ``engine.compare.compare``."""
    from .compare import compare as run

    return run(methods, data, out, **settings)


__all__ = ["Trained", "compare", "evaluate", "hide_labels", "open_run", "plan_for", "predict", "score_split", "train"]
