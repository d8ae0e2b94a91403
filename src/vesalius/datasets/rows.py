"""A CSV of cases -> rows and ``CaseRef`` records; strict, because a silently misread table ruins an experiment.

UTF-8 (a byte-order mark is fine), commas, a header line. Column ``case`` (the id), ``patient`` (default: the case), ``split`` (train |
val | test or empty), ``exam``, ``source``; ``image:<name>``, ``label:<rater>``, ``roi:<name>``, ``points:<structure>``, ``boxes:<name>``,
``text:<name>``; every other column belongs to the case's table. An empty cell is missing. A table column holds numbers when all its cells
are plain numbers, else text; codes with leading zeros stay text.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError, nearest
from ..core.manifest import CaseRef
from ..core.spreadsheet import unguarded
from .stems import usable_id

KINDS = {"image": "images", "label": "labels", "roi": "rois", "points": "points", "boxes": "boxes", "text": "text"}
FACTS = ("case", "patient", "split", "exam", "source")
SPLITS = ("train", "val", "test")
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)$")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_COMMA = re.compile(r"[+-]?\d+,\d+$")


@dataclass(frozen=True)
class Rows:
    """A table: column names, one dict a row (cells stripped), and each row's line in the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...]

    def at(self, row: int) -> str:
        """'file, line n' of a row."""
        return f"{self.path}, line {self.lines[row]}"


def read_rows(path: Path) -> Rows:
    """Read a CSV. Raises DataError for another encoding, other separators, repeated columns and rows of another length."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=path) from error
    except UnicodeDecodeError as error:
        raise DataError("the table is not UTF-8", where=path, found=f"byte {error.start}", fix="save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError("the table cannot be read", where=path, found=error.strerror) from error
    if "\0" in text:
        raise DataError("the table is not a text file", where=path, fix="save it as 'CSV UTF-8'")
    first = text.split("\n", 1)[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise DataError(
                f"the columns are separated by {name}", where=f"{path}, line 1", allowed="commas", fix="save it as comma-separated CSV"
            )
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows, lines = [], []
    try:
        columns = tuple(c.strip() for c in next(reader, []))
        _check_columns(columns, path)
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            if len(cells) != len(columns):
                where = f"{path}, line {reader.line_num}"
                raise DataError(
                    "the row has another number of cells than the header",
                    where=where,
                    found=len(cells),
                    allowed=len(columns),
                    fix="put text that holds commas in double quotes",
                )
            rows.append(dict(zip(columns, (unguarded(c.strip()) for c in cells), strict=True)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError("the table is damaged", where=f"{path}, line {reader.line_num}", found=str(error)) from error
    return Rows(path, columns, tuple(rows), tuple(lines))


def _check_columns(columns: Sequence[str], path: Path) -> None:
    where = f"{path}, line 1"
    if not any(columns):
        raise DataError("the table is empty", where=path, fix="start it with a header line: case,patient,split,image:<name>,label:<rater>")
    if "" in columns:
        raise DataError("a column has no name", where=where, found=f"column {columns.index('') + 1}")
    twice = [c for k, c in enumerate(columns) if c in columns[:k]]
    if twice:
        raise DataError(f"column '{twice[0]}' appears twice", where=where)


def column_kind(column: str) -> tuple[str, str]:
    """('images', 'CT') for 'image:CT'; ('table', column) for a column of the table."""
    kind, colon, name = column.partition(":")
    if colon and kind in KINDS and name.strip():
        return KINDS[kind], name.strip()
    return "table", column


def case_refs(table: Rows) -> tuple[CaseRef, ...]:
    """One ``CaseRef`` a row. Raises DataError with the line for missing, repeated or unusable ids, unknown splits and misspelt columns."""
    if "case" not in table.columns:
        raise DataError(
            "there is no column 'case'",
            where=f"{table.path}, line 1",
            found=", ".join(table.columns[:12]),
            fix=nearest("case", table.columns),
        )
    for column in table.columns:
        _check_kind(column, table.path)
    values = {c: _typed(c, table) for c in table.columns if c not in FACTS and column_kind(c)[0] == "table"}
    seen: dict[str, int] = {}
    refs = []
    for k, row in enumerate(table.rows):
        case, split = row["case"], row.get("split", "")
        if not case or not usable_id(case):
            raise DataError(
                "the case id is missing or could not name a file",
                where=table.at(k),
                found=repr(case),
                allowed="up to 150 characters, no / or \\",
            )
        if case in seen:
            raise DataError(
                "two rows have the same case id",
                where=table.at(k),
                found=f"'{case}', first in line {table.lines[seen[case]]}",
                fix="give every case its own id",
            )
        seen[case] = k
        if split and split not in SPLITS:
            raise DataError(
                f"unknown split '{split}'", where=table.at(k), allowed="train, val, test or an empty cell", fix=nearest(split, SPLITS)
            )
        fields: dict[str, dict[str, Any]] = {field: {} for field in KINDS.values()}
        for column, cell in row.items():
            kind, name = column_kind(column)
            if kind != "table" and cell:
                fields[kind][name] = cell
        refs.append(
            CaseRef(
                case,
                row.get("patient") or case,
                split,
                row.get("exam", ""),
                row.get("source", ""),
                **fields,
                table={c: column[k] for c, column in values.items()},
            )
        )
    if not refs:
        raise DataError("the table has no rows", where=table.path)
    return tuple(refs)


def channels(columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the image columns, in order."""
    return tuple(name for kind, name in map(column_kind, columns) if kind == "images")


def _check_kind(column: str, path: Path) -> None:
    kind, colon, name = column.partition(":")
    if colon and kind not in KINDS and difflib.get_close_matches(kind.lower(), KINDS, 1, 0.7):
        raise DataError(
            f"unknown kind of column '{column}'",
            where=f"{path}, line 1",
            allowed=", ".join(f"{k}:<name>" for k in KINDS),
            fix=nearest(kind.lower(), KINDS),
        )
    if colon and kind in KINDS and not name.strip():
        raise DataError(f"column '{column}' has no name after the colon", where=f"{path}, line 1", fix=f"write {kind}:<name>")


def _typed(column: str, table: Rows) -> list[Any]:
    """A table column's values: int, float or text; None where the cell is empty."""
    cells = [row[column] for row in table.rows]
    filled = [c for c in cells if c]
    if filled and all(_COMMA.match(c) for c in filled):
        k = next(k for k, c in enumerate(cells) if c)
        raise DataError(
            f"column '{column}' has decimal commas", where=table.at(k), found=cells[k], allowed="decimal points", fix="write 0.5, not 0,5"
        )
    convert: Any = str
    if filled and all(_WHOLE.match(c) for c in filled):
        convert = int
    elif filled and all(_NUMBER.match(c) and not re.match(r"[+-]?0\d", c) for c in filled):
        convert = float
    return [convert(c) if c else None for c in cells]
