"""A Study: arms x data x metrics. A paper's own claim is one (``proofs/<family>/<slug>.py``); its result file is generated."""

from __future__ import annotations

import csv
import hashlib
import runpy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import catalog
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.method import Method
from ..datasets import open_dataset
from ..io.atomic import atomic_write_text
from ..metrics import metric
from ..report.statistics import paired_difference
from ..report.tables import to_csv
from .api import train
from .compare import Arm, compare
from .evaluate import RULES
from .progress import Progress
from .record import machine, read_json, versions, write_json
from .runs import Trained, build

__all__ = ["Arm", "Data", "Expect", "Study", "compared", "prove", "read_as", "trained_once"]


@dataclass(frozen=True)
class Data:
    """A data set of a study, as ``open_dataset`` takes it, with what differs from the study there. ``metrics``: those of the study that
    it can give (empty: all); expectations of others are left out there."""

    where: str
    iterations: int | None = None
    labelled: int | None = None
    plan: Mapping[str, Any] | None = None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expect:
    """What the paper says: ``arm``'s ``metric`` is 'higher' or 'lower' than that of ``against`` (the baseline unless named). With a
    ``margin`` it says 'no worse': on the other side by less than that."""

    arm: str
    metric: str
    direction: Literal["higher", "lower"]
    against: str = ""
    margin: float = 0.0


@dataclass(frozen=True)
class Study:
    """``claim`` in words; ``arms`` of which one is the ``baseline``; ``data`` (a path that is not on the machine is skipped with a note);
    ``expects``: the claim as comparisons. ``prompts``: simulated users of promptable arms, which are then called 'arm, user'.
    ``validations``: how often a training looks at the validation cases. ``measure``: for claims that are no comparison of trainings
    (wrappers, audits): ``measure(study, manifest, folder, seeds=, iterations=, plan=, progress=)`` gives score rows ('method' an arm's
    name, case, patient, seed, metric, value), and nothing else is trained."""

    slug: str
    claim: str
    arms: tuple[Arm, ...]
    data: tuple[Data, ...]
    baseline: str
    expects: tuple[Expect, ...]
    metrics: tuple[str, ...] = ("dsc", "hd95")
    seeds: int = 3
    iterations: int | None = None
    plan: Mapping[str, Any] | None = None
    validations: int = 1
    prompts: tuple[str, ...] = ()
    measure: Callable[..., list[dict[str, Any]]] | None = None


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
    baseline with its 95 % interval over all (case, seed) pairs, resampled by patient; and whether the claim's direction held. ``data``:
    only on these; what the study says of one of them (its iterations, its plan) holds for it, and what was measured on others with as
    many seeds stays in the file, as long as the study's own file is the same."""
    progress = progress or Progress(quiet=True)
    path, target = find(slug, root), root / "proofs" / "results" / f"{slug}.json"
    study: Study = runpy.run_path(str(path))["study"]()
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    before = read_json(target) if data and target.exists() else {}
    if (before.get("study"), before.get("seeds")) != (source, seeds or study.seeds):
        before = {"results": {}, "seconds": 0}
    started, today, known = time.monotonic(), time.strftime("%Y-%m-%d"), {d.where: d for d in study.data}
    results = {where: result for where, result in before["results"].items() if "arms" in result}
    for part in [known.get(d, Data(d)) for d in data] or study.data:
        where = part.where
        if not where.startswith("phantom:") and not (root / where.partition("?")[0]).exists():
            results[where] = {"skipped": "the data is not on this machine"}
            continue
        manifest = open_dataset(where if where.startswith("phantom:") else root / where)
        iterations, plan = part.iterations or study.iterations, {**(study.plan or {}), **(part.plan or {})}
        folder = out / slug / _digest(where, iterations, plan, part.labelled, study.arms, study.validations)
        metrics = part.metrics or study.metrics
        if study.measure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            rows = study.measure(study, manifest, folder, seeds=seeds or study.seeds, iterations=iterations, plan=plan, progress=progress)
            atomic_write_text(folder / "scores.csv", to_csv(rows))
            results[where] = {**_summary(study, rows, metrics), "iterations": iterations, "date": today}
            continue
        how = dict(seeds=seeds or study.seeds, iterations=iterations, plan=plan, labelled=part.labelled, progress=progress)
        results[where] = {
            **_summary(study, compared(study, manifest, folder, metrics, **how), metrics),
            "iterations": iterations,
            "date": today,
        }
    record = {
        "slug": slug,
        "study": source,
        "claim": study.claim,
        "baseline": study.baseline,
        "seeds": seeds or study.seeds,
        "iterations": study.iterations,
        "results": results,
        "holds": {k: r.get("holds") for k, r in results.items()},
        "seconds": before["seconds"] + round(time.monotonic() - started),
        "command": f"vesalius prove {slug}",
        "versions": versions(),
        "machine": machine(),
        "date": today,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, record)
    return record


def _digest(*settings: Any) -> str:
    """The folder's name: what was run under other settings is never taken up again, and does not stand in the way."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def compared(
    study: Study,
    manifest: Manifest,
    folder: Path,
    metrics: Sequence[str],
    *,
    seeds: int,
    iterations: int | None,
    plan: Mapping[str, Any],
    arms: Sequence[Arm] = (),
    labelled: int | None = None,
    progress: Progress,
) -> list[dict]:
    """Train and test the ``arms`` (empty: all of the study's); their score rows of ``metrics``. For a ``measure`` that adds others."""
    compare(
        arms or study.arms,
        manifest,
        folder,
        seeds=seeds,
        iterations=iterations,
        validations=study.validations,
        labelled=labelled,
        plan_overrides=plan,
        metrics=tuple(dict.fromkeys([*metrics, *RULES])),
        prompts=study.prompts,
        baseline=study.baseline,
        title=f"{study.slug}: {study.claim}",
        progress=progress,
    )
    return _rows(metrics, folder)


def trained_once(
    arms: Sequence[Arm],
    manifest: Manifest,
    folder: Path,
    *,
    seed: int,
    taught: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    progress: Progress,
    **how: Any,
) -> Iterator[tuple[Arm, Trained]]:
    """Each arm with its training (``how``: as ``api.train``). Arms of one method share one where ``taught`` leaves them the same options:
    what it takes away tells how the answers are read (``read_as``)."""
    done: dict[tuple, Trained] = {}
    for arm in arms:
        options = taught(arm.options)
        kind = (arm.method, *sorted(options.items()))
        if kind not in done:
            progress.say(f"== {arm.name}, seed {seed}")
            out = folder / arm.name / f"seed_{seed}"
            done[kind] = train(arm.method, manifest, out, options=options, seed=seed, validations=1, resume=True, progress=progress, **how)
        yield arm, done[kind]


def read_as(trained: Trained, arm: Arm) -> Method:
    """The method of a training that an arm shares, with the arm's own options."""
    method = build(arm.method, trained.plan, trained.manifest, {}, arm.options)
    method.load_state(*trained.method.state())
    return method.eval()


def _rows(metrics: Sequence[str], folder: Path) -> list[dict]:
    """The rows of these metrics from the files of a comparison."""
    with (folder / "scores.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["metric"] in metrics and not metric(r["metric"]).pooled]
    for r in read_json(folder / "summary.json")["pooled"]:  # one value a seed, which is then what is resampled
        if r["metric"] in metrics:
            rows.append({**r, "case": "", "patient": f"seed {r['seed']}"})
    return rows


def _summary(study: Study, rows: list[dict], metrics: Sequence[str]) -> dict:
    """Means by arm, differences to the baseline, and each expectation with its paired difference and whether it held."""
    names = [name for arm in study.arms for name in _names(arm.name, study.prompts, {r["method"] for r in rows})]
    tables = {(name, m): _table(rows, name, m) for name in names for m in metrics}
    arms: dict = {name: {} for name in names}
    for (arm, name), table in tables.items():
        values = [v for v in table.values() if v is not None]
        arms[arm][name] = {
            "mean": float(np.mean(values)) if values else None,
            "n": len(values),
            "undefined": sum(v is None for v in table.values()),
            "by seed": [float(np.mean(vs)) if vs else None for vs in _by_seed(table)],
        }
        if arm != study.baseline:
            arms[arm][name]["difference"] = _difference(table, tables[study.baseline, name])
    expected = []
    for e in (e for e in study.expects if e.metric in metrics):
        against = e.against or study.baseline
        d = _difference(tables[e.arm, e.metric], tables[against, e.metric])
        held = bool(d) and d["low"] is not None and (d["low"] > -e.margin if e.direction == "higher" else d["high"] < e.margin)
        expected.append({**asdict(e), "against": against, "difference": d, "held": held})
    return {"arms": arms, "expected": expected, "holds": all(e["held"] for e in expected)}


def _names(arm: str, prompts: Sequence[str], shown: set[str]) -> list[str]:
    """What an arm is called in the rows: itself, or one name for each simulated user it was asked by."""
    return [name for mode in prompts if (name := f"{arm}, {mode}") in shown] or [arm]


def _difference(mine: dict, other: dict) -> dict | None:
    """Paired over (case, structure, seed), resampled by patient."""
    shared = [k for k in mine if mine[k] is not None and other.get(k) is not None]
    if not shared:
        return None
    return paired_difference([mine[k] for k in shared], [other[k] for k in shared], groups=[k[0] for k in shared], seed=0)


def _table(rows: list[dict], arm: str, metric: str) -> dict[tuple, float | None]:
    """(patient, case, structure, rater, seed, fold, query) -> value."""
    out = {}
    for r in rows:
        if r["method"] == arm and r["metric"] == metric:
            key = tuple(r.get(k, "") for k in ("patient", "case", "structure", "rater", "seed", "fold", "query"))
            out[key] = float(r["value"]) if r["value"] not in ("", "None", None) else None
    return out


def _by_seed(table: dict) -> list[list[float]]:
    seeds = sorted({k[4] for k in table})
    return [[v for k, v in table.items() if k[4] == s and v is not None] for s in seeds]
