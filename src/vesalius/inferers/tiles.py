"""Whole-slide tiles: an image of any size, read and answered tile by tile; tiles of bare glass are not looked at.

Every window is read with context around the part that is kept, so nothing of the image is ever held but one batch of windows. A window's
answer is cut to its middle: parts neither overlap nor leave gaps, and what is done with them (labels, votes, polygons) is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..core.case import Image
from ..core.errors import GeometryError, RunError, UsageError
from ..core.geometry import Geometry, LongestSide
from ..core.lazy import Lazy

_OVERVIEW = 1024  # longest side (px) of what the gate sees


@dataclass(frozen=True)
class Tile:
    """``maps``: name -> (K, h, w) float32 of the part of the image whose first pixel is ``low``."""

    low: tuple[int, int]
    maps: Mapping[str, np.ndarray]

    @property
    def at(self) -> tuple[slice, slice]:
        """Where the part lies in the image."""
        h, w = next(iter(self.maps.values())).shape[1:]
        return slice(self.low[0], self.low[0] + h), slice(self.low[1], self.low[1] + w)


@dataclass(frozen=True)
class Tiles:
    """``window``: side in px of what the forward sees, at most; ``margin``: context on each side of it that is not kept; an image that fits
    into a window is one tile, without margins. Window sides are multiples of ``multiple``; ``batch`` windows go through one forward.
    ``gate``: overview (C, h, w) of the image -> bool (h, w), the pixels worth looking at; None: all. ``fill``: outside the image."""

    window: int = 1024
    margin: int = 128
    multiple: int = 1
    batch: int = 1
    gate: Callable[[np.ndarray], np.ndarray] | None = None
    fill: float = 0.0

    def __post_init__(self):
        if self.margin < 0 or self.window <= 2 * self.margin or self.batch < 1 or self.multiple < 1:
            found = f"window {self.window}, margin {self.margin}, multiple {self.multiple}, batch {self.batch}"
            raise UsageError("a window is larger than its two margins", where="tiles", found=found)

    def places(self, image: Image) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(first pixel, last + 1) of the parts that are looked at, row by row."""
        grid = image.geometry
        if grid.ndim != 2:
            raise GeometryError("tiles are cut from 2D images", found=grid.describe())
        core = self._core(grid)
        wanted = self._wanted(image)
        out = []
        for top in range(0, grid.shape[0], core[0]):
            for left in range(0, grid.shape[1], core[1]):
                low, high = (top, left), (min(top + core[0], grid.shape[0]), min(left + core[1], grid.shape[1]))
                if wanted is None or wanted(low, high):
                    out.append((low, high))
        return out

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor | Mapping[str, Tensor]],
        image: Image,
        *,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], object] | None = None,
    ) -> Iterator[Tile]:
        """``forward(windows (B, C, h, w))`` gives maps (B, K, h, w), one ('logits') or by name. ``progress(n, of)``: n more of all
        tiles are done. Raises RunError if maps are not as large as the window."""
        margins, read = self._margins(image.geometry), _reader(image, self.fill)
        sides = tuple(self._side(n) for n in image.geometry.shape)
        places = self.places(image)
        for start in range(0, len(places), self.batch):
            group = places[start : start + self.batch]
            corners = [tuple(a - m for a, m in zip(low, margins, strict=True)) for low, _ in group]
            windows = np.stack([read(c, tuple(a + s for a, s in zip(c, sides, strict=True))) for c in corners])
            found = forward(torch.from_numpy(np.ascontiguousarray(windows, np.float32)).to(device))
            found = {"logits": found} if isinstance(found, Tensor) else found
            for name, m in found.items():
                if m.shape[0] != len(group) or tuple(m.shape[2:]) != sides:
                    raise RunError(f"the map '{name}' is not as large as the window", where="tiles", found=tuple(m.shape), allowed=sides)
            for b, (low, high) in enumerate(group):
                cut = tuple(slice(m, m + h - a) for m, a, h in zip(margins, low, high, strict=True))
                yield Tile(low, {name: m[b][(slice(None), *cut)].float().cpu().numpy() for name, m in found.items()})
            if progress is not None:
                progress(len(group), len(places))

    def _side(self, n: int) -> int:
        """The window's side along an axis of ``n`` pixels."""
        rounded = -(-n // self.multiple) * self.multiple
        most = -(-self.window // self.multiple) * self.multiple
        return min(rounded, most)

    def _margins(self, grid: Geometry) -> tuple[int, ...]:
        return tuple(0 if n <= self._side(n) else self.margin for n in grid.shape)

    def _core(self, grid: Geometry) -> tuple[int, ...]:
        return tuple(self._side(n) - 2 * m for n, m in zip(grid.shape, self._margins(grid), strict=True))

    def _wanted(self, image: Image) -> Callable[[tuple, tuple], bool] | None:
        """Whether any pixel of the gate's overview lies in a part."""
        if self.gate is None:
            return None
        grid = image.geometry
        small = LongestSide(min(_OVERVIEW, max(grid.shape))).of(grid)
        view = image.source.read(small) if isinstance(image.source, Lazy) else image.on(small, antialias=True).data
        mask = np.asarray(self.gate(np.asarray(view, np.float32)), bool)
        if mask.shape != small.shape:
            raise RunError("the gate's mask is not as large as what it saw", where="tiles", found=mask.shape, allowed=small.shape)
        scale = np.asarray(small.shape) / np.asarray(grid.shape)

        def wanted(low: tuple, high: tuple) -> bool:
            a, b = np.floor(low * scale).astype(int), np.ceil(high * scale).astype(int)
            return bool(mask[a[0] : b[0], a[1] : b[1]].any())

        return wanted


def stained(overview: np.ndarray, least: float = 0.04) -> np.ndarray:
    """(h, w) bool: not glass. A pixel (of values 0..1) is stained where a channel is at least ``least`` darker than that channel of the
    brightest glass, or next to such a pixel. Errs towards looking: of a slide without glass everything is stained."""
    glass = np.quantile(overview, 0.999, axis=(1, 2), keepdims=True)
    return ndimage.binary_dilation((glass - overview).max(0) >= least, np.ones((3, 3), bool))


def _reader(image: Image, fill: float) -> Callable[[tuple, tuple], np.ndarray]:
    """Reads (C, h, w) of the pixels from ``low`` to ``high``, ``fill`` outside the image."""
    grid = image.geometry
    data = None if isinstance(image.source, Lazy) else image.data

    def read(low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
        a = [min(max(0, x), n) for x, n in zip(low, grid.shape, strict=True)]
        b = [min(max(0, x), n) for x, n in zip(high, grid.shape, strict=True)]
        part = image.source.read(grid.cropped(a, b)) if data is None else data[:, a[0] : b[0], a[1] : b[1]]
        around = [(x - lo, hi - y) for x, y, lo, hi in zip(a, b, low, high, strict=True)]
        return np.pad(np.asarray(part, np.float32), [(0, 0), *around], constant_values=fill) if np.any(around) else part

    return read
