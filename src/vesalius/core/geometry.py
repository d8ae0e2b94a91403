"""Where voxels are: a grid's shape and its affine to world coordinates, and moving arrays between grids.

World coordinates are millimetres, RAS+ (x, y, z increase to the patient's right, front and head), as in NIfTI; DICOM and ITK files (LPS+)
are converted at the border (``io``). Two-dimensional images have no patient frame: their world axes are (row, column) in mm.
Index order is the array's: ``data[i, j, k]`` has index ``(i, j, k)``; voxel centres are at integer indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .errors import GeometryError

MODES = ("nearest", "linear", "cubic")


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid: ``shape`` (2 or 3 sides) and ``affine`` ((d+1, d+1) float64, index -> world mm)."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self):
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        d = len(shape)
        if d not in (2, 3):
            raise GeometryError("a grid has two or three sides", found=shape)
        if affine.shape != (d + 1, d + 1):
            raise GeometryError(f"the affine of a {d}D grid is {d + 1} x {d + 1}", found=affine.shape)
        if min(shape) < 1:
            raise GeometryError("a grid's sides are at least 1", found=shape)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:d, :d])) < 1e-12:
            raise GeometryError("the affine is singular or not finite", found=affine.tolist())
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float] | float = 1.0,
        origin: Sequence[float] | None = None,
        direction: np.ndarray | None = None,
    ) -> Geometry:
        """From ``spacing`` (mm), ``origin`` (world mm of voxel 0) and ``direction`` ((d, d), columns are the index axes, RAS+)."""
        d = len(shape)
        spacing = np.broadcast_to(np.asarray(spacing, float), (d,))
        affine = np.eye(d + 1)
        affine[:d, :d] = (np.eye(d) if direction is None else np.asarray(direction, float)) * spacing
        if origin is not None:
            affine[:d, d] = origin
        return cls(tuple(shape), affine)

    # facts
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring voxel centres along each index axis, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def origin(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.affine[:-1, -1])

    @property
    def direction(self) -> np.ndarray:
        """(d, d) unit columns: the world direction of each index axis."""
        return self.affine[:-1, :-1] / np.asarray(self.spacing)

    @property
    def voxel_volume(self) -> float:
        """mm^3 (mm^2 in 2D)."""
        return float(abs(np.linalg.det(self.affine[:-1, :-1])))

    @property
    def orientation(self) -> str:
        """Nearest anatomical code of the index axes, e.g. 'RAS', 'LPS'; '' for 2D."""
        if self.ndim == 2:
            return ""
        perm, sign = _nearest_axes(self.direction)
        return "".join(("LR", "PA", "IS")[w][int(s > 0)] for w, s in zip(perm, sign, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def close(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Same shape, and no corner further apart than ``tolerance`` x the smallest spacing."""
        if self.shape != other.shape:
            return False
        return self.corner_distance(other) <= tolerance * min(self.spacing)

    def corner_distance(self, other: Geometry) -> float:
        """Largest distance (mm) between corresponding corner voxels; compares grids of equal dimension."""
        index = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(self.ndim, -1).T
        return float(np.linalg.norm(self.to_world(index) - other.to_world(index), axis=1).max())

    def describe(self) -> str:
        size = " x ".join(map(str, self.shape))
        mm = " x ".join(f"{s:.4g}" for s in self.spacing)
        at = ", ".join(f"{o:.4g}" for o in self.origin)
        return f"{size} voxels of {mm} mm at ({at})" + (f" {self.orientation}" if self.ndim == 3 else "")

    # world <-> voxel
    def to_world(self, index: np.ndarray) -> np.ndarray:
        """(..., d) voxel indices (may be fractional) -> (..., d) world mm."""
        return np.asarray(index, float) @ self.affine[:-1, :-1].T + self.affine[:-1, -1]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """(..., d) world mm -> (..., d) fractional voxel indices."""
        return (np.asarray(world, float) - self.affine[:-1, -1]) @ np.linalg.inv(self.affine[:-1, :-1]).T

    def world_bounds(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two opposite corners (..., d) of boxes in voxel indices -> low and high (..., d), world mm, of the boxes around all their 2^d
        corners: on an oblique grid they grow."""
        low, high = _bounds(self.affine[:-1, :-1], low, high)
        return low + self.affine[:-1, -1], high + self.affine[:-1, -1]

    def index_bounds(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two opposite corners (..., d) of boxes in world mm -> low and high (..., d), voxel indices, of the boxes around them."""
        origin = self.affine[:-1, -1]
        return _bounds(np.linalg.inv(self.affine[:-1, :-1]), np.asarray(low, float) - origin, np.asarray(high, float) - origin)

    # other grids
    def cropped(self, low: Sequence[int], high: Sequence[int]) -> Geometry:
        """The sub-grid of indices ``low`` (inclusive) to ``high`` (exclusive); negative ``low`` pads."""
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_world(np.asarray(low, float))
        return Geometry(tuple(int(h) - int(a) for a, h in zip(low, high, strict=True)), affine)

    def every(self, steps: Sequence[int]) -> Geometry:
        """Every n-th voxel of each axis from the first one on, as ``data[::n]`` takes them."""
        affine = self.affine.copy()
        affine[:-1, :-1] *= np.asarray(steps, float)
        return Geometry(tuple(-(-n // step) for n, step in zip(self.shape, steps, strict=True)), affine)

    def resized(self, shape: Sequence[int]) -> Geometry:
        """A grid of ``shape`` over the same field of view (outer voxel faces coincide)."""
        shape = tuple(int(n) for n in shape)
        scale = np.asarray(self.shape, float) / np.asarray(shape, float)
        affine = self.affine.copy()
        affine[:-1, :-1] = self.affine[:-1, :-1] * scale
        affine[:-1, -1] = self.to_world(0.5 * scale - 0.5)
        return Geometry(shape, affine)

    def with_spacing(self, spacing: Sequence[float]) -> Geometry:
        """The same field of view at about ``spacing`` mm (sides are whole voxels, so the spacing is adjusted to fit exactly)."""
        shape = [max(1, int(round(n * s / t))) for n, s, t in zip(self.shape, self.spacing, spacing, strict=True)]
        return self.resized(shape)

    def canonical(self) -> Geometry:
        """The same voxels with index axes permuted and flipped to the nearest RAS+ order (3D); 2D grids stay."""
        if self.ndim == 2:
            return self
        perm, sign = _nearest_axes(self.direction)
        axes = [perm.index(w) for w in range(3)]  # index axis that runs along world axis w
        affine = np.eye(4)
        start = np.array([0.0 if sign[a] > 0 else self.shape[a] - 1.0 for a in range(3)])
        affine[:3, 3] = self.to_world(start)
        for new, old in enumerate(axes):
            affine[:3, new] = self.affine[:3, old] * sign[old]
        return Geometry(tuple(self.shape[a] for a in axes), affine)

    def to_json(self) -> dict:
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, record: Mapping) -> Geometry:
        return cls(tuple(record["shape"]), np.asarray(record["affine"], float))


def coarsest(spacing: Sequence[float]) -> int:
    """The axis of the largest spacing, of equals (to rounding) the last: the one that people see slices across."""
    return int(np.flatnonzero(np.isclose(spacing, max(spacing)))[-1])


def _bounds(matrix: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box (..., d), low and high, around what a (d, d) matrix makes of the box between two corners (..., d)."""
    ends = [matrix * np.asarray(end, float)[..., None, :] for end in (one, other)]
    return np.minimum(*ends).sum(-1), np.maximum(*ends).sum(-1)


def _nearest_axes(direction: np.ndarray) -> tuple[list[int], list[int]]:
    """For each index axis, the world axis it runs along (a permutation: greatest cosine first) and its sign."""
    cosine, perm, sign = np.abs(direction).copy(), [-1] * 3, [1] * 3
    for _ in range(3):
        w, a = np.unravel_index(np.argmax(cosine), cosine.shape)
        perm[a], sign[a] = int(w), (1 if direction[w, a] >= 0 else -1)
        cosine[w, :], cosine[:, a] = -1, -1
    return perm, sign


# ---------------------------------------------------------------------------------------------------------------- grids a method asks for
@dataclass(frozen=True)
class Grid:
    """A grid asked for by a method or a plan: at ``spacing`` (mm), of ``size`` (px), of ``longest`` side (px), or native (all None).

    ``inside`` names an ROI of the case: the grid covers that ROI's bounding box (widened by ``margin`` mm), not the field of view. Prepare
    crops to it before it calls ``of``; a case without the ROI is a DataError.
    """

    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    longest: int | None = None
    inside: str = ""
    margin: float = 0.0

    def of(self, geometry: Geometry) -> Geometry:
        """The asked grid over ``geometry``'s field of view."""
        if self.spacing is not None:
            return geometry.with_spacing(self.spacing)
        if self.size is not None:
            return geometry.resized(self.size)
        if self.longest is not None:
            mm = np.asarray(geometry.shape) * np.asarray(geometry.spacing)
            return geometry.resized([max(1, int(round(self.longest * m / mm.max()))) for m in mm])
        return geometry


def Spacing(*mm: float) -> Grid:
    return Grid(spacing=tuple(float(m) for m in mm))


def Size(*px: int) -> Grid:
    return Grid(size=tuple(int(p) for p in px))


def LongestSide(px: int) -> Grid:
    return Grid(longest=int(px))


NATIVE = Grid()


# ------------------------------------------------------------------------------------------------------------------------- resampling
def index_map(src: Geometry, dst: Geometry) -> np.ndarray:
    """(d+1, d+1): index in ``dst`` -> index in ``src`` of the same world point."""
    return np.linalg.solve(src.affine, dst.affine)


def aligned_axes(src: Geometry, dst: Geometry) -> list[tuple[int, float, float]] | None:
    """If each ``dst`` axis runs along one ``src`` axis: per dst axis (src axis, scale, offset) of ``i_src = scale * i_dst + offset``.

    None for oblique pairs. The tolerance is a hundredth of a voxel over the whole grid.
    """
    m, d = index_map(src, dst), src.ndim
    linear = m[:d, :d]
    axes = [int(np.argmax(np.abs(linear[:, a]))) for a in range(d)]
    if sorted(axes) != list(range(d)):
        return None
    off = linear.copy()
    for a, s in enumerate(axes):
        off[s, a] = 0.0
    if (np.abs(off) * np.asarray(dst.shape)).sum(axis=1).max() > 0.01:
        return None
    out = []
    for a, s in enumerate(axes):
        scale, offset = float(linear[s, a]), float(m[s, d])
        exact = round(scale), round(offset)
        if abs(scale - exact[0]) * dst.shape[a] < 1e-3 and abs(offset - exact[1]) < 1e-3 and abs(exact[0]) == 1:
            scale, offset = float(exact[0]), float(exact[1])
        out.append((s, scale, offset))
    return out


def resample(
    data: np.ndarray, src: Geometry, dst: Geometry, mode: str = "linear", *, fill: float = 0.0, antialias: bool = False
) -> np.ndarray:
    """Read ``data`` (C, *src.shape) on the grid ``dst``: (C, *dst.shape).

    ``mode`` is nearest | linear | cubic (Keys, a = -0.5). Points outside the source's outer voxel faces get ``fill``; between the
    last voxel centre and its face the edge value holds. Axis-aligned pairs (any permutation, flip, scale, shift) are separable and
    exact copies when no interpolation is needed, whatever the dtype; else the result is float32 (the input's dtype for nearest).
    ``antialias`` widens linear and cubic kernels by the reduction factor. Oblique pairs are read at most linearly, in slabs.
    """
    if mode not in MODES:
        raise GeometryError("unknown interpolation", found=mode, allowed=", ".join(MODES))
    data = np.asarray(data)
    if data.shape[1:] != src.shape:
        raise GeometryError("the array does not lie on the source grid", found=data.shape[1:], allowed=src.shape)
    axes = aligned_axes(src, dst)
    if axes is None:
        return _resample_oblique(data, src, dst, mode, fill)
    out = np.moveaxis(data, [s + 1 for s, _, _ in axes], range(1, data.ndim))
    inside: list[np.ndarray] = []
    for a, (s, scale, offset) in enumerate(axes):
        n_src, n_dst = src.shape[s], dst.shape[a]
        at = scale * np.arange(n_dst) + offset
        ok = (at >= -0.5 - 1e-6) & (at <= n_src - 0.5 + 1e-6)
        inside.append(ok)
        if abs(scale) == 1.0 and offset == round(offset) or mode == "nearest":
            picks = np.clip(np.floor(at + 0.5).astype(np.int64), 0, n_src - 1)
            if scale == 1.0 and ok.all():
                out = out[(slice(None),) * (a + 1) + (slice(picks[0], picks[0] + n_dst),)]
            else:
                out = np.take(out, picks, axis=a + 1)
        else:
            out = _along(out.astype(np.float32, copy=False), a + 1, _kernel(at, n_src, abs(scale) if antialias else 1.0, mode))
    for a, ok in enumerate(inside):
        if not ok.all():
            if not out.flags.owndata or not out.flags.writeable:
                out = out.copy()
            out[(slice(None),) * (a + 1) + (~ok,)] = fill
    return np.ascontiguousarray(out)


def _along(x: np.ndarray, axis: int, matrix: np.ndarray) -> np.ndarray:
    """Apply an (n_dst, n_src) interpolation matrix along one axis."""
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def _kernel(at: np.ndarray, n: int, width: float, mode: str) -> np.ndarray:
    """(len(at), n) float32 interpolation matrix, rows sum to 1, edges clamped; ``width`` >= 1 widens the kernel (anti-aliasing)."""
    width = max(1.0, width)
    reach = int(np.ceil((2 if mode == "cubic" else 1) * width))
    at = np.clip(at, 0, n - 1)
    base = np.floor(at).astype(np.int64)
    taps = base[:, None] + np.arange(-reach + 1, reach + 1)
    t = np.abs(taps - at[:, None]) / width
    if mode == "linear":
        w = np.clip(1 - t, 0, None)
    else:
        w = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0.0))
    w /= w.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(at), n))
    np.add.at(matrix, (np.arange(len(at))[:, None], np.clip(taps, 0, n - 1)), w)
    return matrix.astype(np.float32)


def _resample_oblique(data: np.ndarray, src: Geometry, dst: Geometry, mode: str, fill: float, slab: int = 1 << 22) -> np.ndarray:
    """Nearest or linear reading at arbitrary positions, in slabs of about ``slab`` voxels (bounded memory)."""
    m, d = index_map(src, dst), src.ndim
    out = np.empty((data.shape[0], *dst.shape), data.dtype if mode == "nearest" else np.float32)
    rest = int(np.prod(dst.shape[1:]))
    step = max(1, slab // rest)
    tail = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in dst.shape[1:]], indexing="ij")
    limit = np.asarray(src.shape)
    for start in range(0, dst.shape[0], step):
        rows = np.arange(start, min(start + step, dst.shape[0]), dtype=np.float64)
        shape = (len(rows), *dst.shape[1:])
        index = [np.broadcast_to(rows.reshape(-1, *[1] * (d - 1)), shape)] + [np.broadcast_to(t, shape) for t in tail]
        at = [sum(m[s, a] * index[a] for a in range(d)) + m[s, d] for s in range(d)]
        ok = np.logical_and.reduce([(p >= -0.5 - 1e-6) & (p <= limit[s] - 0.5 + 1e-6) for s, p in enumerate(at)])
        at = [np.clip(p, 0, limit[s] - 1) for s, p in enumerate(at)]
        if mode == "nearest":
            block = data[(slice(None), *[np.floor(p + 0.5).astype(np.int64) for p in at])]
        else:
            low = [np.minimum(np.floor(p).astype(np.int64), max(0, limit[s] - 2)) for s, p in enumerate(at)]
            frac = [(p - l).astype(np.float32) for p, l in zip(at, low, strict=True)]
            block = np.zeros((data.shape[0], *shape), np.float32)
            for corner in np.ndindex(*(2,) * d):
                w = np.ones(shape, np.float32)
                for s, c in enumerate(corner):
                    w = w * (frac[s] if c else 1 - frac[s])
                block += w * data[(slice(None), *[np.minimum(low[s] + c, limit[s] - 1) for s, c in enumerate(corner)])]
        out[:, start : start + len(rows)] = np.where(ok, block, np.asarray(fill, out.dtype))
    return out


def resample_labels(labels: np.ndarray, src: Geometry, dst: Geometry, *, fill: int = 0) -> np.ndarray:
    """Read an integer label map (*src.shape) on ``dst``: exact copies where no interpolation is needed, else the linearly
    interpolated one-hot maps' argmax, one label at a time (memory of two maps whatever the number of labels)."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise GeometryError("a label map holds integers", found=labels.dtype)
    axes = aligned_axes(src, dst)
    if axes is not None and all(abs(scale) == 1.0 and offset == round(offset) for _, scale, offset in axes):
        return resample(labels[None], src, dst, "nearest", fill=fill)[0]
    best = np.zeros(dst.shape, np.float32)
    out = np.full(dst.shape, fill, labels.dtype)
    for value in np.unique(labels):
        share = resample((labels == value)[None].astype(np.float32), src, dst, "linear", fill=1.0 if value == fill else 0.0)[0]
        win = share > best
        best[win], out[win] = share[win], value
    return out
