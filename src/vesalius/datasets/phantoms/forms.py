"""Shapes and textures of the phantoms: partial volume, irregular star-shaped blobs, smooth random fields, native grids.

``coverage`` turns a signed distance into the share of a voxel that lies inside (partial volume): linear across one voxel width, exact for a
flat surface that crosses along an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from ...core.geometry import Geometry


def field(rng: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> np.ndarray:
    """A stationary Gaussian random field (*shape) float32 of mean 0 and sd 1, correlated over ``sigma`` voxels.

    White noise convolved with a Gaussian; wide fields are drawn on a grid ``sigma / 2`` times coarser and enlarged linearly.
    """
    sigma = np.broadcast_to(np.asarray(sigma, float), (len(shape),))
    step = np.maximum(1, np.floor(sigma / 2)).astype(int)
    coarse = [int(np.ceil(n / s)) + 3 for n, s in zip(shape, step, strict=True)]
    out = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma / step, mode="wrap")
    if (step > 1).any():
        out = ndimage.zoom(out, [(n * s + s) / n for n, s in zip(coarse, step, strict=True)], order=1)
    out = out[tuple(slice(0, n) for n in shape)]
    out = out - out.mean()
    return (out / max(float(out.std()), 1e-6)).astype(np.float32)


def world(grid: Geometry) -> np.ndarray:
    """(d, *shape) world mm of every voxel centre of an axis-aligned grid (open, broadcastable axes stacked)."""
    axes = [grid.origin[a] + grid.affine[a, a] * np.arange(n) for a, n in enumerate(grid.shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def centred(shape: Sequence[int], spacing: float | Sequence[float], centre: Sequence[float] | None = None) -> Geometry:
    """A RAS+ (3D) or (row, column) grid whose middle is ``centre`` mm (default 0)."""
    spacing = np.broadcast_to(np.asarray(spacing, float), (len(shape),))
    middle = np.zeros(len(shape)) if centre is None else np.asarray(centre, float)
    return Geometry.of(shape, spacing, origin=middle - spacing * (np.asarray(shape) - 1) / 2)


def coverage(distance: np.ndarray, width: float) -> np.ndarray:
    """Share of a voxel of side ``width`` (mm) inside a solid, from the signed distance (mm, negative inside) of its centre."""
    return np.clip(0.5 - distance / width, 0, 1)


def ellipsoid(at: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Approximate signed distance (mm) of points ``at`` (d, ...) to an ellipsoid: (q - 1) |x| / q with q = |x / radii|."""
    d = len(radii)
    x = at - np.asarray(centre, np.float32).reshape(d, *[1] * (at.ndim - 1))
    r = np.asarray(radii, np.float32).reshape(d, *[1] * (at.ndim - 1))
    q = np.sqrt(((x / r) ** 2).sum(0))
    length = np.sqrt((x**2).sum(0))
    return np.where(q > 1e-3, (q - 1) * length / np.maximum(q, 1e-3), -min(radii)).astype(np.float32)


def capsule(at: np.ndarray, start: Sequence[float], end: Sequence[float], radius: float) -> np.ndarray:
    """Signed distance (mm) of points (d, ...) to a rod with round ends."""
    shape = (-1, *[1] * (at.ndim - 1))
    a, ab = np.asarray(start, np.float32), np.asarray(end, np.float32) - np.asarray(start, np.float32)
    x = at - a.reshape(shape)
    t = np.clip((x * ab.reshape(shape)).sum(0) / max(float(ab @ ab), 1e-9), 0, 1)
    return np.sqrt(((x - t[None] * ab.reshape(shape)) ** 2).sum(0)) - radius


@dataclass(frozen=True)
class Blob:
    """A star-shaped lobulated solid: radius r(u) = size * (1 + sum of bumps a_k (exp(s (u.b_k - 1)) - m)) in direction u (d = 2 or 3).

    ``size`` is scaled so that the enclosed volume (mm^3; mm^2 in 2D) is ``volume`` by quadrature over directions.
    """

    centre: np.ndarray
    bumps: np.ndarray  # (n, d) unit directions
    heights: np.ndarray  # (n,)
    sharpness: float
    stretch: np.ndarray  # (d,) axis factors of product 1
    size: float

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        centre: Sequence[float],
        volume: float,
        *,
        bumps: int = 6,
        height: float = 0.35,
        sharpness: float = 6.0,
        elongation: float = 0.2,
    ) -> Blob:
        """A random blob of ``volume``; ``height`` is the largest relative bump, ``elongation`` the sd of the log axis ratio."""
        d = len(centre)
        b = rng.standard_normal((bumps, d))
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        stretch = np.exp(rng.normal(0, elongation, d))
        stretch /= np.prod(stretch) ** (1 / d)
        blob = cls(np.asarray(centre, float), b, rng.uniform(-0.5, 1, bumps) * height, sharpness, stretch, 1.0)
        u = directions(d, 600)
        ball = np.pi if d == 2 else 4 * np.pi / 3
        unit = ball * float(np.mean(blob.radius(u.T) ** d))
        return cls(blob.centre, b, blob.heights, sharpness, stretch, (volume / unit) ** (1 / d))

    def radius(self, u: np.ndarray) -> np.ndarray:
        """(...) radius in mm, before stretching, along unit directions u (d, ...)."""
        r = np.ones(u.shape[1:], np.float32)
        for b, h in zip(self.bumps, self.heights, strict=True):
            r += np.float32(h) * np.exp(np.float32(self.sharpness) * (_dot(b, u) - 1))
        return self.size * np.maximum(r, 0.35)

    def distance(self, at: np.ndarray) -> np.ndarray:
        """Approximate signed distance (mm, negative inside) of points (d, ...): radial, scaled by the mean stretch."""
        shape = (-1, *[1] * (at.ndim - 1))
        x = (at - self.centre.astype(np.float32).reshape(shape)) / self.stretch.astype(np.float32).reshape(shape)
        length = np.sqrt((x**2).sum(0))
        return (length - self.radius(x / np.maximum(length, 1e-6))).astype(np.float32)

    def volume(self) -> float:
        """Enclosed volume, mm^3 (area, mm^2, in 2D), by quadrature over directions."""
        d = len(self.centre)
        return (np.pi if d == 2 else 4 * np.pi / 3) * float(np.mean(self.radius(directions(d).T).astype(float) ** d))

    def rim(self, u: np.ndarray) -> np.ndarray:
        """(n, d) points of the surface in unit directions u (n, d)."""
        return self.centre + u * self.radius(u.T)[:, None] * self.stretch


def _dot(b: np.ndarray, u: np.ndarray) -> np.ndarray:
    """b (d,) . u (d, ...) in float32 without BLAS, whose bits depend on the number of threads."""
    return sum(np.float32(x) * y.astype(np.float32) for x, y in zip(b, u, strict=True))


@cache
def directions(d: int, n: int = 2000) -> np.ndarray:
    """(n, d) evenly spread unit directions (shared, do not write): equal angles, or Fibonacci's sphere."""
    if d == 2:
        angle = 2 * np.pi * np.arange(n) / n
        return np.stack([np.cos(angle), np.sin(angle)], 1)
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n)
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


def apart(count: int, radii: Sequence[float], draw: Callable[[], np.ndarray], gap: float, tries: int = 400) -> list[np.ndarray]:
    """Up to ``count`` points from ``draw()`` whose balls of ``radii`` keep ``gap`` mm between them (the first always)."""
    chosen: list[np.ndarray] = []
    for _ in range(tries):
        if len(chosen) == count:
            break
        p, r = np.asarray(draw(), float), radii[len(chosen)]
        if all(np.linalg.norm(p - c) >= r + radii[i] + gap for i, c in enumerate(chosen)):
            chosen.append(p)
    return chosen


def stored_as(code: str, grid: Geometry, arrays: Mapping[str, np.ndarray]) -> tuple[Geometry, dict[str, np.ndarray]]:
    """RAS+ arrays (..., x, y, z) and their grid as a scanner with index axes ``code`` (e.g. 'LPS', 'RAS', 'ASL') would store them.

    World positions stay: only the order and sense of the index axes change.
    """
    along = [{"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}[c] for c in code]
    flip = [c in "LPI" for c in code]
    affine = np.eye(4)
    start = np.zeros(3)
    for new, (old, back) in enumerate(zip(along, flip, strict=True)):
        affine[:3, new] = grid.affine[:3, old] * (-1 if back else 1)
        start[old] = grid.shape[old] - 1 if back else 0
    affine[:3, 3] = grid.to_world(start)
    turned = Geometry(tuple(grid.shape[a] for a in along), affine)

    def turn(x: np.ndarray) -> np.ndarray:
        lead = x.ndim - 3
        x = np.transpose(x, [*range(lead), *[lead + a for a in along]])
        return np.ascontiguousarray(x[(slice(None),) * lead + tuple(slice(None, None, -1) if b else slice(None) for b in flip)])

    return turned, {n: turn(x) for n, x in arrays.items()}


def pair_arrays(images: Mapping, labels: Mapping, rois: Mapping | None = None) -> dict[str, np.ndarray]:
    """One flat mapping 'images/CT' -> array, for ``stored_as``."""
    groups = {"images": images, "labels": labels, "rois": rois or {}}
    return {f"{g}/{n}": x for g, group in groups.items() for n, x in group.items()}


def split_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of ``pair_arrays``: keyword arguments of ``Drawing``."""
    out: dict[str, dict[str, np.ndarray]] = {"images": {}, "labels": {}, "rois": {}}
    for key, x in arrays.items():
        group, _, name = key.partition("/")
        out[group][name] = x
    return out
