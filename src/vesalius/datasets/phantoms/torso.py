"""torso-ct, torso-mr: an upper abdomen with asymmetric organs, in Hounsfield units or as an MR signal.

Anatomy (mm, RAS+; +x is the patient's right). Elliptic trunk with skin, subcutaneous fat, muscle wall and a cavity of visceral fat and
bowel; lung bases under a dome; liver (right, large), spleen (left, behind), two kidneys (the right one lower), vertebral column (bodies,
discs, canal), aorta, stomach with a gas bubble. Organs are lobulated star-shaped solids of known volume; subjects differ in size, place
and shape. With ``lesions`` about seven in ten livers hold 1-4 lesions of 0.4-3 mL.

CT: tissue HU mixed by the share of each voxel (partial volume), texture sd 5 HU, Gaussian blur of 0.4 voxel, noise of sd 14 HU correlated
over 0.6 voxel; liver 100, spleen 118, kidney 170 with darker medulla, lesions 60, bone 180-420 HU. MR (T2-like, arbitrary units, fat
bright): S = tissue x exp(0.25 f), f the coil's smooth field of sd 1, seen through Rician noise |S + n1 + i n2| of sd 18; CT and MR orders
differ (liver darkest of the organs in MR, lesions bright). Slices are 4, 5 or 6 mm apart over the same field; stored LPS, RAS or ASL.

CT and MR cases are different subjects; ``paired=True`` gives both channels of one subject. Partial labels by source are the common option
``annotated``. Known answers: mL by organ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.errors import UsageError
from .forms import Blob, capsule, centred, coverage, ellipsoid, field, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

PLANE, IN_PLANE, HEIGHT = (76, 60), 4.2, 216.0
ORGANS = ("liver", "right kidney", "left kidney", "spleen", "vertebra")
PLACE = {"liver": (64, 14, 24), "right kidney": (56, -44, -52), "left kidney": (-56, -46, -34), "spleen": (-88, -30, 38)}
VOLUME = {"liver": 950e3, "right kidney": 150e3, "left kidney": 160e3, "spleen": 210e3}  # mm^3
STRETCH = {"liver": (1.05, 0.98, 0.97), "right kidney": (0.82, 0.8, 1.52), "left kidney": (0.82, 0.8, 1.52), "spleen": (0.72, 1.15, 1.21)}
# grey values by tissue: HU, and T2-like signal
VALUES = {
    "CT": dict(air=-1000, skin=20, fat=-105, muscle=55, bowel=35, lung=-820, liver=100, kidney=170, spleen=118, bone=180, cortex=420,
               aorta=190, lesion=58, medulla=125, disc=75, canal=25),
    "MR": dict(air=0, skin=260, fat=720, muscle=170, bowel=430, lung=25, liver=250, kidney=520, spleen=440, bone=360, cortex=90, aorta=60,
               lesion=480, medulla=640, disc=300, canal=800),
}  # fmt: skip


def sketch_ct(who: Who) -> Scene:
    return _sketch(who, 0)


def sketch_mr(who: Who) -> Scene:
    return _sketch(who, 0 if who.options["paired"] else 50)


def _sketch(who: Who, stream: int) -> Scene:
    rng = who.rng(stream)
    size = rng.normal(1, 0.05)
    blobs = {}
    for name, place in PLACE.items():
        volume = VOLUME[name] * size**3 * float(np.exp(rng.normal(0, 0.12)))
        kidney = "kidney" in name
        blob = Blob.draw(rng, np.array(place) * size + rng.normal(0, 3, 3), volume, bumps=6, height=0.12 if kidney else 0.55, sharpness=3.0)
        blobs[name] = replace(blob, stretch=_product_one(np.array(STRETCH[name]) * np.exp(rng.normal(0, 0.04, 3))))
    lesions: list[Blob] = []
    if who.options["lesions"] and rng.uniform() < 0.7:
        liver = blobs["liver"]
        for _ in range(int(rng.integers(1, 5))):
            u = rng.standard_normal(3)
            middle = liver.centre + 0.62 * rng.uniform() ** (1 / 3) * (liver.rim((u / np.linalg.norm(u))[None])[0] - liver.centre)
            if all(np.linalg.norm(middle - b.centre) > 22 for b in lesions):
                lesions.append(Blob.draw(rng, middle, float(np.exp(rng.uniform(np.log(400), np.log(3000))))))
    extra = sum(b.volume() for b in lesions)
    table = {f"{n.replace(' ', '_')}_ml": round(b.volume() / 1000, 2) for n, b in blobs.items()}
    table["liver_ml"] = round((blobs["liver"].volume() - extra) / 1000, 2)
    if who.options["lesions"]:
        table |= {"lesions": len(lesions), "lesion_ml": round(extra / 1000, 3)}
    return Scene(table, {"size": size, "blobs": blobs, "lesions": lesions, "stream": stream})


def _product_one(stretch: np.ndarray) -> np.ndarray:
    return stretch / np.prod(stretch) ** (1 / 3)


def render_ct(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, ("CT", "MR") if who.options["paired"] else ("CT",))


def render_mr(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, ("CT", "MR") if who.options["paired"] else ("MR",))


def _render(who: Who, scene: Scene, channels: tuple[str, ...]) -> Drawing:
    p, rng = scene.parts, who.rng(scene.parts["stream"] + 1)
    apart = float(rng.choice([4.0, 5.0, 6.0]))
    grid = centred((*PLANE, int(HEIGHT / apart)), (IN_PLANE, IN_PLANE, apart))
    at = world(grid)
    shares, label = _anatomy(at, p, rng, (IN_PLANE + apart) / 2)
    if not who.options["organs"]:
        label = (label > len(ORGANS)).astype(label.dtype)
    images = {c: (_ct if c == "CT" else _mr)(shares, grid.shape, rng) for c in channels}
    centre = rng.normal(0, 40, 3).round(1)
    grid = centred(grid.shape, grid.spacing, centre)
    code = str(rng.choice(["LPS", "RAS", "ASL"]))
    grid, arrays = stored_as(code, grid, pair_arrays(images, {"reference": label}))
    return Drawing(grid, **split_arrays(arrays))


def _anatomy(
    at: np.ndarray, p: Mapping[str, Any], rng: np.random.Generator, width: float
) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """The tissues as (name, share of voxel) in painting order, later over earlier, and the label map."""
    shape, s = at.shape[1:], p["size"]
    flat = at.copy()
    flat[2] = 0
    trunk = ellipsoid(flat, (0, 0, 0), (148 * s, 108 * s, 1e3))
    wall = trunk + 15 * s + 6 * np.abs(np.sin(np.arctan2(at[1], at[0]))) + 2 * field(rng, shape, 4)
    cavity = wall + 13
    spine = np.hypot(at[0], at[1] + 62 * s)
    paint = [
        ("skin", coverage(trunk, width)),
        ("fat", coverage(trunk + 4, width)),
        ("muscle", coverage(wall, width)),
        ("fat", coverage(cavity, width)),
    ]
    back = coverage(np.minimum(ellipsoid(flat, (38, -72 * s, 0), (26, 20, 1e3)), ellipsoid(flat, (-38, -72 * s, 0), (26, 20, 1e3))), width)
    paint.append(("muscle", back))
    loops = coverage(cavity + 8, width) * (at[1] > -30) / (1 + np.exp(-4 * (field(rng, shape, 2.5) + 0.1 - at[2] / 60)))
    paint.append(("bowel", loops))
    dome = np.minimum(*[ellipsoid(at, (side * 64 * s, -8, 118), (58 * s, 74 * s, 62)) for side in (-1, 1)])
    paint.append(("lung", coverage(np.maximum(dome, cavity), width)))
    stomach = ellipsoid(at, (-62 * s, 38, 42), (36, 30, 42))
    paint += [("bowel", coverage(stomach, width)), ("air", coverage(np.maximum(stomach + 4, 56 - at[1]), width))]
    paint.append(("aorta", coverage(np.hypot(at[0] + 10, at[1] + 24 * s) - 9, width)))
    body = spine - 20 * s
    ring = (at[2] + 300) % 32 - 16
    paint += [
        ("cortex", coverage(body, width)),
        ("bone", coverage(body + 3.5, width)),
        ("disc", coverage(np.maximum(body + 2, np.abs(ring) - 3.5), width)),
    ]
    process = np.minimum(capsule(flat, (0, -82 * s, 0), (0, -98 * s, 0), 5), capsule(flat, (-24, -84 * s, 0), (24, -84 * s, 0), 4.5))
    process = np.maximum(process, 11 - np.abs(np.abs(ring) - 2))
    paint += [("cortex", coverage(process, width) * 0.8), ("canal", coverage(np.hypot(at[0], at[1] + 88 * s) - 7, width))]
    label = np.zeros(shape, np.int16)
    label[np.maximum(body, 3.5 - np.abs(ring)) < 0] = ORGANS.index("vertebra") + 1
    for name in ("spleen", "liver", "right kidney", "left kidney"):
        d = p["blobs"][name].distance(at)
        tissue = name.split()[-1]
        paint.append((tissue, coverage(d, width)))
        if tissue == "kidney":
            inner = np.abs(field(rng, shape, 1.5)) < 0.7
            paint.append(("medulla", coverage(d + 9, width) * inner))
        label[d < 0] = ORGANS.index(name) + 1
    for b in p["lesions"]:
        d = b.distance(at)
        paint.append(("lesion", coverage(d, width)))
        label[(d < 0) & (label == 1)] = len(ORGANS) + 1
    return paint, label


def _mix(shares, values: Mapping[str, float], shape) -> np.ndarray:
    out = np.full(shape, float(values["air"]), np.float32)
    for name, share in shares:
        out += (values[name] - out) * share
    return out


def _ct(shares, shape, rng: np.random.Generator) -> np.ndarray:
    x = _mix(shares, VALUES["CT"], shape)
    x += 5 * field(rng, shape, 1.5) * (x > -200)
    x = ndimage.gaussian_filter(x, 0.4)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.6)
    return np.clip(np.round(x + 14 * grain / grain.std()), -1024, 3071).astype(np.int16)[None]


def _mr(shares, shape, rng: np.random.Generator) -> np.ndarray:
    x = ndimage.gaussian_filter(_mix(shares, VALUES["MR"], shape) * (1 + 0.04 * field(rng, shape, 1.5)), 0.4)
    x = x * np.exp(0.25 * field(rng, shape, max(shape) / 3))
    n = rng.standard_normal((2, *shape), dtype=np.float32) * 18
    return np.clip(np.round(np.hypot(x + n[0], n[1])), 0, 4095).astype(np.uint16)[None]


def _adapt(phantom: Phantom, options: Mapping[str, Any]) -> Phantom:
    labels, mirror = (*phantom.labels, "lesion") if options["lesions"] else phantom.labels, phantom.mirror
    if not options["organs"]:
        if not options["lesions"]:
            raise UsageError("without organs and lesions nothing is labelled", where=phantom.name, fix="say lesions=true too")
        labels, mirror = ("background", "lesion"), ()
    channels, modality = (("CT", "MR"), "CT+MR") if options["paired"] else (phantom.channels, phantom.modality)
    return replace(phantom, labels=labels, channels=channels, modality=modality, mirror=mirror)


_SHARED = dict(
    dims=3,
    labels=("background", *ORGANS),
    splits=(20, 5, 10),
    mirror=(("right kidney", "left kidney"),),
    options={
        "paired": Option(False, bool, "CT and MR of the same subject, on one grid"),
        "lesions": Option(False, bool, "a further class: small liver lesions; some cases have none"),
        "organs": Option(True, bool, "label the organs; false: the lesions alone"),
    },
    adapt=_adapt,
)
PHANTOMS = (
    Phantom(
        name="torso-ct",
        title="Abdominal CT: liver, kidneys, spleen, vertebrae",
        modality="CT",
        channels=("CT",),
        text="""76 x 60 voxels of 4.2 mm, slices of 4-6 mm, mixed orientations. Partial labels by source:
        annotated='liver|right kidney,left kidney'.""",
        sketch=sketch_ct,
        render=render_ct,
        **_SHARED,
    ),
    Phantom(
        name="torso-mr",
        title="Abdominal MR (T2-like): liver, kidneys, spleen, vertebrae",
        modality="MR",
        channels=("MR",),
        text="Other subjects than torso-ct (unpaired), with coil bias and Rician noise.",
        sketch=sketch_mr,
        render=render_mr,
        **_SHARED,
    ),
)
