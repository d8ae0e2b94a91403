"""Radiology reports by section: the order of the sections, a passage made of some, and what is asked of which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import UsageError

REPORT = "report"  # a case's text that is the whole report; its other texts are sections, in their order


def in_order(reports: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Section names by their mean place in the reports: labels then grow along a report, which one linear layer can use."""
    places: dict[str, list[float]] = {}
    for names in reports:
        for i, name in enumerate(names):
            places.setdefault(name, []).append((i + 0.5) / len(names))
    return tuple(sorted(places, key=lambda name: float(np.mean(places[name]))))


def passage(text: Mapping[str, str], sections: Sequence[str]) -> str:
    """The texts of these sections one after the other (of none: the whole report); '' where the report has none of them."""
    return " ".join(text[s] for s in sections or (REPORT,) if text.get(s, "").strip())


def field_of(asked: str) -> tuple[str, tuple[str, ...]]:
    """'density:findings+impression' -> ('density', ('findings', 'impression')). Raises UsageError."""
    column, _, where = asked.partition(":")
    if not column.strip() or (":" in asked and not where.strip()):
        raise UsageError("a field is a column, or a column and its sections", where="--set fields", found=asked, allowed="density:findings")
    return column.strip(), tuple(s.strip() for s in where.split("+") if s.strip())
