"""Reading a posed, optionally bent patch from a whole case in one pass, and moving points into it.

For every patch voxel ``p``: ``q = p + bend(p)``, ``x = pose @ q``, and the case is read at ``x``. ``bend`` is a coarse grid of uniform cubic
B-spline coefficients (Rueckert et al. 1999, doi:10.1109/42.796284): ``n >= 4`` control points an axis, control point ``i`` standing at patch
coordinate ``(i - 1) * h`` with ``h = (size - 1) / (n - 3)``. No field of the patch's size is ever made: the spline is reduced plane by
plane and row by row to one cubic polynomial a cell. Outside the case every voxel has the ``fill`` value, and reading blends into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from ..core.errors import GeometryError

MIN_CONTROL = 4  # a cubic spline cell needs four control points


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
    a signed permutation and a whole-voxel shift, without bend,
is an exact copy. Raises GeometryError.
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
    if np.abs(pose[:d] - whole).max() > 1e-9 or not (np.abs(whole[:, :d]).sum(0) == 1).all() or not (np.abs(whole[:, :d]).sum(1) == 1).all():
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
    return np.result_type(dtype, *(np.min_scalar_type(int(f)) for f in (fill.min(initial=0), fill.max(initial=0))))


def _block(image: np.ndarray, size: tuple[int, ...], matrix: np.ndarray, bend: np.ndarray | None, dtype: np.dtype):
    """What the kernels read: (flat contiguous array, its sides, its first voxel's index).

    A contiguous array of a type the kernels read is used in place; of any other only the bounding box of the patch is copied.
    """
    sides = np.array(image.shape[1:], np.int64)
    low, high = np.zeros_like(sides), sides
    if not (image.flags.c_contiguous and image.flags.aligned and image.dtype.isnative and (image.dtype == dtype or image.dtype.kind in "iu" and dtype.kind in "iu")):
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
    t = t - cell
    return cell, np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6


def _spline_of(bend: np.ndarray | None, size: tuple[int, ...], matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """The bend in source voxels and its tables: (coefficients, cell and weights of each slower axis, cell borders and t of the last)."""
    d = len(size)
    if bend is None:
        bend = np.zeros((d, *(0,) * d))
        tables: list[np.ndarray] = [np.zeros(0, np.int64), np.zeros((0, 4), np.float32)] * (d - 1)
        return bend.astype(np.float32), *tables, np.zeros(1, np.int64), np.zeros(0, np.float32)
    bend = np.asarray(bend, float)
    _check_bend(bend, size)
    coefficients = np.ascontiguousarray(np.tensordot(matrix[:, :d], bend, 1), np.float32)
    tables = []
    for side, control in zip(size[:-1], bend.shape[1:-1], strict=True):
        cell, weights = _cells(np.arange(side), side, control)
        tables += [cell, weights.astype(np.float32)]
    control, side = bend.shape[-1], size[-1]
    cell, _ = _cells(np.arange(side), side, control)
    t = np.arange(side) * ((control - 3) / max(side - 1, 1)) - cell
    return coefficients, *tables, np.searchsorted(cell, np.arange(control - 2)), t.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------------- kernels
# A row of the patch (its last axis) is placed first: float32 source coordinates relative to a whole-voxel base, so that they stay exact to
# 1e-4 voxel in volumes of any size. Rows that lie inside the source altogether are read without a test per voxel.
_jit = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@_jit
def _reduce(coefficients, cell, weights, out):
    """Four slices of (d, n, m) along axis 1 to their weighted sum (d, m)."""
    for a in range(coefficients.shape[0]):
        for k in range(coefficients.shape[2]):
            value = np.float32(0)
            for i in range(4):
                value += weights[i] * coefficients[a, cell + i, k]
            out[a, k] = value


@_jit
def _place(start, step, spline, edges, t, at, base, low, high):
    """Relative source coordinates ``at`` (d, n) of a row from ``start`` (d,) by ``step`` (d,), their ``base`` voxel, and bounds on them."""
    d, n = at.shape
    for a in range(d):
        base[a] = int(np.floor(start[a]))
        offset, slope = np.float32(start[a] - base[a]), np.float32(step[a])
        row = at[a]
        for k in range(n):
            row[k] = offset + slope * np.float32(k)
        if spline.shape[1]:
            for s in range(edges.size - 1):
                c0, c1, c2, c3 = spline[a, s], spline[a, s + 1], spline[a, s + 2], spline[a, s + 3]
                p0, p1 = (c0 + np.float32(4) * c1 + c2) / np.float32(6), (c2 - c0) / np.float32(2)
                p2, p3 = (c0 - np.float32(2) * c1 + c2) / np.float32(2), (c3 - c0 + np.float32(3) * (c1 - c2)) / np.float32(6)
                cell, u = row[edges[s] : edges[s + 1]], t[edges[s] : edges[s + 1]]
                for k in range(cell.size):
                    cell[k] += p0 + u[k] * (p1 + u[k] * (p2 + u[k] * p3))
        first, last = start[a], start[a] + step[a] * (n - 1)
        low[a], high[a] = min(first, last), max(first, last)
        if spline.shape[1]:  # a spline stays between its coefficients
            low[a] += spline[a].min()
            high[a] += spline[a].max()


@_jit
def _rows(m, i, j, start):
    for a in range(start.size):
        start[a] = m[a, 0] * i + m[a, 1] * j + m[a, 3]


@_jit
def _within(low, high, lattice, margin):
    """2 when a row lies inside [-margin, side - 1 + margin) along every axis, 0 when beyond reach along any, else 1."""
    state = 2
    for a in range(lattice.size):
        if high[a] <= -1.0 or low[a] >= lattice[a]:
            return 0
        if low[a] < -margin or high[a] >= lattice[a] - 1 + margin:
            state = 1
    return state


@_jit
def _corner3(src, z, y, x, n0, n1, n2, fill):
    if z < 0 or y < 0 or x < 0 or z >= n0 or y >= n1 or x >= n2:
        return fill
    return src[(z * n1 + y) * n2 + x]


@_jit
def _linear3(src, lattice, out, m, spline, cell0, weight0, cell1, weight1, edges, t, fill):
    channels, s0, s1, s2 = out.shape
    n0, n1, n2 = lattice[0], lattice[1], lattice[2]
    slab = n1 * n2
    volume = n0 * slab
    bent = spline.shape[1] > 0
    layer = np.zeros((3, spline.shape[2] * spline.shape[3]), np.float32)
    layers = layer.reshape(3, spline.shape[2], spline.shape[3])
    flat_spline = spline.reshape(3, spline.shape[1], spline.shape[2] * spline.shape[3])
    line = np.zeros((3, spline.shape[3]), np.float32)
    at = np.empty((3, s2), np.float32)
    start, base, low, high, step = np.empty(3), np.empty(3, np.int64), np.empty(3), np.empty(3), m[:, 2].copy()
    one = np.float32(1)
    for i in range(s0):
        if bent:
            _reduce(flat_spline, cell0[i], weight0[i], layer)
        for j in range(s1):
            if bent:
                _reduce(layers, cell1[j], weight1[j], line)
            _rows(m, i, j, start)
            _place(start, step, line, edges, t, at, base, low, high)
            state = _within(low, high, lattice, 0.0)
            for c in range(channels):
                data, row = src[c * volume : (c + 1) * volume], out[c, i, j]
                if state == 0:
                    row[:] = fill[c]
                    continue
                for k in range(s2):
                    az, ay, ax = np.floor(at[0, k]), np.floor(at[1, k]), np.floor(at[2, k])
                    fz, fy, fx = at[0, k] - az, at[1, k] - ay, at[2, k] - ax
                    z, y, x = base[0] + int(az), base[1] + int(ay), base[2] + int(ax)
                    if 0 <= z < n0 - 1 and 0 <= y < n1 - 1 and 0 <= x < n2 - 1:
                        o = np.uint64((z * n1 + y) * n2 + x)
                        q = o + np.uint64(slab)
                        a = data[o] + fx * (data[o + np.uint64(1)] - data[o])
                        b = data[o + np.uint64(n2)] + fx * (data[o + np.uint64(n2 + 1)] - data[o + np.uint64(n2)])
                        e = data[q] + fx * (data[q + np.uint64(1)] - data[q])
                        f = data[q + np.uint64(n2)] + fx * (data[q + np.uint64(n2 + 1)] - data[q + np.uint64(n2)])
                        a += fy * (b - a)
                        e += fy * (f - e)
                        row[k] = a + fz * (e - a)
                        continue
                    value = np.float32(0)
                    for corner in range(8):
                        dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                        w = abs(one - dz - fz) * abs(one - dy - fy) * abs(one - dx - fx)
                        value += w * _corner3(data, z + dz, y + dy, x + dx, n0, n1, n2, fill[c])
                    row[k] = value


@_jit
def _nearest3(src, lattice, out, m, spline, cell0, weight0, cell1, weight1, edges, t, fill):
    channels, s0, s1, s2 = out.shape
    n0, n1, n2 = lattice[0], lattice[1], lattice[2]
    volume = n0 * n1 * n2
    bent = spline.shape[1] > 0
    layer = np.zeros((3, spline.shape[2] * spline.shape[3]), np.float32)
    layers = layer.reshape(3, spline.shape[2], spline.shape[3])
    flat_spline = spline.reshape(3, spline.shape[1], spline.shape[2] * spline.shape[3])
    line = np.zeros((3, spline.shape[3]), np.float32)
    at = np.empty((3, s2), np.float32)
    start, base, low, high, step = np.empty(3), np.empty(3, np.int64), np.empty(3), np.empty(3), m[:, 2].copy()
    half = np.float32(0.5)
    for i in range(s0):
        if bent:
            _reduce(flat_spline, cell0[i], weight0[i], layer)
        for j in range(s1):
            if bent:
                _reduce(layers, cell1[j], weight1[j], line)
            _rows(m, i, j, start)
            _place(start, step, line, edges, t, at, base, low, high)
            state = _within(low, high, lattice, 0.5)
            for c in range(channels):
                data, row = src[c * volume : (c + 1) * volume], out[c, i, j]
                if state == 0:
                    row[:] = fill[c]
                    continue
                for k in range(s2):
                    z = base[0] + int(np.floor(at[0, k] + half))
                    y = base[1] + int(np.floor(at[1, k] + half))
                    x = base[2] + int(np.floor(at[2, k] + half))
                    if state == 2:
                        row[k] = data[np.uint64((z * n1 + y) * n2 + x)]
                    else:
                        row[k] = _corner3(data, z, y, x, n0, n1, n2, fill[c])


@_jit
def _corner2(src, y, x, n0, n1, fill):
    if y < 0 or x < 0 or y >= n0 or x >= n1:
        return fill
    return src[y * n1 + x]


@_jit
def _linear2(src, lattice, out, m, spline, cell0, weight0, edges, t, fill):
    channels, s0, s1 = out.shape
    n0, n1 = lattice[0], lattice[1]
    area = n0 * n1
    bent = spline.shape[1] > 0
    line = np.zeros((2, spline.shape[2]), np.float32)
    at, start, base, low, high, step = np.empty((2, s1), np.float32), np.empty(2), np.empty(2, np.int64), np.empty(2), np.empty(2), m[:, 1].copy()
    one = np.float32(1)
    for i in range(s0):
        if bent:
            _reduce(spline, cell0[i], weight0[i], line)
        start[0], start[1] = m[0, 0] * i + m[0, 2], m[1, 0] * i + m[1, 2]
        _place(start, step, line, edges, t, at, base, low, high)
        state = _within(low, high, lattice, 0.0)
        for c in range(channels):
            data, row = src[c * area : (c + 1) * area], out[c, i]
            if state == 0:
                row[:] = fill[c]
                continue
            for k in range(s1):
                ay, ax = np.floor(at[0, k]), np.floor(at[1, k])
                y, x, fy, fx = base[0] + int(ay), base[1] + int(ax), at[0, k] - ay, at[1, k] - ax
                if state == 2:
                    o = np.uint64(y * n1 + x)
                    a = data[o] + fx * (data[o + np.uint64(1)] - data[o])
                    b = data[o + np.uint64(n1)] + fx * (data[o + np.uint64(n1 + 1)] - data[o + np.uint64(n1)])
                    row[k] = a + fy * (b - a)
                else:
                    a = (one - fx) * _corner2(data, y, x, n0, n1, fill[c]) + fx * _corner2(data, y, x + 1, n0, n1, fill[c])
                    b = (one - fx) * _corner2(data, y + 1, x, n0, n1, fill[c]) + fx * _corner2(data, y + 1, x + 1, n0, n1, fill[c])
                    row[k] = a + fy * (b - a)


@_jit
def _nearest2(src, lattice, out, m, spline, cell0, weight0, edges, t, fill):
    channels, s0, s1 = out.shape
    n0, n1 = lattice[0], lattice[1]
    area = n0 * n1
    bent = spline.shape[1] > 0
    line = np.zeros((2, spline.shape[2]), np.float32)
    at, start, base, low, high, step = np.empty((2, s1), np.float32), np.empty(2), np.empty(2, np.int64), np.empty(2), np.empty(2), m[:, 1].copy()
    half = np.float32(0.5)
    for i in range(s0):
        if bent:
            _reduce(spline, cell0[i], weight0[i], line)
        start[0], start[1] = m[0, 0] * i + m[0, 2], m[1, 0] * i + m[1, 2]
        _place(start, step, line, edges, t, at, base, low, high)
        for c in range(channels):
            data, row = src[c * area : (c + 1) * area], out[c, i]
            for k in range(s1):
                y, x = base[0] + int(np.floor(at[0, k] + half)), base[1] + int(np.floor(at[1, k] + half))
                row[k] = _corner2(data, y, x, n0, n1, fill[c])
