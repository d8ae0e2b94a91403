"""Images larger than memory: an ``Image.source`` that is read in parts, on whatever grid is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .errors import ResourceError
from .geometry import Geometry

MOST = 2**30  # bytes that are read at once when the whole is asked for


@dataclass(frozen=True)
class Lazy:
    """``read(grid)`` gives (C, *grid.shape) on any grid in the image's world; ``geometry`` is the grid it stands for at present.

    Called, it reads the whole of that grid; ResourceError where this is more than ``MOST`` bytes, so that no slide is read by accident.
    """

    read: Callable[[Geometry], np.ndarray]
    geometry: Geometry
    channels: int
    dtype: np.dtype
    name: str = ""

    def __call__(self) -> np.ndarray:
        size = self.channels * float(np.prod(self.geometry.shape)) * np.dtype(self.dtype).itemsize
        if size > MOST:
            raise ResourceError(
                "this image is not read whole",
                where=self.name or None,
                found=f"{self.geometry.describe()}, {size / 2**30:.1f} GiB",
                allowed=f"{MOST / 2**30:g} GiB at once",
                fix="plan a coarser spacing, or use a method that reads tiles",
            )
        return self.read(self.geometry)

    def on(self, grid: Geometry) -> Lazy:
        """The same image standing for another grid; nothing is read."""
        return replace(self, geometry=grid)

    def then(self, change: Callable[[np.ndarray], np.ndarray], dtype: type = np.float32) -> Lazy:
        """What is read goes through ``change`` ((C, *s) -> (C, *s)), part by part."""
        return replace(self, read=partial(_changed, self.read, change), dtype=np.dtype(dtype))


def _changed(read: Callable, change: Callable, grid: Geometry) -> np.ndarray:
    return change(read(grid))
