"""The verbs: train, predict, evaluate, compare. The command line and Python call the same functions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case
from ..core.errors import DataError, ResourceError, RunError, UsageError
from ..core.manifest import Manifest, Split
from ..core.method import Method
from ..core.plan import Fingerprint, Plan
from ..core.prediction import Prediction, Score
from ..datasets import open_dataset, read_case
from ..io import read_image, write_labels
from ..methods.learned import LearnedMethod
from . import checkpoint
from .evaluate import RULES, mean_dsc, score, score_folder
from .fingerprint import fingerprint
from .fit import Budget, Training
from .infer import accelerate_if_worth_it, infer, infer_in_slabs
from .plan import make_plan, memory_gib
from .progress import Progress
from .record import RUN_VERSION, Lock, machine, peak_memory_gib, read_json, reset_peak_memory, versions, write_json

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
    read = reader(manifest)
    progress = progress or Progress(quiet=True)
    with progress.task("fingerprint", len(split.train)) as advance:

        def each(case: str) -> Case:
            advance(1)
            return read(case)

        facts = fingerprint(manifest, split.train, each)
    return make_plan(manifest, facts, device=device, **dict(overrides or {})), facts


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
    folds: int = 5,
    labelled: int | None = None,
    resume: bool = False,
    device: str = "auto",
    plan: Plan | None = None,
    split: Split | None = None,
    plan_overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train one method on one split and leave a run folder. A finished run with ``resume`` is simply opened."""
    progress = progress or Progress(quiet=True)
    out = Path(out)
    slug = method if isinstance(method, str) else method.__name__
    if out.exists() and (out / "run.json").exists() and not resume:
        raise RunError("this run folder exists", where=out, fix="continue it with --resume, or choose another --out")
    if out.exists() and not out.is_dir():
        raise RunError("the run folder is a file", where=out, fix="choose another --out")
    manifest = data if isinstance(data, Manifest) else open_dataset(data)
    if isinstance(method, str):
        catalog.coerce(method, options or {})  # refuse typos before any work
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out):
        record = read_json(out / "run.json") if resume and (out / "run.json").exists() else None
        if record is not None:
            _same_run(record, slug, manifest, seed, options, iterations, minutes, out)
            plan, split = Plan.from_json(read_json(out / "plan.json"), out / "plan.json"), Split.from_json(record["split"])
        if split is None:
            split = manifest.split(fold, folds, seed=seed)
        if labelled is not None:
            manifest = hide_labels(manifest, split.train, labelled, seed)
        device = _device(device)
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
                "data": {"name": manifest.name, "root": str(manifest.root), "digest": manifest.digest(), "licence": manifest.licence},
                "labels": dict(manifest.labels),
                "labelled": labelled,
                "budget": {"iterations": iterations, "minutes": minutes, "patience": patience, "checks": validations},
                "split": split.to_json(),
                "device": device,
                "status": "started",
                "versions": versions(),
                "machine": machine(),
                "command": " ".join(sys.argv),
                "facts": {},
                "seconds": 0.0,
            }
            plan.write(out / "plan.json")
            write_json(out / "run.json", record)
        if record["status"] == "finished":
            _load(built, out)
            return Trained(built, plan, manifest, split, out, record)
        return _fit(built, plan, manifest, split, out, record, Budget(**record["budget"]), progress, resume)


def _fit(method, plan, manifest, split, out, record, budget, progress, resume) -> Trained:
    started, before = time.monotonic(), float(record["seconds"])
    reset_peak_memory()
    read = reader(manifest)

    def score_cases(m: Method, ids: Sequence[str]) -> float:
        rows: list[Score] = []
        for i in list(ids)[:_VALIDATION_CASES]:
            case = read(i)
            if case.labels:
                rows += score(infer(m, case, plan), case, metrics=("dsc",))
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
    method.fit(split.train, split.val, run)
    plan = _post_process(method, plan, split, read, record)
    tensors, facts = checkpoint.method_tensors(method)
    checkpoint.write(out / "method.safetensors", tensors, {"facts": facts, "method": record["method"]})
    plan.write(out / "plan.json")
    record["status"] = "finished"
    record["peak_memory_gib"] = peak_memory_gib()
    record["parameters"] = sum(int(v.size) for k, v in tensors.items() if "ema." not in k)
    save()
    return Trained(method, plan, manifest, split, out, record)


def _post_process(method: Method, plan: Plan, split: Split, read, record: dict) -> Plan:
    """Keep only the largest component of a class where that raises the validation DSC (as nnU-Net decides it)."""
    cases = [c for c in (read(i) for i in list(split.val)[:_VALIDATION_CASES]) if c.labels]
    names = plan.classes[1:]
    if len(cases) < 3 or len(names) > 20 or method.manifest.instances:
        return plan
    from ..ops.components import largest

    chosen = []
    answers = [(c, infer(method, c, plan)) for c in cases]
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
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("there is no GPU that torch can use", where="--device", found=device, allowed="cpu")
    return device


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
    folder = Path(folder)
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
    )
    parts = {n: catalog.build(s, plan, manifest) for n, s in record["parts"].items()}
    method = catalog.build(record["method"], plan, manifest, parts, record["options"])
    _load(method, folder)
    if hasattr(method, "to"):
        method.to(_device(device))
    return Trained(method, plan, manifest, Split.from_json(record["split"]), folder, record)


def predict(
    run: str | Path | Trained,
    inputs: Iterable[str | Path] | Manifest,
    out: str | Path,
    *,
    format: str | None = None,
    probability: bool = False,
    overwrite: bool = False,
    backend: str = "auto",
    device: str = "auto",
    seed: int = 0,
    split: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Label files on each input's own grid with the data set's label values; returns their paths.

    ``inputs``: image files, folders of them, a dataset folder, or a Manifest. One bad input is reported at the end and does not stop the
    others (``DataError`` naming all of them, after everything else was written).
    """
    progress = progress or Progress(quiet=True)
    trained = run if isinstance(run, Trained) else open_run(run, device=device)
    jobs = list(_jobs(trained, inputs, split))
    if not jobs:
        raise UsageError("nothing to predict", found="no input file or case")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written, failed = [], []
    done: dict[str, str] = {}
    shapes = [j.shape for j in jobs if j.shape]
    choice = accelerate_if_worth_it(trained.method, trained.plan, shapes, jobs[0].read, backend=backend)
    if choice:
        progress.say(f"inference: {choice['backend']} {choice['precision']} (agreement {choice['agreement']:.4f} with torch fp32)")
    with progress.task("predicting", len(jobs)) as advance:
        for job in jobs:
            try:
                if job.name in done:
                    fix = "predict them into different folders"
                    raise DataError("two inputs have the same name", where=job.where, found=done[job.name], fix=fix)
                done[job.name] = job.where
                target = out / f"{job.name}{format or job.ending}"
                if target.exists() and not overwrite:
                    raise DataError("the prediction exists", where=target, fix="choose another --out, or say --overwrite")
                case, answer = _answer(trained, job, seed=seed, probability=probability)
                for note in answer.notes:
                    progress.say(f"{case.id}: {note}")
                write_labels(
                    target,
                    np.asarray(answer.label.data),
                    answer.label.geometry,
                    values=trained.manifest.values,
                    names=trained.manifest.names,
                )
                if probability and answer.probability is not None:
                    from ..io import write_image

                    write_image(out / f"{job.name}_probability.nii.gz", np.asarray(answer.probability.data), answer.probability.geometry)
                written.append(target)
            except (DataError, ResourceError) as e:
                failed.append(str(e))
            except MemoryError:
                failed.append(f"{job.where}: not enough memory.")
            advance(1, job.where[-30:])
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise DataError(f"{len(failed)} of {len(jobs)} inputs could not be predicted: {failed[0]}{more}", where=out)
    return written


def _answer(trained: Trained, job: _Job, *, seed: int, probability: bool) -> tuple[Case, Prediction]:
    """In slabs where the whole does not fit into memory; a method that cannot be cut so is refused before the work begins."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    need = memory_gib(trained.plan, job.shape) if job.shape else 0.0
    if need <= free:
        case = job.read()
        return case, infer(trained.method, case, trained.plan, seed=seed, probability=probability)
    if probability or not isinstance(trained.method, LearnedMethod) or len(job.shape) < 3:
        raise ResourceError(
            "this image does not fit into memory",
            where=job.where,
            found=f"about {need:.1f} GiB needed",
            allowed=f"{free:.1f} GiB free",
            fix="crop or resample it, leave --probability out, or use a machine with more memory",
        )
    case = job.read()
    return case, infer_in_slabs(trained.method, case, trained.plan, gib=0.5 * free, seed=seed)


@dataclass
class _Job:
    name: str
    where: str
    read: Callable[[], Case]
    ending: str
    shape: tuple[int, ...] | None = None


def _jobs(trained: Trained, inputs, split: str | None) -> Iterable[_Job]:
    from ..io import sniff

    if isinstance(inputs, Manifest):
        yield from _manifest_jobs(trained, inputs, split)
        return
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    for path in paths:
        text = str(path)
        if text.startswith("phantom:") or _is_dataset(path):
            yield from _manifest_jobs(trained, open_dataset(text), split)
            continue
        if not path.exists():
            raise DataError("there is no such file or folder", where=path)
        files = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            files = [path] if inside and sniff(inside[0]) == "dicom" else inside
        yield from (_file_job(trained, file) for file in files)


def _file_job(trained: Trained, file: Path) -> _Job:
    """One image file (or DICOM folder) as one case of a one-channel model."""
    from ..io import header

    channels, dims = trained.plan.channels, trained.plan.dims
    if len(channels) > 1:
        fix = "give a dataset folder with these columns"
        raise UsageError(f"this model takes {len(channels)} images a case ({', '.join(channels)})", where=file, fix=fix)
    name = file.name if file.is_dir() else _stem(file)

    def read() -> Case:
        image = read_image(file)
        if image.geometry.ndim != dims:
            raise DataError(f"the model is {dims}D", where=file, found=image.geometry.describe())
        return Case(name, patient=name, images={channels[0]: image})

    try:
        shape = header(file)[1].shape
    except DataError:  # only an estimate of the work; reading reports what is wrong
        shape = None
    return _Job(name, str(file), read, _ending(file, dims), shape)


def _is_dataset(path: Path) -> bool:
    """A folder with a dataset's description, or without files of its own (images/ + labels/)."""
    if not path.is_dir():
        return False
    described = any((path / name).exists() for name in ("dataset.toml", "dataset.json"))
    return described or not any(p.is_file() for p in path.iterdir())


def _manifest_jobs(trained: Trained, manifest: Manifest, split: str | None) -> Iterable[_Job]:
    read = reader(manifest)
    for ref in manifest.cases:
        if split is None or ref.split == split:
            first = next(iter(ref.images.values()), "")
            ending = _ending(Path(first.rpartition(":")[0] or first), trained.plan.dims) if first else ".nii.gz"
            yield _Job(ref.id.replace("/", "_"), ref.id, lambda i=ref.id: read(i), ending)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: name.rfind(".")] if "." in name else name


def _ending(path: Path, dims: int) -> str:
    """The kind of file a prediction is written as: the input's where that is lossless and holds geometry."""
    name = path.name.lower()
    if dims == 2:
        return ".tif" if name.endswith((".tif", ".tiff")) else ".png"
    for ending in (".nii.gz", ".nii", ".mha", ".nrrd"):
        if name.endswith(ending):
            return ending
    return ".nii.gz"


def evaluate(
    pred: str | Path,
    ref: str | Path | Manifest,
    *,
    metrics: Sequence[str] = RULES,
    split: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Score], list[str]]:
    """Scores of a folder of label files against a data set's references, and what was wrong with them."""
    manifest = ref if isinstance(ref, Manifest) else open_dataset(ref)
    folder = Path(pred)
    ids = [c.id for c in manifest.cases if split is None or c.split == split]
    if split is None:
        have = {p.name.removesuffix(".gz").rpartition(".")[0] for p in folder.glob("*")} if folder.is_dir() else set()
        tests = set(manifest.where("test"))
        if have and tests and have <= tests:  # predictions of the test set only: score the test set
            ids = [i for i in ids if i in tests]
    progress = progress or Progress(quiet=True)
    with progress.task("scoring", len(ids)) as advance:
        return score_folder(folder, manifest, ids, reader(manifest), metrics=metrics, each=lambda: advance(1))


def score_split(trained: Trained, ids: Sequence[str], *, seed: int = 0, progress: Progress | None = None, metrics=RULES):
    """Predict and score cases of the trained manifest. Yields (case, prediction, rows, seconds)."""
    read = reader(trained.manifest)
    progress = progress or Progress(quiet=True)
    with progress.task("testing", len(ids)) as advance:
        for i in ids:
            case = read(i)
            tick = time.perf_counter()
            answer = infer(trained.method, case, trained.plan, seed=seed)
            seconds = time.perf_counter() - tick
            rows = score(answer, case, metrics=metrics) if case.labels else []
            advance(1)
            yield case, answer, rows, seconds


def compare(methods: Sequence[str], data: str | Path | Manifest, out: str | Path, **settings: Any) -> Path:
    """Train and test several methods under one split and plan and write the report. See ``engine.compare.compare``."""
    from .compare import compare as run

    return run(methods, data, out, **settings)


__all__ = ["Trained", "compare", "evaluate", "hide_labels", "open_run", "plan_for", "predict", "score_split", "train"]
