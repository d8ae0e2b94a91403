"""Sliding-window inference: overlapping windows of one size, blended with Gaussian weights into maps of the whole image.

The windows form a regular grid, so the blending weights factorise: along each axis every voxel's weights are divided by their sum
beforehand, a window's weights are the product of its axes' weights, and the weighted logits need only be added up. No weight map of the
whole image exists and nothing is divided at the end. Rows (axis 0) are finished in order and written at once, so maps larger than
memory can go straight to a file (``SlidingWindow.rows``).

Source: Isensee et al., nnU-Net, Nature Methods 2021 (evenly spaced windows, Gaussian importance with sigma = patch / 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, combinations, product
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import GeometryError, RunError, UsageError

Maps = dict[str, Tensor]
_ONLY = ""  # the name of the map when a forward returns one tensor and no mapping


@dataclass(frozen=True)
class SlidingWindow:
    """``patch``: window size in voxels, one number per spatial axis; it may be larger than the training patch, which means fewer
    overlapping voxels to compute. ``overlap``: share of a window that its neighbour repeats, 0 <= overlap < 1. ``batch``: windows per
    forward. ``mirror_axes``: spatial axes (0, 1, 2) over which logits are averaged with those of the mirrored window, for every
    combination; only for maps that do not change their meaning when mirrored. ``gate`` sees a window (C, *patch) and says whether it
    is worth a forward; one that is not gets the forward's answer to a window filled with the image's least value of each channel.
    ``link`` (to, back): windows are averaged as ``to`` of their logits, say as probabilities, and the average comes ``back`` as a logit.
    Logits that are without a bound on one side alone need it: averaged as they are, the surest window outvotes its neighbours.
    """

    patch: tuple[int, ...]
    overlap: float = 0.5
    batch: int = 1
    mirror_axes: tuple[int, ...] = ()
    gate: Callable[[Tensor], bool] | None = None
    link: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    def __post_init__(self):
        if not self.patch or any(int(p) != p or p < 1 for p in self.patch):
            raise UsageError("a window needs a positive size along each axis", where="patch", found=self.patch)
        if not 0 <= self.overlap < 1:
            raise UsageError("windows cannot overlap so", where="overlap", found=self.overlap, allowed="0 <= overlap < 1")
        if self.batch < 1:
            raise UsageError("a forward needs at least one window", where="batch", found=self.batch, allowed=">= 1")
        if len(set(self.mirror_axes)) < len(self.mirror_axes) or not set(self.mirror_axes) <= set(range(len(self.patch))):
            raise UsageError("no such axis to mirror", where="mirror_axes", found=self.mirror_axes, allowed=list(range(len(self.patch))))

    def count(self, shape: tuple[int, ...]) -> int:
        """How many windows cover an image of this spatial shape: the total that ``progress`` counts up to."""
        return prod(len(starts) for starts in self._grid(shape))

    def places(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Every window of an image of this shape, as its place in the grid (a number along each axis), in the order they are visited."""
        return list(product(*(range(len(starts)) for starts in self._grid(shape))))

    def corners(self, shape: tuple[int, ...], places: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """First voxels of the windows at ``places``; negative along an axis that is shorter than the window."""
        grid, low = self._grid(shape), _padding(shape, self.patch)
        return [tuple(starts[k] - a for starts, k, a in zip(grid, place, low)) for place in places]

    def windows(self, image: Tensor, places: Sequence[tuple[int, ...]]) -> Tensor:
        """(n, C, *patch) float: the windows of ``image`` (C, *s) at ``places``."""
        shape = tuple(image.shape[1:])
        low = _padding(shape, self.patch)
        corners = [tuple(c + a for c, a in zip(corner, low)) for corner in self.corners(shape, places)]
        return torch.stack([_window(image, corner, self.patch, low) for corner in corners]).float()

    def some(self, image: Tensor, n: int) -> Tensor:
        """(m, C, *patch): at most ``n`` of the image's windows, evenly spread over the grid, the outermost only if there are so few."""
        places = self.places(tuple(image.shape[1:]))
        m = min(n, len(places))
        return self.windows(image, [places[int((k + 0.5) * len(places) / m)] for k in range(m)])

    def __call__(
        self,
        forward: Callable[..., Tensor | Mapping[str, Tensor]],
        image: Tensor,
        *,
        condition: Any = None,
        progress: Callable[[int], object] | None = None,
        only: Set[tuple[int, ...]] | None = None,
    ) -> Tensor | Maps:
        """Blended maps of the whole image.

        ``forward(windows (B, C, *patch)[, condition])`` returns logits (B, K, *patch), or several such maps by name. ``image`` is
        (C, *s) with s of any size: an axis shorter than the patch is padded with 0 on both sides and cropped back.
        ``progress(n)`` is called when n more windows are done. ``only``: the ``places`` of the windows that are visited (None: all);
        the others add nothing, so a map holds the visited windows' part of the blend, and no window at all gives no map ({}).
        Returns (K, *s) float32 on the image's device, by name if the forward's maps are. Raises GeometryError if image and patch
        differ in dimensions, RunError if maps are not as large as the window, UsageError for ``only`` with a ``link``: parts of such a
        blend do not add up.
        """
        whole: Maps = {}
        for name, start, rows in self.rows(forward, image, condition=condition, progress=progress, only=only):
            if name not in whole:
                new = rows.new_empty if only is None else rows.new_zeros  # slabs before the first visited window are not yielded
                whole[name] = new((rows.shape[0], *image.shape[1:]))
            whole[name][:, start : start + rows.shape[1]] = rows
        return whole[_ONLY] if _ONLY in whole else whole

    def rows(
        self,
        forward: Callable[..., Tensor | Mapping[str, Tensor]],
        image: Tensor,
        *,
        condition: Any = None,
        progress: Callable[[int], object] | None = None,
        only: Set[tuple[int, ...]] | None = None,
    ) -> Iterator[tuple[str, int, Tensor]]:
        """The same maps, slab after slab along axis 0, for volumes larger than memory: yields (name, start, rows (K, n, *s[1:])).

        ``image`` may be a tensor over a memory-mapped file. Only ``patch[0]`` rows of each map are held; a yielded slab is valid until
        the next is asked for. The name is '' when the forward returns one tensor. With ``only``, slabs before the first visited window
        are not yielded.
        """
        shape = self._check(image)
        if only is not None and self.link is not None:
            raise UsageError("windows averaged through a link are visited all", where="sliding window", found="only")
        grid = self._grid(shape)
        low = _padding(shape, self.patch)
        weights = [_axis_weights(starts, n, p, image.device) for starts, n, p in zip(grid, shape, self.patch)]
        inside = tuple(slice(a, a + n) for a, n in zip(low[1:], shape[1:]))
        answer = _Answers(self, forward, image, condition)
        sums: Maps = {}
        for i, start in enumerate(grid[0]):
            places = [p for p in product(*(range(len(starts)) for starts in grid[1:])) if only is None or (i, *p) in only]
            for k in range(0, len(places), self.batch):
                group = places[k : k + self.batch]
                corners = [(start, *(grid[a + 1][j] for a, j in enumerate(place))) for place in group]
                windows = torch.stack([_window(image, corner, self.patch, low) for corner in corners])
                for name, maps in answer(windows).items():
                    if name not in sums:
                        sums[name] = maps.new_zeros((maps.shape[1], self.patch[0], *_padded(shape, self.patch)[1:]), dtype=torch.float32)
                    for logits, place, corner in zip(maps, group, corners):
                        weight = _outer([w[j] for w, j in zip(weights, (i, *place))])
                        at = tuple(slice(c, c + p) for c, p in zip(corner[1:], self.patch[1:]))
                        sums[name][(slice(None), slice(None), *at)].addcmul_(logits.float(), weight)
                if progress is not None:
                    progress(len(group))
            done = (grid[0][i + 1] if i + 1 < len(grid[0]) else start + self.patch[0]) - start
            first, last = max(0, low[0] - start), min(done, low[0] + shape[0] - start)
            for name, total in sums.items():
                rows = total[(slice(None), slice(first, last), *inside)]
                yield name, start + first - low[0], rows if self.link is None else self.link[1](rows)
                sums[name] = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)

    def _check(self, image: Tensor) -> tuple[int, ...]:
        """The image's shape, if windows can be cut from it."""
        shape = tuple(image.shape[1:])
        if len(shape) != len(self.patch):
            raise GeometryError("the image has other dimensions than the window", where="sliding window", found=shape, allowed=self.patch)
        if not image.numel():
            raise GeometryError("the image is empty", where="sliding window", found=tuple(image.shape))
        return shape

    def _grid(self, shape: tuple[int, ...]) -> list[list[int]]:
        return [_starts(n, p, self.overlap) for n, p in zip(shape, self.patch)]


class _Answers:
    """The forward with what goes around it: the condition, mirroring, the gate, and the check of what came back."""

    def __init__(self, inferer: SlidingWindow, forward: Callable, image: Tensor, condition: Any):
        self.inferer, self.forward, self.image, self.condition = inferer, forward, image, condition
        axes = [a + 2 for a in inferer.mirror_axes]
        self.flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
        self.empty: Maps | None = None

    def __call__(self, windows: Tensor) -> Maps:
        """(B, C, *patch) -> maps by name, each (B, K, *patch)."""
        if self.inferer.gate is None:
            return self._mirrored(windows)
        wanted = [bool(self.inferer.gate(w)) for w in windows]
        seen = self._mirrored(windows[torch.tensor(wanted, device=windows.device)]) if any(wanted) else {}
        if all(wanted):
            return seen
        if self.empty is None:
            least = self.image.flatten(1).amin(1).to(windows.dtype)
            self.empty = self._mirrored(least.view(1, -1, *(1,) * (windows.ndim - 2)).expand_as(windows[:1]).contiguous())
        where = [sum(wanted[:b]) if keep else None for b, keep in enumerate(wanted)]
        return {name: torch.stack([empty[0] if b is None else seen[name][b] for b in where]) for name, empty in self.empty.items()}

    def _mirrored(self, windows: Tensor) -> Maps:
        total = self._checked(windows)
        for axes in self.flips[1:]:
            for name, maps in self._checked(windows.flip(axes)).items():
                total[name] = total[name] + maps.flip(axes)
        return total if len(self.flips) == 1 else {name: maps / len(self.flips) for name, maps in total.items()}

    def _checked(self, windows: Tensor) -> Maps:
        found = self.forward(windows) if self.condition is None else self.forward(windows, self.condition)
        maps = {_ONLY: found} if isinstance(found, Tensor) else found
        if not isinstance(maps, Mapping) or not all(isinstance(m, Tensor) for m in maps.values()):
            raise RunError("a forward gives a tensor or tensors by name", where="sliding window", found=type(found).__name__)
        for name, m in maps.items():
            if m.ndim != windows.ndim or m.shape[0] != windows.shape[0] or m.shape[2:] != windows.shape[2:]:
                raise RunError(
                    f"the forward's map '{name or 'logits'}' is not as large as the window",
                    where="sliding window",
                    found=tuple(m.shape),
                    allowed=(windows.shape[0], "K", *windows.shape[2:]),
                )
        maps = {name: m.to(self.image.device, torch.float32) for name, m in maps.items()}
        return maps if self.inferer.link is None else {name: self.inferer.link[0](m) for name, m in maps.items()}


def _starts(n: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: as few as the overlap allows, evenly spaced, the last flush with the end."""
    if n <= patch:
        return [0]
    steps = ceil((n - patch) / max(1, int(patch * (1 - overlap))))
    return [round(i * (n - patch) / steps) for i in range(steps + 1)]


def importance(patch: int) -> Tensor:
    """(patch,) Gaussian weights along one axis, sigma = patch / 8, centred on the window; the smallest is about exp(-8), never 0."""
    x = torch.arange(patch, dtype=torch.float64) - (patch - 1) / 2
    return torch.exp(-0.5 * (x / (patch / 8)) ** 2)


def _axis_weights(starts: list[int], n: int, patch: int, device: torch.device) -> list[Tensor]:
    """One (patch,) float32 vector per window along an axis; at every voxel those that cover it add up to 1."""
    g = importance(patch)
    total = torch.zeros(max(n, patch), dtype=torch.float64)
    for s in starts:
        total[s : s + patch] += g
    return [(g / total[s : s + patch]).to(device, torch.float32) for s in starts]


def _outer(vectors: list[Tensor]) -> Tensor:
    weight = vectors[0]
    for v in vectors[1:]:
        weight = weight[..., None] * v
    return weight


def _padding(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels added before an axis that is shorter than the window."""
    return tuple(max(0, p - n) // 2 for n, p in zip(shape, patch))


def _padded(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(n, p) for n, p in zip(shape, patch))


def _window(image: Tensor, corner: tuple[int, ...], patch: tuple[int, ...], low: tuple[int, ...]) -> Tensor:
    """(C, *patch) float copy-free where it can be; ``corner`` counts voxels of the image padded by ``low``."""
    span = [(c - a, c - a + p) for c, p, a in zip(corner, patch, low)]
    part = image[(slice(None), *(slice(max(0, a), min(n, b)) for (a, b), n in zip(span, image.shape[1:])))]
    if part.shape[1:] == patch:
        return part
    sides = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(span, image.shape[1:])]
    return pad(part, list(chain.from_iterable(reversed(sides))))
