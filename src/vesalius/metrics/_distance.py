"""The exact Euclidean distance to a set of voxels, in float64, only where it is asked for.

Separable lower envelopes (Felzenszwalb and Huttenlocher 2012, doi:10.4086/toc.2012.v008a019): the first two axes are transformed for the
whole box, the third is searched outwards from each point asked for, until no farther voxel can be nearer. ``edt`` answers in float32, which
moves percentiles of distances that lie close together; this is as fast on a structure's box and exact.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def tally(prediction: np.ndarray, reference: np.ndarray, classes: int, ignore: int):
    """One pass over two label volumes (X, Y, Z): per class (k, 3) voxels in both, in the prediction, in the reference; the first and last
    index (k, 2, 3) of either along each axis; the voxels with ``ignore`` in the reference, which count for nothing. Class 0 is left out."""
    nx, ny, nz = reference.shape
    voxels = np.zeros((classes, 3), np.int64)
    box = np.empty((classes, 2, 3), np.int64)
    box[:, 0], box[:, 1] = max(nx, ny, nz), -1
    ignored = 0
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                a, b = np.int64(prediction[x, y, z]), np.int64(reference[x, y, z])
                if a == 0 and b == 0:
                    continue
                if b == ignore:
                    ignored += 1
                    continue
                if a == b and 0 < a < classes:
                    voxels[a, 0] += 1
                if 0 < a < classes:
                    voxels[a, 1] += 1
                    _stretch(box[a], x, y, z)
                if 0 < b < classes:
                    voxels[b, 2] += 1
                    if b != a:
                        _stretch(box[b], x, y, z)
    return voxels, box, ignored


@njit(inline="always")
def _stretch(box, x, y, z):
    box[0, 0], box[1, 0] = min(box[0, 0], x), max(box[1, 0], x)
    box[0, 1], box[1, 1] = min(box[0, 1], y), max(box[1, 1], y)
    box[0, 2], box[1, 2] = min(box[0, 2], z), max(box[1, 2], z)


@njit(cache=True, nogil=True)
def surface_corners(codes: np.ndarray, sizes: np.ndarray):
    """Of flat neighbour codes (n,): indices of those neither all out nor all in (m,), their sizes (m,), and which they are, bool (n,)."""
    full = sizes.size - 1
    border = np.empty(codes.size, np.bool_)
    number = 0
    for n in range(codes.size):
        border[n] = codes[n] != 0 and codes[n] != full
        number += border[n]
    at, size = np.empty(number, np.int64), np.empty(number)
    m = 0
    for n in range(codes.size):
        if border[n]:
            at[m], size[m] = n, sizes[codes[n]]
            m += 1
    return at, size, border


@njit(cache=True, nogil=True)
def distance_at(points: np.ndarray, target: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance (mm) from flat indices ``points`` (n,) to the nearest True of ``target`` (X, Y, Z); inf where there is none."""
    nx, ny, nz = target.shape
    squared = _first_axis(target, spacing[0])
    _second_axis(squared, spacing[1])
    out = np.empty(points.size)
    for n in range(points.size):
        row, z = points[n] // nz, points[n] % nz
        x, y = row // ny, row % ny
        best = squared[x, y, z]
        step = 1
        while step < nz:
            far = (step * spacing[2]) ** 2
            if far >= best or (z - step < 0 and z + step >= nz):
                break
            if z - step >= 0:
                best = min(best, squared[x, y, z - step] + far)
            if z + step < nz:
                best = min(best, squared[x, y, z + step] + far)
            step += 1
        out[n] = np.sqrt(best)
    return out


@njit(cache=True, nogil=True)
def _first_axis(target, mm):
    """Squared distance (mm^2) along axis 0 to the nearest True; inf where the line has none."""
    nx, ny, nz = target.shape
    far = nx + 1
    steps = np.empty((nx, ny, nz), np.int32)
    squared = np.empty((nx, ny, nz))
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                if target[x, y, z]:
                    steps[x, y, z] = 0
                elif x == 0:
                    steps[x, y, z] = far
                else:
                    steps[x, y, z] = min(far, steps[x - 1, y, z] + 1)
    for x in range(nx - 1, -1, -1):
        for y in range(ny):
            for z in range(nz):
                if x + 1 < nx and steps[x + 1, y, z] + 1 < steps[x, y, z]:
                    steps[x, y, z] = steps[x + 1, y, z] + 1
                n = steps[x, y, z]
                squared[x, y, z] = np.inf if n >= far else (n * mm) ** 2
    return squared


@njit(cache=True, nogil=True)
def _second_axis(squared, mm):
    """In place: the lower envelope of the parabolas that stand on axis 1."""
    nx, ny, nz = squared.shape
    line, foot, start = np.empty(ny), np.empty(ny, np.int64), np.empty(ny)
    w = mm * mm
    for x in range(nx):
        for z in range(nz):
            k = -1
            for y in range(ny):
                f = squared[x, y, z]
                line[y] = f
                if f == np.inf:
                    continue
                at = -np.inf
                while k >= 0:
                    p = foot[k]
                    at = ((f - line[p]) / w + (y * y - p * p)) / (2 * (y - p))
                    if at > start[k]:
                        break
                    k -= 1
                if k < 0:
                    at = -np.inf
                k += 1
                foot[k], start[k] = y, at
            if k < 0:
                continue
            n = 0
            for y in range(ny):
                while n < k and start[n + 1] < y:
                    n += 1
                p = foot[n]
                squared[x, y, z] = line[p] + ((y - p) * mm) ** 2
    return squared
