"""One small family of errors that teach: what is wrong, where, what was found, what is allowed and what to do.

The command line prints ``str(error)`` on one line and exits with the class's ``exit_code``; no traceback reaches the user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class VesaliusError(Exception):
    """A mistake in the input or the environment that the user can mend.

    Parameters: ``what`` is wrong (one clause), ``where`` (file, case or option), ``found``, ``allowed`` and ``fix`` (what to do).
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        found: object | None = None,
        allowed: object | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.found, self.allowed, self.fix = what, where, found, allowed, fix
        parts = [f"{where}: {what}" if where is not None else what]
        if found is not None:
            parts.append(f"found {found}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        text = "; ".join(parts)
        if fix:
            text = f"{text}. {fix[0].upper()}{fix[1:]}"
        super().__init__(text if text.endswith((".", "?", "!")) else text + ".")

    def __reduce__(self):  # errors cross process borders (data-loading workers) with their fields
        return _rebuild, (type(self), self.what, self.where, self.found, self.allowed, self.fix)


def _rebuild(cls, what, where, found, allowed, fix):
    return cls(what, where=where, found=found, allowed=allowed, fix=fix)


class UsageError(VesaliusError):
    """An unknown method, option or command, or an option of the wrong type."""

    exit_code = 2


class DataError(VesaliusError):
    """A file, label, table or dataset that cannot be used as it is."""

    exit_code = 3


class GeometryError(DataError):
    """Shapes, spacings, origins or directions that contradict each other."""


class RunError(VesaliusError):
    """A run folder, checkpoint or training that cannot go on."""

    exit_code = 4


class ResourceError(VesaliusError):
    """Not enough disk, memory or device for what was asked."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for an unknown name, or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "there is: " + ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
