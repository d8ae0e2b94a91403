"""The whole case in one forward: for methods that answer a question about it, or whose network sees all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import GeometryError


@dataclass(frozen=True)
class Whole:
    """``size``: the voxels the forward sees, the case in the middle and zeros around it, as the sampler's unit 'case' lays it out
    (empty: the case as it is). Maps of that size come back cropped to the case; other outputs come back as they are, without the batch."""

    size: tuple[int, ...] = ()

    def __call__(self, forward: Callable[..., Any], image: Tensor | None, *, condition: Any = None) -> Any:
        if image is None:
            return self._unbatched(forward(None, condition), None)
        shape = tuple(image.shape[1:])
        size = self.size or shape
        if any(n > s for n, s in zip(shape, size, strict=True)):
            raise GeometryError(
                "the case is larger than what the network sees", found=shape, allowed=size, fix="plan a grid with Grid(size=...)"
            )
        low = [s // 2 - n // 2 for n, s in zip(shape, size, strict=True)]
        around = [x for lo, n, s in reversed(list(zip(low, shape, size, strict=True))) for x in (lo, s - n - lo)]
        padded = pad(image, around)[None]
        maps = forward(padded) if condition is None else forward(padded, condition)
        return self._unbatched(maps, tuple(slice(lo, lo + n) for lo, n in zip(low, shape, strict=True)), size)

    def _unbatched(self, maps: Any, at: tuple[slice, ...] | None, size: tuple[int, ...] = ()) -> Any:
        if isinstance(maps, Mapping):
            return {k: self._unbatched(v, at, size) for k, v in maps.items()}
        spatial = at is not None and tuple(maps.shape[2:]) == size
        return maps[0][(slice(None), *at)] if spatial else maps[0]
