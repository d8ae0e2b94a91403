"""Reading a posed, optionally bent patch from a whole case in one pass, and moving points into it.

For every patch voxel ``p``: ``q = p + bend(p)``, ``x = pose @ q``, and the case is read at ``x``. ``bend`` is a coarse grid of uniform
cubic B-spline coefficients (Rueckert et al. 1999, doi:10.1109/42.796284): ``n >= 4`` control points an axis, control point ``i`` standing
at patch coordinate ``(i - 1) * h`` with ``h = (size - 1) / (n - 3)``. No field of the patch's size is ever made: the spline is reduced
plane by plane and row by row to one cubic polynomial a cell. Outside the case all is ``fill``, and linear reading blends into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

from ..core.errors import GeometryError

MIN_CONTROL = 4  # a cubic spline cell needs four control points
_READ = {"f": (np.float32,), "i": (np.int8, np.uint8, np.int16, np.int32, np.int64), "u": (np.uint8, np.uint16)}
_POWERS = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6  # cubic B-spline: rows are 1, t, t^2, t^3


def read_patch(
    image: np.ndarray,
    size: Sequence[int],
    pose: np.ndarray,
    bend: np.ndarray | None = None,
    *,
    order: int = 1,
    fill: float | Sequence[float] = 0.0,
) -> np.ndarray:
    """The patch (C, *size) of ``image`` (C, *source) at ``pose`` (d+1, d+1): patch voxels -> source voxels; d is 2 or 3.

    ``bend`` (d, *coarse) displaces patch voxels before the pose, in patch voxels (see the module). ``order`` 1 reads linearly and gives
    float32; 0 reads the nearest voxel and keeps the dtype. ``fill``: the value outside the source, one or one per channel. A pose that is
    a signed permutation and a whole-voxel shift, without bend, is an exact copy. Raises GeometryError.
    """
    image, size = np.asarray(image), tuple(int(n) for n in size)
    pose = _checked_pose(pose, size)
    d = len(size)
    if image.ndim != d + 1:
        raise GeometryError("the array and the patch have different dimensions", found=image.shape, allowed=f"(C, {d} sides)")
    if order not in (0, 1):
        raise GeometryError("unknown interpolation order", found=order, allowed="0 (nearest) or 1 (linear)")
    fill = np.broadcast_to(np.asarray(fill), (image.shape[0],))
    out = np.empty((image.shape[0], *size), _output_dtype(image.dtype, fill, order))
    exact = signed_permutation(pose) if bend is None else None
    if exact is not None:
        out[:] = fill.reshape(-1, *[1] * d)
        _copy(image, size, *exact, out)
        return out
    matrix = pose[:d].copy()
    flat, sides, first = _block(image, size, matrix, bend, out.dtype)
    matrix[:, d] -= first
    kernel = {(3, 1): _linear3, (3, 0): _nearest3, (2, 1): _linear2, (2, 0): _nearest2}[d, order]
    kernel(flat, sides, out, matrix, *_spline_of(bend, size, matrix), fill.astype(out.dtype))
    return out


def signed_permutation(pose: np.ndarray) -> tuple[list[int], list[int], list[int]] | None:
    """(source axis, sign, shift) of each patch axis if ``pose`` only permutes, flips and shifts by whole voxels, else None."""
    d = len(pose) - 1
    whole = np.rint(pose[:d])
    ones = np.abs(whole[:, :d])
    if np.abs(pose[:d] - whole).max() > 1e-9 or (ones.sum(0) != 1).any() or (ones.sum(1) != 1).any():
        return None
    axes = [int(np.argmax(np.abs(whole[:, a]))) for a in range(d)]
    return axes, [int(whole[s, a]) for a, s in enumerate(axes)], [int(whole[s, d]) for s in axes]


def bend_at(points: np.ndarray, size: Sequence[int], bend: np.ndarray) -> np.ndarray:
    """Displacement (n, d), patch voxels, of ``bend`` (d, *coarse) at ``points`` (n, d) patch voxels; constant beyond the patch's border."""
    points, size = np.asarray(points, float), tuple(int(n) for n in size)
    _check_bend(bend, size)
    out = np.zeros_like(points)
    d = len(size)
    cells, weights = zip(*(_cells(np.clip(points[:, a], 0, size[a] - 1), size[a], bend.shape[a + 1]) for a in range(d)), strict=True)
    for taps in np.ndindex(*(4,) * d):
        w = np.prod([weights[a][:, t] for a, t in enumerate(taps)], axis=0)
        out += w[:, None] * bend[(slice(None), *(cells[a] + t for a, t in enumerate(taps)))].T
    return out


def move_points(points: np.ndarray, pose: np.ndarray, bend: np.ndarray | None = None, *, size: Sequence[int] | None = None) -> np.ndarray:
    """Patch voxels (n, d) of ``points`` (n, d) case voxels: where ``read_patch`` shows them. ``size`` (patch) is needed with a bend.

    The bend is inverted by fixed-point iteration to 1e-3 voxel; GeometryError where it folds so that there is no such point.
    """
    points, d = np.asarray(points, float), len(pose) - 1
    inverse = np.linalg.inv(np.asarray(pose, float))
    target = points.reshape(-1, d) @ inverse[:d, :d].T + inverse[:d, d]
    if bend is None or not len(target):
        return target
    if size is None:
        raise GeometryError("the patch size is needed to undo a bend", where="move_points")
    moved = target - bend_at(target, size, bend)
    for _ in range(100):
        step = target - bend_at(moved, size, bend) - moved
        moved += step
        if np.abs(step).max() < 1e-4:
            return moved
    raise GeometryError("the bend folds the patch: points cannot be moved", found=f"{np.abs(bend).max():.3g} voxels", fix="bend less")


# ------------------------------------------------------------------------------------------------------------------------ preparation
def _checked_pose(pose: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    pose, d = np.asarray(pose, np.float64), len(size)
    if d not in (2, 3) or min(size) < 1:
        raise GeometryError("a patch has two or three sides of at least 1 voxel", found=size)
    if pose.shape != (d + 1, d + 1) or not np.isfinite(pose).all() or abs(np.linalg.det(pose)) < 1e-12:
        raise GeometryError(f"a pose is a regular {d + 1} x {d + 1} matrix", found=pose.tolist())
    return pose


def _check_bend(bend: np.ndarray, size: tuple[int, ...]) -> None:
    if bend.ndim != len(size) + 1 or bend.shape[0] != len(size) or min(bend.shape[1:]) < MIN_CONTROL:
        raise GeometryError("a bend does not fit its patch", found=bend.shape, allowed=f"({len(size)}, at least {MIN_CONTROL} a side)")


def _copy(image: np.ndarray, size: tuple[int, ...], axes: list[int], sign: list[int], shift: list[int], out: np.ndarray) -> None:
    """Writes slices, flips and transposes of ``image`` over ``out``, which holds the fill."""
    view = np.flip(image.transpose(0, *(s + 1 for s in axes)), [a + 1 for a in range(len(size)) if sign[a] < 0])
    take, put = [slice(None)], [slice(None)]
    for a, n in enumerate(size):
        side = view.shape[a + 1]
        first = shift[a] if sign[a] > 0 else side - 1 - shift[a]  # where patch voxel 0 lies, counted along the flipped axis
        start, stop = max(0, -first), min(n, side - first)
        if stop <= start:
            return
        put.append(slice(start, stop))
        take.append(slice(start + first, stop + first))
    out[tuple(put)] = view[tuple(take)]


def _output_dtype(dtype: np.dtype, fill: np.ndarray, order: int) -> np.dtype:
    """float32 for linear reading; else the source's dtype, widened when it is an integer that cannot hold the fill."""
    if order:
        return np.dtype(np.float32)
    if dtype.kind == "f":
        return np.promote_types(dtype, np.float32)
    dtype = np.promote_types(dtype, np.uint8) if dtype.kind == "b" else dtype
    low, high = int(fill.min(initial=0)), int(fill.max(initial=0))
    if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
        return dtype.newbyteorder("=")
    return np.result_type(dtype, np.min_scalar_type(low), np.min_scalar_type(high))


def _block(image: np.ndarray, size: tuple[int, ...], matrix: np.ndarray, bend: np.ndarray | None, dtype: np.dtype):
    """What the kernels read: (flat contiguous array, its sides, its first voxel's index).

    A contiguous array of a type the kernels read is used in place; of any other only the bounding box of the patch is copied.
    """
    sides = np.array(image.shape[1:], np.int64)
    low, high = np.zeros_like(sides), sides
    if not (image.flags.c_contiguous and image.flags.aligned and image.dtype.isnative and image.dtype in _READ[dtype.kind]):
        corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in size], indexing="ij")).reshape(len(size), -1)
        at = matrix[:, :-1] @ corners + matrix[:, -1:]
        margin = 0.0 if bend is None else np.abs(matrix[:, :-1]) @ np.abs(bend).reshape(len(size), -1).max(1)
        low = np.clip(np.floor(at.min(1) - margin).astype(np.int64), 0, sides - 1)
        high = np.clip(np.floor(at.max(1) + margin).astype(np.int64) + 2, low + 1, sides)
        image = np.ascontiguousarray(image[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))], dtype=dtype)
    flat = image.reshape(-1)
    flat.flags.writeable = False  # of this view: one compiled kernel serves read-only maps and plain arrays
    return flat, high - low, low


def _cells(at: np.ndarray, side: int, control: int) -> tuple[np.ndarray, np.ndarray]:
    """First control point (n,) and the four cubic B-spline weights (n, 4) at patch coordinates ``at`` (n,)."""
    t = np.asarray(at, float) * ((control - 3) / max(side - 1, 1))
    cell = np.clip(np.floor(t).astype(np.int64), 0, control - 4)
    return cell, np.vander(t - cell, 4, increasing=True) @ _POWERS


def _spline_of(bend: np.ndarray | None, size: tuple[int, ...], matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """The bend in source voxels, ready for the kernels.

    (power coefficients (d, *control of the slower axes, 4 a cell), bounds (d, 2); first control point and weights of each slower axis;
    first voxel and t of the cells along the last axis). Going from B-spline to power coefficients commutes with reducing the slower axes.
    """
    d = len(size)
    if bend is None:
        tables: list[np.ndarray] = [np.zeros(0, np.int64), np.zeros((0, 4), np.float32)] * (d - 1)
        return np.zeros((d, *(0,) * d), np.float32), np.zeros((d, 2)), *tables, np.zeros(1, np.int64), np.zeros(0, np.float32)
    bend = np.asarray(bend, float)
    _check_bend(bend, size)
    moved = np.tensordot(matrix[:, :d], bend, 1)
    bounds = np.stack([moved.reshape(d, -1).min(1), moved.reshape(d, -1).max(1)], axis=1)  # a spline stays between its coefficients
    powers = np.lib.stride_tricks.sliding_window_view(moved, 4, axis=-1) @ _POWERS.T
    coefficients = np.ascontiguousarray(powers.reshape(*moved.shape[:-1], -1), np.float32)
    tables = []
    for side, control in zip(size[:-1], bend.shape[1:-1], strict=True):
        cell, weights = _cells(np.arange(side), side, control)
        tables += [cell, weights.astype(np.float32)]
    control, side = bend.shape[-1], size[-1]
    cell, _ = _cells(np.arange(side), side, control)
    t = np.arange(side) * ((control - 3) / max(side - 1, 1)) - cell
    return coefficients, bounds, *tables, np.searchsorted(cell, np.arange(control - 2)), t.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------------- kernels
# A row of the patch (its last axis) is placed first: float32 source coordinates relative to a whole-voxel base, so that they stay exact to
# 1e-4 voxel in volumes of any size. Rows that lie inside the source altogether are read without a test per voxel.
def compiled(function: Callable) -> Callable:
    """``function`` compiled at its first call, single-threaded and without the GIL, and kept on disk where there is a place to write.

    Sums may be reordered (so that loops become vector code), but NaN and infinity keep their meaning.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's is writable
        return njit(**options)(function)


_HALF = np.float32(0.5)


@compiled
def _reduce(coefficients, cell, weights, out):
    """Four slices of (d, n, m) along axis 1 to their weighted sum (d, m)."""
    for a in range(coefficients.shape[0]):
        for k in range(coefficients.shape[2]):
            value = np.float32(0)
            for i in range(4):
                value += weights[i] * coefficients[a, cell + i, k]
            out[a, k] = value


@compiled
def _place(start, step, line, edges, t, at, base):
    """Source coordinates ``at`` (d, n) of a row from ``start`` (d,) by ``step`` (d,), relative to the whole voxel ``base`` (d,)."""
    for a in range(start.size):
        base[a] = int(np.floor(start[a]))
        offset, slope, row = np.float32(start[a] - base[a]), np.float32(step[a]), at[a]
        for k in range(row.size):
            row[k] = offset + slope * np.float32(k)
        for s in range(line.shape[1] // 4):
            p0, p1, p2, p3 = line[a, 4 * s], line[a, 4 * s + 1], line[a, 4 * s + 2], line[a, 4 * s + 3]
            cell, u = row[edges[s] : edges[s + 1]], t[edges[s] : edges[s + 1]]
            for k in range(cell.size):
                cell[k] += p0 + u[k] * (p1 + u[k] * (p2 + u[k] * p3))


@compiled
def _state(start, step, n, bounds, sides, margin):
    """2: the row lies inside [-margin, side - 1 + margin) along every axis; 0: beyond reach along one; 1: anything else."""
    state = 2
    for a in range(sides.size):
        end = start[a] + step[a] * (n - 1)
        low, high = min(start[a], end) + bounds[a, 0] - 1e-3, max(start[a], end) + bounds[a, 1] + 1e-3
        if high <= -1 or low >= sides[a]:
            return 0
        if low < -margin or high >= sides[a] - 1 + margin:
            state = 1
    return state


@compiled
def _trilinear(data, o, row, slab, fz, fy, fx):
    """``data`` between the voxel at flat offset ``o`` and its successors along the three axes."""
    one = np.uint64(1)
    a = data[o] + fx * (data[o + one] - data[o])
    b = data[o + row] + fx * (data[o + row + one] - data[o + row])
    o += slab
    c = data[o] + fx * (data[o + one] - data[o])
    d = data[o + row] + fx * (data[o + row + one] - data[o + row])
    a += fy * (b - a)
    c += fy * (d - c)
    return a + fz * (c - a)


@compiled
def _corner3(src, z, y, x, n0, n1, n2, fill):
    if z < 0 or y < 0 or x < 0 or z >= n0 or y >= n1 or x >= n2:
        return fill
    return src[(z * n1 + y) * n2 + x]


@compiled
def _linear3(src, sides, out, m, spline, bounds, cell0, weight0, cell1, weight1, edges, t, fill):
    channels, s0, s1, s2 = out.shape
    n0, n1, n2 = sides[0], sides[1], sides[2]
    slab, volume = n1 * n2, n0 * n1 * n2
    layer = np.zeros((3, spline.shape[2], spline.shape[3]), np.float32)
    line = np.zeros((3, spline.shape[3]), np.float32)
    width = spline.shape[2] * spline.shape[3]
    flat_spline, flat_layer = spline.reshape(3, spline.shape[1], width), layer.reshape(3, width)
    at, offset = np.empty((3, s2), np.float32), np.empty(s2, np.int64)
    start, step, base = np.empty(3), m[:, 2].copy(), np.empty(3, np.int64)
    for i in range(s0):
        if spline.size:
            _reduce(flat_spline, cell0[i], weight0[i], flat_layer)
        for j in range(s1):
            for a in range(3):
                start[a] = m[a, 0] * i + m[a, 1] * j + m[a, 3]
            state = _state(start, step, s2, bounds, sides, 0.0)
            if state == 0:
                for c in range(channels):
                    out[c, i, j] = fill[c]
                continue
            if spline.size:
                _reduce(layer, cell1[j], weight1[j], line)
            _place(start, step, line, edges, t, at, base)
            first = (base[0] * n1 + base[1]) * n2 + base[2]
            for k in range(s2):
                z, y, x = np.floor(at[0, k]), np.floor(at[1, k]), np.floor(at[2, k])
                offset[k] = first + int(z) * slab + int(y) * n2 + int(x)
                if state == 2:
                    at[0, k] -= z
                    at[1, k] -= y
                    at[2, k] -= x
            for c in range(channels):
                data, row = src[c * volume : (c + 1) * volume], out[c, i, j]
                if state == 2:
                    for k in range(s2):
                        row[k] = _trilinear(data, np.uint64(offset[k]), np.uint64(n2), np.uint64(slab), at[0, k], at[1, k], at[2, k])
                    continue
                for k in range(s2):
                    az, ay, ax = np.floor(at[0, k]), np.floor(at[1, k]), np.floor(at[2, k])
                    z, y, x = base[0] + int(az), base[1] + int(ay), base[2] + int(ax)
                    fz, fy, fx = at[0, k] - az, at[1, k] - ay, at[2, k] - ax
                    if 0 <= z < n0 - 1 and 0 <= y < n1 - 1 and 0 <= x < n2 - 1:
                        row[k] = _trilinear(data, np.uint64(offset[k]), np.uint64(n2), np.uint64(slab), fz, fy, fx)
                        continue
                    value = np.float32(0)
                    for corner in range(8):
                        dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                        weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                        value += weight * _corner3(data, z + dz, y + dy, x + dx, n0, n1, n2, fill[c])
                    row[k] = value


@compiled
def _nearest3(src, sides, out, m, spline, bounds, cell0, weight0, cell1, weight1, edges, t, fill):
    channels, s0, s1, s2 = out.shape
    n0, n1, n2 = sides[0], sides[1], sides[2]
    volume = n0 * n1 * n2
    layer = np.zeros((3, spline.shape[2], spline.shape[3]), np.float32)
    line = np.zeros((3, spline.shape[3]), np.float32)
    width = spline.shape[2] * spline.shape[3]
    flat_spline, flat_layer = spline.reshape(3, spline.shape[1], width), layer.reshape(3, width)
    at, offset = np.empty((3, s2), np.float32), np.empty(s2, np.int64)
    start, step, base = np.empty(3), m[:, 2].copy(), np.empty(3, np.int64)
    for i in range(s0):
        if spline.size:
            _reduce(flat_spline, cell0[i], weight0[i], flat_layer)
        for j in range(s1):
            for a in range(3):
                start[a] = m[a, 0] * i + m[a, 1] * j + m[a, 3]
            state = _state(start, step, s2, bounds, sides, 0.5)
            if state == 0:
                for c in range(channels):
                    out[c, i, j] = fill[c]
                continue
            if spline.size:
                _reduce(layer, cell1[j], weight1[j], line)
            _place(start, step, line, edges, t, at, base)
            for k in range(s2):
                z, y, x = np.floor(at[0, k] + _HALF), np.floor(at[1, k] + _HALF), np.floor(at[2, k] + _HALF)
                offset[k] = ((base[0] + int(z)) * n1 + base[1] + int(y)) * n2 + base[2] + int(x)
            for c in range(channels):
                data, row = src[c * volume : (c + 1) * volume], out[c, i, j]
                if state == 2:
                    for k in range(s2):
                        row[k] = data[np.uint64(offset[k])]
                    continue
                for k in range(s2):
                    z, y, x = np.floor(at[0, k] + _HALF), np.floor(at[1, k] + _HALF), np.floor(at[2, k] + _HALF)
                    row[k] = _corner3(data, base[0] + int(z), base[1] + int(y), base[2] + int(x), n0, n1, n2, fill[c])


@compiled
def _corner2(src, y, x, n0, n1, fill):
    if y < 0 or x < 0 or y >= n0 or x >= n1:
        return fill
    return src[y * n1 + x]


@compiled
def _linear2(src, sides, out, m, spline, bounds, cell0, weight0, edges, t, fill):
    channels, s0, s1 = out.shape
    n0, n1 = sides[0], sides[1]
    area = n0 * n1
    line, at = np.zeros((2, spline.shape[2]), np.float32), np.empty((2, s1), np.float32)
    start, step, base = np.empty(2), m[:, 1].copy(), np.empty(2, np.int64)
    for i in range(s0):
        start[0], start[1] = m[0, 0] * i + m[0, 2], m[1, 0] * i + m[1, 2]
        if spline.size:
            _reduce(spline, cell0[i], weight0[i], line)
        _place(start, step, line, edges, t, at, base)
        inside = _state(start, step, s1, bounds, sides, 0.0) == 2
        for c in range(channels):
            data, row = src[c * area : (c + 1) * area], out[c, i]
            for k in range(s1):
                ay, ax = np.floor(at[0, k]), np.floor(at[1, k])
                y, x, fy, fx = base[0] + int(ay), base[1] + int(ax), at[0, k] - ay, at[1, k] - ax
                if inside:
                    o, below = np.uint64(y * n1 + x), np.uint64(y * n1 + x + n1)
                    a = data[o] + fx * (data[o + np.uint64(1)] - data[o])
                    b = data[below] + fx * (data[below + np.uint64(1)] - data[below])
                else:
                    a = (1 - fx) * _corner2(data, y, x, n0, n1, fill[c]) + fx * _corner2(data, y, x + 1, n0, n1, fill[c])
                    b = (1 - fx) * _corner2(data, y + 1, x, n0, n1, fill[c]) + fx * _corner2(data, y + 1, x + 1, n0, n1, fill[c])
                row[k] = a + fy * (b - a)


@compiled
def _nearest2(src, sides, out, m, spline, bounds, cell0, weight0, edges, t, fill):
    channels, s0, s1 = out.shape
    n0, n1 = sides[0], sides[1]
    area = n0 * n1
    line, at = np.zeros((2, spline.shape[2]), np.float32), np.empty((2, s1), np.float32)
    start, step, base = np.empty(2), m[:, 1].copy(), np.empty(2, np.int64)
    for i in range(s0):
        start[0], start[1] = m[0, 0] * i + m[0, 2], m[1, 0] * i + m[1, 2]
        if spline.size:
            _reduce(spline, cell0[i], weight0[i], line)
        _place(start, step, line, edges, t, at, base)
        for c in range(channels):
            data, row = src[c * area : (c + 1) * area], out[c, i]
            for k in range(s1):
                y, x = base[0] + int(np.floor(at[0, k] + _HALF)), base[1] + int(np.floor(at[1, k] + _HALF))
                row[k] = _corner2(data, y, x, n0, n1, fill[c])
