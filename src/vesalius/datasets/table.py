"""A bare CSV of paths: the columns of ``cases.csv`` without a ``dataset.toml``; ``image`` and ``label`` alone are allowed too.

A missing ``case`` column is made from the image names (or the line number). Paths are relative to the CSV's folder. The label table is
found by reading the label files, as for a plain folder; a column named ``label`` that holds numbers or classes is a table column.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..core.errors import DataError
from ..core.manifest import Manifest
from .plain import dims_of, label_values
from .rows import Rows, case_refs, channels, column_kind, read_rows
from .stems import ending, stem


def open_table(path: Path) -> Manifest:
    """The manifest of a CSV of paths, texts or numbers. Raises DataError for what ``rows`` refuses."""
    table = _named(read_rows(path))
    refs = case_refs(table)
    names = channels(table.columns)
    if not names and not any(column_kind(c)[0] in ("text", "labels") for c in table.columns) and not any(r.table for r in refs):
        raise DataError(
            "the table names no image, text or number",
            where=path,
            found=", ".join(table.columns),
            allowed="image or image:<name>, text:<name>, ...",
        )
    root = path.parent
    first = next((a for r in refs for a in (*r.images.values(), *r.labels.values())), None)
    files = [str(root / a) for r in refs for a in r.labels.values()]
    return Manifest(
        name=stem(path.with_suffix("")),
        root=root,
        dims=dims_of(str(root / first)) if first else 0,
        channels=names,
        labels=label_values(files) if files else {},
        cases=refs,
        layout="table",
    )


def _named(table: Rows) -> Rows:
    """``image`` -> ``image:image``, ``label`` or ``mask`` that holds paths -> ``label:reference``, and a ``case`` column."""
    to = {"image": "image:image"} if "image" in table.columns else {}
    for name in ("label", "mask"):
        if name in table.columns and any(_is_path(r[name]) for r in table.rows):
            to[name] = "label:reference"
    columns = [to.get(c, c) for c in table.columns]
    rows = [{to.get(c, c): cell for c, cell in row.items()} for row in table.rows]
    if len(set(columns)) < len(columns):
        raise DataError("two columns hold the reference label", where=f"{table.path}, line 1", found=", ".join(to))
    if "case" not in columns:
        image = next((c for c in columns if column_kind(c)[0] == "images"), None)
        ids = [stem(r[image]) if image and r[image] and ":" not in r[image] else f"row_{n}" for r, n in zip(rows, table.lines, strict=True)]
        ids = ids if len(set(ids)) == len(ids) else [f"row_{n}" for n in table.lines]
        columns, rows = ["case", *columns], [{"case": i, **r} for i, r in zip(ids, rows, strict=True)]
    return replace(table, columns=tuple(columns), rows=tuple(rows))


def _is_path(cell: str) -> bool:
    return bool(ending(cell)) or any(mark in cell.lower() for mark in (".npz:", ".h5:", ".hdf5:"))
