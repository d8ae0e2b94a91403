"""The report of a comparison: one self-contained HTML page, with the scores and their summary as files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from . import figures
from . import statistics as st
from .figures import CasePicture
from .tables import HEADER, Row, Scores, _write, cells, number, p_text, write_tables

__all__ = ["CasePicture", "headline", "write_report"]

COSTS = {"seconds": "training time (s)", "peak memory GiB": "peak memory (GiB)", "parameters": "parameters (millions)"}
MAX_PLOTS = 6


def write_report(
    folder: str | Path,
    *,
    title: str,
    rows: Iterable[Row],
    methods: Mapping[str, Mapping[str, Any]],
    cases: Sequence[CasePicture] = (),
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    note: str = "",
    baseline: str | None = None,
) -> Path:
    """Write report.html, scores.csv, summary.csv and summary.json into ``folder``; returns the page.

    ``rows``: ``Score.to_json()`` with ``method`` (and ``seed``, ``fold``) added. ``methods`` by name: facts such as title, seconds, peak
    memory GiB, parameters, iterations, deviations, evidence, options, notes. ``manifest`` and ``plan``: facts to print; ``plan["command"]``
    says how to reproduce. Methods are tested against ``baseline`` (the first one unless named). Raises DataError, UsageError.
    """
    rows = list(rows)
    if not rows:
        raise DataError("there are no scores to report", where=folder)
    scores, folder = Scores(rows), Path(folder)
    summary = write_tables(folder, rows, baseline=baseline)
    baseline = summary[0]["baseline"]
    quality = [m for m in scores.metrics if scores.facts[m]["kind"] == "quality"] or scores.metrics
    main = next((m for m in ("dsc", *quality) if m in quality and scores.facts[m]["better"] in ("higher", "lower")), quality[0])
    structure_of = {m: scores.structures(m)[0] for m in scores.metrics}
    challenger = _challenger(summary, scores, main, structure_of[main], baseline)
    sections = [
        _summary_section(summary, quality, scores),
        _ranking_section(scores, main, structure_of[main]),
        _plots_section(scores, quality[:MAX_PLOTS], structure_of, baseline, challenger, cases),
        _cases_section(scores, main, structure_of[main], cases),
        _costs_section(scores, summary, main, structure_of[main], methods),
        _deviations_section(methods),
        _undefined_section(rows),
        _facts_section("Data", manifest),
        _facts_section("Plan and machine", {k: v for k, v in plan.items() if k != "command"}),
        _reproduce_section(plan, scores),
    ]
    body = "\n".join(s for s in sections if s)
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    lead = escape(headline(summary, scores, main, challenger))
    page = PAGE.format(title=escape(title), headline=lead, note=remark, body=body, style=STYLE, script=SCRIPT)
    _write(folder / "report.html", page)
    return folder / "report.html"


# ------------------------------------------------------------------------------------------------------------------------------ headline
def _of(summary: Sequence[Row], metric: str, structure: str, method: str) -> Row:
    return next(r for r in summary if (r["metric"], r["structure"], r["method"]) == (metric, structure, method))


def _challenger(summary: Sequence[Row], scores: Scores, metric: str, structure: str, baseline: str) -> str | None:
    """The method with the best mean besides the baseline."""
    others = [_of(summary, metric, structure, m) for m in scores.methods if m != baseline]
    others = [r for r in others if r["mean"] is not None]
    sign = -1 if scores.facts[metric]["better"] == "higher" else 1
    return min(others, key=lambda r: sign * r["mean"])["method"] if others else None


def headline(summary: Sequence[Row], scores: Scores, metric: str, challenger: str | None) -> str:
    """One sentence from the numbers: the best other method against the baseline, difference with interval and p, and what that shows."""
    structure, baseline = scores.structures(metric)[0], summary[0]["baseline"]
    base = _of(summary, metric, structure, baseline)
    label, unit = scores.label(metric), base["unit"]
    where = f" ({structure})" if structure else ""
    if challenger is None or base["mean"] is None:
        interval = f" (95% CI {number(base['low'], unit)} to {number(base['high'], unit)})" if base["low"] is not None else ""
        return f"{baseline}: mean {label}{where} {number(base['mean'], unit)}{interval}, {_patients(base['n'])}."
    r = _of(summary, metric, structure, challenger)
    means = f"{number(r['mean'], unit)} against {number(base['mean'], unit)}"
    if r["difference"] is None:
        return f"{challenger} and {baseline} share no case with a defined {label}{where} (means {means}), so they cannot be compared."
    interval = ""
    if r["difference_low"] is not None:
        interval = f" (95% CI {number(r['difference_low'], unit)} to {number(r['difference_high'], unit)})"
    p = p_text(r["p_holm"])
    tail = f"paired Wilcoxon p {p if p.startswith('<') else '= ' + p}{' after Holm correction' if _tests(summary, metric) > 1 else ''}"
    numbers = f"{means}, mean paired difference {number(r['difference'], unit)}{interval}, {tail}, {_patients(r['pairs'])}."
    shown = r["p_holm"] is not None and r["p_holm"] < 0.05
    if not shown:
        return f"No difference in {label}{where} between {challenger} and {baseline} was shown: {numbers}"
    return f"{challenger} has a {'higher' if r['difference'] > 0 else 'lower'} {label}{where} than {baseline}: {numbers}"


def _tests(summary: Sequence[Row], metric: str) -> int:
    return sum(r["p"] is not None for r in summary if r["metric"] == metric)


def _patients(n: int) -> str:
    return f"{n} patient{'' if n == 1 else 's'}"


# ------------------------------------------------------------------------------------------------------------------------------ sections
def _section(heading: str, *parts: str) -> str:
    parts = [p for p in parts if p]
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>" if parts else ""


def _text(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], strong: Sequence[bool] = (), left: int = 1) -> str:
    head = "".join(f"<th{'' if n < left else ' class=n'}>{escape(h)}</th>" for n, h in enumerate(header))
    body = []
    for n, line in enumerate(lines):
        tds = "".join(f"<td{'' if k < left else ' class=n'}>{escape(str(c))}</td>" for k, c in enumerate(line))
        body.append(f"<tr{' class=best' if n < len(strong) and strong[n] else ''}>{tds}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _figure(png: bytes | None, caption: str) -> str:
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def _summary_section(summary: Sequence[Row], metrics: Sequence[str], scores: Scores) -> str:
    shown = [r for r in summary if r["metric"] in metrics]
    words = (
        "Means over patients with 95% confidence intervals (BCa bootstrap, patients resampled). A star marks the best mean. Differences "
        "are paired, method minus baseline; p from Wilcoxon's signed-rank test, Holm-corrected over a metric's methods and structures. "
        "Undefined values (an empty mask) are left out of means, pairwise in tests, and counted."
    )
    if scores.runs > 1:
        words += f" Up to {scores.runs} runs are averaged for each case before the patients are compared."
    if any(r["excluded"] for r in shown):
        words += " Where a value is undefined, the paired difference rests on fewer cases and is not the difference of the two means."
    few = [r["pairs"] for r in shown if r["pairs"] is not None and r["pairs"] < 6]
    if few:
        words += f" With {_patients(min(few))} this test cannot give p < 0.05, whatever the difference."
    return _section("Results", _table(HEADER, [cells(r) for r in shown], [r["best"] for r in shown], left=3), _text(words))


def _ranking_section(scores: Scores, metric: str, structure: str) -> str:
    better = scores.facts[metric]["better"]
    if len(scores.methods) < 2 or better not in ("higher", "lower"):
        return ""
    values, patients, _ = scores.aligned(metric, structure, scores.methods)
    r = st.ranking(values, patients, better=better)
    if not r.place:
        return ""
    order = sorted(scores.methods, key=lambda m: r.mean_rank[m])
    lines = [(m, str(r.place[m]), f"{r.mean_rank[m]:.2f}", f"{100 * r.stability[m]:.0f} %") for m in order]
    words = (
        f"Methods are ranked within each patient by {scores.label(metric)}, then by mean rank over {_patients(r.patients)} "
        f"({r.excluded} left out for undefined values). Stability is the share of 1000 bootstrap samples in which a method keeps its place."
    )
    return _section("Ranking", _table(("Method", "Place", "Mean rank", "Stability"), lines), _text(words))


def _plots_section(scores, metrics, structure_of, baseline, challenger, cases) -> str:
    points = "One point a case" + (" and structure" if any(len(scores.structures(m)) > 1 for m in metrics) else "")
    joined = "; lines join the same case" if len(scores.methods) == 2 else ""
    parts = [_figure(figures.boxes(scores, metrics, structure_of), f"{points}{joined}. Boxes: quartiles and median; whiskers: 1.5 IQR.")]
    directed = [m for m in metrics if scores.facts[m]["better"] in ("higher", "lower")][:3]
    if challenger and directed:
        caption = f"Case by case: {challenger} against {baseline}. Points on the dashed line are equal."
        parts.append(_figure(figures.scatter(scores, directed, structure_of, baseline, challenger), caption))
    caption = "Volume agreement (Bland-Altman): line, mean difference; dashed, limits of agreement (mean ± 1.96 SD)."
    parts.append(_figure(figures.bland_altman(scores, cases), caption) if cases else "")
    return _section("Distributions", *parts)


def _cases_section(scores: Scores, metric: str, structure: str, pictures: Sequence[CasePicture]) -> str:
    """The pictured cases that are worst, median and best by the mean of all methods."""
    values, _, keys = scores.aligned(metric, structure, scores.methods)
    by_case: dict[str, dict[str, float]] = {}
    for case in {k[0] for k in keys}:
        mine = {m: [v for v, k in zip(values[m], keys, strict=True) if k[0] == case and v is not None] for m in scores.methods}
        by_case[case] = {m: float(np.mean(v)) for m, v in mine.items() if v}
    sign = -1 if scores.facts[metric]["better"] == "lower" else 1
    ranked = sorted((p for p in pictures if by_case.get(p.case)), key=lambda p: sign * np.mean(list(by_case[p.case].values())))
    if not ranked:
        return ""
    picks = {0: "Worst case", len(ranked) - 1: "Best case"} | ({len(ranked) // 2: "Median case"} if len(ranked) > 2 else {})
    unit, parts = scores.facts[metric]["unit"], []
    for n in sorted(picks):
        p, heading = ranked[n], picks[n] if len(ranked) > 1 else "Case"
        found = by_case[p.case]
        captions = {m: f"{m}: {scores.label(metric)} {number(found.get(m), unit)}" for m in scores.methods}
        parts.append(_figure(figures.contours(p, scores.methods, captions), f"{heading}: {p.case}"))
    key = (
        f'<p class="key"><span style="background:{figures.REFERENCE}"></span>reference '
        f'<span style="background:{figures.PREDICTION}"></span>prediction</p>'
    )
    how = f"By mean {scores.label(metric)} of all methods, among the {len(ranked)} cases with pictures."
    if ranked[0].reference.ndim == 3:
        how += " Axial slice with the largest reference area; the patient's right is on the left."
    return _section("Worst, median and best case", key, *parts, _text(how))


def _costs_section(scores: Scores, summary, metric: str, structure: str, methods: Mapping[str, Mapping]) -> str:
    known = [m for m in scores.methods if m in methods]
    predict = {m: _of(summary, "seconds", scores.structures("seconds")[0], m)["mean"] for m in known} if "seconds" in scores.metrics else {}
    lines, points = [], {}
    for m in known:
        f = methods[m]
        seconds, memory, parameters = (f.get(k) for k in COSTS)
        millions = None if parameters is None else parameters / 1e6
        cost = {COSTS["seconds"]: seconds or 0, COSTS["peak memory GiB"]: memory or 0, COSTS["parameters"]: millions or 0}
        each = predict.get(m)
        if each is not None:
            cost["prediction time (s per case)"] = each
        mean = _of(summary, metric, structure, m)["mean"]
        if mean is not None:
            points[m] = (cost, mean)
        lines.append((m, number(seconds, "s"), number(each, "s"), number(memory, "GiB"), number(millions, "M"), f.get("iterations", "–")))
    if not lines:
        return ""
    header = ("Method", "Training (s)", "Prediction (s per case)", "Peak memory (GiB)", "Parameters (millions)", "Iterations")
    picture = _figure(figures.costs(scores, points, scores.label(metric)), "Accuracy against cost.") if points else ""
    return _section("Cost", _table(header, lines), picture)


def _deviations_section(methods: Mapping[str, Mapping]) -> str:
    lines = []
    for name, f in methods.items():
        options = ", ".join(f"{k} = {v}" for k, v in (f.get("options") or {}).items()) or "paper defaults"
        deviations = "; ".join(map(str, f.get("deviations") or ())) or "none"
        lines.append((name, f.get("title", ""), f.get("evidence", ""), options, deviations, "; ".join(map(str, f.get("notes") or ()))))
    words = "Evidence: contract (obeys the engine's laws) < parity (equals published code) < proof < benchmark."
    table = _table(("Method", "Title", "Evidence", "Options", "Deviations from the common plan", "Notes"), lines, left=6)
    return _section("Methods and deviations", table, _text(words)) if lines else ""


def _undefined_section(rows: Sequence[Row]) -> str:
    counted: dict[tuple, list[str]] = {}
    for r in rows:
        if r.get("value") is None:
            reason = r.get("note") or "no reason given"
            counted.setdefault((r["method"], r.get("structure", "") or "–", r["metric"], reason), []).append(r["case"])
    if not counted:
        return _section("Undefined values", _text("None: every metric was defined in every case."))
    lines = [(*key, ", ".join(found[:6]) + (" ..." if len(found) > 6 else ""), len(found)) for key, found in counted.items()]
    return _section("Undefined values", _table(("Method", "Structure", "Metric", "Why", "Cases", "Count"), lines, left=5))


def _facts_section(heading: str, facts: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in facts.items() if v not in (None, "", [], {})}
    lines = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in shown.items())
    return _section(heading, f"<dl>{lines}</dl>" if lines else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, set)) else str(value)


def _reproduce_section(plan: Mapping[str, Any], scores: Scores) -> str:
    command = f"<pre>{escape(str(plan['command']))}</pre>" if plan.get("command") else ""
    label = {m: scores.label(m) for m in scores.metrics}
    words = (
        "All scores on this page come from scores.csv beside it (one row a case, structure, metric and method); summary.csv and "
        f"summary.json hold the table. Bootstrap and permutation seed: 0. Metrics: {', '.join(f'{m} = {t}' for m, t in label.items())}. "
        "Definitions: Metrics Reloaded (Maier-Hein, Reinke et al., Nature Methods 2024); distances in mm on the original grid."
    )
    return _section("How to reproduce", command, _text(words), _digest(scores))


def _digest(scores: Scores) -> str:
    import hashlib

    record = [(m, k, list(key), v) for m, by in scores.values.items() for k, d in by.items() for key, v in d.items()]
    return _text(f"Digest of the scores: sha256 {hashlib.sha256(json.dumps(record, default=str).encode()).hexdigest()[:16]}.")


STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1b1f24;background:#fff;margin:0}
main{max-width:1120px;margin:0 auto;padding:32px 28px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 12px}h2{font-size:18px;margin:40px 0 12px;border-bottom:1px solid #d6dae0;padding-bottom:5px}
.lead{font-size:17px;border-left:4px solid #0072B2;background:#f3f7fa;padding:12px 16px;margin:0}
.note{margin:14px 0 0;color:#444}section>p{color:#4a5058;font-size:13.5px;max-width:92ch}
.scroll{overflow-x:auto}table{border-collapse:collapse;min-width:55%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{text-align:left;border-bottom:2px solid #1b1f24;padding:5px 18px 5px 0;cursor:pointer;vertical-align:bottom}
td{border-bottom:1px solid #e6e9ed;padding:4px 18px 4px 0;vertical-align:top}.n{text-align:right;white-space:nowrap}
tr.best td:nth-child(4){font-weight:600}figure{margin:16px 0 22px}img{max-width:100%;height:auto}figcaption{font-size:13px;color:#4a5058}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 20px;font-size:13.5px;margin:0}
dt{color:#4a5058}dd{margin:0;overflow-wrap:anywhere}
pre{background:#f3f4f6;padding:10px 14px;overflow-x:auto;font-size:13px}
.key span{display:inline-block;width:22px;height:4px;margin:0 6px 3px 14px;vertical-align:middle}.key span:first-child{margin-left:0}
@media print{main{max-width:none}section{break-inside:avoid-page}}
"""

SCRIPT = """
for(const th of document.querySelectorAll('th'))th.onclick=()=>{const t=th.closest('table').tBodies[0],i=th.cellIndex,
v=r=>r.cells[i].textContent.replaceAll('\\u2212','-').replace(/^< /,''),d=th.dataset.d=-(th.dataset.d||-1);
const c=(a,b)=>{const x=parseFloat(v(a)),y=parseFloat(v(b));return d*(isNaN(x)||isNaN(y)?v(a).localeCompare(v(b)):x-y)};
t.append(...[...t.rows].sort(c))}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1><p class="lead">{headline}</p>{note}
{body}
</main><script>{script}</script></body></html>
"""
