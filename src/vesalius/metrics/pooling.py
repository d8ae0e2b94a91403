"""From the rows of cases to rows over cases: metrics that are computed over cases together, means by group, and gaps between groups.

Rows are ``Score``s or the records of ``Score.to_json`` as they lie on disk, of one method and one run each time: rows of several methods
are pooled one method at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import DataError, UsageError
from ..core.prediction import Score
from . import interaction
from .score import EVIDENCE
from .table import METRICS, metric

_FIELDS = frozenset(Score.__dataclass_fields__) - {"extra"}
By = str | Mapping[str, str]


def carrier(row: Score | Mapping[str, Any]) -> bool:
    """Whether a row only carries the evidence of a pooled metric: it is no value of the case, and not undefined either."""
    return EVIDENCE in (row.extra if isinstance(row, Score) else row)


def as_score(row: Score | Mapping[str, Any]) -> Score:
    """A record of ``Score.to_json`` as the Score it was; keys that are no field are ``extra``."""
    if isinstance(row, Score):
        return row
    known = {k: v for k, v in row.items() if k in _FIELDS}
    return Score(**known, extra={k: v for k, v in row.items() if k not in _FIELDS})


def pool(rows: Sequence[Score | Mapping[str, Any]], *, by: By | None = None) -> list[Score]:
    """One row per metric, structure, query, rater, step and group: the pooled metric of the carriers' evidence, else the mean over cases.

    ``by`` splits the cases: a field or ``extra`` key of the rows ('patient', 'site'), or a mapping from case to group (a table column).
    ``extra`` of a row tells 'cases', 'undefined' (how many had no value or evidence), 'by' and 'group'. A group without any value is
    undefined with a note. Raises UsageError when no row knows the group, DataError when a case occurs twice.
    """
    out = []
    for (name, structure, query, rater, step, group), members in _groups(rows, by).items():
        m = METRICS.get(name)
        if m is not None and m.pooled:
            evidence = [s.extra[EVIDENCE] for s in members if carrier(s)]
            value, defined = (m.function(evidence) if evidence else None), len(evidence)
        else:
            values = [s.value for s in members if s.value is not None]
            value, defined = (float(np.mean(values)) if values else None), len(values)
        extra = {k: v for k, v in members[0].extra.items() if k in ("unit", "better")}
        extra |= {"cases": len(members), "undefined": len(members) - defined}
        extra |= {"by": by if isinstance(by, str) else "group", "group": group} if by is not None else {}
        note = "" if value is not None else "no case has a value" if not defined else "undefined over these cases"
        kind = members[0].kind
        out.append(Score("", name, value, structure, query=query, rater=rater, step=step, kind=kind, note=note, extra=extra))
    return out


def gaps(rows: Sequence[Score | Mapping[str, Any]], *, by: By) -> list[Score]:
    """Per metric, structure, query, rater and step the largest minus the smallest value of the groups of ``pool``; lower is better.

    ``metric`` is '<name> gap'; ``extra`` tells 'values' by group, 'highest', 'lowest'. Fewer than two groups with a value: undefined.
    """
    families = defaultdict(list)
    for s in pool(rows, by=by):
        families[(s.metric, s.structure, s.query, s.rater, s.step, s.kind)].append(s)
    out = []
    for (name, structure, query, rater, step, kind), members in families.items():
        values = {s.extra["group"]: s.value for s in members if s.value is not None}
        extra = {"by": members[0].extra["by"], "values": values, "unit": members[0].extra.get("unit", ""), "better": "lower"}
        value, note = None, "fewer than two groups have a value"
        if len(values) > 1:
            high, low = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
            value, note, extra = values[high] - values[low], "", {**extra, "highest": high, "lowest": low}
        out.append(Score("", f"{name} gap", value, structure, query=query, rater=rater, step=step, kind=kind, note=note, extra=extra))
    return out


def effort(
    rows: Iterable[Score | Mapping[str, Any]], name: str = "dsc", *, qualities: Sequence[float] = (0.8, 0.85, 0.9), cap: int = 20
) -> list[Score]:
    """Rows over cases of what corrections cost, from rows of one metric with ``step``: for every structure and quality q 'noc@q' (mean
    interactions until q, ``cap`` where it is never reached) and 'success@q', and once 'effort_area'.

    Every (case, structure, query, rater) is one object. Raises UsageError for a pooled metric; formulas: ``interaction``.
    """
    m = metric(name)
    if m.pooled or m.better == "zero":
        raise UsageError(f"'{name}' has no course that a quality can be read from", allowed="a metric of single cases, higher or lower")
    curves, first = interaction.curves_of(map(as_score, rows), name)
    by_structure = defaultdict(list)
    for (_, structure, _, _), curve in curves.items():
        by_structure[structure].append(curve)
    out = []
    for structure, group in by_structure.items():
        facts = {"first": first, "cap": cap, "better": m.better}
        found = {f"noc@{q:g}": (interaction.noc_at(group, q, **facts), "lower") for q in qualities}
        facts["budget"] = facts.pop("cap")
        found |= {f"success@{q:g}": (interaction.success_rate(group, q, **facts), "higher") for q in qualities}
        found["effort_area"] = (interaction.effort_area(group, first=first, budget=cap), m.better)
        for key, (value, better) in found.items():
            extra = {"of": name, "better": better, "cases": len(group), "cap": cap}
            out.append(Score("", key, value, structure, note="" if value is not None else "undefined over these cases", extra=extra))
    return out


def _groups(rows: Iterable[Score | Mapping[str, Any]], by: By | None) -> dict[tuple, list[Score]]:
    group_of = _grouping(by)
    found: dict[tuple, list[Score]] = defaultdict(list)
    seen, known = set(), by is None
    for s in map(as_score, rows):
        key = (s.metric, s.structure, s.query, s.rater, s.step)
        if (key, s.case) in seen:
            raise DataError(
                "a case has two rows of one metric", where=s.case, found=s.metric, fix="pool one method, seed and fold at a time"
            )
        seen.add((key, s.case))
        group = group_of(s)
        known = known or group is not None
        found[(*key, "" if group is None else group)].append(s)
    if found and not known:
        raise UsageError("no row knows the group it belongs to", found=by, fix="give a mapping from case to group")
    return found


def _grouping(by: By | None) -> Callable[[Score], Any]:
    if by is None:
        return lambda s: None
    if isinstance(by, Mapping):
        return lambda s: by.get(s.case)
    return lambda s: (getattr(s, by) or None) if by in _FIELDS else s.extra.get(by)
