"""abus: an automated 3D breast ultrasound sweep with one lesion, smooth (benign) or spiculated (malignant), and shadows that look like it.

Physics as in ``ultrasound``, coarser: echoes are a complex Gaussian field times the root of the local echogenicity, blurred by a point
spread that is narrow along the beam and wide across and along the sweep; attenuation is undone by the time gain except behind what
absorbs. The picture is the log of the echo over the dynamic range, uint8. Stored LPS: across, into the depth (backwards), along the sweep.

Anatomy from the skin down: skin, fat lobes, gland, muscle with its bright fascia; the nipple's and one to three ligaments' acoustic
shadows are columns as dark as a lesion but without a lower border. Benign: smooth, wider than deep, enhancement behind. Malignant:
spiculated, deeper than wide, bright halo, shadow behind. Both draw the same sizes and echo levels, so that neither alone tells them apart.

Known answers: ``malignant`` (0, 1), ``lesion_mm3``, ``shadows``; boxes 'lesion'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.case import Boxes, Case
from ...core.geometry import Geometry
from ...core.manifest import CaseRef, Manifest
from .forms import Blob, coverage, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SHAPE, SPACING = (64, 64, 48), (1.0, 0.6, 1.2)  # voxels; mm across, deep, along the sweep
GAIN, SPAN = (9.0, 15.0), (44.0, 56.0)  # dB above the noise, dB from black to white: the operator's settings
SHADOW = ((6, 58), (3, 9), (6, 52), (2, 4), (9, 20))  # across, upper end, along the sweep, width (mm), loss (dB): ranges


def sketch(who: Who) -> Scene:
    """The lesion, and where the shadows fall."""
    rng = who.rng()
    malignant = bool(rng.uniform() < 0.5)
    low, high = np.array([14.0, 11.0, 12.0]), np.array([50.0, 22.0, 46.0])
    middle = rng.uniform(low, high)
    volume = float(np.exp(rng.uniform(np.log(300), np.log(1600))))
    if malignant:
        blob = Blob.draw(rng, middle, volume, bumps=40, height=0.7, sharpness=40, elongation=0.03)
    else:
        blob = Blob.draw(rng, middle, volume, bumps=4, height=0.12, sharpness=3, elongation=0.03)
    ratio = float(rng.uniform(1.1, 1.4))
    stretch = np.array([1.0, ratio, 1.0] if malignant else [1.0, 1 / ratio, 1.0])
    blob = replace(blob, stretch=stretch / np.prod(stretch) ** (1 / 3))
    number = int(rng.integers(1, 4)) if who.options["shadows"] else 0
    shadows = [tuple(float(rng.uniform(*r)) for r in SHADOW) for _ in range(number)]
    table = {"malignant": int(malignant), "lesion_mm3": round(blob.volume(), 1), "shadows": number}
    return Scene(table, {"blob": blob, "shadows": shadows})


def render(who: Who, scene: Scene) -> Drawing:
    """One volume (1, 64, 64, 48) uint8."""
    rng, blob = who.rng(1), scene.parts["blob"]
    grid = Geometry.of(SHAPE, SPACING, direction=np.diag([-1.0, -1.0, 1.0]))  # LPS: deeper is further back
    at = world(Geometry.of(SHAPE, SPACING))
    d = blob.distance(at)
    echo_db = _tissue(at, d, scene, rng)
    scatter = rng.standard_normal((2, *SHAPE), dtype=np.float32) * 10 ** (echo_db / 20)
    sd = (0.7, 0.35, 0.6)  # voxels: across, along the beam, along the sweep
    echo = ndimage.gaussian_filter(scatter.astype(np.float32), (0, *sd))
    strength = np.hypot(*echo) * np.sqrt(np.prod(sd)) * 4.0
    db = 20 * np.log10(np.maximum(strength, 1e-4)) + rng.uniform(*GAIN)
    image = np.clip(1 + (db - 12) / rng.uniform(*SPAN), 0, 1)
    pixels = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
    return Drawing(grid, {"ABUS": pixels[None]}, {"reference": (d < 0).astype(np.int16)})


def _tissue(at: np.ndarray, d: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Mean echo (dB) of every voxel, shadows included; ``d`` is the signed distance (mm) to the lesion."""
    shape, depth = at.shape[1:], at[1]
    wave = lambda sd: sd * field(rng, (shape[0], shape[2]), 10)[:, None]
    fat, gland, muscle = 5.0 + wave(0.6), 8.5 + wave(1.0), 29 + wave(1.2)
    streaks = field(rng, shape, (4, 1.5, 4))
    db = np.where(depth > gland, -9 + 2.5 * streaks, np.where(depth > fat, -15 + 2 * streaks, -6))
    db = np.where(depth > muscle, -14 + 3 * np.sin(2 * np.pi * (depth - muscle) / 3.0 + streaks), db)
    db = np.where(np.abs(depth - muscle) < 0.8, 0, db)
    db = np.where(depth < 1.8, -3, db)
    for across, start, along, width, loss in scene.parts["shadows"]:
        column = np.exp(-(((at[0] - across) / width) ** 2 + ((at[2] - along) / (1.5 * width)) ** 2))
        db = db - loss * np.clip(column * 1.4, 0, 1) / (1 + np.exp(-(depth - start) / 1.5))
    malignant, inside = bool(scene.table["malignant"]), coverage(d, 1.0)
    if malignant:
        db = db + 4 * np.exp(-((np.maximum(d, 0) / 2.0) ** 2)) * (d > 0)
    db = db * (1 - inside) + (-28 + 2 * field(rng, shape, 2)) * inside
    chord = np.cumsum(d < 0, axis=1) * SPACING[1]
    behind = ndimage.gaussian_filter(np.where(d > 0, np.clip(chord / 8, 0, 1), 0), (1, 1, 1))
    return db + (-7.0 if malignant else 3.0) * behind


@dataclass(frozen=True)
class BoxedPhantom(Phantom):
    """A phantom whose labelled cases also have the box of their one lesion, as an annotation."""

    def open(self, cases: Any, seed: int, given: dict[str, Any]) -> Manifest:
        manifest = super().open(cases, seed, given)
        where = lambda ref: {"lesion": ref.labels["reference"].replace("#reference", "#lesion")} if ref.labels else {}
        refs = tuple(replace(ref, boxes=where(ref)) for ref in manifest.cases)
        return replace(manifest, cases=refs, built_in=Boxed(manifest.built_in))


@dataclass(frozen=True, repr=False)
class Boxed:
    """CaseRef -> Case with the reference's box (world mm, outer voxel faces) where the row names one."""

    draw: Callable[[CaseRef], Case]

    def __repr__(self) -> str:  # the same in every process: caches go by it
        return f"Boxed({self.draw!r})"

    def __call__(self, ref: CaseRef) -> Case:
        case = self.draw(ref)
        if not ref.boxes:
            return case
        at = np.argwhere(case.labels["reference"].data == 1)
        low, high = case.geometry.world_bounds(at.min(0) - 0.5, at.max(0) + 0.5)
        return replace(case, boxes={"lesion": Boxes(low[None], high[None], ("lesion",))})


PHANTOMS = (
    BoxedPhantom(
        name="abus",
        title="Automated 3D breast ultrasound: one lesion, benign or malignant, and distracting shadows",
        dims=3,
        modality="US",
        channels=("ABUS",),
        labels=("background", "lesion"),
        splits=(40, 8, 24),
        targets={"malignant": {"kind": "binary", "levels": ["0", "1"]}},
        text="64 x 64 x 48 voxels of 1.0 x 0.6 x 1.2 mm (across, deep, along the sweep).",
        options={"shadows": Option(True, bool, "acoustic shadows that look like lesions")},
        sketch=sketch,
        render=render,
    ),
)
