"""Distances between the surfaces of two masks, in mm, every surface element weighted by its size.

The definition is the one of DeepMind's ``surface-distance`` (Nikolov et al. 2021, doi:10.2196/26151), to which the tests hold it: the
points of a surface are the voxel corners whose 2 x 2 (x 2) neighbouring voxels are neither all inside nor all outside; the element of a
corner is the piece of contour (mm) or marching-cubes surface (mm^2) in the cell around it; a distance runs from a corner of one surface to
the nearest corner of the other. Outside the image nothing is foreground, so a structure that touches the border is closed there.
``surfaces`` computes everything once; the metrics are functions of what it returns. Metrics: Metrics Reloaded (Maier-Hein et al. 2024,
doi:10.1038/s41592-023-02151-z). The table of element sizes is derived here from geometry (``element_sizes``), not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from ..core.errors import GeometryError, UsageError
from .overlap import as_masks

Vertex = tuple[float, ...]


@dataclass(frozen=True)
class SurfaceDistances:
    """Per surface element of the prediction (n,) and of the reference (m,): distance (mm) to the other surface, size (mm^2; mm in 2D).

    An empty mask has no elements; then every metric is undefined.
    """

    from_prediction: np.ndarray
    from_reference: np.ndarray
    size_prediction: np.ndarray
    size_reference: np.ndarray

    @property
    def defined(self) -> bool:
        return self.from_prediction.size > 0 and self.from_reference.size > 0

    @cached_property
    def sides(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """(distances, sizes) of the prediction and of the reference, each sorted by distance (equal distances by size)."""
        pairs = ((self.from_prediction, self.size_prediction), (self.from_reference, self.size_reference))
        orders = [np.lexsort((size, distance)) for distance, size in pairs]
        return tuple((distance[o], size[o]) for (distance, size), o in zip(pairs, orders, strict=True))


def surfaces(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Both surfaces of two boolean masks (*spatial, 2D or 3D) at ``spacing`` (mm by axis). Raises GeometryError.

    Time and memory follow the masks' joint bounding box, not the image.
    """
    prediction, reference = as_masks(prediction, reference)
    spacing = tuple(float(s) for s in spacing)
    if prediction.ndim not in (2, 3) or len(spacing) != prediction.ndim:
        raise GeometryError("surfaces need two or three axes, with a spacing each", found=(prediction.shape, spacing))
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise GeometryError("spacings are positive numbers of mm", found=spacing)
    none = np.zeros(0)
    box = bounding_box(prediction | reference)
    if box is None:
        return SurfaceDistances(none, none, none, none)
    codes = [neighbour_codes(mask[box]) for mask in (prediction, reference)]
    full = (1 << (1 << len(spacing))) - 1
    borders = [(c != 0) & (c != full) for c in codes]
    sizes = [element_sizes(spacing)[c[b]] for c, b in zip(codes, borders, strict=True)]
    if not (sizes[0].size and sizes[1].size):
        return SurfaceDistances(np.full(sizes[0].size, np.inf), np.full(sizes[1].size, np.inf), *sizes)
    return SurfaceDistances(_nearest(borders[0], borders[1], spacing), _nearest(borders[1], borders[0], spacing), *sizes)


# ------------------------------------------------------------------------------------------------------------------------------ metrics
def hd(s: SurfaceDistances) -> float | None:
    """Hausdorff distance: the largest distance from either surface to the other, mm, lower is better.

    Undefined (None) when a mask is empty. Source: Metrics Reloaded, HD.
    """
    return float(max(s.from_prediction.max(), s.from_reference.max())) if s.defined else None


def hd_percentile(s: SurfaceDistances, percent: float) -> float | None:
    """The larger of both surfaces' ``percent`` percentiles of distance, weighted by element size, mm. None when a mask is empty.

    The percentile is the smallest distance within which at least ``percent`` % of a surface lies (Nikolov et al. 2021).
    """
    if not 0 < percent <= 100:
        raise UsageError("a percentile lies between 0 and 100", found=percent)
    if not s.defined:
        return None
    return max(_percentile(distance, size, percent / 100) for distance, size in s.sides)


def hd95(s: SurfaceDistances) -> float | None:
    """HD95: the 95th percentile Hausdorff distance, mm, lower is better; the larger of both directions.

    Undefined (None) when a mask is empty: never 0, 1 or 373.13. Source: Metrics Reloaded, HD95.
    """
    return hd_percentile(s, 95)


def assd(s: SurfaceDistances) -> float | None:
    """Average symmetric surface distance: the mean over the elements of both surfaces together, mm, lower is better.

    (sum of size x distance over both) / (sum of size over both): a larger surface weighs more. Undefined (None) when a mask is empty.
    Source: Metrics Reloaded, ASSD.
    """
    if not s.defined:
        return None
    moment = s.from_prediction @ s.size_prediction + s.from_reference @ s.size_reference
    return float(moment / (s.size_prediction.sum() + s.size_reference.sum()))


def masd(s: SurfaceDistances) -> float | None:
    """Mean average surface distance: the mean of the two directed means, mm, lower is better; both surfaces weigh the same.

    Undefined (None) when a mask is empty. Source: Metrics Reloaded, MASD.
    """
    if not s.defined:
        return None
    directed = [d @ a / a.sum() for d, a in ((s.from_prediction, s.size_prediction), (s.from_reference, s.size_reference))]
    return float(sum(directed) / 2)


def nsd(s: SurfaceDistances, tolerance: float = 2.0) -> float | None:
    """Normalised surface distance (surface Dice): the share of both surfaces within ``tolerance`` mm of the other, higher is better.

    (size of prediction's elements with distance <= tolerance + the reference's) / (size of both), in [0, 1]. Undefined (None) when a mask
    is empty. Source: Metrics Reloaded, NSD; Nikolov et al. 2021. The tolerance should be the disagreement of human raters.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise UsageError("the tolerance of NSD is a distance in mm, 0 or more", found=tolerance)
    if not s.defined:
        return None
    near = s.size_prediction[s.from_prediction <= tolerance].sum() + s.size_reference[s.from_reference <= tolerance].sum()
    return float(near / (s.size_prediction.sum() + s.size_reference.sum()))


def _percentile(distance: np.ndarray, size: np.ndarray, share: float) -> float:
    reached = np.cumsum(size) / size.sum()
    return float(distance[min(int(np.searchsorted(reached, share)), distance.size - 1)])


# ---------------------------------------------------------------------------------------------------------------------- surface elements
def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds the foreground; None for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if hit.size == 0:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """(n+1, ...) uint8: at every voxel corner, which of its 2^d voxels are foreground; the highest bit is the lowest voxel."""
    padded = np.pad(mask.view(np.uint8), 1)
    code = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for corner in product((0, 1), repeat=mask.ndim):
        code <<= 1
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))]
    return code


@lru_cache(maxsize=256)
def element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """Size of the surface element by neighbour code: (16,) contour lengths in mm, or (256,) areas in mm^2."""
    codes = range(1 << (1 << len(spacing)))
    if len(spacing) == 2:
        sizes = np.array([sum(np.hypot(*(e * np.asarray(spacing))) for e in _segments(code)) for code in codes])
    else:
        across = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
        sizes = np.array([np.linalg.norm(normals * across, axis=1).sum() for normals in _cell_normals()])
    sizes.setflags(write=False)
    return sizes


def _segments(code: int) -> list[np.ndarray]:
    """The straight contour pieces in a unit square: corner order (0,0), (0,1), (1,0), (1,1) from the highest bit."""
    inside = {c: bool(code & (8 >> n)) for n, c in enumerate(product((0, 1), repeat=2))}
    return [np.subtract(*pair) for pair in _face_cuts([(0, 0), (0, 1), (1, 1), (1, 0)], inside, separate=True)]


def _face_cuts(ring: list[tuple[int, ...]], inside: dict[tuple[int, ...], bool], separate: bool) -> list[tuple[Vertex, Vertex]]:
    """Cuts across a face, corners in ring order: pairs of edge midpoints. Two diagonal corners are cut off one by one: the inside ones
    (``separate``) or the outside ones."""
    middle = [tuple((a + b) / 2 for a, b in zip(ring[n], ring[(n + 1) % 4], strict=True)) for n in range(4)]
    cut = [n for n in range(4) if inside[ring[n]] != inside[ring[(n + 1) % 4]]]
    if len(cut) == 4:
        return [(middle[n - 1], middle[n]) for n in range(4) if inside[ring[n]] == separate]
    return [(middle[cut[0]], middle[cut[1]])] if cut else []


@lru_cache(maxsize=1)
def _cell_normals() -> tuple[np.ndarray, ...]:
    """For each of the 256 codes the normals (n, 3) of the triangles in the unit cell; a normal's length is its triangle's area.

    Marching cubes with edge midpoints: the cuts of the six faces close to polygons. Where a face has two diagonal corners inside, the
    rarer kind of corner (of the cell's eight) is cut off one by one, so a code and its complement have one surface. A polygon that is not
    flat is split into the triangles of largest area, which folds it along the fewest planes.
    """
    cells = []
    for code in range(256):
        inside = {c: bool(code & (128 >> n)) for n, c in enumerate(product((0, 1), repeat=3))}
        separate = sum(inside.values()) <= 4
        cuts = [cut for ring in _cube_faces() for cut in _face_cuts(ring, inside, separate)]
        normals = [_flattest(polygon) for polygon in _closed(cuts)]
        cells.append(np.concatenate(normals) if normals else np.zeros((0, 3)))
    return tuple(cells)


def _cube_faces() -> list[list[tuple[int, ...]]]:
    ring = ((0, 0), (0, 1), (1, 1), (1, 0))
    return [[tuple(np.insert(np.array(c), axis, side).tolist()) for c in ring] for axis in range(3) for side in (0, 1)]


def _closed(cuts: list[tuple[Vertex, Vertex]]) -> list[list[Vertex]]:
    """Polygons from cuts: each midpoint ends two cuts."""
    left, polygons = list(cuts), []
    while left:
        first, at = left.pop()
        polygon = [first]
        while at != first:
            polygon.append(at)
            n = next(n for n, cut in enumerate(left) if at in cut)
            a, b = left.pop(n)
            at = b if a == at else a
        polygons.append(polygon)
    return polygons


def _flattest(polygon: list[Vertex]) -> np.ndarray:
    """(n - 2, 3) triangle normals of the triangulation with the largest area."""
    points = np.array(polygon)
    options = [_normals(points, triangles) for triangles in _triangulations(tuple(range(len(points))))]
    return max(options, key=lambda normals: round(float(np.linalg.norm(normals, axis=1).sum()), 9))


def _normals(points: np.ndarray, triangles: list[tuple[int, int, int]]) -> np.ndarray:
    a, b, c = (points[[t[n] for t in triangles]] for n in range(3))
    return np.cross(b - a, c - a) / 2


def _triangulations(corners: tuple[int, ...]) -> list[list[tuple[int, int, int]]]:
    """Every way to split a polygon into triangles without new corners."""
    if len(corners) < 3:
        return [[]]
    first, last = corners[0], corners[-1]
    return [
        [*left, *right, (first, corners[m], last)]
        for m in range(1, len(corners) - 1)
        for left in _triangulations(corners[: m + 1])
        for right in _triangulations(corners[m:])
    ]


# ------------------------------------------------------------------------------------------------------------------------------ distance
def _nearest(at: np.ndarray, border: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance (mm, float64) from every True of ``at`` to the nearest True of ``border``, in C order; the arrays share a shape."""
    from ._distance import distance_at  # numba compiles (or loads its cache) on first use

    shape = (1,) * (3 - at.ndim) + at.shape
    mm = (1.0,) * (3 - at.ndim) + spacing
    return distance_at(np.flatnonzero(at), np.ascontiguousarray(border).reshape(shape), np.array(mm))
