"""Can this model be trusted here? A run held against data it has not seen, with or without labels.

Per case an out-of-distribution score with a threshold from the training and validation cases, and a predicted Dice (reverse
classification accuracy); over the cohort gaps between groups of patients; where there are labels the true Dice and calibration; and how
the answers hold when the images are damaged. What was fitted for it is stored with the run, so that the next audit needs no training data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case, LabelMap
from ..core.errors import DataError, UsageError, nearest
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction, Score
from ..datasets import open_dataset
from ..datasets.phantoms.corruption import KINDS, corrupt
from ..metrics import score_case
from ..metrics.calibration import Reliability, brier, reliability_tables
from ..ops.components import bounding_box
from ..report.audit_page import verdict, write_audit
from ..report.statistics import holm
from .infer import infer
from .judges import JUDGES, as_trained_on, judges_of
from .progress import Progress
from .record import machine, versions, write_json
from .runs import Trained, open_run, reader

GAPS = "rca-bias"
SEVERITIES = (1, 2, 3, 4, 5)
_LEVELS, _LEAST = 6, 5  # groups a column may have, patients a group needs
_MARGIN = 5  # voxels around prediction and reference in which probabilities are judged


@dataclass(frozen=True)
class Audit:
    """``rows`` (cases first, then the cohort's), the ``page`` written, its ``verdict`` and what could not be done (``notes``)."""

    rows: list[Score]
    page: Path
    verdict: str
    notes: list[str] = field(default_factory=list)


def audit(
    run: str | Path | Trained,
    data: str | Path | Manifest,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    by: Sequence[str] = (),
    trained_on: str | Path | Manifest | None = None,
    bench: int = 8,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Audit a run on ``data``; writes audit.html, audit.csv and audit.json into ``out`` (default: RUN/audit/<data>).

    ``split``: only these cases (default: all, or the test cases where the model was trained on the same data). ``by``: table columns that
    make groups (default: every column of two to six groups of five patients, and numbers split at their median). ``trained_on``: the
    training data, where they moved since. ``bench``: cases whose images are damaged, in every way at every severity (0: none).
    ``options`` of the judges by slug. Raises UsageError, DataError, RunError.
    """
    progress = progress or Progress(quiet=True)
    trained = run if isinstance(run, Trained) else open_run(run, device=device)
    manifest = data if isinstance(data, Manifest) else open_dataset(data)
    for slug in options or {}:
        if slug not in JUDGES:
            raise UsageError(f"there is no judge '{slug}'", where="--set", fix=nearest(slug, JUDGES))
    ids = _cases(trained, manifest, split)
    read, notes = reader(manifest), []
    judges = judges_of(trained, trained_on or manifest, options or {}, notes, seed, progress)
    judge = judges[-1].method if judges else trained.method
    rows: list[Score] = []
    tables: list[Reliability] = []
    done: list[str] = []
    with progress.task("auditing", len(ids)) as advance:
        for i in ids:
            advance(1)
            try:
                case = _labelled(read(i), trained, notes)
                answer = infer(judge, case, trained.plan, seed=seed, probability=bool(case.labels))
            except DataError as error:
                notes.append(f"case '{i}' could not be audited: {error}")
                continue
            done.append(i)
            rows += _case_rows(case, answer)
            if case.labels:
                rows += _truth(case, answer, tables)
    if not done:
        raise DataError("no case could be audited", where=manifest.name, found=notes[-1])
    cohort = _gaps(rows, _groups(manifest, done, by))
    watch = next((j.method for j in judges if j.known.size), trained.method)
    picked = [done[i] for i in np.unique(np.linspace(0, len(done) - 1, min(bench, len(done))).astype(int))] if bench else []
    damaged = _bench(watch, trained, picked, lambda i: _labelled(read(i), trained, []), seed, progress)
    pooled = _together(tables)
    if pooled is not None:
        share, confidence, accuracy = pooled.filled
        cohort.append(Score("", "ece", float(share @ np.abs(accuracy - confidence)), extra={"better": "lower"}))
    target = Path(out) if out is not None else trained.folder / "audit" / "".join(c if c.isalnum() else "-" for c in manifest.name)
    target.mkdir(parents=True, exist_ok=True)
    known = next((j.known for j in judges if j.known.size), np.zeros(0))
    notes = list(dict.fromkeys(notes))
    facts = {
        "run": str(trained.folder),
        "method": trained.record["method"],
        "trained on": f"{trained.record['data']['name']}, {len(trained.split.train)} training cases",
        "audited": f"{manifest.name}, {len(done)} cases of {len({manifest[i].patient for i in done})} patients",
        "judges": ", ".join(j.slug for j in judges) or "none",
        "damaged cases": len(picked),
        "command": " ".join(["vesalius", *sys.argv[1:]]),
        "device": machine()["device"],
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "date": time.strftime("%Y-%m-%d"),
    }
    everything = [*rows, *cohort, *damaged]
    records = [r.to_json() for r in everything]
    page = write_audit(
        target,
        title=f"Audit of {trained.record['method']} on {manifest.name}",
        rows=records,
        known=known.tolist(),
        reliability=None if pooled is None else {k: getattr(pooled, k).tolist() for k in ("count", "confidence", "accuracy")},
        notes=notes,
        facts=facts,
    )
    said = verdict(records)
    write_json(target / "audit.json", {"facts": facts, "verdict": said, "notes": notes, "rows": records})
    return Audit(everything, page, said, notes)


def _cases(trained: Trained, manifest: Manifest, split: str | None) -> tuple[str, ...]:
    """The cases to audit; training cases of the same data say nothing about new ones."""
    if manifest.dims != trained.plan.dims:
        raise UsageError(f"the model is {trained.plan.dims}D", where=manifest.name, found=f"{manifest.dims}D data")
    same = as_trained_on(trained, manifest) is not None
    if split is not None:
        parts = trained.split.to_json() if same else {s: manifest.where(s) for s in ("train", "val", "test")}
        if split not in ("train", "val", "test"):
            raise UsageError("no such split", where="--split", found=split, allowed="train, val, test")
        ids = tuple(parts[split])
    else:
        ids = (trained.split.test or trained.split.val) if same else tuple(c.id for c in manifest.cases)
    if not ids:
        raise DataError("there is no case to audit", where=manifest.name, found=f"split '{split}'" if split else "no case")
    return ids


def _labelled(case: Case, trained: Trained, notes: list[str]) -> Case:
    """The case with those references only that name the model's classes."""
    keep = {k: v.semantic for k, v in case.labels.items() if v.semantic.names == trained.plan.classes and not v.overlapping}
    if len(keep) < len(case.labels):
        notes.append(f"references with other classes than the model's ({', '.join(trained.plan.classes)}) are not used")
    label = replace(case, labels=keep).label
    return replace(case, labels={} if label is None else {"reference": label})


# ---------------------------------------------------------------------------------------------------------------------------------- rows
def _case_rows(case: Case, answer: Prediction) -> list[Score]:
    """A judged prediction's table as rows: 'name/structure' columns, and the threshold beside the distance."""
    out = []
    for key, value in answer.table.items():
        name, _, structure = key.partition("/")
        if name not in ("ood", "rca_max", "rca_mean") or value is None:
            continue
        better = "lower" if name == "ood" else "higher"
        extra: dict[str, Any] = {"better": better}
        if name == "ood":
            extra |= {"threshold": answer.table["ood_threshold"], "flagged": bool(value > answer.table["ood_threshold"])}
        out.append(Score(case.id, name, float(value), structure, patient=case.patient, extra=extra))
    if "rca_flag" in answer.table:
        out.append(Score(case.id, "rca_flag", float(answer.table["rca_flag"]), patient=case.patient, extra={"better": "lower"}))
    return out


def _truth(case: Case, answer: Prediction, tables: list[Reliability]) -> list[Score]:
    """DSC by structure, and the case's Brier score; its reliability table is added to ``tables``."""
    reference = case.label
    rows = [replace(r, extra={"better": "higher"}) for r in _overlaps(case, answer.label, reference, "dsc")]
    p = answer.probability
    if p is not None and answer.threshold is None and p.geometry.close(reference.geometry) and len(p.data) == len(reference.names):
        roi = _around((np.asarray(reference.data) > 0) | (np.asarray(answer.label.data) > 0))
        maps = np.clip(np.asarray(p.data, np.float64), 0, 1)
        maps /= np.maximum(maps.sum(0), 1e-12)
        tables += reliability_tables(maps, np.asarray(reference.data), roi=roi)
        value = brier(maps, np.asarray(reference.data), roi=roi)
        rows.append(Score(case.id, "brier", value, patient=case.patient, extra={"better": "lower"}))
    return rows


def _overlaps(case: Case, label: LabelMap, reference: LabelMap, metric: str, step: int | None = None) -> list[Score]:
    """DSC of every structure, as rows of ``metric``."""
    rows = score_case(label, reference, case_id=case.id, patient=case.patient, metrics=("dsc",), rater="")
    return [replace(r, metric=metric, step=step, note="", extra={}) for r in rows]


def _around(mask: np.ndarray) -> np.ndarray:
    """The bounding box of a mask, a few voxels wider; everything when it is empty."""
    out = np.zeros(mask.shape, bool)
    out[bounding_box(mask, _MARGIN) or ...] = True
    return out


def _together(tables: Sequence[Reliability]) -> Reliability | None:
    """One reliability table of all cases' voxels."""
    if not tables:
        return None
    counts = np.stack([t.count for t in tables])
    total = counts.sum(0)
    with np.errstate(invalid="ignore"):
        mean = lambda name: np.nansum(np.stack([getattr(t, name) for t in tables]) * counts, 0) / np.where(total, total, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(tables[0].edges, total, mean("confidence"), mean("accuracy"))


# -------------------------------------------------------------------------------------------------------------------------------- groups
def _groups(manifest: Manifest, ids: Sequence[str], by: Sequence[str]) -> dict[str, dict[str, str]]:
    """Column -> case -> group; '' where the table has no value."""
    columns = list(dict.fromkeys(k for i in ids for k in manifest[i].table))
    unknown = [b for b in by if b not in columns]
    if unknown:
        raise UsageError("no such column", where="--by", found=unknown[0], allowed=", ".join(columns) or "the data set has no table")
    out = {}
    for column in by or columns:
        found = _levels({i: manifest[i].table.get(column) for i in ids})
        patients = {g: {manifest[i].patient for i, v in found.items() if v == g} for g in set(found.values()) - {""}}
        fit = 2 <= len(patients) <= _LEVELS and sum(len(p) >= _LEAST for p in patients.values()) >= 2
        if by or fit:
            out[column] = found
    return out


def _levels(values: Mapping[str, Any]) -> dict[str, str]:
    """As they are, or numbers of many values split at their median."""
    known = {i: v for i, v in values.items() if v is not None and str(v).strip() != ""}
    try:
        numbers = {i: float(v) for i, v in known.items()}
    except (TypeError, ValueError):
        numbers = {}
    if len(set(numbers.values())) > _LEVELS:
        middle = float(np.median(list(numbers.values())))
        return {i: (f"< {middle:g}" if numbers[i] < middle else f">= {middle:g}") if i in numbers else "" for i in values}
    return {i: str(known[i]) if i in known else "" for i in values}


def _gaps(rows: Sequence[Score], groups: Mapping[str, Mapping[str, str]]) -> list[Score]:
    """Estimated (RCA) and, with labels, true gaps of every column; p-values Holm-corrected over all of a metric."""
    estimate = catalog.load(catalog.get(GAPS).homes[1])
    out = []
    for metric in ("rca_max", "dsc"):
        mine = [r for r in rows if r.metric == metric]
        found = [g for column, group in groups.items() for g in estimate(mine, group, by=column, least=_LEAST)]
        adjusted = holm([g.extra["p"] for g in found])
        out += [replace(g, extra={**g.extra, "p_holm": p}) for g, p in zip(found, adjusted, strict=True)]
    return out


# --------------------------------------------------------------------------------------------------------------------------------- bench
def _bench(method: Method, trained: Trained, ids: Sequence[str], read, seed: int, progress: Progress) -> list[Score]:
    """Rows '<what>:<damage>' with the severity as ``step``: dsc against the reference, or agreement with the undamaged answer; and ood."""
    out: list[Score] = []
    with progress.task("damaging", len(ids) * len(KINDS) * len(SEVERITIES)) as advance:
        for n, i in enumerate(ids):
            case = as_seen(read(i), trained.plan)
            clean = infer(method, case, trained.plan, seed=seed)
            reference, what = (case.label, "dsc") if case.labels else (clean.label, "agreement")
            for number, kind in enumerate(KINDS):
                for severity in (0, *SEVERITIES):
                    answer = clean
                    if severity:
                        answer = infer(method, damage(case, kind, severity, [seed, n, number]), trained.plan, seed=seed)
                        advance(1)
                    out += _overlaps(case, answer.label, reference, f"{what}:{kind}", severity)
                    if "ood" in answer.table:
                        value, limit = answer.table["ood"], answer.table["ood_threshold"]
                        extra = {"flagged": bool(value > limit)}
                        out.append(Score(case.id, f"ood:{kind}", float(value), patient=case.patient, step=severity, extra=extra))
    return out


def as_seen(case: Case, plan: Plan) -> Case:
    """The case on the plan's grid where that is coarser than its own: a blur of two native voxels would vanish before the model saw it."""
    grid = case.geometry if plan.grid.inside else plan.grid.of(case.geometry.canonical())
    if np.prod(grid.shape) >= np.prod(case.geometry.shape):
        return case
    images = {}
    for name, image in case.images.items():
        moved, kind = image.on(grid, antialias=True), np.asarray(image.data).dtype
        images[name] = replace(moved, source=np.round(moved.data).astype(kind) if np.issubdtype(kind, np.integer) else moved.data)
    return case.with_(
        images=images, labels={k: v.on(grid) for k, v in case.labels.items()}, rois={k: v.on(grid) for k, v in case.rois.items()}
    )


def damage(case: Case, kind: str, severity: int, seed: Sequence[int]) -> Case:
    """The case with every image damaged by one of ``datasets.phantoms.corruption``; the same seed damages alike at every severity."""
    images = {}
    for k, (name, image) in enumerate(case.images.items()):
        data = corrupt(np.asarray(image.data), kind, severity, np.random.default_rng([*seed, k]))
        images[name] = replace(image, source=data)
    return case.with_(images=images)
