"""Several methods under the same splits, plan and metrics, and the report of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case
from ..core.errors import RunError, UsageError
from ..core.manifest import Manifest, Split
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..datasets import open_dataset
from ..io import write_labels
from ..report.page import CasePicture, write_report
from .api import Trained, hide_labels, plan_for, score_split, train
from .evaluate import RULES
from .progress import Progress
from .record import machine, read_json, versions, write_json


@dataclass(frozen=True)
class Arm:
    """One column of a comparison: a catalogue slug (or, in proofs, a Method class) with options."""

    name: str
    method: str | type
    options: Mapping[str, Any] = field(default_factory=dict)


def compare(
    methods: Sequence[str | Arm],
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
    baseline: str | None = None,
    title: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train every method ``seeds`` times (or on ``folds`` folds), test all on the same cases, write ``report.html`` and its tables.

    The first method (or ``baseline``) is what the others are tested against. Runs that are finished already are used as they are, so an
    interrupted comparison goes on where it was.
    """
    progress = progress or Progress(quiet=True)
    out = Path(out)
    arms = [m if isinstance(m, Arm) else Arm(m, m, (options or {}).get(m, {})) for m in methods]
    if len({a.name for a in arms}) < len(arms):
        raise UsageError("a method is named twice", found=", ".join(a.name for a in arms))
    for arm in arms:
        if isinstance(arm.method, str):
            catalog.coerce(arm.method, arm.options)
    manifest = data if isinstance(data, Manifest) else open_dataset(data)
    out.mkdir(parents=True, exist_ok=True)
    _same_comparison(out, manifest, metrics)
    rows: list[dict] = []
    facts: dict[str, dict] = {}
    pictures: dict[str, CasePicture] = {}
    plan: Plan | None = None
    split: Split | None = None
    for seed in range(seeds):
        for fold in range(folds) if folds else [None]:
            split = manifest.held_out(fold, folds or 5)
            shown = manifest if labelled is None else hide_labels(manifest, split.train, labelled, seed)
            if plan is None or folds or labelled is not None:  # other training cases, another plan
                plan, _ = plan_for(shown, split, device=device, overrides=plan_overrides, progress=progress)
            for arm in arms:
                where = out / arm.name / (f"seed_{seed}" + (f"/fold_{fold}" if fold is not None else ""))
                progress.say(f"== {arm.name}, seed {seed}" + (f", fold {fold}" if fold is not None else ""))
                trained = train(
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
                shown_cases = pictures if seed == 0 and not fold else None
                found = _test(trained, manifest, split.test, seed, metrics, progress, shown_cases, arm.name)
                rows += [{**r, "method": arm.name, "seed": seed, **({"fold": fold} if fold is not None else {})} for r in found]
                _add_facts(facts, arm, trained, where)
    write_json(out / "comparison.json", _identity(manifest, metrics))
    return write_report(
        out,
        title=title or f"{' vs '.join(a.name for a in arms)} on {manifest.name}",
        rows=rows,
        methods={name: _method_facts(f) for name, f in facts.items()},
        cases=list(pictures.values()),
        manifest=_data_facts(manifest, split),
        plan=_plan_facts(plan, seeds, folds, iterations, minutes, labelled),
        baseline=baseline or arms[0].name,
    )


def _test(trained: Trained, manifest: Manifest, tests, seed, metrics, progress, pictures, name) -> list[dict]:
    """Score rows of the test cases, kept beside the run; predictions are written as label files."""
    cached = trained.folder / "scores.json"
    want_pictures = pictures is not None
    if cached.exists() and not want_pictures:
        record = read_json(cached)
        if record["cases"] == list(tests) and record["metrics"] == list(metrics):
            return record["rows"]
    trained.manifest = manifest  # references of the test cases, whatever labels training was allowed to see
    folder = trained.folder / "predictions"
    folder.mkdir(exist_ok=True)
    rows: list[dict] = []
    for case, answer, scores, seconds in score_split(trained, tests, seed=seed, progress=progress, metrics=metrics):
        rows += [s.to_json() for s in scores]
        rows.append({"case": case.id, "patient": case.patient, "metric": "seconds", "value": seconds, "kind": "cost"})
        if answer.label is not None:
            ending = ".png" if manifest.dims == 2 else ".nii.gz"
            write_labels(folder / f"{case.id}{ending}", np.asarray(answer.label.data), answer.label.geometry, values=manifest.values)
            if want_pictures:
                _picture(pictures, case, answer, name, manifest)
    write_json(cached, {"cases": list(tests), "metrics": list(metrics), "rows": rows})
    return rows


def _picture(pictures: dict[str, CasePicture], case: Case, answer: Prediction, name: str, manifest: Manifest) -> None:
    if not case.images or not case.labels:
        return
    if case.id not in pictures:
        canonical = case.geometry.canonical()
        first = next(iter(case.images.values())).on(canonical, "nearest")
        reference = next(iter(case.labels.values())).semantic.on(canonical)
        pictures[case.id] = CasePicture(
            case=case.id,
            image=np.asarray(first.data),
            spacing=canonical.spacing,
            reference=np.asarray(reference.data),
            predictions={},
            names=manifest.names,
        )
    pictures[case.id].predictions[name] = np.asarray(answer.label.on(case.geometry.canonical()).data)


def _add_facts(facts: dict, arm: Arm, trained: Trained, where: Path) -> None:
    card = catalog.get(arm.method) if isinstance(arm.method, str) else None
    entry = facts.setdefault(
        arm.name,
        {
            "runs": [],
            "options": dict(arm.options),
            "evidence": card.evidence if card else "",
            "title": card.title if card else "",
            "deviations": list(card.deviations) if card else [],
            "family": card.family if card else "",
        },
    )
    entry["runs"].append({**read_json(where / "run.json")})


def _method_facts(entry: dict) -> dict:
    runs = entry["runs"]
    budgets = [b for r in runs for k, b in r["facts"].items() if k.startswith("budget.")]
    return {
        "seconds": float(np.mean([r["seconds"] for r in runs])),
        "peak memory GiB": float(np.max([r.get("peak_memory_gib", 0.0) for r in runs])),
        "parameters": int(runs[0].get("parameters", 0)),
        "iterations": int(np.mean([b["iterations"] for b in budgets])) if budgets else 0,
        "precision": ", ".join(sorted({b["precision"] for b in budgets})),
        "deviations": entry["deviations"],
        "evidence": entry["evidence"],
        "options": entry["options"],
        "notes": sorted({n for r in runs for n in r["facts"].get("notes", [])}),
        "title": entry["title"],
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


def _plan_facts(plan: Plan, seeds, folds, iterations, minutes, labelled) -> dict:
    facts = {
        "patch": " x ".join(map(str, plan.patch)),
        "batch": plan.batch,
        "grid": plan.reasons.get("grid", ""),
        "normalise": ", ".join(sorted(set(plan.normalise.values()))),
        "budget": f"{minutes} minutes" if minutes else f"{iterations or plan.iterations} iterations",
        "seeds": seeds,
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


def _identity(manifest: Manifest, metrics: Sequence[str]) -> dict:
    return {"digest": manifest.digest(), "data": manifest.name, "metrics": list(metrics)}


def _same_comparison(out: Path, manifest: Manifest, metrics: Sequence[str]) -> None:
    """A comparison folder holds runs of one manifest and one set of metrics."""
    known = out / "comparison.json"
    if known.exists() and read_json(known) != _identity(manifest, metrics):
        raise RunError(
            "this folder holds a comparison of other data or metrics", where=out, found=read_json(known)["data"], fix="choose another --out"
        )
