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
from ..ops.components import bounding_box
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
    prediction, reference, spacing = _on_grid(prediction, reference, spacing)
    none = np.zeros(0)
    box = bounding_box(prediction | reference)
    if box is None:
        return SurfaceDistances(none, none, none, none)
    from ._distance import surface_corners  # numba compiles (or loads its cache) on first use

    table = element_sizes(spacing)
    (p_corners, p_sizes, p_border), (r_corners, r_sizes, r_border) = (
        surface_corners(neighbour_codes(mask[box]).ravel(), table) for mask in (prediction, reference)
    )
    if not (p_sizes.size and r_sizes.size):
        return SurfaceDistances(np.full(p_sizes.size, np.inf), np.full(r_sizes.size, np.inf), p_sizes, r_sizes)
    corners = tuple(b.stop - b.start + 1 for b in box)
    from_prediction = _nearest(p_corners, r_border.reshape(corners), spacing)
    return SurfaceDistances(from_prediction, _nearest(r_corners, p_border.reshape(corners), spacing), p_sizes, r_sizes)


def _on_grid(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    prediction, reference = as_masks(prediction, reference)
    spacing = tuple(float(s) for s in spacing)
    if prediction.ndim not in (2, 3) or len(spacing) != prediction.ndim:
        raise GeometryError("surfaces need two or three axes, with a spacing each", found=(prediction.shape, spacing))
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise GeometryError("spacings are positive numbers of mm", found=spacing)
    return prediction, reference, spacing


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
    _distance_of_nsd(tolerance)
    if not s.defined:
        return None
    near = s.size_prediction[s.from_prediction <= tolerance].sum() + s.size_reference[s.from_reference <= tolerance].sum()
    return float(near / (s.size_prediction.sum() + s.size_reference.sum()))


def _distance_of_nsd(tolerance: float) -> None:
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise UsageError("the tolerance of NSD is a distance in mm, 0 or more", found=tolerance)


def _percentile(distance: np.ndarray, size: np.ndarray, share: float) -> float:
    reached = np.cumsum(size) / size.sum()
    return float(distance[min(int(np.searchsorted(reached, share)), distance.size - 1)])


# ------------------------------------------------------------------------------------------------ the voxel-border definitions of others
@dataclass(frozen=True)
class BorderDistances:
    """Distances (mm) from the border voxels of the prediction (n,) and of the reference (m,) to the other's nearest border voxel.

    A border voxel is foreground with a face neighbour that is not; distances run between voxel centres and all voxels weigh the same,
    whatever the spacing. ``from_...`` are empty where a mask has no border; then every metric is undefined.
    """

    from_prediction: np.ndarray
    from_reference: np.ndarray

    @property
    def defined(self) -> bool:
        return self.from_prediction.size > 0 and self.from_reference.size > 0


def border_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], *, closed: bool = True) -> BorderDistances:
    """The voxel borders of two bool masks (*spatial, the whole image) at ``spacing`` (mm).

    ``closed``: outside the image is background (scipy's erosion: MONAI, panoptica, medpy), else foreground (SimpleITK's contour, which
    leaves a structure open where it leaves the image). Raises GeometryError.
    """
    prediction, reference, spacing = _on_grid(prediction, reference, spacing)
    none, box = np.zeros(0), bounding_box(prediction | reference)
    if box is None:
        return BorderDistances(none, none)
    ours, theirs = _border(prediction, box, closed), _border(reference, box, closed)
    if not (ours.any() and theirs.any()):
        return BorderDistances(np.full(int(ours.sum()), np.inf), np.full(int(theirs.sum()), np.inf))
    return BorderDistances(
        _nearest(np.flatnonzero(ours), theirs, spacing),
        _nearest(np.flatnonzero(theirs), ours, spacing),
    )


def hd_voxel(b: BorderDistances) -> float | None:
    """Hausdorff distance between voxel borders: the largest distance of either, mm, lower is better.

    Undefined (None) when a mask is empty (MONAI: NaN or inf). The same in MONAI, panoptica and medpy. Source: MONAI 1.6
    ``compute_hausdorff_distance``.
    """
    return float(max(b.from_prediction.max(), b.from_reference.max())) if b.defined else None


def hd95_monai(b: BorderDistances) -> float | None:
    """HD95 as MONAI has it: the larger of the two directed 95th percentiles, interpolated between voxels, mm, lower is better.

    Undefined (None) when a mask is empty (MONAI: NaN or inf). Source: MONAI 1.6 ``compute_hausdorff_distance(percentile=95)``, which
    computes in float32.
    """
    return float(max(np.percentile(d, 95) for d in (b.from_prediction, b.from_reference))) if b.defined else None


def hd95_panoptica(b: BorderDistances) -> float | None:
    """HD95 as panoptica and medpy have it: the interpolated 95th percentile of both directions' distances together, mm, lower is better.

    Undefined (None) when a mask is empty. Source: panoptica 2 ``hausdorff_distance.py``, from medpy ``hd95``.
    """
    return float(np.percentile(np.concatenate([b.from_prediction, b.from_reference]), 95)) if b.defined else None


def hd95_sitk(b: BorderDistances) -> float | None:
    """HD95 of the SimpleITK recipe: the mean of the two directed, interpolated 95th percentiles, mm, lower is better; open borders.

    Surfaces are ``LabelContour`` (face connected), distances ``SignedMaurerDistanceMap`` of the contours; a structure has no surface
    where it leaves the image. Recipes differ in how they join the directions. Undefined (None) when a mask is empty or has no contour.
    Source: SimpleITK notebook 34 (segmentation evaluation), with the percentile in place of its maximum.
    """
    return float(np.mean([np.percentile(d, 95) for d in (b.from_prediction, b.from_reference)])) if b.defined else None


def assd_monai(b: BorderDistances) -> float | None:
    """ASSD as MONAI has it: the mean over the border voxels of both masks together, mm, lower is better.

    Undefined (None) when a mask is empty. Source: MONAI 1.6 ``compute_average_surface_distance(symmetric=True)``; with open borders
    it is the mean of SimpleITK's notebook 34 ('assd_sitk').
    """
    return float(np.concatenate([b.from_prediction, b.from_reference]).mean()) if b.defined else None


def assd_panoptica(b: BorderDistances) -> float | None:
    """ASSD as panoptica and medpy have it: the mean of the two directed means (elsewhere called MASD), mm, lower is better.

    Undefined (None) when a mask is empty. Source: panoptica 2 ``assd.py``, from medpy ``assd``.
    """
    return float((b.from_prediction.mean() + b.from_reference.mean()) / 2) if b.defined else None


def nsd_monai(b: BorderDistances, tolerance: float = 2.0) -> float | None:
    """NSD as MONAI has it by default: the share of the border voxels of both within ``tolerance`` mm, in [0, 1], higher is better.

    Undefined (None) when a mask is empty (MONAI: 0 when only one is). Source: MONAI 1.6 ``compute_surface_dice(use_subvoxels=False)``.
    """
    _distance_of_nsd(tolerance)
    if not b.defined:
        return None
    return float((np.concatenate([b.from_prediction, b.from_reference]) <= tolerance).mean())


def nsd_panoptica(b: BorderDistances, tolerance: float = 2.0) -> float | None:
    """NSD as panoptica has it: the mean of both masks' shares of border voxels within ``tolerance`` mm, in [0, 1], higher is better.

    Undefined (None) when a mask is empty. Source: panoptica 2 ``normalized_surface_dice.py`` (from GaNDLF; there the default tolerance
    is the smallest voxel side).
    """
    _distance_of_nsd(tolerance)
    if not b.defined:
        return None
    return float(((b.from_prediction <= tolerance).mean() + (b.from_reference <= tolerance).mean()) / 2)


def hd_sitk(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float | None:
    """Hausdorff distance of the voxel sets, not of their surfaces: max over all voxels of either of the distance to the other, mm.

    Larger than the surfaces' where a mask fills what the other leaves hollow. Undefined (None) when a mask is empty. Source: SimpleITK
    ``HausdorffDistanceImageFilter``.
    """
    prediction, reference, spacing = _on_grid(prediction, reference, spacing)
    if not (prediction.any() and reference.any()):
        return None
    box = bounding_box(prediction | reference)
    p, r = prediction[box], reference[box]
    gaps = [_nearest(np.flatnonzero(a & ~b), b, spacing) for a, b in ((p, r), (r, p))]
    return float(max((g.max() for g in gaps if g.size), default=0.0))


def _border(mask: np.ndarray, box: tuple[slice, ...], closed: bool) -> np.ndarray:
    """Inside the box, foreground with a face neighbour that is not."""
    padded = np.pad(mask[box], 1)
    if not closed:
        for axis, (b, n) in enumerate(zip(box, mask.shape, strict=True)):
            for edge, touched in ((0, b.start == 0), (-1, b.stop == n)):
                if touched:
                    padded[(slice(None),) * axis + (edge,)] = True
    inside, inner = np.ones([n - 2 for n in padded.shape], bool), (slice(1, -1),)
    for axis in range(mask.ndim):
        for moved in (slice(None, -2), slice(2, None)):
            inside &= padded[inner * axis + (moved,) + inner * (mask.ndim - axis - 1)]
    return padded[inner * mask.ndim] & ~inside


# ---------------------------------------------------------------------------------------------------------------------- surface elements
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
    """Distance (mm, float64) from the flat indices ``at`` (n,) to the nearest True of ``border`` (*spatial)."""
    from ._distance import distance_at

    shape = (1,) * (3 - border.ndim) + border.shape
    mm = (1.0,) * (3 - border.ndim) + spacing
    return distance_at(at, np.ascontiguousarray(border).reshape(shape), np.array(mm))
