"""The verbs: train, predict, evaluate, compare. The command line and Python call the same functions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case
from ..core.errors import ResourceError, RunError, UsageError, VesaliusError
from ..core.manifest import Manifest, Split
from ..core.method import Method
from ..core.plan import Fingerprint, Plan
from ..core.prediction import Score
from ..datasets import open_dataset
from ..methods.prompted import PromptableMethod
from ..metrics import PROBABLE, metric
from . import checkpoint
from .evaluate import RULES, evaluate, mean_dsc, score
from .fingerprint import fingerprint
from .fit import Budget, Training
from .infer import infer
from .interact import respond, structures
from .pairs import units
from .plan import make_plan
from .predict import answers, predict
from .progress import Progress
from .record import RUN_VERSION, Lock, machine, peak_memory_gib, read_json, reset_peak_memory, versions, write_json
from .runs import Trained, build, device_of, load, open_run, out_of_memory, reader, same_version, working_plan

_VALIDATION_CASES = 12


def hide_labels(manifest: Manifest, train: Sequence[str], labelled: int, seed: int) -> Manifest:
    """Keep the labels of ``labelled`` training patients' cases only (semi-supervised experiments); who keeps them depends on ``seed``."""
    patients = sorted({manifest[c].patient for c in train if manifest[c].labels})
    if not 0 < labelled <= len(patients):
        raise UsageError("--labelled is a number of training patients", found=labelled, allowed=f"1 to {len(patients)}")
    order = np.random.default_rng([seed, 23]).permutation(len(patients))
    keep, held = {patients[i] for i in order[:labelled]}, set(train)
    cases = tuple(replace(c, labels={}) if c.id in held and c.patient not in keep else c for c in manifest.cases)
    return replace(manifest, cases=cases)


def plan_for(
    manifest: Manifest,
    split: Split,
    *,
    device: str = "auto",
    minutes: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Fingerprint]:
    """Fingerprint of the training cases and the plan made from it, for trainings of so many ``minutes`` where that is known."""
    device = device_of(device)
    read = reader(manifest)
    progress = progress or Progress(quiet=True)
    with progress.task("fingerprint", len(split.train)) as advance:

        def each(case: str) -> Case:
            advance(1)
            return read(case)

        facts = fingerprint(manifest, split.train, each)
    return make_plan(manifest, facts, device=device.partition(":")[0], minutes=minutes, **dict(overrides or {})), facts


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
    out, device = Path(out), device_of(device)
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
            same_version(record, out)
            plan, split = Plan.from_json(read_json(out / "plan.json"), out / "plan.json"), Split.from_json(record["split"])
            labelled = record["labelled"] if labelled is None else labelled
        if labelled is not None:
            manifest = hide_labels(manifest, split.train, labelled, seed)
        if record is not None:
            _same_run(record, slug, manifest, seed, options, labelled, iterations, minutes, out)
            record["device"] = device
        if manifest.regions:
            progress.say(manifest.regions_rule)
        if plan is None:
            plan, _ = plan_for(manifest, split, device=device, minutes=minutes, overrides=plan_overrides, progress=progress)
        plan = _for_card(plan, method)
        subs = {n: catalog.build(s, plan, manifest) for n, s in (parts or {}).items()}
        import torch

        torch.manual_seed(seed)
        built = build(method, plan, manifest, subs, options)
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
            write_json(out / "plan.json", plan.to_json())
            write_json(out / "run.json", record)
        if record["status"] == "finished":
            load(built, out)
            return Trained(built, working_plan(built, plan), manifest, split, out, record)
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
        for case in units(m, manifest, ids, read, most=_VALIDATION_CASES):
            if case.labels and (not isinstance(m, PromptableMethod) or structures(case, m.plan.classes)):
                rows += score(respond(m, case, m.plan), case, metrics=("dsc",))
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
    write_json(out / "plan.json", plan.to_json())
    record["status"] = "finished"
    record["peak_memory_gib"] = peak_memory_gib()
    record["parameters"] = sum(int(v.size) for k, v in tensors.items() if "ema." not in k)
    save()
    return Trained(method, working_plan(method, plan), manifest, split, out, record)


def _post_process(method: Method, plan: Plan, split: Split, read, record: dict) -> Plan:
    """Keep only the largest component of a class where that raises the validation DSC (as nnU-Net decides it)."""
    if method.unit == "pair" or isinstance(method, PromptableMethod):
        return plan
    cases = [c for c in (read(i) for i in list(split.val)[:_VALIDATION_CASES]) if c.labels and not c.queries]
    names = plan.classes[1:]
    if len(cases) < 3 or len(names) > 20 or method.manifest.instances:
        return plan
    from ..ops.components import largest

    chosen = []
    answers = [(c, infer(method, c, method.plan)) for c in cases]
    if any(answer.label is None for _, answer in answers):
        return plan
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


def _explained(error: Exception, where: str | Path) -> VesaliusError | None:
    """What torch's own errors about memory, loading workers and normalisation mean to a person; None for any other."""
    text = str(error)
    if out_of_memory(error):
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


def _for_card(plan: Plan, method: str | type) -> Plan:
    """The intensities a card asks for (a level set wants grey values 0..255); a deviation the report prints."""
    intensity = catalog.get(method).intensity if isinstance(method, str) else getattr(method, "intensity", "")
    return plan.derive(normalise={c: intensity for c in plan.normalise}) if intensity else plan


def _same_run(record: Mapping, slug: str, manifest: Manifest, seed: int, options, labelled, iterations, minutes, out: Path) -> None:
    """A run is continued with what it was started with; a budget or a number of labels that is not given stays as it was."""
    pairs = {
        "method": (record["method"], slug),
        "seed": (record["seed"], seed),
        "labelled": (record["labelled"], labelled),
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


def score_split(trained: Trained, ids: Sequence[str], *, seed: int = 0, progress: Progress | None = None, metrics=RULES, prompts: str = ""):
    """Predict and score cases of the trained manifest, or the pairs among them. Yields (case, prediction, rows, seconds). ``prompts``: the
    simulated user of a promptable method; cases in which there is nothing to point at are left out."""
    read, targets = reader(trained.manifest), trained.manifest.targets
    progress = progress or Progress(quiet=True)
    probable = any(metric(m).needs in PROBABLE for m in metrics)
    asked = units(trained.method, trained.manifest, ids, read)
    with progress.task("testing", len(asked)) as advance:
        for case in asked:
            if isinstance(trained.method, PromptableMethod) and not structures(case, trained.plan.classes):
                progress.say(f"{case.id}: nothing to point at, left out")
                advance(1)
                continue
            tick = time.perf_counter()
            answer = respond(trained.method, case, trained.plan, prompts=prompts, seed=seed, probability=probable)
            seconds = time.perf_counter() - tick
            rows = score(answer, case, metrics=metrics, targets=targets) if case.labels or targets or case.points else []
            advance(1)
            yield case, answer, rows, seconds


def compare(methods: Sequence[str], data: str | Path | Manifest, out: str | Path, **settings: Any) -> Path:
    """Train and test several methods under one split and plan and write the report. See ``engine.compare.compare``."""
    from .compare import compare as run

    return run(methods, data, out, **settings)


__all__ = ["Trained", "answers", "compare", "evaluate", "hide_labels", "open_run", "plan_for", "predict", "score_split", "train"]
