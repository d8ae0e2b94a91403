"""Reading a ``dataset.json`` (nnU-Net, Decathlon): strict JSON with the line of a mistake, and its label names and values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import DataError


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value of a file, which must be an object (or a list). Raises DataError with the line; repeated keys are refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [k for k, _ in pairs]
            raise DataError("a key appears twice", where=path, found=next(k for k in names if names.count(k) > 1))
        return record

    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError("the file is no valid JSON", where=f"{path}, line {error.lineno}", found=error.msg) from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8", where=path, found=f"byte {error.start}") from error
    except OSError as error:
        raise DataError("the file cannot be read", where=path, found=error.strerror) from error
    if not isinstance(record, kind):
        raise DataError(f"the file does not hold a JSON {'object' if kind is dict else 'list'}", where=path, found=type(record).__name__)
    return record


def by_number(record: Mapping, key: str, where: Path) -> tuple[str, ...]:
    """Names from {"0": "CT", "1": "PET"}, in order of number."""
    said = record.get(key)
    if not isinstance(said, Mapping) or not said or not all(str(k).isdigit() for k in said):
        raise DataError(f'\'{key}\' is missing or not of the form {{"0": "CT"}}', where=where, found=repr(said))
    names = tuple(str(said[k]) for k in sorted(said, key=int))
    return names if len(set(names)) == len(names) else tuple(f"{n}_{k}" for k, n in enumerate(names))
