"""brain-mr: a head in T1 and FLAIR with grey matter, white matter, CSF and white-matter lesions.

Anatomy (mm, RAS+). Nested ellipsoids: scalp (fat), skull (no signal), CSF, brain. Sulci are the zero sheets of a smooth random field
within 20 mm of the brain's surface, filled with CSF and lined by 3-4 mm of cortex; deep grey nuclei and two curved lateral ventricles
inside; the two hemispheres are parted by a fissure. One to six lesions (some cases none, share ``healthy``) of 0.15-2 mL lie in white
matter near the ventricles.

Signal. T1 and FLAIR values by tissue (arbitrary units) are mixed by voxel share and blurred by 0.4 voxel; both channels are multiplied by
one coil field exp(0.2 f) and seen through Rician noise |S + n1 + i n2| of sd 3 % of white matter. Lesions are dark in T1 and bright in
FLAIR; ``anisotropic`` averages thin slices to 5 mm. Known answers: ``lesions``, ``lesion_ml``, ``healthy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.geometry import Geometry
from .forms import Blob, apart, centred, coverage, ellipsoid, field, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SHAPE, MM = (72, 88, 64), 2.5
TISSUES = ("csf", "grey matter", "white matter")
VALUES = {  # T1, FLAIR
    "air": (0, 0), "scalp": (900, 560), "skull": (60, 40), "csf": (150, 70), "grey": (480, 520), "white": (720, 420), "deep": (580, 500),
    "lesion": (440, 800),
}  # fmt: skip


def sketch(who: Who) -> Scene:
    """Head size, ventricles and lesions."""
    rng = who.rng()
    radii = np.array([66, 84, 62]) * rng.normal(1, 0.03, 3)
    wide = rng.uniform(0.8, 1.5)
    healthy = bool(rng.uniform() < who.options["healthy"])
    count = 0 if healthy else int(rng.integers(1, 7))
    volumes = np.exp(rng.uniform(np.log(150), np.log(2000), count))

    def near_ventricle() -> np.ndarray:
        side = rng.choice([-1, 1])
        return np.array([side * rng.uniform(22, 34), rng.uniform(-38, 34), rng.uniform(2, 22)])

    reach = 1.4 * (3 * volumes / (4 * np.pi)) ** (1 / 3)
    places = apart(count, reach, near_ventricle, 1.0)
    lesions = [Blob.draw(rng, c, float(v), elongation=0.3, height=0.5) for c, v in zip(places, volumes, strict=False)]
    volume = sum(b.volume() for b in lesions)
    table = {"lesions": len(lesions), "lesion_ml": round(volume / 1000, 3), "healthy": int(healthy)}
    return Scene(table, {"radii": radii, "wide": wide, "lesions": lesions})


def render(who: Who, scene: Scene) -> Drawing:
    """T1 and FLAIR on one grid: uint16."""
    p, rng = scene.parts, who.rng(1)
    grid = centred(SHAPE, MM)
    at = world(grid)
    shares, label = _anatomy(at, p, rng)
    lesion = np.zeros(SHAPE, bool)
    for b in p["lesions"]:
        d = b.distance(at)
        shares.append(("lesion", coverage(d, MM)))
        lesion |= d < 0
    signal = np.zeros((2, *SHAPE), np.float32)
    for name, share in shares:
        signal += (np.array(VALUES[name], np.float32).reshape(2, 1, 1, 1) - signal) * share
    signal = ndimage.gaussian_filter(signal, (0, 0.4, 0.4, 0.4)) * np.exp(0.2 * field(rng, SHAPE, 24))
    label = np.where(lesion, 4, label) if who.options["tissues"] else lesion.astype(np.int16)
    if who.options["anisotropic"]:
        grid, signal, label = _thick(grid, signal, label)
    n = rng.standard_normal((2, *signal.shape), dtype=np.float32) * 20
    signal = np.clip(np.round(np.hypot(signal + n[0], n[1])), 0, 4095).astype(np.uint16)
    images = {"T1": signal[:1], "FLAIR": signal[1:]}
    grid = Geometry.of(grid.shape, grid.spacing, origin=np.add(grid.origin, rng.normal(0, 15, 3).round(1)))
    grid, arrays = stored_as(str(rng.choice(["LPS", "RAS", "PSR"])), grid, pair_arrays(images, {"reference": label}))
    return Drawing(grid, **split_arrays(arrays))


def _anatomy(at: np.ndarray, p: Mapping[str, Any], rng: np.random.Generator) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """Tissues as (name, share) in painting order, and the tissue label map (1 CSF, 2 grey, 3 white)."""
    radii = p["radii"]
    brain = ellipsoid(at, (0, 0, 0), radii)
    base = np.maximum(brain, -46 - at[2])
    fissure = np.abs(at[0] + 1.5 * field(rng, SHAPE, 8)) - 1.2
    fissure = np.where((at[2] > 18) | (np.abs(at[1]) > 48), fissure, 9.0)
    depth = -base
    folds = np.abs(field(rng, SHAPE, 2.4))
    groove = np.where(depth < 20 + 4 * field(rng, SHAPE, 6), folds * 6.0, 9.0)  # about mm from the sheet's middle
    sulcus = np.minimum(groove - 1.0, fissure)
    cortex = np.minimum.reduce([depth - 4.0, groove - 4.4, fissure - 3.5])
    horn = [ellipsoid(at, (s * 12, -4, 10), np.array([6.5 * p["wide"], 30, 9])) for s in (-1, 1)]
    ventricle = np.minimum(*horn)
    deep = np.minimum(*[ellipsoid(at, (s * 19, 2, -4), (8, 15, 10)) for s in (-1, 1)])
    csf = np.minimum(np.maximum(sulcus, base), ventricle)
    paint = [
        ("scalp", coverage(brain - 14, MM)),
        ("skull", coverage(brain - 9, MM)),
        ("csf", coverage(np.maximum(brain - 3, -49 - at[2]), MM)),
        ("white", coverage(base, MM)),
        ("grey", coverage(np.maximum(cortex, base), MM)),
        ("deep", coverage(deep, MM)),
        ("csf", coverage(csf, MM)),
    ]
    label = np.zeros(SHAPE, np.int16)
    label[np.maximum(brain - 3, -49 - at[2]) < 0] = 1
    label[base < 0] = 3
    label[(np.maximum(cortex, base) < 0) | (deep < 0)] = 2
    label[csf < 0] = 1
    return paint, label


def _thick(grid: Geometry, signal: np.ndarray, label: np.ndarray) -> tuple[Geometry, np.ndarray, np.ndarray]:
    """Two slices averaged to one; a label voxel takes the larger of the two."""
    x, y, z = grid.shape
    thick = grid.resized((x, y, z // 2))
    return thick, signal.reshape(2, x, y, z // 2, 2).mean(-1), label.reshape(x, y, z // 2, 2).max(-1)


def _adapt(phantom: Phantom, options: Mapping[str, Any]) -> Phantom:
    return replace(phantom, labels=("background", *TISSUES, "lesion")) if options["tissues"] else phantom


PHANTOMS = (
    Phantom(
        name="brain-mr",
        title="Brain MR, T1 and FLAIR, with white-matter lesions",
        dims=3,
        modality="MR",
        channels=("T1", "FLAIR"),
        labels=("background", "lesion"),
        splits=(20, 5, 10),
        text="72 x 88 x 64 voxels of 2.5 mm, mixed orientations, coil field and Rician noise; one case in six has no lesion.",
        options={
            "tissues": Option(False, bool, "further classes: csf, grey matter, white matter"),
            "anisotropic": Option(False, bool, "slices of 5 mm"),
            "healthy": Option(1 / 6, float, "share of cases without lesions"),
        },
        sketch=sketch,
        render=render,
        adapt=_adapt,
    ),
)
