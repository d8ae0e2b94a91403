"""Expressions and what they point to: ``queries.csv`` beside ``cases.csv``, columns ``case``, ``text``, and if wanted ``id`` and ``label``.

``label`` says what a row's text means: a class of [labels], or several ('left lung|right lung'); a value of the case's label file, or an
instance id, or several ('3|4'); the path of a mask file, of which everything but 0 is meant; or 'nothing', where the image has no such
thing. An empty cell is not known: such a row can be predicted, but not scored. Names and values are those of the label map 'reference',
or else of the case's first one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.case import IGNORE, Case, LabelMap, Query
from ..core.errors import DataError, nearest
from ..core.manifest import Manifest
from .rows import Rows, read_rows
from .stems import usable_id
from .views import View

FILE = "queries.csv"
COLUMNS = ("case", "id", "text", "label")
NOTHING = "nothing"
NAMES = ("background", "target")
_WHOLE = re.compile(r"\d+$")
_ROI = "query:"  # a mask file is read like an ROI of this name


@dataclass(frozen=True)
class Row:
    """One expression. ``classes`` or ``values`` of the label map, or the ``file`` of a mask; ``known`` is False where nobody said."""

    id: str
    text: str
    classes: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    file: str = ""
    known: bool = True


def with_queries(base: Manifest, path: Path) -> Manifest:
    """``base`` with the expressions of ``path`` in its cases. Raises DataError with the line of what cannot be."""
    table = read_rows(path)
    for column in table.columns:
        if column not in COLUMNS:
            raise DataError(f"unknown column '{column}'", where=f"{path}, line 1", allowed=", ".join(COLUMNS), fix=nearest(column, COLUMNS))
    for column in ("case", "text"):
        if column not in table.columns:
            raise DataError(f"there is no column '{column}'", where=f"{path}, line 1", found=", ".join(table.columns))
    rows: dict[str, dict[str, Row]] = {}
    known = {c.id for c in base.cases}
    for k, cells in enumerate(table.rows):
        case = cells["case"]
        if case not in known:
            raise DataError(f"unknown case '{case}'", where=table.at(k), fix=nearest(case, known))
        own = rows.setdefault(case, {})
        row = _row(table, k, base, cells.get("id") or f"q{len(own) + 1}")
        if row.id in own:
            raise DataError(f"case '{case}' has two expressions of the id '{row.id}'", where=table.at(k), fix="give each its own")
        own[row.id] = row
    read = replace(base, cases=tuple(replace(c, rois={**c.rois, **_files(rows.get(c.id, {}))}) for c in base.cases))
    said = hashlib.sha256(json.dumps({k: [repr(r) for r in v.values()] for k, v in rows.items()}).encode()).hexdigest()[:16]
    asked = {k: tuple(v.values()) for k, v in rows.items()}
    return replace(read, built_in=View(read, partial(_asked, rows=asked), f"queries {said}"))


def _row(table: Rows, k: int, base: Manifest, own: str) -> Row:
    cells, label = table.rows[k], table.rows[k].get("label", "")
    if not cells["text"]:
        raise DataError("an expression without words", where=table.at(k), fix="write what is looked for in the column 'text'")
    if not usable_id(own):
        raise DataError("the id could not name a file", where=table.at(k), found=repr(own))
    parts = tuple(p.strip() for p in label.split("|"))
    if not label or label == NOTHING:
        return Row(own, cells["text"], known=bool(label))
    if all(p in base.names[1:] for p in parts):
        return Row(own, cells["text"], classes=tuple(base.names.index(p) for p in parts))
    if all(_WHOLE.match(p) for p in parts):
        numbers = tuple(map(int, parts))
        odd = [n for n in numbers if n not in base.values] if not base.instances else []
        if odd:
            raise DataError(f"no label has the value {odd[0]}", where=table.at(k), allowed=", ".join(map(str, base.values)))
        return Row(own, cells["text"], **({"values": numbers} if base.instances else {"classes": tuple(map(base.values.index, numbers))}))
    if not (base.root / label).exists() and "." not in label:
        fix = nearest(label, [*base.names[1:], NOTHING])
        raise DataError("this is no class, no value and no file", where=table.at(k), found=repr(label), fix=fix)
    return Row(own, cells["text"], file=label)


def _files(rows: Mapping[str, Row]) -> dict[str, str]:
    return {f"{_ROI}{r.id}": r.file for r in rows.values() if r.file}


def _asked(case: Case, *, rows: Mapping[str, tuple[Row, ...]]) -> Case:
    """The case with its expressions; the ROIs that carried their masks are gone."""
    queries = tuple(Query(r.id, r.text, _target(case, r) if r.known else None) for r in rows.get(case.id, ()))
    return replace(case, queries=queries, rois={k: v for k, v in case.rois.items() if not k.startswith(_ROI)})


def _target(case: Case, row: Row) -> LabelMap:
    if row.file:
        roi = case.rois[f"{_ROI}{row.id}"]
        return replace(roi, names=NAMES)
    label = case.label
    if label is None:
        if row.classes or row.values:
            fix = "give the case a label map, or the expression a mask file"
            raise DataError(f"expression '{row.id}' names a label, the case has no label map", where=f"case {case.id}", fix=fix)
        return LabelMap(np.zeros(case.geometry.shape, np.int16), case.geometry, NAMES)
    data = np.asarray(label.data if row.values else label.semantic.data)
    meant = np.isin(data, row.values or row.classes)
    return LabelMap(np.where(data == IGNORE, IGNORE, meant).astype(np.int16), label.geometry, NAMES)
