"""chest-radiograph: a frontal chest projection by Beer-Lambert's law, with lungs, heart, ribs and things that imitate lung.

Shape. Right lung (44 points), left lung (50) and heart (26) are closed curves through hand-set control points; every subject moves them
by smooth modes (width, height, apex, diaphragm, heart size, tilt, small local noise). A periodic cubic spline through the control points
is read at fixed parameters, so point k corresponds between subjects. Patient right is on the image's left. World axes: (row, column) mm.

Physics. For every ray the thickness (mm) of soft tissue t_s, bone t_b and metal t_m is summed: body outline minus air in the lungs (its
depth falls to the lung border), spine, ribs (tubes denser at their walls), clavicles, heart, vessels, nodules. The primary beam is I =
exp(-0.019 t_s - 0.045 t_b - 0.3 t_m), scatter S = 0.6 I convolved with a Gaussian of sd 24 mm, detected N ~ Poisson(q min(I + S, 1)). The
image is -log N through a grey response: site 'A' linear, bone white, 0.5-99.5 percentile; site 'B' sigmoid (darker lungs) with a
collimated black border and fewer quanta. uint8.

Bait: a gas bubble under the left diaphragm, electrodes or a pacemaker with leads, and (share ``occluded``) a dense consolidation that
hides part of a lung, which the label keeps. Known answers: ``site``, ``nodules`` (round, 8-18 mm), ``nodule_mm``, ``device``,
``occluded``, lung areas (cm2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline

from .forms import Blob, capsule, centred, coverage, ellipsoid, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIZE, PIXEL = 160, 2.2  # px, mm
FIELD = SIZE * PIXEL
COUNTS = {"right_lung": 44, "left_lung": 50, "heart": 26}
# control points (row, column) in units of the field, (0, 0) top left
CONTROL = {
    "right_lung": (
        (0.13, 0.36), (0.16, 0.42), (0.27, 0.445), (0.40, 0.43), (0.52, 0.43), (0.63, 0.42), (0.70, 0.40), (0.685, 0.32),
        (0.72, 0.23), (0.77, 0.165), (0.68, 0.155), (0.55, 0.165), (0.40, 0.19), (0.27, 0.235), (0.17, 0.29),
    ),
    "left_lung": (
        (0.13, 0.64), (0.17, 0.71), (0.27, 0.765), (0.40, 0.81), (0.55, 0.835), (0.68, 0.845), (0.78, 0.835), (0.735, 0.77), (0.715, 0.72),
        (0.665, 0.725), (0.59, 0.695), (0.51, 0.63), (0.43, 0.575), (0.34, 0.565), (0.27, 0.555), (0.17, 0.58),
    ),
    "heart": (
        (0.38, 0.455), (0.375, 0.52), (0.42, 0.575), (0.50, 0.63), (0.585, 0.69), (0.665, 0.72), (0.71, 0.68), (0.715, 0.58),
        (0.715, 0.47), (0.665, 0.405), (0.58, 0.39), (0.47, 0.415),
    ),
}  # fmt: skip


def spline(control: np.ndarray, n: int) -> np.ndarray:
    """(n, 2) points of the periodic cubic spline through (m, 2) control points, at n equal steps of its parameter."""
    u = np.arange(len(control) + 1)
    return CubicSpline(u, np.vstack([control, control[:1]]), bc_type="periodic")(np.linspace(0, len(control), n, endpoint=False))


def area(outline: np.ndarray) -> float:
    """Area inside a polygon (n, 2)."""
    y, x = outline.T
    return float(abs(y @ np.roll(x, -1) - x @ np.roll(y, -1)) / 2)


def shapes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The subject's control points (mm) by structure: the mean shape moved by its modes."""
    wide, tall, tilt = rng.normal(1, 0.05), rng.normal(1, 0.06), rng.normal(0, 0.03)
    heart, dome = rng.normal(1, 0.09), rng.normal(0, 0.02, 2)
    shift = rng.normal(0, 0.015, 2)
    out = {}
    for name, mean in CONTROL.items():
        p = np.array(mean) - 0.46, np.array([0.0, 0.04])
        p = (p[0] - p[1]) * [tall, wide]
        low = np.clip((p[:, 0] - 0.12) / 0.2, 0, 1)[:, None]
        if name == "heart":
            middle = p.mean(0)
            p = middle + (p - middle) * [1 + 0.5 * (heart - 1), heart]
        else:
            p = p + low * [dome[int(name == "left_lung")], 0]
            medial = np.clip((p[:, 0] + 0.05) / 0.25, 0, 1)[:, None] * (np.abs(p[:, 1:]) < 0.23)
            p = p + medial * [0, (heart - 1) * 0.16 * (1 if name == "left_lung" else -1)]
        p = p + 0.006 * ndimage.gaussian_filter1d(rng.standard_normal(p.shape), 1, axis=0, mode="wrap") * 2
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        out[name] = (p @ turn.T + 0.48 + shift) * FIELD
    return out


def sketch(who: Who) -> Scene:
    """The subject's outlines, findings and devices, and the site."""
    rng = who.rng()
    control = shapes(rng)
    outlines = {n: spline(c, 600) for n, c in control.items()}
    site = "AB"[int(rng.integers(2))] if who.options["site"] == "mixed" else who.options["site"]
    nodules = []
    for _ in range(int(rng.integers(1, 3)) if rng.uniform() < who.options["nodules"] else 0):
        side = outlines[("right_lung", "left_lung")[int(rng.integers(2))]]
        middle = side.mean(0)
        nodules.append((middle + 0.6 * rng.uniform() * (side[int(rng.integers(600))] - middle), float(rng.uniform(8, 18))))
    device = str(rng.choice(["none", "none", "pacemaker", "electrodes"]))
    occluded = bool(rng.uniform() < who.options["occluded"])
    patch = None
    if occluded:
        side = outlines[("right_lung", "left_lung")[int(rng.integers(2))]]
        centre = side.mean(0) + [rng.uniform(-10, 55), rng.uniform(-15, 15)]
        patch = Blob.draw(rng, centre, float(rng.uniform(2500, 5500)), elongation=0.3)
    table = {
        "site": site,
        "nodules": len(nodules),
        "nodule": "yes" if nodules else "no",
        "nodule_mm": round(max((d for _, d in nodules), default=0.0), 2),
        "device": device,
        "occluded": int(occluded),
        "right_lung_cm2": round(area(outlines["right_lung"]) / 100, 2),
        "left_lung_cm2": round(area(outlines["left_lung"]) / 100, 2),
    }
    parts = {"control": control, "outlines": outlines, "nodules": nodules, "patch": patch, "size": rng.normal(1, 0.06)}
    return Scene(table, parts, source=f"site {site}")


def render(who: Who, scene: Scene) -> Drawing:
    """One radiograph."""
    from skimage.draw import polygon2mask

    rng, p = who.rng(1), scene.parts
    grid = centred((SIZE, SIZE), PIXEL, [(SIZE - 1) * PIXEL / 2] * 2)
    at = world(grid)
    masks = {n: polygon2mask(grid.shape, o / PIXEL) for n, o in p["outlines"].items()}
    lungs = masks["right_lung"] | masks["left_lung"]
    t_soft, t_bone, t_metal = _thickness(at, masks, p, rng)
    for centre, diameter in p["nodules"]:
        inside = np.maximum(1 - (((at - centre.astype(np.float32)[:, None, None]) / (diameter / 2)) ** 2).sum(0), 0)
        t_soft += 1.6 * diameter * np.sqrt(inside)
    if p["patch"] is not None:
        air = ndimage.gaussian_filter(lungs.astype(np.float32), 2)
        t_soft += 95 * ndimage.gaussian_filter(coverage(p["patch"].distance(at), 6.0), 2.0) * air
    t_soft, t_bone, t_metal = _devices(scene.table["device"], at, t_soft, t_bone, t_metal, rng)
    image = _expose(t_soft, t_bone, t_metal, scene.table["site"], rng)
    if who.options["structures"] == "organs":
        label = np.where(masks["right_lung"], 1, 0) + np.where(masks["left_lung"], 2, 0)
        label[masks["heart"]] = 3
    else:
        label = lungs & ~masks["heart"] if who.options["structures"] == "lung-without-heart" else lungs
    points = {n: spline(c, COUNTS[n]) for n, c in p["control"].items()}
    return Drawing(grid, {"XR": image[None]}, {"reference": np.asarray(label, np.int16)}, points=points)


def _thickness(at: np.ndarray, masks: Mapping[str, np.ndarray], p: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Soft tissue, bone and metal (mm) along each ray of the body without findings."""
    size, half = p["size"], FIELD / 2
    neck = np.clip((60 - at[0]) / 40, 0, 1)
    width = 158 * size * (1 - 0.62 * neck**1.5) + 5 * np.sin(at[0] / 60)
    across = np.clip(1 - ((at[1] - half) / width) ** 2, 0, 1)
    soft = 190 * size * np.sqrt(across) * (1 - 0.25 * neck) + 40 * np.clip((at[0] - 250) / 80, 0, 1) * (across > 0)
    shade = np.zeros_like(soft)
    for n in ("right_lung", "left_lung"):
        depth = ndimage.distance_transform_edt(masks[n]) * PIXEL
        shade = shade + 118 * size * np.sqrt(np.clip(depth / 34, 0, 1)) * (0.93 + 0.07 * field(rng, depth.shape, 8))
    soft = soft - shade
    soft += 58 * np.sqrt(np.clip(ndimage.distance_transform_edt(masks["heart"]) * PIXEL / 30, 0, 1))
    hila = [ellipsoid(at, c, (26, 14)) for c in ((0.43 * FIELD, 0.43 * FIELD), (0.42 * FIELD, 0.585 * FIELD))]
    near = np.exp(-np.clip(np.minimum(*hila), 0, None) / 28)
    lungs = ndimage.gaussian_filter((masks["right_lung"] | masks["left_lung"]).astype(np.float32), 1.5)
    ridge = np.exp(-((field(rng, at.shape[1:], 3.0) / 0.3) ** 2)) + 0.6 * np.exp(-((field(rng, at.shape[1:], 1.5) / 0.25) ** 2))
    soft += lungs * near * (30 * ridge + 14)
    below = p["outlines"]["left_lung"][:, 0].max() + rng.uniform(2, 14)
    bubble = ellipsoid(at, (below, 0.70 * FIELD + rng.normal(0, 8)), (rng.uniform(12, 20), rng.uniform(18, 32)))
    soft -= 75 * np.sqrt(np.clip(-bubble / 14, 0, 1))
    soft -= 40 * np.clip(1 - np.abs(at[1] - half) / 9, 0, 1) * np.clip((145 - at[0]) / 30, 0, 1)  # trachea
    bone = 22 * np.sqrt(np.clip(1 - ((at[1] - half) / 19) ** 2, 0, 1)) * (0.8 + 0.2 * np.cos(2 * np.pi * at[0] / 24))
    soft += 18 * np.sqrt(np.clip(1 - ((at[1] - half) / 26) ** 2, 0, 1)) * (at[0] > 90)
    bone += _ribs(at, size, rng)
    for side in (-1, 1):
        lift = rng.normal(0, 4)
        bone += 9 * coverage(capsule(at, (56 + lift, half + side * 16), (38 + lift, half + side * 118), 5.5), 4.0)
    return np.maximum(soft, 0), bone * (across > 0), np.zeros_like(bone)


def _ribs(at: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Nine posterior ribs a side (rising to the spine) and six fainter anterior ones, as tubes: dense walls, less in the middle."""
    half, out = FIELD / 2, np.zeros(at.shape[1:], np.float32)
    start, step = rng.normal(42, 4), rng.normal(25, 0.8)
    x = np.abs(at[1] - half)
    u = np.clip(x / (138 * size), 0, 1.2)
    for k in range(10):
        arch = start + step * k - 26 * np.sin(np.pi * np.clip(u, 0, 1) ** 0.8 * 0.75) + (34 + 4 * k) * u**2.5
        d = np.abs(at[0] - arch)
        out += (12 * coverage(d - 5.2, 3.0) - 6.5 * coverage(d - 3.0, 3.0)) * np.clip((1.06 - u) / 0.1, 0, 1) * (x > 12)
    for k in range(6):
        arch = start + 42 + step * 1.05 * k + 62 * np.clip(1 - u, 0, 1) ** 1.3
        d = np.abs(at[0] - arch)
        out += 5 * coverage(d - 5.5, 3.0) * np.clip((u - 0.42) / 0.1, 0, 1) * np.clip((1.04 - u) / 0.1, 0, 1)
    return out


def _devices(kind: str, at, soft, bone, metal, rng: np.random.Generator):
    if kind == "pacemaker":
        box = ellipsoid(at, (0.24 * FIELD, 0.76 * FIELD), (20, 24))
        metal = metal + 9 * coverage(box, PIXEL)
        u = np.linspace(0, 1, 30)[:, None]
        a, b, c = np.array([0.24, 0.72]) * FIELD, np.array([0.28, 0.53]) * FIELD, np.array([0.64, 0.60]) * FIELD + rng.normal(0, 6, 2)
        path = (1 - u) ** 2 * a + 2 * u * (1 - u) * b + u**2 * c
        wire = np.minimum.reduce([capsule(at, s, e, 1.0) for s, e in zip(path[:-1], path[1:], strict=True)])
        metal = metal + 4 * coverage(wire, PIXEL)
    elif kind == "electrodes":
        for centre in ((0.22, 0.24), (0.25, 0.80), (0.70, 0.22)):
            spot = np.array(centre) * FIELD + rng.normal(0, 10, 2)
            metal = metal + 4 * coverage(ellipsoid(at, spot, (7, 7)), PIXEL)
            metal = metal + 2 * coverage(capsule(at, spot, spot + [rng.uniform(60, 120), rng.normal(0, 40)], 0.8), PIXEL)
    return soft, bone, metal


def _expose(soft, bone, metal, site: str, rng: np.random.Generator) -> np.ndarray:
    """Beer-Lambert, scatter, quantum noise, grey response: uint8."""
    primary = np.exp(-0.019 * soft - 0.045 * bone - 0.3 * metal)
    primary = ndimage.gaussian_filter(primary, 0.5)
    total = primary + 0.6 * ndimage.gaussian_filter(primary, 24 / PIXEL, mode="nearest")
    quanta = 2.5e4 if site == "A" else 1.2e4
    counts = rng.poisson(quanta * np.minimum(total, 1.0)) + 1.0
    density = -np.log(counts / quanta)
    inner = density[8:-8, 8:-8]
    low, high = np.percentile(inner, (0.5, 99.5))
    grey = np.clip((density - low) / (high - low), 0, 1)
    if site == "B":
        s = lambda v: 1 / (1 + np.exp(-7 * (v - 0.55)))
        grey = 0.04 + 0.9 * (s(grey) - s(0.0)) / (s(1.0) - s(0.0))
        top, left = int(rng.integers(3, 8)), int(rng.integers(3, 8))
        border = np.ones(grey.shape, bool)
        border[top:-top, left:-left] = False
        grey[border] = 0.02
    return np.round(255 * grey).astype(np.uint8)


def _adapt(phantom: Phantom, options: Mapping[str, Any]) -> Phantom:
    if options["structures"] == "organs":
        phantom = replace(phantom, labels=("background", "right lung", "left lung", "heart"), mirror=(("right lung", "left lung"),))
    return phantom if options["landmarks"] else replace(phantom, points=(), marks=())


PHANTOMS = (
    Phantom(
        name="chest-radiograph",
        title="Frontal chest radiograph: lungs and heart, with ribs, gas bubble and devices as bait",
        dims=2,
        modality="XR",
        channels=("XR",),
        labels=("background", "lung"),
        splits=(48, 12, 24),
        points=tuple(COUNTS),
        marks=tuple(COUNTS),
        given=("site",),
        targets={"nodule": {"kind": "binary", "levels": ["no", "yes"]}},
        text="""160 x 160 pixels of 2.2 mm from two sites with different grey response. Corresponding outline points: right lung 44, left
        lung 50, heart 26. Some cases have nodules, a consolidation that hides lung, a pacemaker or electrodes.""",
        options={
            "landmarks": Option(True, bool, "corresponding outline points in case.points"),
            "structures": Option(
                "lung",
                ("lung", "lung-without-heart", "organs"),
                "what the label map holds: lungs, lungs less heart, or right lung, left lung, heart",
            ),
            "site": Option("mixed", ("mixed", "A", "B"), "grey response"),
            "nodules": Option(0.4, float, "share of cases with nodules"),
            "occluded": Option(0.25, float, "share of cases with a consolidation"),
        },
        sketch=sketch,
        render=render,
        adapt=_adapt,
    ),
)
