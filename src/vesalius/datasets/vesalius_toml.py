"""Vesalius' own layout: a folder with ``dataset.toml`` and ``cases.csv``.

``dataset.toml``: ``name`` (default: the folder's), ``modality``, ``dims`` (0 tables and text, 2, 3, or 4 for volumes over time),
``licence``, ``source``, ``note``, ``spacing_mm`` (array-axis order, for files that carry none), ``[labels]`` name = value, or "1.." for
instance ids; a label called 'ignore' or starting with 'unlabelled' is the value that means nobody said. ``[targets]``: table column =
"nominal" | "ordinal" | "binary" | "real", or {kind = ..., levels = [...]}. ``[mirror]``: a label on the left = its partner on the right.
Beside them ``queries.csv``, if there: expressions and what they point to (``queries``); ``pairs.csv``, if there (columns fixed, moving):
which cases are registered with which (``pairs``).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError, nearest
from ..core.manifest import CaseRef, Manifest
from ..ops.tabular import level, levels_of
from .pairs import FILE as PAIRS
from .pairs import read_pairs
from .queries import FILE as QUERIES
from .queries import with_queries
from .rows import case_refs, channels, column_kind, read_rows

FILE, CASES = "dataset.toml", "cases.csv"
KEYS = ("name", "modality", "dims", "licence", "source", "note", "spacing_mm", "labels", "targets", "mirror")
TARGET_KINDS = ("nominal", "ordinal", "binary", "real")
MANY = "1.."  # instance ids


def open_toml(folder: Path) -> Manifest:
    """The manifest of a folder in Vesalius' layout; raises DataError naming the file and, where possible, the line."""
    path = folder / FILE
    record = _load(path)
    for key in record:
        if key not in KEYS:
            raise DataError(f"unknown key '{key}'", where=path, allowed=", ".join(KEYS), fix=nearest(key, KEYS))
    for key in ("name", "modality", "licence", "source", "note"):
        if not isinstance(record.get(key, ""), str):
            raise DataError(f"'{key}' is a text", where=path, found=repr(record[key]), fix="put it in double quotes")
    dims = record.get("dims")
    if dims not in (0, 2, 3, 4) or isinstance(dims, bool):
        raise DataError("'dims' is missing or wrong", where=path, found=repr(dims), allowed="0 (tables, text), 2, 3 or 4")
    labels, ignore, instances = label_table(record.get("labels", {}), path)
    table = read_rows(folder / CASES)
    if not labels and any(column_kind(c)[0] == "labels" for c in table.columns):
        raise DataError(
            "cases.csv has labels, but dataset.toml does not say what their values mean",
            where=path,
            fix='add a section [labels] with lines such as "background" = 0 and "lesion" = 1',
        )
    cases = case_refs(table)
    manifest = Manifest(
        name=record.get("name") or folder.resolve().name,
        root=folder,
        dims=int(dims),
        channels=channels(table.columns),
        labels=labels,
        cases=cases,
        modality=record.get("modality", ""),
        licence=record.get("licence", ""),
        source=record.get("source", ""),
        note=record.get("note", ""),
        spacing_mm=_spacing(record.get("spacing_mm"), int(dims), path),
        ignore=ignore,
        instances=instances,
        targets=_targets(record.get("targets", {}), cases, path),
        mirror=_mirror(record.get("mirror", {}), labels, path),
        pairs=read_pairs(folder / PAIRS) if (folder / PAIRS).is_file() else None,
    )
    return with_queries(manifest, folder / QUERIES) if (folder / QUERIES).is_file() else manifest


def is_ignore(name: str) -> bool:
    """Whether a label's name means 'nobody said'."""
    return name.strip().lower() == "ignore" or name.strip().lower().startswith("unlabelled")


def label_table(record: Any, where: Path) -> tuple[dict[str, int], int | None, bool]:
    """(name -> value with the background first, ignore value or None, whether the files hold instance ids)."""
    if not isinstance(record, Mapping):
        raise DataError("[labels] is a section of lines name = value", where=where, found=repr(record))
    labels: dict[str, int] = {}
    ignore, instances = None, False
    for name, value in record.items():
        if value == MANY:
            value, instances = 1, True
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(
                f"label '{name}' has no whole number as its value",
                where=where,
                found=repr(value),
                allowed='a whole number, or "1.." for instance ids',
            )
        if value in labels.values() or value == ignore:
            raise DataError(f"label '{name}' has a value that another label has", where=where, found=value)
        if is_ignore(name):
            if ignore is not None:
                raise DataError("two labels mean 'nobody said'", where=where, found=f"values {ignore} and {value}", allowed="one")
            ignore = value
        else:
            labels[name] = value
    if instances and len(labels) > 2:
        raise DataError('with instance ids ("1..") there is one other label, the background', where=where, found=", ".join(labels))
    if not labels:
        return {}, ignore, instances
    background = next((n for n in labels if n.lower() == "background"), None) or next((n for n, v in labels.items() if v == 0), None)
    if background is None:
        return {"background": 0, **labels}, ignore, instances
    return {background: labels[background], **{n: v for n, v in labels.items() if n != background}}, ignore, instances


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise DataError("the file is no valid TOML", where=path, found=str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8", where=path, found=f"byte {error.start}") from error
    except OSError as error:
        raise DataError("the file cannot be read", where=path, found=error.strerror) from error


def _spacing(value: Any, dims: int, where: Path) -> tuple[float, ...] | None:
    if value is None:
        return None
    good = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < float("inf") for v in value)
    if not good or len(value) != min(dims, 3):
        raise DataError("'spacing_mm' is wrong", where=where, found=value, allowed=f"{min(dims, 3)} positive numbers in array-axis order")
    return tuple(float(v) for v in value)


def _targets(record: Any, cases: Sequence[CaseRef], where: Path) -> dict[str, dict]:
    """column -> {"kind", "levels"}; the levels default to the column's values in order (none for 'real')."""
    if not isinstance(record, Mapping):
        raise DataError("[targets] is a section of lines column = kind", where=where, found=repr(record))
    columns = list(cases[0].table)
    out = {}
    for column, said in record.items():
        if column not in columns:
            raise DataError(f"target '{column}' is no column of cases.csv", where=where, fix=nearest(column, columns))
        said = {"kind": said} if isinstance(said, str) else said
        kind = said.get("kind") if isinstance(said, Mapping) else None
        if kind not in TARGET_KINDS or set(said) - {"kind", "levels"}:
            raise DataError(
                f"target '{column}' is not understood",
                where=where,
                found=repr(said),
                allowed=f"{', '.join(TARGET_KINDS)}, or {{kind = ..., levels = [...]}}",
            )
        if kind == "real":
            out[column] = {"kind": kind}
            continue
        present = levels_of(case.table[column] for case in cases)
        levels = [level(value) for value in said.get("levels", present)]
        odd = [value for value in present if value not in levels]
        if odd or (kind == "binary" and len(levels) != 2):
            raise DataError(
                f"target '{column}' has other values than its levels",
                where=where,
                found=", ".join(odd or levels),
                allowed=", ".join(levels) if odd else "two levels",
            )
        out[column] = {"kind": kind, "levels": levels}
    return out


def _mirror(record: Any, labels: Mapping[str, int], where: Path) -> tuple[tuple[str, str], ...]:
    if not isinstance(record, Mapping):
        raise DataError("[mirror] is a section of lines left label = right label", where=where, found=repr(record))
    for name in (n for pair in record.items() for n in pair):
        if name not in labels:
            raise DataError(f"[mirror] names the unknown label '{name}'", where=where, fix=nearest(str(name), labels))
    return tuple((a, b) for a, b in record.items())
