"""From score rows to a summary: per method, structure and metric the mean with its interval, and a paired test against one method.

A score row is ``Score.to_json()`` with ``method`` added and, where there are several runs, ``seed`` and ``fold``. Rows say themselves which
way is better (``better``: higher, lower or zero) and their ``unit``; costs are better when lower. ``reference_ml`` and ``predicted_ml`` (in
2D ``reference_mm2``, ``predicted_mm2``), where a row has them, are the volumes (areas) of its structure. Metrics with rows
that only carry evidence for a value over all cases (``evidence``) have no values by case: they are left out here.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, UsageError, nearest
from ..core.spreadsheet import guarded
from . import statistics as st
from .ranking import SCHEMES, Ranking, ranking

Row = Mapping[str, Any]
ALL = "all structures"
KEY = ("case", "structure", "query", "rater", "step")
VOLUMES = {"ml": ("reference_ml", "predicted_ml"), "mm²": ("reference_mm2", "predicted_mm2")}
LABELS = {"dsc": "DSC", "iou": "IoU", "nsd": "NSD", "hd": "HD", "hd95": "HD95", "assd": "ASSD", "masd": "MASD", "rve": "RVE", "rvd": "RVD"}


class Scores:
    """Score rows by metric and method, averaged over seeds and folds for each case, structure, query, rater and step.

    Raises DataError for rows without method, case or metric, for a value that is no finite number, and for a row that stands twice.
    """

    def __init__(self, rows: Iterable[Row]):
        seen: set[tuple] = set()
        runs: dict[tuple, list] = defaultdict(list)
        self.facts: dict[str, dict] = {}
        self.patient: dict[str, str] = {}
        self.volumes: dict[tuple, dict[str, tuple[float, float]]] = defaultdict(dict)  # (case, structure, rater): method: (reference, ours)
        self.volume_unit = ""
        rows = list(rows)
        pooled = {row.get("metric") for row in rows if "evidence" in row}
        for row in rows:
            if row.get("metric") in pooled:
                continue
            missing = [k for k in ("method", "case", "metric") if not row.get(k)]
            if missing:
                raise DataError(f"a score row has no '{missing[0]}'", found=dict(row))
            value = row.get("value")
            if value is not None and not np.isfinite(value):
                raise DataError("a score is not a finite number", where=f"case {row['case']}", found=value, fix="write None for undefined")
            key = tuple(row.get(k, "") for k in KEY)
            run = (row["metric"], row["method"], key, row.get("seed"), row.get("fold"))
            if run in seen:
                raise DataError("a score stands twice", where=f"case {row['case']}", found=f"{row['method']}, {row['metric']}, {key[1]}")
            seen.add(run)
            runs[row["metric"], row["method"], key].append(value)
            facts = self.facts.setdefault(row["metric"], {"kind": row.get("kind", "quality"), "unit": "", "better": ""})
            facts["unit"] = facts["unit"] or row.get("unit", "")
            facts["better"] = facts["better"] or row.get("better", "lower" if facts["kind"] == "cost" else "")
            if "tolerance_mm" in row:
                facts.setdefault("tolerances", set()).add(float(row["tolerance_mm"]))
            if row.get("patient") or row["case"] not in self.patient:
                self.patient[row["case"]] = str(row.get("patient") or row["case"])
            self._volume(row)
        self.values: dict[str, dict[str, dict[tuple, float | None]]] = defaultdict(lambda: defaultdict(dict))
        self.runs = max((len(v) for v in runs.values()), default=0)
        for (metric, method, key), values in runs.items():
            defined = [v for v in values if v is not None]
            self.values[metric][method][key] = float(np.mean(defined)) if defined else None
        self.undefined = sum(v is None for values in runs.values() for v in values)
        self.metrics = list(self.values)
        self.methods = list(dict.fromkeys(m for by in self.values.values() for m in by))
        self.cases = list(self.patient)

    def _volume(self, row: Row) -> None:
        for unit, (reference, predicted) in VOLUMES.items():
            if row.get(reference) not in (None, ""):
                mine = float(row[reference]), float(row.get(predicted) or 0.0)
                self.volumes[row["case"], row.get("structure", ""), row.get("rater", "")][row["method"]] = mine
                self.volume_unit = unit

    @property
    def quality(self) -> list[str]:
        """Metrics of quality, in order of appearance (all metrics where there is none)."""
        return [m for m in self.metrics if self.facts[m]["kind"] == "quality"] or self.metrics

    @property
    def main(self) -> str:
        """The metric that ranks: DSC where there is one, else the first with a direction."""
        directed = [m for m in self.quality if self.facts[m]["better"] in ("higher", "lower")]
        return "dsc" if "dsc" in directed else (directed or self.quality)[0]

    def structures(self, metric: str) -> list[str]:
        """Names in order of appearance; 'all structures' first where there are several."""
        names = list(dict.fromkeys(key[1] for by in self.values[metric].values() for key in by))
        return [ALL, *names] if len(names) > 1 else names

    def aligned(self, metric: str, structure: str, methods: Sequence[str]) -> tuple[dict[str, list], list[str], list[tuple]]:
        """Values of each method in one order (None where a method has none), the patient and the key of each."""
        by = self.values[metric]
        keys = list(dict.fromkeys(k for m in methods for k in by[m] if structure in (ALL, k[1])))
        return {m: [by[m].get(k) for k in keys] for m in methods}, [self.patient[k[0]] for k in keys], keys

    def label(self, metric: str) -> str:
        """As shown: 'NSD (2 mm)', 'HD95 (mm)'."""
        facts, name = self.facts[metric], LABELS.get(metric, metric)
        inside = ", ".join(f"{t:g} mm" for t in sorted(facts.get("tolerances", ()))) or facts["unit"]
        return f"{name} ({inside})" if inside else name


def pairs(
    rows: Iterable[Row] | Scores,
    *,
    baseline: str | None = None,
    margin: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Paired tests, one record a metric, structure and pair (``a`` minus ``b``), on means by patient over complete pairs.

    Of every metric all pairs of methods on its first structure ('all structures' where there are several), and each method against the
    ``baseline`` (the first unless named) on every structure. ``p_holm`` and ``p_permutation_holm``: Holm over all tests of quality
    metrics together, over all of costs together. ``margin`` by metric: ``noninferior`` says whether ``a`` is not worse than ``b`` by that
    much. Raises DataError, UsageError.
    """
    scores = rows if isinstance(rows, Scores) else Scores(rows)
    baseline = _baseline(scores, baseline)
    margin = margin or {}
    unknown = [m for m in margin if m not in scores.metrics or scores.facts[m]["better"] not in ("higher", "lower")]
    if unknown:
        raise UsageError(f"a margin for '{unknown[0]}'", allowed=f"metrics with a direction: {', '.join(scores.metrics)}")
    how = {"confidence": confidence, "samples": samples, "seed": seed}
    records = []
    for metric in scores.metrics:
        for n, structure in enumerate(scores.structures(metric)):
            values, patients, _ = scores.aligned(metric, structure, scores.methods)
            for a, b in _tested(scores.methods, baseline, everyone=n == 0):
                d = st.paired_difference(values[a], values[b], patients, **how)
                record = {"metric": metric, "label": scores.label(metric), "structure": structure, "a": a, "b": b}
                names = {"mean": "difference", "low": "difference_low", "high": "difference_high", "patients": "pairs", "wilcoxon": "p"}
                record |= {names.get(k, k): v for k, v in d.items() if k not in ("values", "confidence", "permutation")}
                record |= {"p_permutation": d["permutation"], "unit": scores.facts[metric]["unit"], "kind": scores.facts[metric]["kind"]}
                if metric in margin:
                    better = scores.facts[metric]["better"]
                    record |= {"margin": margin[metric], "noninferior": st.noninferior(d["low"], d["high"], margin[metric], better)}
                records.append(record)
    for kind in dict.fromkeys(r["kind"] for r in records):
        family = [r for r in records if r["kind"] == kind]
        for name in ("p", "p_permutation"):
            for record, p in zip(family, st.holm([r[name] for r in family]), strict=True):
                record[f"{name}_holm"] = p
    return records


def _baseline(scores: Scores, baseline: str | None) -> str | None:
    if baseline is not None and baseline not in scores.methods:
        raise UsageError(f"the baseline '{baseline}' has no scores", fix=nearest(baseline, scores.methods))
    return baseline or next(iter(scores.methods), None)


def _tested(methods: Sequence[str], baseline: str | None, *, everyone: bool) -> list[tuple[str, str]]:
    """(a, b) of each difference a - b: the others against the baseline, then the rest of the pairs."""
    others = [m for m in methods if m != baseline]
    rest = [(b, a) for n, a in enumerate(others) for b in others[n + 1 :]] if everyone else []
    return [(m, baseline) for m in others] + rest


def summarise(
    rows: Iterable[Row] | Scores,
    *,
    baseline: str | None = None,
    tests: Sequence[Row] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """One record per metric, structure and method: mean, low, high, median, sd (all over patients), n patients, undefined values, best.

    Every other method is tested against ``baseline`` (the first unless named), see ``pairs`` (``tests``: its result, where it is there
    already): difference with its interval, shift, p (Wilcoxon), p_permutation, p_holm, effect sizes, complete pairs and excluded values.
    ``best`` marks the best mean of several methods; a signed error ('zero') or an unknown direction has none. Raises DataError, UsageError.
    """
    scores = rows if isinstance(rows, Scores) else Scores(rows)
    baseline = _baseline(scores, baseline)
    how = {"confidence": confidence, "samples": samples, "seed": seed}
    tests = pairs(scores, baseline=baseline, **how) if tests is None else tests
    found = {(t["metric"], t["structure"], t["a"]): t for t in tests if t["b"] == baseline}
    records: list[dict] = []
    for metric in scores.metrics:
        for structure in scores.structures(metric):
            values, patients, _ = scores.aligned(metric, structure, scores.methods)
            group = [_record(scores, metric, structure, m, values[m], patients, how) for m in scores.methods]
            _mark_best(group, scores.facts[metric]["better"])
            for r in group:
                test = found.get((metric, structure, r["method"]), {})
                records.append(r | {"baseline": baseline} | {k: test.get(k) for k in TESTED})
    return records


TESTED = (
    "difference",
    "difference_low",
    "difference_high",
    "shift",
    "shift_low",
    "shift_high",
    "pairs",
    "excluded",
    "p",
    "p_permutation",
    "p_holm",
    "p_permutation_holm",
    "rank_biserial",
    "cliffs_delta",
    "cohens_d",
)


def _record(scores: Scores, metric: str, structure: str, method: str, values: list, patients: list[str], how: Mapping) -> dict:
    interval = st.mean_interval(values, patients, **how)
    means, _ = st.patient_means(values, patients)
    facts = scores.facts[metric]
    return {
        "method": method,
        "structure": structure,
        "metric": metric,
        "label": scores.label(metric),
        "unit": facts["unit"],
        "better": facts["better"],
        "kind": facts["kind"],
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "median": float(np.median(means)) if len(means) else None,
        "sd": float(means.std(ddof=1)) if len(means) > 1 else None,
        "n": interval.patients,
        "values": interval.values,
        "undefined": interval.undefined,
        "best": False,
    }


def _mark_best(group: list[dict], better: str) -> None:
    means = [r["mean"] for r in group if r["mean"] is not None]
    if len(means) < 2 or better not in ("higher", "lower"):
        return
    top = max(means) if better == "higher" else min(means)
    for record in group:
        record["best"] = record["mean"] == top


# ----------------------------------------------------------------------------------------------------------------------------- subgroups
SIZE = "size of the structure"
THIRDS = ("smallest third", "middle third", "largest third")
MOST_LEVELS = 12


def subgroups(
    rows: Iterable[Row] | Scores, columns: Mapping[str, Mapping[str, Any]] | None = None, *, metrics: Sequence[str] | None = None
) -> list[dict]:
    """One record per subgroup, level, metric and method: mean over patients with its interval, n patients, undefined values.

    ``columns``: name -> case -> value (a table column, the site). Numbers of more than six different values are cut into thirds; columns of
    one level, of more than twelve or of more than half as many as cases (free text, dates) are left out; a case without a value is in
    'unknown'. Where the rows carry reference volumes, their thirds within each structure are a subgroup too; a structure that the
    reference does not have is 'absent'.
    """
    scores = rows if isinstance(rows, Scores) else Scores(rows)
    level_of: dict[str, Mapping] = {name: _levels(by_case, scores.cases) for name, by_case in (columns or {}).items()}
    sizes = _size_levels(scores)
    out = []
    for name, level in [*level_of.items(), (SIZE, sizes)]:
        names = sorted(set(level.values()), key=lambda v: (v in ("unknown", "absent"), THIRDS.index(v) if v in THIRDS else -1, v))
        if not 1 < len(names) <= min(MOST_LEVELS, max(2, len(scores.cases) // 2)):
            continue
        for metric in metrics or [scores.main]:
            structure = scores.structures(metric)[0]
            values, patients, keys = scores.aligned(metric, structure, scores.methods)
            mine = [level.get((k[0], k[1], k[3])) if name == SIZE else level.get(k[0]) for k in keys]
            for at in names:
                here = [n for n, v in enumerate(mine) if v == at]
                for m in scores.methods:
                    i = st.mean_interval([values[m][n] for n in here], [patients[n] for n in here])
                    record = {"subgroup": name, "level": at, "metric": metric, "structure": structure, "method": m}
                    facts = {"label": scores.label(metric), "unit": scores.facts[metric]["unit"]}
                    out.append(record | {k: v for k, v in i.to_json().items() if k not in ("values", "confidence")} | facts)
    return out


def _levels(by_case: Mapping[str, Any], cases: Sequence[str]) -> dict[str, str]:
    """case -> level."""
    known = {c: by_case[c] for c in cases if by_case.get(c) not in (None, "")}
    try:
        numbers = {c: float(v) for c, v in known.items() if not isinstance(v, bool)}
    except (TypeError, ValueError):
        numbers = {}
    if len(numbers) == len(known) and len(set(numbers.values())) > 6 and np.isfinite(list(numbers.values())).all():
        found = _thirds(numbers)
    else:
        found = {c: str(v) for c, v in known.items()}
    return {c: found.get(c, "unknown") for c in cases} if found else {}


def _thirds(numbers: Mapping[Any, float]) -> dict[Any, str]:
    cuts = np.quantile(list(numbers.values()), (1 / 3, 2 / 3))
    return {key: THIRDS[int(np.searchsorted(cuts, v, "left"))] for key, v in numbers.items()}


def _size_levels(scores: Scores) -> dict[tuple, str]:
    """(case, structure, rater) -> third of its structure's reference volumes."""
    by_structure: dict[str, dict[tuple, float]] = defaultdict(dict)
    for key, by_method in scores.volumes.items():
        by_structure[key[1]][key] = next(iter(by_method.values()))[0]
    out: dict[tuple, str] = {}
    for found in by_structure.values():
        present = {key: v for key, v in found.items() if v > 0}
        out |= {key: "absent" for key in found if key not in present}
        out |= _thirds(present) if len(present) >= 3 else {key: "too few" for key in present}
    return out


# ------------------------------------------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True)
class Tables:
    """Everything a report says in numbers, and the files it was written to."""

    scores: Scores
    summary: list[dict]
    pairs: list[dict]
    rankings: list[Ranking]
    subgroups: list[dict]
    files: tuple[str, ...] = ()


def write_tables(
    folder: str | Path,
    rows: Iterable[Row],
    *,
    baseline: str | None = None,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    margin: Mapping[str, float] | None = None,
    problems: Sequence[Row] = (),
    pooled: Sequence[Row] = (),
) -> Tables:
    """Write scores.csv, scores.json, summary.csv, pairs.csv and summary.json into ``folder``.

    summary.json is {"rows", "pairs", "ranking", "subgroups", "pooled", "problems", "files", ...}. scores.parquet is written too where
    pyarrow is installed; "files" says which there are. ``columns``: see ``subgroups``; ``margin``: see ``pairs``; ``pooled``: values of
    metrics over all cases; ``problems``: what was wrong with cases. Raises DataError, UsageError.
    """
    folder, rows = Path(folder), [dict(r) for r in rows]
    folder.mkdir(parents=True, exist_ok=True)
    scores = Scores(rows)
    tests = pairs(scores, baseline=baseline, margin=margin)
    summary = summarise(scores, baseline=baseline, tests=tests)
    ranked, levels = rankings(scores), subgroups(scores, columns)
    write_whole(folder / "scores.csv", to_csv(rows))
    write_whole(folder / "scores.json", json.dumps(rows, allow_nan=False, default=str, separators=(",", ":")))
    write_whole(folder / "summary.csv", to_csv(summary))
    write_whole(folder / "pairs.csv", to_csv(tests))
    files = ("scores.csv", "scores.json", "summary.csv", "pairs.csv", "summary.json", *_parquet(folder / "scores.parquet", rows))
    record = {
        "confidence": 0.95,
        "interval": "BCa bootstrap over patients",
        "test": "Wilcoxon signed-rank and permutation, paired by patient, Holm over all tests of quality metrics",
        "rows": summary,
        "pairs": tests,
        "ranking": [r.to_json() for r in ranked],
        "subgroups": levels,
        "pooled": [dict(r) for r in pooled],
        "problems": [dict(p) for p in problems],
        "files": files,
    }
    write_whole(folder / "summary.json", json.dumps(record, indent=1, allow_nan=False, default=str))
    return Tables(scores, summary, tests, ranked, levels, files)


def rankings(scores: Scores, metric: str | None = None) -> list[Ranking]:
    """By mean rank, by mean, by significance, and, where values are undefined, by mean rank with those at the worst rank; of the main
    metric unless one is named. None with fewer than two methods or without a direction."""
    metric = metric or (scores.main if scores.metrics else "")
    if len(scores.methods) < 2 or scores.facts[metric]["better"] not in ("higher", "lower"):
        return []
    values, patients, _ = scores.aligned(metric, scores.structures(metric)[0], scores.methods)
    how = {"better": scores.facts[metric]["better"]}
    found = [ranking(values, patients, scheme=scheme, **how) for scheme in SCHEMES]
    if found[0].excluded:
        found.append(ranking(values, patients, undefined="worst", **how))
    return [r for r in found if r.place]


def _parquet(path: Path, rows: Sequence[Row]) -> list[str]:
    """The file's name, where pyarrow is installed."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(k for r in rows for k in r))
    plain = (int, float, str, type(None))
    table = {c: [v if isinstance(v, plain) else json.dumps(v, default=str) for v in (r.get(c) for r in rows)] for c in columns}
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.table(table), part)
    part.replace(path)
    return [path.name]


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def to_csv(records: Sequence[Row]) -> str:
    """Comma-separated, columns in order of appearance, empty for None; text that a spreadsheet would run as a formula gets a '."""
    columns = list(dict.fromkeys(k for r in records for k in r))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: guarded(v) for k, v in r.items()} for r in records)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------------------------- showing
def number(value: float | None, unit: str = "") -> str:
    """Three decimals for shares, two for mm, none needed for large values; an en dash for None."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if unit or abs(value) >= 10 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def p_text(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


HEADER = ("Metric", "Structure", "Method", "Mean [95% CI]", "Median", "n", "Undefined", "Difference [95% CI]", "Pairs", "p (Holm)")


def cells(record: Row) -> tuple[str, ...]:
    """A summary record as text, in the order of ``HEADER``; the best mean carries a star."""
    unit = record["unit"]
    difference = with_interval(record["difference"], record["difference_low"], record["difference_high"], unit)
    return (
        record["label"],
        record["structure"] or "–",
        record["method"],
        with_interval(record["mean"], record["low"], record["high"], unit) + (" *" if record["best"] else ""),
        number(record["median"], unit),
        str(record["n"]),
        str(record["undefined"]),
        "baseline" if record["method"] == record["baseline"] else difference,
        "" if record["pairs"] is None else str(record["pairs"]),
        p_text(record["p_holm"]),
    )


def with_interval(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    """'0.81 [0.78, 0.84]'; the number alone where there is no interval."""
    return number(value, unit) + (f" [{number(low, unit)}, {number(high, unit)}]" if low is not None else "")
