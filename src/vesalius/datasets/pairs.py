"""pairs.csv: which cases are registered with which, a row a pair, columns ``fixed`` and ``moving`` (case ids)."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError
from .rows import read_rows

FILE = "pairs.csv"
COLUMNS = ("fixed", "moving")


def read_pairs(path: Path) -> tuple[tuple[str, str], ...]:
    """The (fixed, moving) pairs in the file's order; a pair given twice counts once. Raises DataError naming the file and line."""
    table = read_rows(path)
    if set(table.columns) != set(COLUMNS):
        found = ", ".join(table.columns)
        raise DataError("a table of pairs has two columns", where=f"{path}, line 1", found=found, allowed=", ".join(COLUMNS))
    for k, row in enumerate(table.rows):
        lacking = [c for c in COLUMNS if not row[c]]
        if lacking:
            raise DataError(f"the pair has no {lacking[0]} case", where=table.at(k))
    if not table.rows:
        raise DataError("the table names no pair", where=path, fix="write a row a pair, or remove the file: every case is then paired")
    return tuple(dict.fromkeys((row["fixed"], row["moving"]) for row in table.rows))
