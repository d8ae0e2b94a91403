"""Cells of tables that people open in a spreadsheet, which would run some text as a formula."""

from __future__ import annotations

from typing import Any

_RUN = ("=", "+", "-", "@", "\t", "\r")


def guarded(value: Any) -> Any:
    """Text that would be run gets a '; numbers and other text stay."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _RUN else value


def unguarded(text: str) -> str:
    """What ``guarded`` was given, of text without white space around it."""
    return text[1:] if text[:1] == "'" and text[1:2] in _RUN else text
