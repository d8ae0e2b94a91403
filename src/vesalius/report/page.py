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
from .figures import CasePicture
from .ranking import Ranking
from .tables import HEADER, SIZE, Row, Scores, Tables, cells, number, p_text, with_interval, write_tables, write_whole

__all__ = ["CasePicture", "headline", "write_report"]

COSTS = {"seconds": "training time (s)", "peak memory GiB": "peak memory (GiB)", "parameters": "parameters (millions)"}
MAX_PLOTS = 6
MAX_ROWS = 80  # of the table of results; the rest is in summary.csv
WORST = 3


def write_report(
    folder: str | Path,
    *,
    title: str,
    rows: Iterable[Row],
    methods: Mapping[str, Mapping[str, Any]],
    cases: Sequence[CasePicture] | Mapping[str, CasePicture] = (),
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    note: str = "",
    baseline: str | None = None,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    margin: Mapping[str, float] | None = None,
    problems: Sequence[Row] = (),
    pooled: Sequence[Row] = (),
) -> Path:
    """Write report.html, and the scores and tables of ``write_tables``, into ``folder``; returns the page.

    ``rows``: ``Score.to_json()`` with ``method`` (and ``seed``, ``fold``) added. ``methods`` by name: facts such as title, seconds, peak
    memory GiB, parameters, iterations, deviations, evidence, options, notes. ``cases``: pictures, or a mapping from case to picture that
    is asked only for those shown. ``manifest`` and ``plan``: facts to print; ``plan["command"]`` says how to reproduce. Methods are
    tested against ``baseline`` (the first one unless named). ``columns``: name -> case -> value, for results by subgroup. ``margin``: of
    non-inferiority, by metric. ``problems``: {"what", "case", "where", "details", "level"} each. ``pooled``: values over all cases
    (``Score.to_json()`` with ``method``). Raises DataError, UsageError.
    """
    rows = list(rows)
    if not rows:
        raise DataError("there are no scores to report", where=folder)
    folder = Path(folder)
    told = {"problems": problems, "pooled": pooled}
    tables = write_tables(folder, rows, baseline=baseline, columns=columns, margin=margin, **told)
    scores, summary = tables.scores, tables.summary
    pictures = cases if isinstance(cases, Mapping) else {p.case: p for p in cases}
    sections = [_problems_section(problems)]
    lead = "No metric was computed case by case."
    if scores.metrics:
        baseline, main = summary[0]["baseline"], scores.main
        structure_of = {m: scores.structures(m)[0] for m in scores.metrics}
        challenger = _challenger(summary, scores, main, structure_of[main], baseline)
        lead = headline(summary, scores, main, challenger)
        sections += [
            _summary_section(summary, scores, main),
            _pooled_section(pooled),
            _ranking_section(tables.rankings, scores, main),
            _pairs_section(tables, main),
            _plots_section(scores, scores.quality[:MAX_PLOTS], structure_of, baseline, challenger),
            _cases_section(scores, main, structure_of[main], pictures),
            _subgroups_section(tables),
            _costs_section(scores, summary, main, structure_of[main], methods),
        ]
    else:
        sections.append(_pooled_section(pooled))
    sections += [
        _deviations_section(methods),
        _undefined_section(rows),
        _facts_section("Data", manifest),
        _facts_section("Plan and machine", {k: v for k, v in plan.items() if k != "command"}),
        _reproduce_section(plan, tables),
    ]
    body = "\n".join(s for s in sections if s)
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    page = PAGE.format(title=escape(title), headline=escape(lead), note=remark, body=body, style=STYLE, script=SCRIPT)
    write_whole(folder / "report.html", page)
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
    several = sum(r["p"] is not None for r in summary if r["kind"] == base["kind"]) > 1
    tail = f"paired Wilcoxon p {p if p.startswith('<') else '= ' + p}{' after Holm correction' if several else ''}"
    numbers = f"{means}, mean paired difference {number(r['difference'], unit)}{interval}, {tail}, {_patients(r['pairs'])}."
    shown = r["p_holm"] is not None and r["p_holm"] < 0.05
    if not shown:
        return f"No difference in {label}{where} between {challenger} and {baseline} was shown: {numbers}"
    return f"{challenger} has a {'higher' if r['difference'] > 0 else 'lower'} {label}{where} than {baseline}: {numbers}"


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


def _problems_section(problems: Sequence[Row]) -> str:
    if not problems:
        return ""
    lines = [[str(p.get(k) or "–") for k in ("level", "what", "case", "where", "details")] for p in problems]
    errors = sum(p.get("level") == "error" for p in problems)
    words = f"{errors} of {len(problems)} change what the numbers below mean: their cases have no value and are left out of the means."
    table = _table(("Level", "What", "Case", "Where", "Details"), lines, left=5)
    return _section("Problems with the predictions", _text(words) if errors else "", table)


def _summary_section(summary: Sequence[Row], scores: Scores, main: str) -> str:
    shown = [r for r in summary if r["metric"] in scores.quality]
    words = "Means over patients with 95% confidence intervals (BCa bootstrap, patients resampled). "
    columns = slice(None)
    if len(scores.methods) > 1:
        words += (
            "A star marks the best mean. Differences are paired, method minus baseline, over 'Pairs' patients whose values are defined for "
            "both; p from Wilcoxon's signed-rank test, Holm-corrected over all tests of quality metrics on this page. "
        )
    else:
        columns = slice(HEADER.index("Undefined") + 1)
    words += "Undefined values (an empty mask, a missing prediction) are left out and counted."
    if scores.runs > 1:
        words += f" Up to {scores.runs} runs are averaged for each case before the patients are compared."
    if any(r["excluded"] for r in shown):
        words += " Where a value is undefined, the paired difference rests on fewer cases and is not the difference of the two means."
    few = [r["pairs"] for r in shown if r["pairs"] and r["pairs"] < 6]
    if few:
        words += f" With {_patients(min(few))} this test cannot give p < 0.05, whatever the difference."
    if len(shown) > MAX_ROWS:
        first = {m: scores.structures(m)[0] for m in scores.metrics}
        shown = [r for r in shown if r["metric"] == main or r["structure"] == first[r["metric"]]]
        words += f" Single structures are shown for {scores.label(main)} only; summary.csv holds all."
    return _section(
        "Results", _table(HEADER[columns], [cells(r)[columns] for r in shown], [r["best"] for r in shown], left=3), _text(words)
    )


def _pooled_section(pooled: Sequence[Row]) -> str:
    header = ("Metric", "Structure", "Method", "Group", "Value", "Cases", "Undefined")
    keys = ("structure", "method", "group")
    lines = [
        (
            r.get("label") or r["metric"],
            *(r.get(k) or "–" for k in keys),
            number(r.get("value")),
            r.get("cases", "–"),
            r.get("undefined", 0),
        )
        for r in pooled
    ]
    return _section("Over all cases together", _table(header, lines, left=4)) if lines else ""


def _ranking_section(found: Sequence[Ranking], scores: Scores, metric: str) -> str:
    if not found:
        return ""
    first = found[0]
    header, texts = ["Method"], {"mean rank": "mean rank", "mean": "mean", "significance": "methods beaten"}
    for r in found:
        name = texts[r.scheme] + (", undefined worst" if r.worst else "")
        header += [f"Place by {r.scheme}" + (", undefined worst" if r.worst else ""), name.capitalize(), "Stability"]
    order = sorted(first.place, key=lambda m: (first.place[m], first.score[m]))
    lines = []
    for m in order:
        line = [m]
        for r in found:
            score = (
                f"{r.score[m]:.0f}"
                if r.scheme == "significance"
                else f"{r.score[m]:.2f}"
                if r.scheme == "mean rank"
                else number(r.score[m])
            )
            line += [str(r.place[m]), score, f"{100 * r.stability[m]:.0f} %"]
        lines.append(line)
    taus = "; ".join(
        f"{r.scheme}{' with undefined as worst' if r.worst else ''} {r.tau:.2f} (2.5 % quantile {r.tau_low:.2f})"
        for r in found
        if r.tau is not None
    )
    words = (
        f"By {scores.label(metric)} over {_patients(first.patients)} ({first.excluded} left out for undefined values). Mean rank: ranked "
        "within each patient, then averaged. Mean: averaged, then ranked. Significance: by the number of methods that a one-sided Wilcoxon "
        "test (5 %, Holm over all ordered pairs) shows to be worse. Stability: the share of 1000 bootstrap samples of the patients in "
        "which a method keeps its place (Wiesenfarth et al. 2021). Kendall's tau between this order and the bootstrap's, mean: "
        f"{taus or 'all tied'}."
    )
    picture = _figure(figures.stability(first), "Ranking by mean rank: how often each method takes each place in the bootstrap.")
    return _section("Ranking", _table(header, lines), picture, _text(words))


def _pairs_section(tables: Tables, main: str) -> str:
    """All pairs of methods, on the first structure of each metric; of the main metric alone where that would be long."""
    scores = tables.scores
    if len(scores.methods) < 2:
        return ""
    shown = [t for t in tables.pairs if t["kind"] == "quality" and t["structure"] == scores.structures(t["metric"])[0]]
    tests = sum(t["kind"] == "quality" and t["p"] is not None for t in tables.pairs)
    words = (
        "Difference: mean of A minus B over patients with its 95% interval; shift: Hodges-Lehmann estimate with the interval of the "
        f"signed-rank test. p: Wilcoxon and sign-change permutation of the mean, each Holm-corrected over all {tests} tests of quality "
        "metrics (with more than 16 pairs a permutation p is at least 1/10001 before correction). Cliff's delta and the matched-pairs "
        "rank-biserial correlation lie in [-1, 1], positive when A's values are larger. Excluded: values without a counterpart. pairs.csv "
        "also has uncorrected p-values and Cohen's d."
    )
    if len(shown) > MAX_ROWS:
        shown = [t for t in shown if t["metric"] == main]
    header = ["Metric", "A", "B", "Difference [95% CI]", "Shift [95% CI]", "p Wilcoxon", "p permutation", "Cliff's δ", "Rank-biserial"]
    header.append("Pairs (excluded)")
    margins = {t["label"]: number(t["margin"], t["unit"]) for t in shown if "margin" in t}
    if margins:
        header.append("A not inferior")
        words += (
            f" Not inferior: the interval excludes that A is worse by the margin ({', '.join(f'{k} {v}' for k, v in margins.items())})."
        )
    lines = []
    for t in shown:
        unit = t["unit"]
        line = [t["label"], t["a"], t["b"]]
        line += [with_interval(t["difference"], t["difference_low"], t["difference_high"], unit)]
        line += [with_interval(t["shift"], t["shift_low"], t["shift_high"], unit)]
        line += [p_text(t["p_holm"]), p_text(t["p_permutation_holm"]), _effect(t["cliffs_delta"]), _effect(t["rank_biserial"])]
        line.append(f"{t['pairs']} ({t['excluded']})")
        lines.append([*line, {True: "yes", False: "not shown", None: "–"}[t.get("noninferior")]] if margins else line)
    return _section("Pairs of methods", _table(header, lines, left=3), _text(words))


def _effect(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _plots_section(scores, metrics, structure_of, baseline, challenger) -> str:
    points = "One point a case" + (" and structure" if any(len(scores.structures(m)) > 1 for m in metrics) else "")
    joined = "; lines join the same case" if len(scores.methods) == 2 else ""
    caption = f"{points}{joined}. Boxes: quartiles and median; whiskers: 1.5 IQR; shaded: density."
    parts = [_figure(figures.distributions(scores, metrics, structure_of), caption)]
    directed = [m for m in metrics if scores.facts[m]["better"] in ("higher", "lower")][:3]
    if challenger and directed:
        caption = f"Case by case: {challenger} against {baseline}. Points on the dashed line are equal."
        parts.append(_figure(figures.scatter(scores, directed, structure_of, baseline, challenger), caption))
    caption = "Agreement of volumes (Bland-Altman): line, mean difference; dashed, limits of agreement (mean ± 1.96 SD)."
    parts.append(_figure(figures.bland_altman(scores), caption))
    return _section("Distributions", *parts)


def _cases_section(scores: Scores, metric: str, structure: str, pictures: Mapping[str, CasePicture]) -> str:
    """The worst cases, and a median and the best one, by the mean of all methods: a table, and pictures of those that have one."""
    values, _, keys = scores.aligned(metric, structure, scores.methods)
    by_case: dict[str, dict[str, float]] = {}
    found: dict[tuple[str, str], list[float]] = {}
    for m in scores.methods:
        for v, key in zip(values[m], keys, strict=True):
            if v is not None:
                found.setdefault((key[0], m), []).append(v)
    for (case, m), v in found.items():
        by_case.setdefault(case, {})[m] = float(np.mean(v))
    sign = -1 if scores.facts[metric]["better"] == "lower" else 1
    ranked = sorted(by_case, key=lambda c: (sign * np.mean(list(by_case[c].values())), c))
    if not ranked:
        return ""
    unit = scores.facts[metric]["unit"]
    lines = [(c, *(number(by_case[c].get(m), unit) for m in scores.methods)) for c in ranked[:10]]
    parts, shown = [], 0
    for heading, case, picture in _picks(ranked, pictures):
        captions = {m: f"{m}: {scores.label(metric)} {number(by_case[case].get(m), unit)}" for m in scores.methods}
        parts.append(_figure(figures.contours(picture, scores.methods, captions, errors=True), f"{heading}: {case}"))
        shown += 1
    key = "".join(
        f'<span style="background:{colour}"></span>{words} '
        for colour, words in (
            (figures.REFERENCE, "reference (outline)"),
            (figures.PREDICTION, "prediction (outline)"),
            (figures.FALSE_POSITIVE, "false positive"),
            (figures.FALSE_NEGATIVE, "false negative"),
            (figures.OTHER_CLASS, "wrong class"),
        )
    )
    how = f"By mean {scores.label(metric)} of all methods. Above: outlines; below: where prediction and reference disagree."
    if any(pictures.get(c) is not None and pictures[c].reference.ndim == 3 for c in ranked[:1]):
        how += " Axial slice with the largest reference area; the patient's right is on the left."
    table = _table(("Worst cases", *scores.methods), lines)
    return _section(
        "Worst, median and best cases", table, f'<p class="key">{key}</p>' if shown else "", *parts, _text(how) if shown else ""
    )


def _picks(ranked: Sequence[str], pictures: Mapping[str, CasePicture]) -> list[tuple[str, str, CasePicture]]:
    """(heading, case, picture) of the worst, a median and the best case that have a picture; none stands twice."""
    out: list[tuple[str, str, CasePicture]] = []
    wanted = [(f"Worst case {n + 1}" if n else "Worst case", ranked) for n in range(WORST)]
    wanted += [("Median case", ranked[len(ranked) // 2 :]), ("Best case", ranked[::-1])]
    for heading, order in wanted:
        for case in order:
            picture = None if any(case == c for _, c, _ in out) else pictures.get(case)
            if picture is not None:
                out.append((heading, case, picture))
                break
    return out


def _subgroups_section(tables: Tables) -> str:
    """A line a level, a column a method: mean [95% CI] and the patients."""
    records, scores = tables.subgroups, tables.scores
    if not records:
        return ""
    by_level: dict[tuple, dict[str, Row]] = {}
    for r in records:
        by_level.setdefault((r["subgroup"], r["level"], r["label"]), {})[r["method"]] = r
    lines = []
    for (name, level, label), found in by_level.items():
        line = [name, level, label]
        for m in scores.methods:
            r = found[m]
            undefined = f", {r['undefined']} undefined" if r["undefined"] else ""
            line.append(f"{with_interval(r['mean'], r['low'], r['high'], r['unit'])} (n {r['patients']}{undefined})")
        lines.append(line)
    words = "Mean over patients with 95% interval; levels are described, not tested: a difference between levels is a hint, not a finding."
    if any(r["subgroup"] == SIZE for r in records):
        words += f" Size: thirds of the reference volume ({scores.volume_unit}) within each structure."
    return _section("Results by subgroup", _table(("Subgroup", "Level", "Metric", *scores.methods), lines, left=3), _text(words))


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
    if all(cell == "–" for line in lines for cell in line[1:]):
        return ""
    header = ("Method", "Training (s)", "Prediction (s per case)", "Peak memory (GiB)", "Parameters (millions)", "Iterations")
    picture = _figure(figures.costs(scores, points, scores.label(metric)), "Accuracy against cost.") if points else ""
    return _section("Cost", _table(header, lines), picture)


def _deviations_section(methods: Mapping[str, Mapping]) -> str:
    lines = []
    for name, f in ((name, f) for name, f in methods.items() if f):
        options = ", ".join(f"{k} = {v}" for k, v in (f.get("options") or {}).items()) or "paper defaults"
        deviations = "; ".join(map(str, f.get("deviations") or ())) or "none"
        lines.append((name, f.get("title", ""), f.get("evidence", ""), options, deviations, "; ".join(map(str, f.get("notes") or ()))))
    words = "Evidence: contract (obeys the engine's laws) < parity (equals published code) < proof < benchmark."
    table = _table(("Method", "Title", "Evidence", "Options", "Deviations from the common plan", "Notes"), lines, left=6)
    return _section("Methods and deviations", table, _text(words)) if lines else ""


def _undefined_section(rows: Sequence[Row]) -> str:
    counted: dict[tuple, list[str]] = {}
    for r in rows:
        if r.get("value") is None and "evidence" not in r:
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


def _reproduce_section(plan: Mapping[str, Any], tables: Tables) -> str:
    scores = tables.scores
    command = f"<pre>{escape(str(plan['command']))}</pre>" if plan.get("command") else ""
    label = {m: scores.label(m) for m in scores.metrics}
    parquet = "" if "scores.parquet" in tables.files else " scores.parquet was not written: pyarrow is not installed."
    words = (
        "All scores on this page come from scores.csv beside it (one row a case, structure, metric and method); files: "
        f"{', '.join(tables.files)}.{parquet} Bootstrap and permutation seed: 0. "
        f"Metrics: {', '.join(f'{m} = {t}' for m, t in label.items())}. "
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
main{max-width:1160px;margin:0 auto;padding:32px 28px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 12px;border-bottom:1px solid #d6dae0;padding-bottom:5px;break-after:avoid}
.lead{font-size:17px;border-left:4px solid #0072B2;background:#f3f7fa;padding:12px 16px;margin:0;overflow-wrap:anywhere}
.note{margin:14px 0 0;color:#444}section>p{color:#3d434a;font-size:13.5px;max-width:96ch}
.scroll{overflow-x:auto;margin:0 0 10px}table{border-collapse:collapse;min-width:55%;font-size:12.5px;font-variant-numeric:tabular-nums}
th{text-align:left;border-bottom:2px solid #1b1f24;padding:5px 11px 5px 0;cursor:pointer;vertical-align:bottom}
td{border-bottom:1px solid #e6e9ed;padding:4px 11px 4px 0;vertical-align:top;overflow-wrap:break-word;max-width:60ch}
.n{text-align:right}td.n{white-space:nowrap;max-width:none}
tr.best td:nth-child(4){font-weight:600}figure{margin:16px 0 22px;break-inside:avoid}img{max-width:100%;height:auto}
figcaption{font-size:13px;color:#3d434a;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 20px;font-size:13.5px;margin:0}
dt{color:#3d434a}dd{margin:0;overflow-wrap:anywhere}
pre{background:#f3f4f6;padding:10px 14px;overflow-x:auto;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}
.key span{display:inline-block;width:22px;height:7px;margin:0 6px 1px 14px;vertical-align:middle;print-color-adjust:exact;
-webkit-print-color-adjust:exact}.key span:first-child{margin-left:0}
@media print{main{max-width:none;padding:0}body{font-size:11pt}table{font-size:8pt}th,td{padding-right:7px}tr{break-inside:avoid}
.scroll{overflow:visible}td.n{white-space:normal}}
"""

SCRIPT = """
for(const th of document.querySelectorAll('th'))th.onclick=()=>{const t=th.closest('table').tBodies[0],i=th.cellIndex,
v=r=>r.cells[i].textContent.replaceAll('\\u2212','-').replace(/^< /,''),d=th.dataset.d=-(th.dataset.d||-1);
const c=(a,b)=>{const x=parseFloat(v(a)),y=parseFloat(v(b));return d*(isNaN(x)||isNaN(y)?v(a).localeCompare(v(b)):x-y)};
t.append(...[...t.rows].sort(c))}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1><p class="lead">{headline}</p>{note}
{body}
</main><script>{script}</script></body></html>
"""
