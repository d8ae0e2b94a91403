"""prostate-zones: a gland of four zones in axial T2-weighted slices, two of them large and two thin.

Anatomy (mm, RAS+). The gland is an ellipsoid of about 45 x 33 x 31 mm. The transition zone (TZ) is an ellipsoid in its front, grown more in
some subjects than in others; the anterior fibromuscular stroma (AFS) a cap 2.5 to 4 mm thick in front of it, missing in the share
``no_afs`` of cases; the distal urethra (DPU) a tube of 6 mm from the middle down to the apex; the peripheral zone (PZ) is the rest. So PZ
and TZ share a long border, and DPU and AFS are in few slices.

Signal (T2-like): PZ 480, TZ 330 with nodules of sd 60, DPU 260, AFS 190, outside fat 350 and muscle 160 in smooth patches. Mixed by the
share of each voxel, blurred by 0.4 voxel, multiplied by exp(0.2 f) with the coil's smooth field f of sd 1, seen through Rician noise
|S + n1 + i n2| of sd ``noise``. 48 x 48 x 12 voxels of 1.25 x 1.25 x 3 mm, stored LPS, RAS or LAS. Known answers: mL of the gland, mm of
the AFS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from .forms import capsule, centred, coverage, ellipsoid, field, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SHAPE, SPACING = (48, 48, 12), (1.25, 1.25, 3.0)
ZONES = ("PZ", "TZ", "DPU", "AFS")
SIGNAL = {"PZ": 480.0, "TZ": 330.0, "DPU": 260.0, "AFS": 190.0, "fat": 350.0, "muscle": 160.0}


def sketch(who: Who) -> Scene:
    rng = who.rng()
    radii = np.array([22.5, 16.5, 15.5]) * rng.normal(1, 0.06) * np.exp(rng.normal(0, 0.04, 3))
    centre = rng.normal(0, 1.2, 3)
    grown = rng.uniform(0.55, 0.75)
    afs = 0.0 if rng.uniform() < who.options["no_afs"] else float(rng.uniform(2.5, 4.0))
    parts: dict[str, Any] = {
        "gland": (centre, radii),
        "TZ": (centre + radii * (0, 1 - grown - 0.1, 0.1), radii * (grown + 0.08, grown, grown + 0.05)),
        "DPU": (centre + radii * (0, -0.1, -0.1), centre + radii * (0, 0.1, -0.9), rng.uniform(2.7, 3.3)),
        "AFS": (afs, rng.uniform(8, 11)),
    }
    table = {"gland_ml": round(float(4 / 3 * np.pi * np.prod(radii)) / 1000, 2), "afs_mm": round(afs, 2)}
    return Scene(table, parts)


def render(who: Who, scene: Scene) -> Drawing:
    rng, p = who.rng(1), scene.parts
    grid = centred(SHAPE, SPACING)
    at = world(grid)
    solids = _zones(at, p)
    label, width = np.zeros(SHAPE, np.int16), float(np.mean(SPACING))
    signal = np.where(field(rng, SHAPE, (5, 5, 2)) > 0.3, SIGNAL["muscle"], SIGNAL["fat"]).astype(np.float32)
    for name, distance in solids.items():
        tissue = SIGNAL[name] + (60 * field(rng, SHAPE, (2.0, 2.0, 0.8)) if name == "TZ" else 0)
        signal += (tissue - signal) * coverage(distance, width)
        label[distance < 0] = ZONES.index(name) + 1
    signal = ndimage.gaussian_filter(signal, 0.4) * np.exp(0.2 * field(rng, SHAPE, (16, 16, 4)))
    n = rng.standard_normal((2, *SHAPE), dtype=np.float32) * float(who.options["noise"])
    image = np.clip(np.round(np.hypot(signal + n[0], n[1])), 0, 4095).astype(np.uint16)[None]
    grid, arrays = stored_as(str(rng.choice(["LPS", "RAS", "LAS"])), grid, pair_arrays({"T2": image}, {"reference": label}))
    return Drawing(grid, **split_arrays(arrays))


def _zones(at: np.ndarray, p: dict) -> dict[str, np.ndarray]:
    """Signed distances (mm) of the zones in painting order, later over earlier."""
    (centre, radii), (thick, half) = p["gland"], p["AFS"]
    gland = ellipsoid(at, centre, radii)
    front = np.maximum(centre[1] + 0.3 * radii[1] - at[1], np.abs(at[0] - centre[0]) - half)
    cap = np.maximum(np.maximum(gland, -(gland + thick)), front)
    inside = lambda distance: np.maximum(distance, gland)
    zones = {"PZ": gland, "TZ": inside(ellipsoid(at, *p["TZ"])), "AFS": cap, "DPU": inside(capsule(at, *p["DPU"]))}
    return zones if thick else {n: d for n, d in zones.items() if n != "AFS"}


PHANTOMS = (
    Phantom(
        name="prostate-zones",
        title="Prostate MR (T2-like): peripheral and transition zone, urethra, anterior stroma",
        dims=3,
        modality="MR",
        channels=("T2",),
        labels=("background", *ZONES),
        splits=(20, 5, 10),
        text="48 x 48 x 12 voxels of 1.25 x 1.25 x 3 mm around the gland, coil bias, Rician noise; the two thin zones are in few slices.",
        options={
            "no_afs": Option(0.1, float, "share of cases without anterior stroma"),
            "noise": Option(35.0, float, "sd of the noise, in units of the signal"),
        },
        sketch=sketch,
        render=render,
    ),
)
