"""ultrasound: B-mode breast scans with fully developed speckle, linear or sector probe, benign, malignant or no lesion.

Physics. Tissue is a field of point scatterers: complex Gaussian amplitudes times the root of the local echogenicity (Goodman's fully
developed speckle). The echo is their sum seen through the point spread: Gaussian along the beam (sd 0.16 mm) and across it (sd 0.32 mm,
wider away from the focus). Attenuation exp(-a depth) is undone by the time gain except behind the lesion: benign lesions enhance (+4 dB),
malignant ones shadow (-9 dB). The picture is 20 log10 |echo| + gain over the dynamic range, uint8.

Anatomy from the skin down: gel line, skin, fat lobes, gland, pectoral muscle with bright fascia. Benign: smooth oval, wider than tall,
thin bright rim. Malignant: taller, spiculated (many sharp bumps), thick bright halo. A sector probe is simulated in (range, angle) and
scan-converted. Centres differ: A (as above), B (coarser point spread, more gain), C (finer, less dynamic range, darker);
with centre=external, C is in the test cases and nowhere else.

Known answers: ``class`` (normal, benign, malignant), ``lesion_mm2``, ``centre``. roi 'sector': where there is a picture. World (depth,
lateral) mm.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ...core.geometry import Geometry
from .forms import Blob, centred, coverage, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE, PIXEL = 160, 0.25  # px, mm
CENTRES = {"A": (1.0, 0.0, 55.0), "B": (1.5, 3.0, 60.0), "C": (0.75, -4.0, 45.0)}  # point spread factor, gain dB, dynamic range dB
CLASSES = ("normal", "benign", "malignant")
APEX, OPENING = -10.0, np.deg2rad(30)  # sector: apex depth (mm), half angle


def sketch(who: Who) -> Scene:
    """Class, lesion outline and centre."""
    rng = who.rng()
    kind = str(rng.choice(CLASSES, p=[0.2, 0.4, 0.4]))
    centre = _centre(who, rng)
    low, side = (18.0, 2.5) if who.options["geometry"] == "sector" else (13.0, 8.0)  # a sector is narrow near the skin
    middle = np.array([rng.uniform(low, 22), rng.uniform(-side, side)])
    blob = None
    if kind == "benign":
        blob = Blob.draw(rng, middle, float(rng.uniform(60, 170)), bumps=3, height=0.12, sharpness=3, elongation=0.03)
        ratio = rng.uniform(1.2, 1.6) ** 0.5
        blob = _stretched(blob, (1 / ratio, ratio))
    elif kind == "malignant":
        blob = Blob.draw(rng, middle, float(rng.uniform(60, 190)), bumps=26, height=0.5, sharpness=60, elongation=0.03)
        ratio = rng.uniform(1.0, 1.3) ** 0.5
        blob = _stretched(blob, (ratio, 1 / ratio))
    table = {"class": kind, "lesion_mm2": round(blob.volume(), 2) if blob else 0.0, "centre": centre}
    return Scene(table, {"blob": blob, "kind": kind}, source=f"centre {centre}")


def _centre(who: Who, rng: np.random.Generator) -> str:
    """Which centre a case is from; 'external': the test cases are all from one that no training or validation case is from."""
    asked = who.options["centre"]
    if asked == "mixed":
        return "ABC"[int(rng.integers(3))]
    if asked == "external":
        drawn = "AB"[int(rng.integers(2))]
        return "C" if who.split == "test" else drawn
    return asked


def _stretched(blob: Blob, stretch: tuple[float, float]) -> Blob:
    return Blob(blob.centre, blob.bumps, blob.heights, blob.sharpness, np.array(stretch), blob.size)


def render(who: Who, scene: Scene) -> Drawing:
    """One picture (1, 160, 160) uint8."""
    rng, blob = who.rng(1), scene.parts["blob"]
    width, gain, span = CENTRES[scene.table["centre"]]
    grid = centred((SIDE, SIDE), PIXEL, ((SIDE - 1) * PIXEL / 2, 0))
    at = world(grid)
    sector = who.options["geometry"] == "sector"
    echo_db = ndimage.map_coordinates(_tissue(at, scene, rng), _beams(grid) if sector else np.indices(grid.shape), order=1, mode="nearest")
    amplitude = 10 ** (echo_db / 20)
    scatter = (rng.standard_normal((2, *grid.shape), dtype=np.float32) * amplitude).astype(np.float32)
    lateral = 0.32 * width * (1 + 0.5 * np.abs(np.arange(SIDE) * PIXEL - 16) / 24)  # by depth, mm
    echo = ndimage.gaussian_filter1d(scatter, 0.16 * width / PIXEL, axis=1)
    echo = _blur_across(echo, lateral / PIXEL)
    strength = np.hypot(*echo) * np.sqrt(width * 0.16 * lateral[:, None]) / PIXEL * 3.5
    db = 20 * np.log10(np.maximum(strength, 1e-4)) + gain
    roi = np.ones(grid.shape, bool)
    if sector:
        r, angle = np.hypot(at[0] - APEX, at[1]), np.arctan2(at[1], at[0] - APEX)
        index = np.stack([(r + APEX) / PIXEL, (angle / OPENING + 1) * (SIDE - 1) / 2])
        db = ndimage.map_coordinates(db, index, order=1, mode="nearest")
        roi = (np.abs(angle) < OPENING) & (r + APEX > 0) & (r + APEX < (SIDE - 1) * PIXEL)
    image = np.clip(1 + (db - 15) / span, 0, 1) * roi + 0.004 * rng.standard_normal(grid.shape)
    label = (blob.distance(at) < 0) & roi if blob else np.zeros(grid.shape, bool)
    pixels = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
    return Drawing(grid, {"US": pixels[None]}, {"reference": label.astype(np.int16)}, {"sector": roi.astype(np.int16)})


def _beams(grid: Geometry) -> np.ndarray:
    """(2, 160, 160) pixel indices of the points (range, angle) that the sector probe samples."""
    r = np.arange(SIDE)[:, None] * PIXEL - APEX
    angle = (np.arange(SIDE)[None] * 2 / (SIDE - 1) - 1) * OPENING
    return np.stack([(r * np.cos(angle) + APEX - grid.origin[0]) / PIXEL, (r * np.sin(angle) - grid.origin[1]) / PIXEL])


def _tissue(at: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Mean echo (dB) on the picture's grid, shadows included."""
    shape, depth = at.shape[1:], at[0]
    wave = lambda sd, size: sd * field(rng, (SIDE,), size)[None]
    fat, gland, muscle = 5.5 + wave(0.8, 14), 10 + wave(2.2, 12), 29 + wave(1.2, 20)
    db = np.full(shape, -22.0)
    db = np.where(depth > fat, -12 + 2 * field(rng, shape, 5), db)
    septa = np.abs(field(rng, shape, (5, 9))) < 0.06
    db = np.where((depth > fat - 3) & (depth < gland) & septa, -6, db)
    streaks = field(rng, shape, (2, 8))
    db = np.where(depth > gland, -9 + 2.5 * streaks, np.where(depth > 1.8, np.where(depth < gland, np.where(septa, -7, -18), db), db))
    db = np.where(depth > muscle, -15 + 3.5 * np.sin(2 * np.pi * (depth - muscle) / 2.6 + streaks), db)
    db = np.where(np.abs(depth - muscle) < 0.5, 0, db)
    db = np.where(depth < 1.8, -4, db)
    db = np.where(depth < 0.5, -30, db)
    blob, kind = scene.parts["blob"], scene.parts["kind"]
    if blob is None:
        return db
    d = blob.distance(at)
    inside = coverage(d, 2 * PIXEL)
    halo = (2.2, 5.0) if kind == "malignant" else (0.5, 4.0)  # width mm, dB
    db = db + halo[1] * np.exp(-((np.maximum(d, 0) / halo[0]) ** 2)) * (d > 0)
    core = (-29 if kind == "benign" else -27) + 2 * field(rng, shape, 3)
    db = db * (1 - inside) + core * inside
    chord = np.cumsum(d < 0, axis=0) * PIXEL
    behind = ndimage.gaussian_filter(np.where(d > 0, np.clip(chord / 8, 0, 1), 0), (1, 3))
    return db + (4.0 if kind == "benign" else -9.0) * behind


def _blur_across(echo: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Gaussian blur along the last axis whose sd (px) depends on the row: between four blurred copies, linearly."""
    levels = np.linspace(sd.min(), sd.max() + 1e-6, 4)
    copies = np.stack([ndimage.gaussian_filter1d(echo, s, axis=2) for s in levels])
    place = (sd - levels[0]) / (levels[-1] - levels[0]) * 3
    low = np.minimum(place.astype(int), 2)
    rows, share = np.arange(len(sd)), (place - low)[None, :, None]
    take = lambda k: np.moveaxis(copies[k, :, rows], 0, 1)
    return (1 - share) * take(low) + share * take(low + 1)


PHANTOMS = (
    Phantom(
        name="ultrasound",
        title="Breast ultrasound: speckle, benign and malignant lesions, normal scans",
        dims=2,
        modality="US",
        channels=("US",),
        labels=("background", "lesion"),
        splits=(48, 12, 24),
        rois=("sector",),
        given=("centre",),
        targets={"class": {"kind": "nominal", "levels": list(CLASSES)}},
        text="160 x 160 pixels of 0.25 mm from three centres with different point spread and gain; one scan in five is normal.",
        options={
            "centre": Option(
                "mixed", ("mixed", "A", "B", "C", "external"), "point spread and gain; external: A and B, but C in test cases"
            ),
            "geometry": Option("linear", ("linear", "sector"), "the probe"),
        },
        sketch=sketch,
        render=render,
    ),
)
