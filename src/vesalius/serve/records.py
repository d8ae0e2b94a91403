"""What a project knows of its cases and their versions, and the errors of ids that it does not know and of second savers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UsageError, VesaliusError


class Missing(UsageError):
    """An id that the project does not know."""


class Conflict(VesaliusError):
    """Another version was saved first: ``head`` is that one, ``yours`` the one that was kept beside it."""

    def __init__(self, head: str | None, yours: str):
        super().__init__("someone saved another version of this case first; both are kept", fix="compare them and save the one you want")
        self.head, self.yours = head, yours


@dataclass(frozen=True)
class Version:
    id: str
    parent: str | None
    user: str
    at: float
    origin: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A case's row: ``id`` is opaque ('c12'), ``head`` its newest agreed version."""

    id: str
    name: str
    status: str
    head: str | None
    updated: float | None
    priority: float | None
    versions: tuple[Version, ...] = ()
    comments: tuple[Mapping[str, Any], ...] = field(default=())
