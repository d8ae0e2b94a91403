"""What of the machine this process may use: its cores, and where it may keep what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Processor cores this process may run on: those of its affinity mask (``taskset``, a scheduler's cpuset), elsewhere all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_root() -> Path:
    """Prepared cases and converted weights: ``VESALIUS_CACHE``, else the user's cache folder."""
    root = os.environ.get("VESALIUS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vesalius"
    return Path(root)
