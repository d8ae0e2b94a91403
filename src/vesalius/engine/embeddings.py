"""What images became in an encoder, kept while there is room: one least-recently-used cache, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

MOST_BYTES = 2 * 2**30


class Embeddings:
    """key -> embedding, at most ``most`` bytes of them when one is added (the newest always stays)."""

    def __init__(self, most: int = MOST_BYTES):
        self.most, self.held, self.lock = most, OrderedDict(), threading.RLock()

    @property
    def bytes(self) -> int:
        return sum(map(nbytes, self.held.values()))

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self.lock:
            if key in self.held:
                self.held.move_to_end(key)
                return self.held[key]
        value = make()  # outside the lock: others click meanwhile
        with self.lock:
            self.held[key] = value
            while len(self.held) > 1 and self.bytes > self.most:
                self.held.popitem(last=False)
        return value


def nbytes(value: Any) -> int:
    """Of the arrays in ``value``: a tensor, a dataclass, or lists and mappings of such."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if is_dataclass(value):
        value = vars(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(nbytes, items))
