"""Label tiles to polygons that are whole across the tiles' borders.

Every tile gives the edges of its regions, directed with the region on their right (rows point down, columns right). Where two tiles meet
within a region, both give the same edge in opposite directions, and the two cancel: the rest, put end to end, is the outlines of the
regions of the whole, whatever the tiling. Areas are exact: rings run along pixel edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError
from ..core.geometry import Geometry
from .contour import signed_area


@dataclass(frozen=True)
class Polygon:
    """A 4-connected region of a label: ``rings`` (n, 2) in world mm, not closed: the outline, then its holes."""

    label: int
    rings: tuple[np.ndarray, ...]

    @property
    def area(self) -> float:
        """mm^2, holes taken off."""
        sizes = [abs(signed_area(r)) for r in self.rings]
        return sizes[0] - sum(sizes[1:])


def polygons(tiles: Iterable[tuple[tuple[int, int], np.ndarray]], geometry: Geometry) -> list[Polygon]:
    """The regions of a label map given as tiles ((row, column) of the first pixel, labels (h, w) ints; 0 and less is background) that do
    not overlap, in the order of their labels. ``geometry``: the whole's grid. Raises DataError for a tile that reaches beyond it."""
    found = [_edges(low, np.asarray(labels), geometry.shape) for low, labels in tiles]
    rows = np.concatenate(found) if found else np.zeros((0, 5), np.int64)
    if not len(rows):
        return []
    runs = _runs(_uncancelled(rows))
    out: list[Polygon] = []
    for label in np.unique(runs[:, 0]):
        rings = _rings(runs[runs[:, 0] == label, 1:])
        outer = sorted((r for r in rings if signed_area(r) > 0), key=signed_area)
        boxes = np.array([[*r.min(0), *r.max(0)] for r in outer])
        inside: dict[int, list[np.ndarray]] = {i: [] for i in range(len(outer))}
        for hole in (r for r in rings if signed_area(r) < 0):
            inside[_owner(hole, outer, boxes)].append(hole)
        for i, ring in enumerate(outer):
            out.append(Polygon(int(label), tuple(geometry.to_world(r - 0.5) for r in (ring, *inside[i]))))
    return out


def _edges(low: tuple[int, int], labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n, 5) label, axis (0: along columns, 1: along rows), line, position, direction (+1 or -1) of the unit edges of a tile."""
    if labels.ndim != 2 or any(a < 0 or a + n > s for a, n, s in zip(low, labels.shape, shape, strict=True)):
        raise DataError("a tile does not lie in the image", found=f"{labels.shape} at {tuple(low)}", allowed=shape)
    padded = np.pad(np.maximum(labels, 0).astype(np.int64), 1)
    out = []
    for axis in (0, 1):
        before, after = (padded[:-1, 1:-1], padded[1:, 1:-1]) if axis == 0 else (padded[1:-1, :-1].T, padded[1:-1, 1:].T)
        for side, other, sign in ((after, before, 1), (before, after, -1)):
            line, at = np.nonzero((side != other) & (side > 0))
            # a region below its edge lies to the right of one that runs along the columns; one right of it, of one that runs upwards
            direction = sign if axis == 0 else -sign
            columns = (side[line, at], np.full(len(at), axis), line + low[axis], at + low[1 - axis], np.full(len(at), direction))
            out.append(np.stack(columns, 1))
    return np.concatenate(out)


def _uncancelled(rows: np.ndarray) -> np.ndarray:
    """Without the pairs of opposite edges that tiles share."""
    order = np.lexsort(rows[:, 3::-1].T)
    rows = rows[order]
    same = (rows[1:, :4] == rows[:-1, :4]).all(1)
    drop = np.zeros(len(rows), bool)
    drop[1:] |= same
    drop[:-1] |= same
    return rows[~drop]


def _runs(rows: np.ndarray) -> np.ndarray:
    """(m, 5) label and the (row, column) corners where a straight run of edges begins and ends. Edges of one direction that follow each
    other are one run: where regions touch at a corner the direction changes, so that no run passes it."""
    rows = rows[np.lexsort((rows[:, 3], rows[:, 4], rows[:, 2], rows[:, 1], rows[:, 0]))]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:, [0, 1, 2, 4]] != rows[:-1, [0, 1, 2, 4]]).any(1) | (rows[1:, 3] != rows[:-1, 3] + 1)
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(rows)) - 1
    label, axis, line, start, direction = rows[first].T
    stop = rows[last, 3] + 1
    begin, end = np.where(direction > 0, start, stop), np.where(direction > 0, stop, start)
    corners = [
        np.where(axis == 0, line, begin),
        np.where(axis == 0, begin, line),
        np.where(axis == 0, line, end),
        np.where(axis == 0, end, line),
    ]
    return np.stack([label, *corners], 1)


def _rings(runs: np.ndarray) -> list[np.ndarray]:
    """Runs (m, 4) put end to end: closed rings (n, 2) of corners. Where two begin at one corner the ring turns right, into its region, so
    that regions touching at a corner stay apart."""
    begin: dict[tuple[int, int], list[int]] = {}
    rows = runs.tolist()
    for i, (r, c, _, _) in enumerate(rows):
        begin.setdefault((r, c), []).append(i)
    out, used = [], [False] * len(rows)
    for seed in range(len(rows)):
        if used[seed]:
            continue
        ring, at = [], seed
        while not used[at]:
            used[at] = True
            r, c, to_r, to_c = rows[at]
            ring.append((r, c))
            nexts = [i for i in begin[to_r, to_c] if not used[i]]
            if not nexts:
                break
            at = nexts[0] if len(nexts) == 1 else max(nexts, key=lambda i: _right_turn((to_r - r, to_c - c), rows[i]))
        out.append(np.asarray(ring, float))
    return out


def _right_turn(along: tuple[int, int], run: list[int]) -> int:
    """Positive where ``run`` turns right from the direction ``along`` (rows down, columns right)."""
    dr, dc = run[2] - run[0], run[3] - run[1]
    return along[1] * dr - along[0] * dc


def _owner(hole: np.ndarray, outer: list[np.ndarray], boxes: np.ndarray) -> int:
    """The first of the outlines, smallest first, that is around a hole: tested half a pixel inside the hole's first edge."""
    step = np.sign(hole[1] - hole[0])
    point = hole[0] + 0.5 * step + 0.5 * np.array([-step[1], step[0]])  # to the left of the edge lies the hole
    near = np.flatnonzero((boxes[:, :2] < point).all(1) & (point < boxes[:, 2:]).all(1))
    return next(int(i) for i in near if _contains(outer[i], point))


def _contains(ring: np.ndarray, point: np.ndarray) -> bool:
    """Even-odd rule along the row of ``point``, which lies on no corner's row."""
    (r, c), other = ring.T, np.roll(ring, -1, 0).T
    crosses = (r > point[0]) != (other[0] > point[0])
    return bool((crosses & (c > point[1])).sum() % 2)  # edges run along the axes: those that cross the row are upright


def annotations(
    label: np.ndarray, geometry: Geometry, classes: Sequence[str], ids: np.ndarray | None = None, *, tile: int = 1024
) -> tuple[list[Polygon], dict[int, str]]:
    """Polygons of a label map (h, w) of class indices, and their names for a viewer: 'class', or 'class/class k' where ``ids`` (h, w), the
    objects of the same map, name pixels. Read tile by tile, so both may be memory maps."""
    names: dict[int, str] = {}

    def parts() -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        for top in range(0, label.shape[0], tile):
            for left in range(0, label.shape[1], tile):
                at = slice(top, top + tile), slice(left, left + tile)
                kind = np.asarray(label[at]).astype(np.int64)
                own = np.zeros_like(kind) if ids is None else np.asarray(ids[at]).astype(np.int64)
                key = np.where(kind > 0, own * len(classes) + kind, 0)
                for k in np.unique(key[key > 0]).tolist():
                    name = classes[k % len(classes)]
                    names[k] = f"{name}/{name} {k // len(classes)}" if k >= len(classes) else name
                yield (top, left), key

    return polygons(parts(), geometry), names
