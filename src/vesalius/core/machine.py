"""What of the machine this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Processor cores this process may run on: those of its affinity mask (``taskset``, a scheduler's cpuset), elsewhere all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
