"""mammogram: the CC and the MLO projection of one breast in 3D, with a round (benign) or a spiculated (malignant) mass, or none.

Geometry. World axes in mm: x from the chest wall to the nipple, y and z across. Rays are parallel, along z for CC and turned about x by
``angle`` (about 45 degrees) for MLO; a picture's columns are x in both views, its rows the direction across rays and x. So a mass has the
same distance from the nipple in both views, and what lies over it in one view lies beside it in the other.

Tissue. A half ellipsoid of fat; glandular clumps, ligaments and spicules are Gaussian clouds of tissue, whose projections are Gaussian
again, so that both pictures hold exactly the same tissue (``thickness``); the mass is an ellipsoid (chord lengths). Round and spiculated
ones have the same sizes. The pectoral muscle is in MLO alone.

Physics. Transmission exp(-(0.046 fat + 0.080 gland + 0.084 mass)) with thicknesses in mm (about 20 keV, after Johns and Yaffe 1987),
Poisson noise of 4e5 quanta a pixel, detector blur. The picture is the density (natural log) as one is shown it, 16 bit: the breast's edge
is evened out to the thickness of its middle, and the window begins just below fat.

Bait. ``decoys``: around a round mass lie strands that, in one of the two views, fall into a star just like a spiculated mass's: they are a
star's spicules, each moved along that view's rays. ``clutter``: tangled strands in front of or behind a mass of either kind hide its rim in
one view. A star in one view is therefore no proof, nor is its absence; in the other view the mass is always clear.

Known answers: ``malignant`` (0, 1), ``mass`` (none, round, spiculated), ``mass_mm3`` (without spicules), ``decoy`` and ``clutter`` (none,
CC, MLO), ``angle`` (degrees). Label maps 'CC' and 'MLO': the mass's projection, benign or malignant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.errors import UsageError
from ...core.geometry import Geometry
from ...core.manifest import Manifest
from .forms import directions
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SHAPE = (128, 96)  # pixels of 1 mm
VIEWS = ("CC", "MLO")
FAT, GLAND, MASS = 0.046, 0.080, 0.084  # per mm
QUANTA, PADDLE = 4e5, 50.0  # quanta a pixel; mm of the compressed breast
WINDOW = (2.0, 4.6)  # densities shown black and white
_REACH = 3.5  # sd at which a cloud's projection ends
_DEPTH = (14.0, 30.0)  # mm a strand of a decoy or of clutter lies off the mass, along the rays


@dataclass(frozen=True)
class Clouds:
    """Gaussian clouds of tissue about ``at`` (n, 3) mm with covariance a a' + w^2 I for ``along`` a (n, 3) and ``wide`` w (n,), mm; each
    holds ``volume`` (n,) mm^3."""

    at: np.ndarray
    along: np.ndarray
    wide: np.ndarray
    volume: np.ndarray

    def __add__(self, other: Clouds) -> Clouds:
        return Clouds(*(np.concatenate([getattr(self, k), getattr(other, k)]) for k in ("at", "along", "wide", "volume")))

    @classmethod
    def strands(cls, start: np.ndarray, end: np.ndarray, radius: np.ndarray) -> Clouds:
        """Strands from ``start`` to ``end`` (n, 3) with the volume, the length's sd and the middle thickness of rods of ``radius`` (n,)."""
        length = np.linalg.norm(end - start, axis=1)
        return cls((start + end) / 2, (end - start) / 12**0.5, 0.867 * radius, np.pi * radius**2 * length)


def grid() -> Geometry:
    """Rows across, -64 to 64 mm; columns from the chest wall (0) towards the nipple."""
    return Geometry.of(SHAPE, 1.0, origin=(-(SHAPE[0] - 1) / 2, 0.5))


def axes(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """(2, 3) directions of a picture's rows and columns, and (3,) of its rays, for rays turned by ``angle`` degrees (0: CC)."""
    a = np.deg2rad(angle)
    return np.array([[0, np.cos(a), -np.sin(a)], [1.0, 0, 0]]), np.array([0, np.sin(a), np.cos(a)])


def thickness(clouds: Clouds, angle: float) -> np.ndarray:
    """(128, 96) mm of tissue along each ray: sum of volume times the projected normal density. Clouds near the edge are cut off there."""
    plane, _ = axes(angle)
    out, origin = np.zeros(SHAPE, np.float32), np.array(grid().origin)
    for at, along, wide, volume in zip(clouds.at @ plane.T - origin, clouds.along @ plane.T, clouds.wide, clouds.volume, strict=True):
        cov = np.outer(along, along) + max(wide, 0.3) ** 2 * np.eye(2)  # 0.3 mm: a pixel's own sd, so that sums over pixels are right
        reach = np.ceil(_REACH * np.sqrt(np.diag(cov)))
        low = np.maximum(0, np.floor(at - reach)).astype(int)
        high = np.minimum(SHAPE, np.ceil(at + reach) + 1).astype(int)
        if (low >= high).any():
            continue
        r, c = np.arange(low[0], high[0])[:, None] - at[0], np.arange(low[1], high[1])[None] - at[1]
        det = cov[0, 0] * cov[1, 1] - cov[0, 1] ** 2
        form = (cov[1, 1] * r**2 - 2 * cov[0, 1] * r * c + cov[0, 0] * c**2) / det
        out[low[0] : high[0], low[1] : high[1]] += volume / (2 * np.pi * det**0.5) * np.exp(-form / 2)
    return out


def chord(centre: np.ndarray, radii: np.ndarray, angle: float) -> np.ndarray:
    """(128, 96) mm along each ray inside the ellipsoid about ``centre`` with ``radii`` along x, y, z."""
    plane, ray = axes(angle)
    place = np.indices(SHAPE).reshape(2, -1).T + np.array(grid().origin)
    p = (place @ plane - centre + ray * (centre @ ray)) / radii  # the points of the plane through the centre, in units of the radii
    d = ray / radii
    inside = (p @ d) ** 2 - (d @ d) * ((p**2).sum(1) - 1)
    return (2 * np.sqrt(np.maximum(inside, 0)) / (d @ d)).reshape(SHAPE).astype(np.float32)


def sketch(who: Who) -> Scene:
    """The mass, what confuses it in which view, and the size of the breast."""
    rng, options = who.rng(), who.options
    long, wide = rng.uniform(70, 92), rng.uniform(46, 58)
    malignant = bool(rng.uniform() < 0.5)
    bare = bool(rng.uniform() < options["normal"]) and not malignant
    chance, view, angle = rng.uniform(), VIEWS[int(rng.integers(2))], float(rng.normal(45, 4))
    radii = rng.uniform(5.5, 9.0) * np.exp(rng.normal(0, 0.12, 3))
    out, turn = wide * 0.55 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    centre = np.array([rng.uniform(0.25, 0.62) * long, out * np.cos(turn), out * np.sin(turn)])
    decoy = view if not malignant and not bare and chance < options["decoys"] else "none"
    clutter = view if not bare and decoy == "none" and chance > 1 - options["clutter"] else "none"
    table = {
        "malignant": int(malignant),
        "mass": "none" if bare else "spiculated" if malignant else "round",
        "mass_mm3": 0.0 if bare else round(float(4 / 3 * np.pi * np.prod(radii)), 1),
        "decoy": decoy,
        "clutter": clutter,
        "angle": round(angle, 2),
    }
    return Scene(table, {"breast": (long, wide), "centre": centre, "radii": radii})


def render(who: Who, scene: Scene) -> Drawing:
    """Both pictures (1, 128, 96) uint16 and the mass's place in each."""
    rng, table, p = who.rng(1), scene.table, scene.parts
    long, wide = p["breast"]
    clouds, angles = tissue(who, scene), {"CC": 0.0, "MLO": table["angle"]}
    rows, columns = np.indices(SHAPE) + np.array(grid().origin)[:, None, None]
    whole = 2 * np.sqrt(np.maximum(wide**2 * np.maximum(1 - (columns / long) ** 2, 0) - rows**2, 0))
    muscle = 14 * np.clip((-12 - rows - 1.5 * columns) / 10, 0, 1)
    images, labels = {}, {}
    for view in VIEWS:
        gland = np.minimum(thickness(clouds, angles[view]) * (whole > 0), whole)
        mass = chord(p["centre"], p["radii"], angles[view]) if table["mass"] != "none" else np.zeros(SHAPE, np.float32)
        fat = np.maximum(np.minimum(whole, PADDLE) - 0.5 * gland, 0)  # the paddle evens out the thickness; dense tissue gives way less
        density = FAT * fat + GLAND * gland + (MASS - FAT) * mass + (GLAND * muscle if view == "MLO" else 0)
        counts = rng.poisson(QUANTA * np.exp(-ndimage.gaussian_filter(density, 0.4))) + 1.0
        shown = -np.log(counts / QUANTA) + FAT * np.where(whole > 0, PADDLE - np.minimum(whole, PADDLE), 0)
        grey = np.clip((shown - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
        images[view] = np.round(65535 * grey).astype(np.uint16)[None]
        labels[view] = np.where(mass > 1, 1 + table["malignant"], 0)
    return Drawing(grid(), images, labels)


def tissue(who: Who, scene: Scene) -> Clouds:
    """Clumps, ligaments, and the strands about the mass."""
    rng, (long, wide) = who.rng(2), scene.parts["breast"]
    n = 60
    share = rng.uniform(*((0.04, 0.14) if who.options["dense"] == "mixed" else (0.14, 0.25)))
    volume = share * 2 / 3 * np.pi * long * wide**2 / n
    sd = rng.uniform(3.5, 8.0, (n, 2))
    out = Clouds(
        _inside(rng, n, long, wide), _turned(rng, n) * sd.max(1)[:, None], sd.min(1), np.full(n, volume) * rng.uniform(0.4, 1.6, n)
    )
    at, half = _inside(rng, 24, long, wide), _turned(rng, 24) * rng.uniform(12, 28, 24)[:, None]
    out += Clouds.strands(at - half, at + half, rng.uniform(0.5, 0.8, 24))
    rng = who.rng(3)
    table, centre = scene.table, scene.parts["centre"]
    rays = {"CC": axes(0.0)[1], "MLO": axes(table["angle"])[1]}
    if table["mass"] == "spiculated" or table["decoy"] != "none":
        start, end, radius = spicules(rng, scene.parts["radii"])
        off = (_off(rng, len(start)) * rays[table["decoy"]].reshape(3, 1)).T if table["decoy"] != "none" else 0.0
        out += Clouds.strands(centre + start + off, centre + end + off, radius)
    if table["clutter"] != "none":
        n = 26
        middle = centre + rng.normal(0, 7, (n, 3)) + (_off(rng, n) * rays[table["clutter"]].reshape(3, 1)).T
        half = _turned(rng, n) * rng.uniform(6, 12, n)[:, None]
        out += Clouds.strands(middle - half, middle + half, rng.uniform(1.3, 1.9, n))
    return out


def spicules(rng: np.random.Generator, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end (n, 3), from the mass's centre, and radius (n,) of a star's rays, mm."""
    n = int(rng.integers(20, 28))
    way = directions(3, n) + rng.normal(0, 0.15, (n, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    rim = 1 / np.sqrt(((way / radii) ** 2).sum(1, keepdims=True))
    return way * rim * 0.8, way * (rim + rng.uniform(9, 17, (n, 1))), rng.uniform(1.3, 1.9, n)


def _off(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(*_DEPTH, n) * rng.choice([-1.0, 1.0], n)


def _inside(rng: np.random.Generator, n: int, long: float, wide: float) -> np.ndarray:
    """(n, 3) places in the glandular cone behind the nipple."""
    x = rng.uniform(0.08, 0.85, n)
    reach, turn = wide * 0.8 * np.sqrt(1 - x**2) * np.sqrt(rng.uniform(0, 1, n)), rng.uniform(0, 2 * np.pi, n)
    return np.stack([x * long, reach * np.cos(turn), reach * np.sin(turn)], 1)


def _turned(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3) random unit directions."""
    u = rng.standard_normal((n, 3))
    return u / np.linalg.norm(u, axis=1, keepdims=True)


@dataclass(frozen=True)
class TwoViews(Phantom):
    """A phantom whose label maps are those of its images, by name."""

    def open(self, cases: Any, seed: int, given: dict[str, Any]) -> Manifest:
        if given.get("raters"):
            raise UsageError("this phantom has no further raters", where=self.name, found=given["raters"], allowed=0)
        manifest = super().open(cases, seed, given)
        return replace(manifest, cases=tuple(replace(ref, labels=_by_view(ref.labels, self.channels)) for ref in manifest.cases))


def _by_view(labels: dict[str, str], views: Sequence[str]) -> dict[str, str]:
    return {v: labels["reference"].replace("#reference", f"#label-{v}") for v in views} if labels else {}


PHANTOMS = (
    TwoViews(
        name="mammogram",
        title="Mammograms: CC and MLO of one breast, with a round or a spiculated mass that one view alone may misjudge",
        dims=2,
        modality="mammography",
        channels=VIEWS,
        labels=("background", "benign mass", "malignant mass"),
        splits=(120, 2, 60),
        targets={"malignant": {"kind": "binary", "levels": ["0", "1"]}},
        text="128 x 96 pixels of 1 mm, 16 bit; the two views share no world but the distance from the chest wall.",
        options={
            "decoys": Option(0.45, float, "share of round masses with a star of strands in one view"),
            "clutter": Option(0.4, float, "share of masses hidden behind tangled strands in one view"),
            "normal": Option(0.1, float, "share of benign breasts without a mass"),
            "dense": Option("mixed", ("mixed", "very"), "how much of the breast is gland: 4 to 14 or 14 to 25 per cent"),
        },
        sketch=sketch,
        render=render,
    ),
)
