"""From score rows to a summary: per method, structure and metric the mean with its interval, and a paired test against one method.

A score row is ``Score.to_json()`` with ``method`` added and, where there are several runs, ``seed`` and ``fold``. Rows say themselves which
way is better (``better``: higher, lower or zero) and their ``unit``; costs are better when lower.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, UsageError, nearest
from . import statistics as st

Row = Mapping[str, Any]
ALL = "all structures"
KEY = ("case", "structure", "query", "rater", "step")
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
        for row in rows:
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
            self.patient[row["case"]] = str(row.get("patient") or row["case"])
        self.values: dict[str, dict[str, dict[tuple, float | None]]] = defaultdict(lambda: defaultdict(dict))
        self.runs = max((len(v) for v in runs.values()), default=0)
        for (metric, method, key), values in runs.items():
            defined = [v for v in values if v is not None]
            self.values[metric][method][key] = float(np.mean(defined)) if defined else None
        self.undefined = sum(v is None for values in runs.values() for v in values)
        self.metrics = list(self.values)
        self.methods = list(dict.fromkeys(m for by in self.values.values() for m in by))
        self.cases = list(self.patient)

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


def summarise(
    rows: Iterable[Row] | Scores, *, baseline: str | None = None, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> list[dict]:
    """One record per metric, structure and method: mean, low, high, median, sd (all over patients), n patients, undefined values, best.

    Every other method is tested against ``baseline`` (the first unless named): difference with its interval, p (Wilcoxon), p_permutation,
    p_holm (Holm over all methods and structures of a metric), rank_biserial, cohens_d and excluded pairs. ``best`` marks the best mean of
    several methods; a signed error ('zero') or an unknown direction has none. Raises DataError, UsageError.
    """
    scores = rows if isinstance(rows, Scores) else Scores(rows)
    if baseline is not None and baseline not in scores.methods:
        raise UsageError(f"the baseline '{baseline}' has no scores", fix=nearest(baseline, scores.methods))
    baseline = baseline or next(iter(scores.methods), None)
    how = {"confidence": confidence, "samples": samples, "seed": seed}
    records: list[dict] = []
    for metric in scores.metrics:
        facts, of_metric = scores.facts[metric], []
        for structure in scores.structures(metric):
            values, patients, _ = scores.aligned(metric, structure, scores.methods)
            group = [_record(scores, metric, structure, m, values, patients, baseline, how) for m in scores.methods]
            _mark_best(group, facts["better"])
            of_metric += group
        adjusted = st.holm([r["p"] for r in of_metric])
        records += [{**r, "p_holm": p} for r, p in zip(of_metric, adjusted, strict=True)]
    return records


def _record(scores: Scores, metric, structure, method, values, patients, baseline, how) -> dict:
    interval = st.mean_interval(values[method], patients, **how)
    means, _ = st.patient_means(values[method], patients)
    facts = scores.facts[metric]
    record = {
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
        "baseline": baseline,
    }
    tested = method != baseline
    d = st.paired_difference(values[method], values[baseline], patients, **how) if tested else defaultdict(lambda: None)
    return record | {
        "difference": d["mean"],
        "difference_low": d["low"],
        "difference_high": d["high"],
        "pairs": d["patients"],
        "p": d["wilcoxon"],
        "p_permutation": d["permutation"],
        "rank_biserial": d["rank_biserial"],
        "cohens_d": d["cohens_d"],
        "excluded": d["excluded"],
    }


def _mark_best(group: list[dict], better: str) -> None:
    means = [r["mean"] for r in group if r["mean"] is not None]
    if len(means) < 2 or better not in ("higher", "lower"):
        return
    top = max(means) if better == "higher" else min(means)
    for record in group:
        record["best"] = record["mean"] == top


# ------------------------------------------------------------------------------------------------------------------------------- writing
def write_tables(folder: str | Path, rows: Iterable[Row], *, baseline: str | None = None) -> list[dict]:
    """Write scores.csv, summary.csv and summary.json ({"rows": [...]}) into ``folder``; returns the summary."""
    folder, rows = Path(folder), [dict(r) for r in rows]
    folder.mkdir(parents=True, exist_ok=True)
    scores = Scores(rows)
    summary = summarise(scores, baseline=baseline)
    _write(folder / "scores.csv", to_csv(rows))
    _write(folder / "summary.csv", to_csv(summary))
    facts = {"confidence": 0.95, "interval": "BCa bootstrap over patients", "test": "Wilcoxon signed-rank, paired by patient, Holm"}
    _write(folder / "summary.json", json.dumps({**facts, "rows": summary}, indent=1, allow_nan=False))
    return summary


def _write(path: Path, text: str) -> None:
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
    writer.writerows({k: _cell(v) for k, v in r.items()} for r in records)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value


# ------------------------------------------------------------------------------------------------------------------------------- showing
def number(value: float | None, unit: str = "") -> str:
    """Three decimals for shares, two for mm, none needed for large values; an en dash for None."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if unit or abs(value) >= 10 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def p_text(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


HEADER = ("Metric", "Structure", "Method", "Mean [95% CI]", "Median", "n", "Undefined", "Difference [95% CI]", "p (Holm)")


def cells(record: Row) -> tuple[str, ...]:
    """A summary record as text, in the order of ``HEADER``; the best mean carries a star."""
    unit = record["unit"]
    difference = _with_interval(record["difference"], record["difference_low"], record["difference_high"], unit)
    return (
        record["label"],
        record["structure"] or "–",
        record["method"],
        _with_interval(record["mean"], record["low"], record["high"], unit) + (" *" if record["best"] else ""),
        number(record["median"], unit),
        str(record["n"]),
        str(record["undefined"]),
        "baseline" if record["method"] == record["baseline"] else difference,
        p_text(record["p_holm"]),
    )


def _with_interval(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    return number(value, unit) + (f" [{number(low, unit)}, {number(high, unit)}]" if low is not None else "")


def to_markdown(summary: Sequence[Row]) -> str:
    """A Markdown table of the summary."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(r) for r in summary)]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines) + "\n"


def to_terminal(summary: Sequence[Row]):
    """A ``rich`` table of the summary, to print on a console."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEADER)
    for record in summary:
        table.add_row(*(Text(c, style="bold" if record["best"] else "") for c in cells(record)))
    return table
