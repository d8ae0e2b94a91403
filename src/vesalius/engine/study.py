"""A Study: arms x data x metrics. A paper's own claim is one (``proofs/<family>/<slug>.py``); its result file is generated."""

from __future__ import annotations

import csv
import hashlib
import runpy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import catalog
from ..core.errors import UsageError
from ..datasets import open_dataset
from ..report.statistics import paired_difference
from .compare import Arm, compare
from .evaluate import RULES
from .progress import Progress
from .record import machine, versions, write_json

__all__ = ["Arm", "Study", "prove"]


@dataclass(frozen=True)
class Study:
    """``claim`` in words; ``arms`` of which one is the ``baseline``; ``data`` as ``open_dataset`` takes them (a path that does not exist is
    skipped with a note); ``expects``: arm -> {metric: 'higher' | 'lower'} against the baseline."""

    slug: str
    claim: str
    arms: tuple[Arm, ...]
    data: tuple[str, ...]
    baseline: str
    expects: dict[str, dict[str, str]]
    metrics: tuple[str, ...] = ("dsc", "hd95")
    seeds: int = 3
    iterations: int | None = None
    minutes: float | None = None
    labelled: int | None = None
    plan: dict | None = None


def find(slug: str, root: Path) -> Path:
    """proofs/<family>/<slug>.py of a card."""
    card = catalog.get(slug)
    path = root / "proofs" / card.family.replace("-", "_") / f"{slug.replace('-', '_')}.py"
    if not path.exists():
        raise UsageError(f"{slug} has no proof here", where=path, fix="run 'vesalius prove' in a checkout of the project")
    return path


def prove(
    slug: str, root: Path, out: Path, *, seeds: int | None = None, data: Sequence[str] = (), progress: Progress | None = None
) -> dict:
    """Run a proof and write ``proofs/results/<slug>.json``: per data set and arm the mean of each metric and the paired difference to the
    baseline with its 95 % interval over all (case, seed) pairs, resampled by patient; and whether the claim's direction held."""
    progress = progress or Progress(quiet=True)
    path = find(slug, root)
    study: Study = runpy.run_path(str(path))["study"]()
    started, results = time.monotonic(), {}
    for where in data or study.data:
        if not where.startswith("phantom:") and not (root / where).exists():
            results[where] = {"skipped": "the data is not on this machine"}
            continue
        manifest = open_dataset(where if where.startswith("phantom:") else root / where)
        folder = out / slug / hashlib.sha256(where.encode()).hexdigest()[:8]
        compare(
            study.arms,
            manifest,
            folder,
            seeds=seeds or study.seeds,
            iterations=study.iterations,
            minutes=study.minutes,
            labelled=study.labelled,
            plan_overrides=study.plan,
            metrics=tuple(dict.fromkeys([*study.metrics, *RULES])),
            baseline=study.baseline,
            title=f"{slug}: {study.claim}",
            progress=progress,
        )
        results[where] = _summary(study, folder)
    record = {
        "slug": slug,
        "claim": study.claim,
        "baseline": study.baseline,
        "seeds": seeds or study.seeds,
        "iterations": study.iterations,
        "minutes": study.minutes,
        "results": results,
        "holds": _holds(study, results),
        "seconds": round(time.monotonic() - started),
        "command": f"vesalius prove {slug}",
        "versions": versions(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    target = root / "proofs" / "results" / f"{slug}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, record)
    return record


def _summary(study: Study, folder: Path) -> dict:
    with (folder / "scores.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["metric"] in study.metrics]
    out: dict = {"arms": {}}
    for arm in study.arms:
        out["arms"][arm.name] = {}
        for metric in study.metrics:
            mine, base = (_table(rows, name, metric) for name in (arm.name, study.baseline))
            values = [v for v in mine.values() if v is not None]
            entry = {
                "mean": float(np.mean(values)) if values else None,
                "n": len(values),
                "undefined": sum(v is None for v in mine.values()),
                "by seed": [float(np.mean(vs)) if vs else None for vs in _by_seed(mine)],
            }
            if arm.name != study.baseline:
                shared = [k for k in mine if mine[k] is not None and base.get(k) is not None]
                if shared:
                    entry["difference"] = paired_difference(
                        [mine[k] for k in shared], [base[k] for k in shared], groups=[k[0] for k in shared], seed=0
                    )
            out["arms"][arm.name][metric] = entry
    return out


def _table(rows: list[dict], arm: str, metric: str) -> dict[tuple, float | None]:
    """(patient, case, structure, rater, seed) -> value."""
    out = {}
    for r in rows:
        if r["method"] == arm and r["metric"] == metric:
            key = (r.get("patient", ""), r["case"], r.get("structure", ""), r.get("rater", ""), r.get("seed", ""), r.get("fold", ""))
            out[key] = float(r["value"]) if r["value"] not in ("", "None", None) else None
    return out


def _by_seed(table: dict) -> list[list[float]]:
    seeds = sorted({k[4] for k in table})
    return [[v for k, v in table.items() if k[4] == s and v is not None] for s in seeds]


def _holds(study: Study, results: dict) -> dict[str, bool | None]:
    """Data set -> did every expected direction hold with the interval excluding 0?"""
    out: dict[str, bool | None] = {}
    for where, result in results.items():
        if "arms" not in result:
            out[where] = None
            continue
        verdicts = []
        for arm, wanted in study.expects.items():
            for metric, direction in wanted.items():
                d = result["arms"][arm][metric].get("difference")
                verdicts.append(bool(d) and d["low"] is not None and (d["low"] > 0 if direction == "higher" else d["high"] < 0))
        out[where] = all(verdicts)
    return out
