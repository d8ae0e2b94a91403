"""organ-pairs-2d, organ-pairs-3d: one anatomy in many shapes, so that every pair of cases has a known displacement; half have a tumour.

Anatomy (mm). A body with a lobulated organ, vessels in it and a spine is drawn once for all cases. Case i shows it through a map
T_i(p) = c + s (p + b(p)): a place c in the scanner (sd 20 mm), a size s (0.9 to 1.1) and a smooth bend b, a sum of Gaussian bumps that
never folds. A point x of case i therefore lies at T_j(T_i^-1(x)) in case j (``displacement``). Every second case has a bright tumour of
known volume inside its organ that no other case has: in the organ's place, not beside it.

Signal. Values by tissue are mixed by voxel share, blurred by half a voxel and seen through Gaussian noise of sd 25. 3D grids are stored
LPS, RAS or PSR. Known answers: ``tumour_ml`` (2D: mm^2 of the drawn shape / 1000), ``scale``; ``points['landmarks']``: the same ten
places of the anatomy in every case. Pairs: all of a split; of test cases those from a case without to one with a tumour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...core.manifest import CaseRef
from .forms import Blob, capsule, centred, coverage, directions, ellipsoid, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

GRID = {2: ((64, 64), 2.0), 3: ((40, 40, 32), 3.2)}
VALUES = {"air": 0, "body": 300, "spine": 900, "organ": 600, "vessel": 800, "tumour": 1050}
ORGAN, BODY = 34.0, 50.0  # radius of a ball of the organ's volume, half-width of the body; mm
NOISE, BUMPS, LANDMARKS = 25.0, 6, 10
_SETTLED = 1e-4  # mm


@dataclass(frozen=True)
class Shape:
    """How one case shows the anatomy: T(p) = centre + size (p + sum of Gaussian bumps of ``push`` (n, d) mm about ``at``, sd ``wide``)."""

    centre: np.ndarray
    size: float
    at: np.ndarray
    push: np.ndarray
    wide: float

    def bend(self, p: np.ndarray) -> np.ndarray:
        """b(p) for points (..., d) of the anatomy, mm."""
        out = np.zeros_like(p)
        for a, v in zip(self.at, self.push, strict=True):
            out += np.exp(-0.5 * ((p - a) ** 2).sum(-1, keepdims=True) / self.wide**2) * v
        return out

    def place(self, p: np.ndarray) -> np.ndarray:
        """Anatomy (..., d) -> world mm."""
        return self.centre + self.size * (p + self.bend(p))

    def anatomy(self, x: np.ndarray) -> np.ndarray:
        """World (..., d) -> anatomy, by fixed-point iteration."""
        aim = (x - self.centre) / self.size
        p = aim.copy()
        for _ in range(100):
            last, p = p, aim - self.bend(p)
            if np.abs(p - last).max() < _SETTLED:
                break
        return p


def shape_of(who: Who, dims: int) -> Shape:
    """The shape of one case."""
    rng = who.rng(2)
    push, wide = rng.normal(0, who.options["bend"], (BUMPS, dims)), 18.0
    steep = np.linalg.norm(push, axis=1).sum() * np.exp(-0.5) / wide  # the greatest slope that all bumps together could have
    return Shape(
        rng.normal(0, 20, dims).round(1), rng.uniform(0.9, 1.1), rng.uniform(-32, 32, (BUMPS, dims)), push * min(1, 0.8 / steep), wide
    )


def displacement(manifest, fixed: str, moving: str, points: np.ndarray) -> np.ndarray:
    """(n, d) mm: the true displacement at ``points`` (n, d) world mm of case ``fixed`` towards case ``moving``, tumours left aside."""
    here, there = (shape_of(_who(manifest, c), manifest.dims) for c in (fixed, moving))
    points = np.asarray(points, float)
    return there.place(here.anatomy(points)) - points


def _who(manifest, case: str) -> Who:
    split, _, place = case.rpartition("-")
    return manifest.built_in.who(split, int(place))


def _organ(seed: int, dims: int) -> tuple[Blob, list[tuple[np.ndarray, np.ndarray, float]], np.ndarray]:
    """What all cases share: the organ, its vessels as rods (start, end, radius), and the landmarks."""
    rng = np.random.default_rng([seed, 77, dims])
    middle = np.zeros(dims)
    ball = np.pi * ORGAN**2 if dims == 2 else 4 / 3 * np.pi * (0.8 * ORGAN) ** 3
    organ = Blob.draw(rng, middle, ball, bumps=5, height=0.35, elongation=0.15)
    ends = organ.rim(directions(dims, 5)) * 0.8
    vessels = [(middle, end, 2.5) for end in ends]
    marks = organ.rim(directions(dims, LANDMARKS)) * rng.uniform(0.3, 1.0, (LANDMARKS, 1))
    return organ, vessels, marks


def _sketch(who: Who, dims: int) -> Scene:
    rng, shape = who.rng(), shape_of(who, dims)
    organ, _, marks = _organ(who.seed, dims)
    tumour = None
    if who.place % 2:
        radius = rng.uniform(8, 12)
        volume = np.pi * radius**2 if dims == 2 else 4 / 3 * np.pi * radius**3
        u = rng.standard_normal(dims)
        place = organ.rim((u / np.linalg.norm(u))[None])[0] * rng.uniform(0, 0.5)
        tumour = Blob.draw(rng, shape.place(place), float(volume), bumps=4, height=0.25, elongation=0.1)
    table = {"tumour_ml": round(tumour.volume() / 1000, 4) if tumour else 0.0, "scale": round(shape.size, 4)}
    return Scene(table, {"shape": shape, "tumour": tumour, "marks": shape.place(marks)})


def _render(who: Who, scene: Scene, dims: int) -> Drawing:
    rng, shape, tumour = who.rng(1), scene.parts["shape"], scene.parts["tumour"]
    (sides, mm), (organ, vessels, _) = GRID[dims], _organ(who.seed, dims)
    grid = centred(sides, mm, shape.centre + rng.normal(0, 2, dims))
    at = world(grid)
    p = np.moveaxis(shape.anatomy(np.moveaxis(at, 0, -1).astype(np.float64)), -1, 0)
    width = mm / shape.size
    inside = organ.distance(p)
    solids: list[tuple[str, np.ndarray]] = [("body", ellipsoid(p, np.zeros(dims), _body(dims)))]
    spine = np.zeros(dims)
    spine[1] = -42
    solids += [("spine", capsule(p, spine, spine, 6.0)), ("organ", inside)]
    solids += [("vessel", np.maximum(capsule(p, *v), inside)) for v in vessels]
    signal = np.zeros(sides, np.float32)
    for name, distance in solids:
        signal += (VALUES[name] - signal) * coverage(distance, width)
    label = (inside < 0).astype(np.int16)
    if tumour is not None:
        d = tumour.distance(at)
        signal += (VALUES["tumour"] - signal) * coverage(d, mm)
        label[d < 0] = 2
    signal = ndimage.gaussian_filter(signal, 0.5) + NOISE * rng.standard_normal(sides, dtype=np.float32)
    images, labels = {"image": signal[None].astype(np.float32)}, {"reference": label}
    if dims == 3:
        grid, arrays = stored_as(str(rng.choice(["LPS", "RAS", "PSR"])), grid, pair_arrays(images, labels))
        images, labels = (split_arrays(arrays)[k] for k in ("images", "labels"))
    return Drawing(grid, images, labels, points={"landmarks": scene.parts["marks"]})


def _body(dims: int) -> Sequence[float]:
    return (BODY + 6, BODY, 1.2 * BODY)[:dims]


def paired(fixed: CaseRef, moving: CaseRef) -> bool:
    """Whether a test is made of this pair: what has no tumour with what has one; other splits take any two cases."""
    return fixed.split != "test" or not fixed.table["tumour_ml"] and bool(moving.table["tumour_ml"])


def sketch_2d(who: Who) -> Scene:
    return _sketch(who, 2)


def sketch_3d(who: Who) -> Scene:
    return _sketch(who, 3)


def render_2d(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, 2)


def render_3d(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, 3)


_SHARED = dict(
    modality="synthetic",
    channels=("image",),
    labels=("background", "organ", "tumour"),
    splits=(24, 4, 12),
    options={"bend": Option(5.0, float, "sd of the bumps that shape a case, mm")},
    points=("landmarks",),
    pairs=paired,
)
PHANTOMS = (
    Phantom(
        name="organ-pairs-2d",
        title="One organ in many shapes, half of them with a tumour; for registration",
        dims=2,
        text="64 x 64 pixels of 2 mm; every pair of cases has a known displacement and corresponding landmarks.",
        sketch=sketch_2d,
        render=render_2d,
        **_SHARED,
    ),
    Phantom(
        name="organ-pairs-3d",
        title="The same in three dimensions",
        dims=3,
        text="40 x 40 x 32 voxels of 3.2 mm, mixed orientations; known displacements and landmarks.",
        sketch=sketch_3d,
        render=render_3d,
        **_SHARED,
    ),
)
