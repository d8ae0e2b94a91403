"""vessel-tree, vessel-tree-3d: branching trees whose radii follow Murray's law, as a fundus photograph and as an angiographic volume.

Growth. A branch of radius r0 runs in short steps whose direction wanders, then splits into r1 >= r2 with r0^3 = r1^3 + r2^3 (Murray
1926), share r2^3 / r0^3 drawn from 0.2-0.5, and angles of least work cos a1 = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2), likewise a2. It ends
below the smallest radius or outside the field. A segment is a rod of constant radius.

vessel-tree (2D): four arcades leave the optic disc and bend round the fovea. Background: red-orange with smooth illumination, falling to
the edge, disc bright, fovea dark, a fine choroid texture. Blood along the ray (2 sqrt(r^2 - d^2)) takes light by Beer-Lambert, most in
green, least in red; arteries (every second arcade) take less and show a central reflex. Blur 0.6 px, sensor noise. roi 'fov' is the
camera's circle; the label is at least 1.2 px wide, so thin vessels stay connected. vessel-tree-3d: contrast-filled vessels of 350 HU in
tissue of 50 HU with partial volume, soft-tissue blobs of 150 HU as bait, noise of sd 25 HU.

Known answers: ``length_mm``, ``branches`` (segments between splits), ``root_mm`` (largest radius); ``vessel_share`` of pixels is not
tabled because crossings overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...core.geometry import Geometry
from .forms import Blob, capsule, centred, coverage, field, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Scene, Who

SIDE, PIXEL, FOV = 192, 0.08, 7.2  # px, mm, mm radius
SIDE_3D = 64


@dataclass(frozen=True)
class Segment:
    """One rod: ends (mm), radius (mm), the number of its branch and of its arcade."""

    start: np.ndarray
    end: np.ndarray
    radius: float
    branch: int
    arcade: int


def grow(rng, start, way, radius, *, step, smallest, inside, arcade=0, pull=None, run=(5.0, 9.0), wander=0.16, branch=0, length=9.0):
    """Segments of one tree, root first, from ``start`` (mm) along ``way``.

    A branch of radius r is ``length`` x r x (a number from ``run``) / 5 long; ``step`` mm a segment; ``wander`` is the sd of its turns;
    ``inside(p)`` bounds the tree; ``pull(p, r)`` bends ways; ``branch`` and ``arcade`` number what is grown.
    """
    segments: list[Segment] = []
    queue, count = [(np.asarray(start, float), _unit(np.asarray(way, float)), radius)], branch
    while queue:
        p, u, r = queue.pop(0)
        for _ in range(max(2, int(length * rng.uniform(*run) * r / step / 5))):
            u = _unit(u + wander * rng.standard_normal(len(u)) + (0 if pull is None else pull(p, r)))
            q = p + step * u
            segments.append(Segment(p, q, r, count, arcade))
            p = q
            if not inside(p):
                break
        count += 1
        share = rng.uniform(0.2, 0.5)
        r1, r2 = r * (1 - share) ** (1 / 3), r * share ** (1 / 3)
        if inside(p):
            side = _across(rng, u)
            for child, other, sign in ((r1, r2, 1), (r2, r1, -1)):
                if child > smallest:
                    angle = np.arccos(np.clip((r**4 + child**4 - other**4) / (2 * r**2 * child**2), -1, 1))
                    queue.append((p, _unit(np.cos(angle) * u + sign * np.sin(angle) * side), child))
    return segments


def _unit(u: np.ndarray) -> np.ndarray:
    return u / np.linalg.norm(u)


def _across(rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """A random unit vector at right angles to ``u``."""
    if len(u) == 2:
        return np.array([-u[1], u[0]]) * rng.choice([-1, 1])
    v = rng.standard_normal(3)
    return _unit(v - (v @ u) * u)


def _table(segments: list[Segment]) -> dict:
    return {
        "length_mm": round(float(sum(np.linalg.norm(s.end - s.start) for s in segments)), 2),
        "branches": len({(s.arcade, s.branch) for s in segments}),
        "root_mm": round(max(s.radius for s in segments), 4),
    }


def sketch_2d(who: Who) -> Scene:
    """Disc, fovea and four arcades."""
    rng = who.rng()
    side = float(rng.choice([-1, 1]))  # disc left or right of the fovea
    disc = np.array([rng.normal(0, 0.3), side * rng.uniform(3.2, 3.9)])
    fovea = np.array([disc[0] + rng.normal(0.2, 0.2), disc[1] - side * 4.6])
    segments: list[Segment] = []
    for k, (up, out) in enumerate(((-1, 0.35), (1, 0.35), (-1, -0.5), (1, -0.5))):
        angle = np.array([up * rng.uniform(0.85, 1.1), -side * (out + rng.normal(0, 0.15))])
        root = rng.uniform(0.085, 0.105) * (1.0 if k % 2 else 1.15)

        def pull(p: np.ndarray, r: float, reach: float = 2.4) -> np.ndarray:
            away = p - fovea
            d = np.linalg.norm(away)
            round_it = np.array([0.0, -side]) * 0.1 if r > 0.06 and out > 0 else 0  # noqa: B023 (called before the next turn)
            return round_it + 0.3 * np.clip(1 - d / reach, 0, 1) * away / max(d, 0.1)

        segments += grow(
            rng, disc + 0.1 * angle, angle, root, step=0.2, smallest=0.042, arcade=k, pull=pull, run=(4, 9), length=16.0,
            inside=lambda p: np.hypot(*p) < FOV + 0.3,
        )  # fmt: skip
    return Scene(_table(segments), {"segments": segments, "disc": disc, "fovea": fovea})


def _rods(grid: Geometry, segments: list[Segment], margin: float):
    """(segment, slices, signed distance in the slices) of every segment that touches the grid."""
    spacing = np.array(grid.spacing)
    at = world(grid)
    for s in segments:
        ends = grid.to_index(np.stack([s.start, s.end]))
        reach = (s.radius + margin) / spacing
        low = np.maximum(np.floor(ends.min(0) - reach), 0).astype(int)
        high = np.minimum(np.ceil(ends.max(0) + reach) + 1, grid.shape).astype(int)
        if (low < high).all():
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            yield s, box, capsule(at[(slice(None), *box)], s.start, s.end, s.radius)


def render_2d(who: Who, scene: Scene) -> Drawing:
    """The photograph: RGB uint8."""
    rng, p = who.rng(1), scene.parts
    grid = centred((SIDE, SIDE), PIXEL)
    at = world(grid)
    blood = np.zeros((2, *grid.shape), np.float32)  # veins, arteries: mm along the ray
    reflex = np.zeros(grid.shape, np.float32)
    label = np.zeros(grid.shape, np.int16)
    for s, box, d in _rods(grid, p["segments"], PIXEL):
        chord = 2 * np.sqrt(np.maximum(s.radius**2 - (d + s.radius) ** 2, 0)) + 0.3 * s.radius * coverage(d, PIXEL)
        kind = s.arcade % 2
        blood[(kind, *box)] = np.maximum(blood[(kind, *box)], chord)
        if kind:
            reflex[box] = np.maximum(reflex[box], coverage(d + 0.75 * s.radius, PIXEL) * (s.radius > 0.06))
        label[box] |= d < max(0.0, 0.6 * PIXEL - s.radius)  # at least about one pixel wide
    r = np.hypot(*at)
    fov = r < FOV
    light = np.exp(0.13 * field(rng, grid.shape, 50) - 0.35 * (r / FOV) ** 2) * (1 + 0.02 * field(rng, grid.shape, 2.5))
    disc = np.exp(-((np.hypot(*(at - p["disc"].astype(np.float32)[:, None, None])) / 0.85) ** 6))
    fovea = np.exp(-((np.hypot(*(at - p["fovea"].astype(np.float32)[:, None, None])) / 0.9) ** 2))
    rgb = np.array([0.86, 0.46, 0.20], np.float32)[:, None, None] * light
    rgb = rgb * (1 - np.array([0.2, 0.35, 0.4], np.float32)[:, None, None] * fovea)
    rgb += (np.array([0.98, 0.82, 0.55], np.float32)[:, None, None] - rgb) * disc * 0.8
    absorb = np.array([0.9, 4.2, 3.0], np.float32)[:, None, None]
    rgb = rgb * np.exp(-absorb * (blood[0] + 0.7 * blood[1])) * (1 + 0.18 * reflex)
    rgb = ndimage.gaussian_filter(rgb, (0, 0.6, 0.6)) * fov
    rgb = rgb + 0.012 * rng.standard_normal(rgb.shape, dtype=np.float32) * (0.3 + fov)
    image = np.clip(np.round(255 * rgb), 0, 255).astype(np.uint8)
    return Drawing(grid, {"RGB": image}, {"reference": label * fov}, {"fov": fov.astype(np.int16)})


def sketch_3d(who: Who) -> Scene:
    """Two trees entering from below."""
    rng = who.rng()
    segments: list[Segment] = []
    for k in range(2):
        start = np.array([(-1) ** k * rng.uniform(8, 14), rng.uniform(-8, 8), -31.0])
        segments += grow(
            rng, start, (0.2 * rng.normal(), 0.2 * rng.normal(), 1), rng.uniform(2.2, 2.8), step=2.0, smallest=0.8, arcade=k, wander=0.18,
            inside=lambda p: np.abs(p).max() < 32, run=(3, 6), length=8.0,
        )  # fmt: skip
    bait = [Blob.draw(rng, rng.uniform(-24, 24, 3), float(rng.uniform(150, 700))) for _ in range(3)]
    return Scene(_table(segments), {"segments": segments, "bait": bait})


def render_3d(who: Who, scene: Scene) -> Drawing:
    """The volume: HU, int16."""
    rng = who.rng(1)
    grid = centred((SIDE_3D,) * 3, 1.0)
    at = world(grid)
    ct = 50 + 15 * field(rng, grid.shape, 4)
    for b in scene.parts["bait"]:
        ct += 100 * coverage(b.distance(at), 1.0)
    share, label = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.int16)
    for _, box, d in _rods(grid, scene.parts["segments"], 1.0):
        share[box] = np.maximum(share[box], coverage(d, 1.0))
        label[box] |= d < 0
    ct = ndimage.gaussian_filter(ct + (350 - ct) * share, 0.5) + 25 * rng.standard_normal(grid.shape, dtype=np.float32)
    images = {"CT": np.round(ct).astype(np.int16)[None]}
    grid, arrays = stored_as(str(rng.choice(["LPS", "RAS"])), grid, pair_arrays(images, {"reference": label}))
    return Drawing(grid, **split_arrays(arrays))


PHANTOMS = (
    Phantom(
        name="vessel-tree",
        title="Fundus photograph: retinal vessels by Murray's law",
        dims=2,
        modality="RGB",
        channels=("RGB",),
        labels=("background", "vessel"),
        splits=(24, 6, 12),
        rois=("fov",),
        text="192 x 192 pixels of 0.08 mm; veins and arteries, optic disc, fovea, uneven illumination.",
        sketch=sketch_2d,
        render=render_2d,
    ),
    Phantom(
        name="vessel-tree-3d",
        title="CT angiography of two branching trees",
        dims=3,
        modality="CT",
        channels=("CT",),
        labels=("background", "vessel"),
        splits=(12, 3, 6),
        text="64 x 64 x 64 voxels of 1 mm; soft-tissue blobs as bait.",
        sketch=sketch_3d,
        render=render_3d,
    ),
)
