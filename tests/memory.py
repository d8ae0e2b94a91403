"""Data sets that are held in memory: what a test makes needs no files."""

from collections.abc import Iterable
from pathlib import Path

from vesalius.core.case import Case
from vesalius.core.manifest import CaseRef, Manifest


def in_memory(
    cases: Iterable[Case], dims: int, labels: Iterable[str] = ("background", "foreground"), *, split: str = "", **fields
) -> Manifest:
    """The data set of these cases; its channels are the first one's images, its labels are numbered from 0."""
    held = {c.id: c for c in cases}

    def ref(c: Case) -> CaseRef:
        names = {k: dict.fromkeys(getattr(c, k), "") for k in ("images", "labels")}
        return CaseRef(c.id, c.patient, split, text=dict(c.text), table=dict(c.table), **names)

    return Manifest(
        **{"name": "memory", "root": Path("."), "channels": tuple(next(iter(held.values())).images), **fields},
        dims=dims,
        labels={name: k for k, name in enumerate(labels)},
        cases=tuple(map(ref, held.values())),
        built_in=lambda row: held[row.id],
    )
