"""Several methods under the same splits, plan and metrics, and the report of it.

A method is a slug of the catalogue (trained here), a finished run (tested here, or its scores re-used), or a folder of label files that any
tool wrote. Runs of another manifest or split are refused: their numbers would not be comparable.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.errors import RunError, UsageError, nearest
from ..core.manifest import Manifest, Split
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..datasets import open_dataset
from ..io import write_labels
from ..methods.prompted import PromptableMethod
from ..metrics import check_metrics
from ..ops.prompts import user
from ..report.page import write_report
from .api import hide_labels, plan_for, score_split, train
from .evaluate import RULES, Pictures, Problem, case_columns, evaluate, pooled
from .progress import Progress
from .record import machine, read_json, versions, write_json
from .runs import Trained, open_run

_NO_NAME = re.compile(r"predictions|(seed|fold)_\d+")


@dataclass(frozen=True)
class Arm:
    """One column of a comparison: a catalogue slug (or, in proofs, a Method class) with options, or the ``folder`` of a finished run or
    of label files."""

    name: str
    method: str | type = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def is_run(self) -> bool:
        return self.folder is not None and (self.folder / "run.json").is_file()


def compare(
    methods: Sequence[str | Path | Arm],
    data: str | Path | Manifest,
    out: str | Path,
    *,
    seeds: int = 1,
    folds: int | None = None,
    iterations: int | None = None,
    minutes: float | None = None,
    labelled: int | None = None,
    validations: int = 5,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    plan_overrides: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = RULES,
    prompts: Sequence[str] = (),
    baseline: str | None = None,
    margin: Mapping[str, float] | None = None,
    title: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train every method ``seeds`` times (or on ``folds`` folds), test all on the same cases, write ``report.html`` and its tables.

    The first method (or ``baseline``) is what the others are tested against; ``margin``: of non-inferiority, by metric. Runs that are
    finished already are used as they are, so an interrupted comparison goes on where it was. ``methods`` may also be paths of finished
    runs and of folders of label files; they have one seed and no folds, and slugs beside them are trained on the runs' split. A promptable
    method is tested once for each simulated user in ``prompts`` ('box', '1click', '5clicks': ``ops.prompts.user``) and appears as often,
    named 'method, user'. Raises UsageError for what cannot be compared, RunError for runs of another manifest or split.
    """
    progress = progress or Progress(quiet=True)
    out = Path(out)
    arms = _arms(methods, options or {})
    manifest = data if isinstance(data, Manifest) else open_dataset(data)
    check_metrics(metrics, manifest)
    for mode in prompts:
        user(mode)
    given = [a for a in arms if a.folder is not None]
    if given and (seeds > 1 or folds):
        raise UsageError("runs and folders that exist have one seed and no folds", found=given[0].name, fix="leave --seeds and --folds out")
    agreed = _agreed_split(given, manifest)
    splits = [agreed] if agreed else [manifest.held_out(fold, folds) for fold in (range(folds) if folds else [None])]
    out.mkdir(parents=True, exist_ok=True)
    identity = _identity(manifest, metrics, splits, labelled)
    _same_comparison(out, identity)
    write_json(out / "comparison.json", identity)
    rows: list[dict] = []
    facts: dict[str, dict] = {}
    folders: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    plan: Plan | None = None
    for seed in range(seeds):
        for fold, split in enumerate(splits):
            shown = manifest if labelled is None else hide_labels(manifest, split.train, labelled, seed)
            needed = any(a.folder is None for a in arms)
            if needed and (plan is None or folds or labelled is not None):  # other training cases, another plan
                plan, _ = plan_for(shown, split, device=device, minutes=minutes, overrides=plan_overrides, progress=progress)
            for arm in arms:
                number = {"seed": seed, **({"fold": fold} if folds else {})}
                progress.say(f"== {arm.name}, " + ", ".join(f"{k} {v}" for k, v in number.items()))
                if arm.folder is not None and not arm.is_run:
                    done = evaluate(arm.folder, manifest.only(split.test), metrics=metrics, name=arm.name, progress=progress)
                    rows += [{**r, **number} for r in done.records()]
                    problems += [replace(p, where=p.where or arm.name) for p in done.problems]
                    folders[arm.name], facts[arm.name] = [arm.folder], _arm_facts(arm)
                    continue
                where = arm.folder or out / arm.name / (f"seed_{seed}" + (f"/fold_{fold}" if folds else ""))
                trained = (
                    open_run(where, device=device)
                    if arm.folder
                    else train(
                        arm.method,
                        shown,
                        where,
                        options=arm.options,
                        seed=seed,
                        iterations=iterations,
                        minutes=minutes,
                        validations=validations,
                        resume=True,
                        device=device,
                        plan=plan,
                        split=split,
                        progress=progress,
                    )
                )
                for name, mode in _asked(arm, trained, prompts):
                    tested = _test(trained, manifest, split.test, seed, metrics, progress, mode)
                    rows += [{**r, "method": name, **number} for r in tested]
                    folders.setdefault(name, []).append(_beside(trained, "predictions", mode))
                    facts.setdefault(name, _arm_facts(arm, trained))["runs"].append(read_json(where / "run.json"))
    tests = sorted({i for split in splits for i in split.test})
    return write_report(
        out,
        title=title or f"{' vs '.join(a.name for a in arms)} on {manifest.name}",
        rows=rows,
        methods={name: _method_facts(f) for name, f in facts.items()},
        cases=Pictures(manifest, folders),
        manifest=_data_facts(manifest, splits[-1]),
        plan=_plan_facts(plan, seeds, folds, iterations, minutes, labelled),
        note=_unequal(facts),
        baseline=baseline or next(iter(facts)),
        margin=margin,
        columns=case_columns(manifest, tests),
        problems=[p.to_json() for p in problems],
        pooled=pooled(rows, metrics),
    )


def _arms(methods: Sequence[str | Path | Arm], options: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """Slugs of the catalogue first; anything else has to be a folder. Folders are called by as much of their path as tells them apart."""
    known = set(catalog.names())
    paths = [Path(m) for m in methods if not isinstance(m, Arm) and (isinstance(m, Path) or m not in known)]
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"'{path}' is no method and no folder", fix=nearest(str(path), known))
        if not (path / "run.json").is_file() and any(True for depth in ("*", "*/*", "*/*/*") for _ in path.glob(f"{depth}/run.json")):
            raise UsageError("this folder holds several runs", where=path, fix="name one of the runs in it")
    names = dict(zip(paths, _short_names(paths), strict=True))
    arms = []
    for m in methods:
        if isinstance(m, Arm):
            arms.append(m)
        elif isinstance(m, str) and m in known:
            arms.append(Arm(m, m, options.get(m, {})))
        else:
            arms.append(Arm(names[Path(m)], folder=Path(m)))
    if len({a.name for a in arms}) < len(arms):
        raise UsageError("a method is named twice", found=", ".join(a.name for a in arms))
    for arm in arms:
        if isinstance(arm.method, str) and arm.method:
            catalog.coerce(arm.method, arm.options)
    return arms


def _short_names(paths: Sequence[Path]) -> list[str]:
    """As much of each path's end as tells them apart; 'predictions', 'seed_0' and 'fold_1' say nothing of a method."""
    whole = [p.resolve().parts for p in paths]
    tell = [next((n for n in range(len(parts), 0, -1) if not _NO_NAME.fullmatch(parts[n - 1])), len(parts)) for parts in whole]
    short = [parts[:n] for parts, n in zip(whole, tell, strict=True)]
    apart = len(set(short)) == len(short)
    parts, least = (short, 1) if apart else (whole, 1 + max((len(p) - n for p, n in zip(whole, tell, strict=True)), default=0))
    for depth in range(least, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(p) for p in parts]


def _agreed_split(given: Sequence[Arm], manifest: Manifest) -> Split | None:
    """The split that all runs share, or of folders of predictions alone the test cases (else all that have references). Raises RunError."""
    runs = [(a, read_json(a.folder / "run.json")) for a in given if a.is_run]
    first: Split | None = None
    for arm, record in runs:
        split = Split.from_json(record["split"])
        if record.get("status") != "finished":
            raise RunError("this run is not finished", where=arm.folder, found=record.get("status"), fix="train it with --resume first")
        trained_on = manifest if not record.get("labelled") else hide_labels(manifest, split.train, record["labelled"], record["seed"])
        if record["data"]["digest"] != trained_on.digest():
            raise RunError(
                "this run is of another manifest than --data",
                where=arm.folder,
                found=f"{record['data']['name']} {record['data']['digest'][:12]}",
                allowed=f"{manifest.name} {trained_on.digest()[:12]}",
                fix="give the data it was trained on; a label, row or split that changed makes another manifest",
            )
        if not split.test:
            raise RunError("this run has no test cases", where=arm.folder, fix="declare test cases, or compare the methods by their slugs")
        if first is not None and (split.train, split.val, split.test) != (first.train, first.val, first.test):
            parts = [p for p in ("train", "val", "test") if getattr(split, p) != getattr(first, p)]
            raise RunError(
                f"the runs have different splits ({', '.join(parts)})",
                where=arm.folder,
                found=f"{split.name}: {len(split.train)}, {len(split.val)} and {len(split.test)} cases",
                allowed=f"that of {runs[0][0].folder} ({first.name}: {len(first.train)}, {len(first.val)} and {len(first.test)} cases)",
                fix="train them on one split",
            )
        first = first or split
    if first is not None or not given:
        return first
    tests = manifest.where("test") or tuple(c.id for c in manifest.cases if c.labels)
    return Split((), (), tests, "all cases with references" if not manifest.where("test") else "declared")


def _asked(arm: Arm, trained: Trained, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """(name in the report, simulated user): one for each user of a promptable method, else the arm itself."""
    if not isinstance(trained.method, PromptableMethod):
        return [(arm.name, "")]
    return [(f"{arm.name}, {mode}", mode) for mode in prompts or (trained.method.usual,)]


def _beside(trained: Trained, what: str, mode: str) -> Path:
    """'predictions' or 'scores.json' of a run, of one simulated user where there is one."""
    stem, dot, ending = what.partition(".")
    return trained.folder / (f"{stem}_{mode}{dot}{ending}" if mode else what)


def _test(
    trained: Trained, manifest: Manifest, tests: Sequence[str], seed: int, metrics: Sequence[str], progress: Progress, mode: str
) -> list[dict]:
    """Score rows of the test cases, kept beside the run; predictions are written as label files."""
    cached = _beside(trained, "scores.json", mode)
    if cached.exists():
        record = read_json(cached)
        if record["cases"] == list(tests) and record["metrics"] == list(metrics):
            return record["rows"]
    trained.manifest = manifest  # references of the test cases, whatever labels training was allowed to see
    folder = _beside(trained, "predictions", mode)
    folder.mkdir(exist_ok=True)
    rows: list[dict] = []
    for case, answer, scores, seconds in score_split(trained, tests, seed=seed, progress=progress, metrics=metrics, prompts=mode):
        rows += [s.to_json() for s in scores]
        rows.append({"case": case.id, "patient": case.patient, "metric": "seconds", "value": seconds, "kind": "cost"})
        _write_answer(folder, case.id, answer, manifest)
    write_json(cached, {"cases": list(tests), "metrics": list(metrics), "rows": rows})
    return rows


def _write_answer(folder: Path, case: str, answer: Prediction, manifest: Manifest) -> None:
    """<case>.nii.gz (.png in 2D); structures that overlap as <case>/<structure>.*, as ``evaluate`` reads them."""
    label, suffix = answer.label, ".png" if manifest.dims == 2 else ".nii.gz"
    if label is None:
        return
    data = np.asarray(label.data)
    if not label.overlapping:
        write_labels(folder / f"{case}{suffix}", data, label.geometry, values=manifest.values)
        return
    (folder / case).mkdir(exist_ok=True)
    for name, mask in zip(label.names[len(label.names) - len(data) :], data, strict=True):
        if name != "background":
            write_labels(folder / case / f"{name}{suffix}", (mask > 0).astype(np.uint8), label.geometry)


def _arm_facts(arm: Arm, trained: Trained | None = None) -> dict:
    """What the catalogue says of an arm; its runs are added."""
    slug = trained.record["method"] if arm.folder is not None and trained is not None else arm.method
    card = catalog.get(slug) if isinstance(slug, str) and slug in set(catalog.names()) else None
    return {
        "runs": [],
        "options": dict(trained.record["options"] if arm.folder is not None and trained is not None else arm.options),
        "evidence": card.evidence if card else "",
        "title": card.title if card else "" if trained is not None else f"predictions in {arm.folder}",
        "deviations": list(card.deviations) if card else [],
    }


def _unequal(facts: Mapping[str, Mapping]) -> str:
    """A sentence where finished runs were not trained alike: what differs stands beside the numbers."""
    said = []
    for what in ("budget", "labelled", "seed", "device"):
        by_method = {name: [r.get(what) for r in f["runs"]] for name, f in facts.items() if f["runs"]}
        if len({json.dumps(v, sort_keys=True, default=str) for v in by_method.values()}) > 1:
            said.append(f"{what} (" + "; ".join(f"{name}: {_plainly(v[0])}" for name, v in by_method.items()) + ")")
    return f"The runs were not trained alike; they differ in {' and in '.join(said)}." if said else ""


def _plainly(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    return str(value)


def _method_facts(entry: dict) -> dict:
    runs = entry["runs"]
    known = {k: entry[k] for k in ("deviations", "evidence", "options", "title")}
    if not runs:
        return known
    budgets = [b for r in runs for k, b in r["facts"].items() if k.startswith("budget.")]
    return {
        "seconds": float(np.mean([r["seconds"] for r in runs])),
        "peak memory GiB": float(np.max([r.get("peak_memory_gib", 0.0) for r in runs])),
        "parameters": int(runs[0].get("parameters", 0)),
        "iterations": int(np.mean([b["iterations"] for b in budgets])) if budgets else 0,
        "precision": ", ".join(sorted({b["precision"] for b in budgets})),
        "notes": sorted({n for r in runs for n in r["facts"].get("notes", [])}),
        **known,
    }


def _data_facts(manifest: Manifest, split: Split) -> dict:
    return {
        "name": manifest.name,
        "modality": manifest.modality,
        "licence": manifest.licence,
        "cases": len(manifest),
        "patients": len({c.patient for c in manifest.cases}),
        "labels": ", ".join(manifest.names[1:]),
        "split": f"{split.name}: {len(split.train)} train, {len(split.val)} validation, {len(split.test)} test cases, by patient",
        "digest": manifest.digest()[:16],
    }


def _plan_facts(plan: Plan | None, seeds, folds, iterations, minutes, labelled) -> dict:
    """``plan`` None: nothing was trained here."""
    trained = (
        {}
        if plan is None
        else {
            "patch": " x ".join(map(str, plan.patch)),
            "batch": plan.batch,
            "grid": plan.reasons.get("grid", ""),
            "normalise": ", ".join(sorted(set(plan.normalise.values()))),
            "budget": f"{minutes} minutes" if minutes else f"{iterations or plan.iterations} iterations",
            "seeds": seeds,
        }
    )
    facts = {
        **trained,
        "device": machine()["device"],
        "command": " ".join(["vesalius", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    if folds:
        facts["folds"] = folds
    if labelled:
        facts["labelled patients"] = labelled
    return facts


def _identity(manifest: Manifest, metrics: Sequence[str], splits: Sequence[Split], labelled: int | None) -> dict:
    """What all runs of a comparison share."""
    parts = hashlib.sha256(json.dumps([[s.train, s.val, s.test] for s in splits]).encode()).hexdigest()
    return {"digest": manifest.digest(), "data": manifest.name, "metrics": list(metrics), "splits": parts, "labelled": labelled}


def _same_comparison(out: Path, identity: Mapping[str, Any]) -> None:
    """A comparison folder holds runs of one manifest, its splits, and one set of metrics. Raises RunError that says what differs."""
    path = out / "comparison.json"
    if not path.exists():
        return
    known = read_json(path)
    names = {"digest": "manifest", "data": "data", "metrics": "metrics", "splits": "splits", "labelled": "labelled patients"}
    other = [k for k in names if k in known and known[k] != identity[k]]
    if other:
        raise RunError(
            f"this folder holds a comparison of other {', '.join(dict.fromkeys(names[k] for k in other))}",
            where=out,
            found="; ".join(_plainly(known[k]) for k in other),
            allowed="; ".join(_plainly(identity[k]) for k in other),
            fix="choose another --out",
        )
