"""The table of labels: its rows as people send them, and masks by its values, by class indices and by names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.case import LabelMap
from ..core.errors import UsageError, VesaliusError

COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
    "#469990",
    "#dcbeff",
    "#9a6324",
)
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Label:
    """A structure: its value in mask files, and how it is shown."""

    name: str
    value: int
    color: str


class LabelsChanged(VesaliusError):
    """Another table of labels was saved first: ``labels`` is that one."""

    def __init__(self, labels: tuple[Label, ...]):
        super().__init__("someone changed the labels meanwhile", fix="look at the table as it is now, and change it again")
        self.labels = labels


def labels_version(labels: Sequence[Label]) -> str:
    """Names a table of labels by what is in it."""
    return hashlib.sha256(json.dumps([asdict(x) for x in labels]).encode()).hexdigest()[:16]


def first_labels(named: Mapping[str, int]) -> tuple[Label, ...]:
    """A new project's labels, from a dataset's, whose first is the background."""
    structures = [(n, v) for k, (n, v) in enumerate(named.items()) if k] or [("foreground", 1)]
    return tuple(Label(n, int(v), COLOURS[k % len(COLOURS)]) for k, (n, v) in enumerate(structures))


def checked(rows: Sequence[Mapping[str, Any]]) -> tuple[Label, ...]:
    """Rows as labels. Raises UsageError: names and values are unique, values fit in a mask, and there is a label."""
    labels = []
    for k, row in enumerate(rows):
        name, value, colour = (
            str(row.get("name", "")).strip(),
            row.get("value"),
            str(row.get("color", COLOURS[k % len(COLOURS)])).lower(),
        )
        if not 0 < len(name) <= 100 or any(ord(c) < 32 for c in name):
            raise UsageError("a label has a name of 1 to 100 letters", found=len(name))
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
            raise UsageError("a label's value is a whole number", found=value, allowed="1 to 65535")
        if not _COLOUR.fullmatch(colour):
            raise UsageError("a label's colour is written #rrggbb", found=colour[:20])
        labels.append(Label(name, value, colour))
    if not labels or len({x.value for x in labels}) < len(labels) or len({x.name for x in labels}) < len(labels):
        raise UsageError("labels have different names and values, and there is at least one")
    return tuple(labels)


def indices_of(mask: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """A mask's label values -> class indices, background first."""
    table = np.zeros(65536, np.uint16)
    for k, label in enumerate(labels, 1):
        table[label.value] = k
    return table[mask].astype(np.int32)


def values_of(answer: LabelMap, labels: Sequence[Label]) -> np.ndarray:
    """Class indices of a model's answer -> label values, by name; structures that are no label are left out."""
    known = {x.name: x.value for x in labels}
    only = [x.value for x in labels]
    data = np.asarray(answer.data)
    if answer.overlapping:
        out = np.zeros(data.shape[1:], np.uint16)
        for name, on in zip(answer.names[-len(data) :], data, strict=True):
            out[np.asarray(on, bool)] = known.get(name, 0)
        return out
    named = list(answer.semantic.names)
    table = np.array([0, *(known.get(n, only[0] if len(named) == 2 and len(only) == 1 else 0) for n in named[1:])], np.uint16)
    return table[np.maximum(np.asarray(answer.semantic.data), 0)]
