"""Points and boxes of a case: what a ``points:`` or ``boxes:`` cell holds, read to world coordinates.

A cell is inline JSON, a JSON file or a CSV file. Coordinates are world millimetres (3D: x, y, z in RAS+; 2D: row, column in mm), unless the
JSON says ``"space": "index"`` or the CSV's columns are index axes: then they are voxel indices of the case's grid.

* points, JSON: ``[[x, y, z], ...]`` or ``{"xyz": [...], "names": [...], "instance": [...], "space": "world" | "index"}``
* points, CSV: columns ``x,y,z`` (2D: ``row,column``) in mm or ``i,j,k`` (2D: ``i,j``) in voxels, and optional ``name``, ``instance``
* boxes, JSON: ``[[low..., high...], ...]`` or ``{"low": [...], "high": [...], "labels": [...], "space": ...}``
* boxes, CSV: the same axes twice with 0 (low) and 1 (high): ``x0,y0,z0,x1,y1,z1``, and optional ``label``
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.case import Boxes, Points
from ..core.errors import DataError
from ..core.geometry import Geometry
from .rows import read_rows

WORLD, INDEX = {2: ("row", "column"), 3: ("x", "y", "z")}, {2: ("i", "j"), 3: ("i", "j", "k")}
Grid = Callable[[], Geometry]


def read_points(cell: str, root: Path, dims: int, grid: Grid) -> Points:
    """``Points`` (n, dims) in world mm; ``grid`` is asked only when the cell holds voxel indices."""
    record, where = _record(cell, root, _points_csv, dims)
    record = {"xyz": record} if isinstance(record, list) else record
    _known(record, ("xyz", "names", "instance", "space"), where)
    xyz = _rows(record.get("xyz"), dims, where)
    names = tuple(str(n) for n in record.get("names") or ())
    instance = record.get("instance")
    for extra in (names, instance):
        _same_length(extra, xyz, where)
    return Points(grid().to_world(xyz) if _by_index(record, where) else xyz, names, None if instance is None else np.asarray(instance, int))


def read_boxes(cell: str, root: Path, dims: int, grid: Grid) -> Boxes:
    """``Boxes`` (n, dims) in world mm with low <= high on every axis."""
    record, where = _record(cell, root, _boxes_csv, dims)
    if isinstance(record, list):
        both = _rows(record, 2 * dims, where)
        record = {"low": both[:, :dims].tolist(), "high": both[:, dims:].tolist()}
    _known(record, ("low", "high", "labels", "space"), where)
    low, high = (_rows(record.get(side), dims, where) for side in ("low", "high"))
    labels = tuple(str(n) for n in record.get("labels") or ())
    _same_length(high, low, where)
    _same_length(labels, low, where)
    low, high = grid().world_bounds(low, high) if _by_index(record, where) else (np.minimum(low, high), np.maximum(low, high))
    return Boxes(low, high, labels)


def points_json(points: Points) -> dict:
    """The record that ``read_points`` reads back."""
    record: dict[str, Any] = {"xyz": np.asarray(points.xyz, float).tolist()}
    if points.names:
        record["names"] = list(points.names)
    if points.instance is not None:
        record["instance"] = np.asarray(points.instance).tolist()
    return record


def boxes_json(boxes: Boxes) -> dict:
    """The record that ``read_boxes`` reads back."""
    record: dict[str, Any] = {"low": np.asarray(boxes.low, float).tolist(), "high": np.asarray(boxes.high, float).tolist()}
    return {**record, "labels": list(boxes.labels)} if boxes.labels else record


def _record(cell: str, root: Path, from_csv: Callable[[Path, int], dict], dims: int) -> tuple[Any, str]:
    """The JSON value of a cell or of the file it names, and what to call it in messages."""
    if cell[:1] in "[{":
        text, where = cell, f"cell '{cell[:40]}'"
    else:
        path = root / cell
        where = str(path)
        if path.suffix.lower() == ".csv":
            return from_csv(path, dims), where
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the coordinates cannot be read", where=where, found=str(error), allowed="inline JSON, a .json or a .csv file"
            ) from error
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError("the coordinates are no valid JSON", where=where, found=str(error)) from error
    if not isinstance(record, list | dict):
        raise DataError("the coordinates are a list or an object", where=where, found=type(record).__name__)
    return record, where


def _points_csv(path: Path, dims: int) -> dict:
    table = read_rows(path)
    for space, axes in (("world", WORLD[dims]), ("index", INDEX[dims])):
        if set(axes) <= set(table.columns):
            record: dict[str, Any] = {"xyz": [[_number(r[a], path) for a in axes] for r in table.rows], "space": space}
            if "name" in table.columns:
                record["names"] = [r["name"] for r in table.rows]
            if "instance" in table.columns:
                record["instance"] = [int(_number(r["instance"], path)) for r in table.rows]
            return record
    raise DataError(
        "the table has no coordinate columns",
        where=path,
        found=", ".join(table.columns),
        allowed=f"{','.join(WORLD[dims])} (mm) or {','.join(INDEX[dims])} (voxels)",
    )


def _boxes_csv(path: Path, dims: int) -> dict:
    table = read_rows(path)
    for space, axes in (("world", WORLD[dims]), ("index", INDEX[dims])):
        if {f"{a}{side}" for a in axes for side in "01"} <= set(table.columns):
            record: dict[str, Any] = {"space": space}
            for key, side in (("low", "0"), ("high", "1")):
                record[key] = [[_number(r[a + side], path) for a in axes] for r in table.rows]
            return {**record, "labels": [r["label"] for r in table.rows]} if "label" in table.columns else record
    axes = [f"{a}{side}" for side in "01" for a in WORLD[dims]]
    raise DataError("the table has no coordinate columns", where=path, found=", ".join(table.columns), allowed=",".join(axes))


def _known(record: dict, keys: tuple[str, ...], where: str) -> None:
    odd = set(record) - set(keys)
    if odd:
        raise DataError(f"unknown key '{sorted(odd)[0]}'", where=where, allowed=", ".join(keys))


def _number(cell: str, where: Path) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DataError("a coordinate is no number", where=where, found=repr(cell)) from error


def _rows(value: Any, width: int, where: str) -> np.ndarray:
    try:
        rows = np.asarray(value if value is not None else "missing", float)
        rows = rows.reshape(0, width) if rows.size == 0 else rows
    except (ValueError, TypeError):
        rows = np.zeros(0)
    if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all():
        raise DataError("these are no coordinates", where=where, found=str(value)[:60], allowed=f"rows of {width} finite numbers")
    return rows


def _same_length(extra: Any, rows: np.ndarray, where: str) -> None:
    if extra is not None and len(extra) and len(extra) != len(rows):
        raise DataError("names or ids do not go with the coordinates", where=where, found=len(extra), allowed=len(rows))


def _by_index(record: dict, where: str) -> bool:
    space = record.get("space", "world")
    if space not in ("world", "index"):
        raise DataError("unknown space", where=where, found=repr(space), allowed="world, index")
    return space == "index"
