"""polyp: colonoscopy frames, RGB: folded mucosa, vessels, highlights, vignetting, and one polyp (some frames none).

Shape and light. The wall is a height field: haustral folds (ridges along arcs about the lumen), smooth unevenness, and the polyp as a
dome H (1 - q^2)^0.7 over its lobulated outline (q = 1 at the border). A lamp at the camera gives Lambert shading n.l that falls with
distance (depth^-1.2) towards the lumen, and Blinn-Phong highlights (n.h)^90 on wet mucosa, broken by a fine texture. Colour: mucosa pink;
the polyp redder or paler by a little (``contrast``); fine vessels (ridges of a smooth field) absorb green. Vignetting, an octagonal black
border, blur and noise.

Known answers: ``polyp_px`` (area, pixels of 1 mm), ``class`` (none, flat, sessile).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .forms import Blob, centred, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE = 160


def sketch(who: Who) -> Scene:
    """Lumen, polyp outline and height."""
    rng = who.rng()
    lumen = rng.normal(0, 22, 2)
    kind = str(rng.choice(["none", "flat", "sessile"], p=[0.1, 0.3, 0.6]))
    blob = None
    if kind != "none":
        u = rng.standard_normal(2)
        spot = lumen - u / np.linalg.norm(u) * rng.uniform(30, 52)
        spot = np.clip(spot, -44, 44)
        blob = Blob.draw(
            rng, spot, float(np.exp(rng.uniform(np.log(450), np.log(2600)))), bumps=4, height=0.3, sharpness=3, elongation=0.15
        )
    table = {"class": kind, "polyp_px": round(blob.volume(), 1) if blob else 0.0}
    return Scene(table, {"lumen": lumen, "blob": blob, "tint": rng.normal(0, 1, 2)})


def render(who: Who, scene: Scene) -> Drawing:
    """One frame: RGB (3, 160, 160) uint8."""
    rng, p = who.rng(1), scene.parts
    grid = centred((SIDE, SIDE), 1.0)
    at = world(grid)
    x = at - p["lumen"].astype(np.float32)[:, None, None]
    r = np.hypot(*x) * (1 + 0.12 * field(rng, grid.shape, 30))
    phase = 2 * np.pi * np.log(np.maximum(r, 4) / 6) * 1.5 + rng.uniform(0, 6) + 0.5 * field(rng, grid.shape, 22)
    height = 3.2 * np.maximum(np.sin(phase), 0) ** 3 * np.clip(r / 40, 0.2, 1.6)
    height += 1.3 * field(rng, grid.shape, 9) + 0.10 * field(rng, grid.shape, 1.5)
    share = np.zeros(grid.shape, np.float32)
    label = np.zeros(grid.shape, np.int16)
    if p["blob"] is not None:
        d = p["blob"].distance(at)
        size = p["blob"].size
        q = np.clip(1 + d / size, 0, 1)  # 0 at the middle, 1 at the border
        top = size * (0.45 if scene.table["class"] == "sessile" else 0.2)
        share = 1 / (1 + np.exp(np.clip(1.6 * d, -30, 30)))
        height = height * (1 - 0.7 * share) + top * (1 - q**2) ** 0.7
        label = (d < 0).astype(np.int16)
    slope = np.gradient(ndimage.gaussian_filter(height, 0.8))
    normal = np.stack([-slope[0], -slope[1], np.ones(grid.shape)])
    normal /= np.linalg.norm(normal, axis=0)
    depth = 60 + 240 * np.exp(-((r / 26) ** 2))  # mm from the lamp: the lumen is far
    depth = depth + (75 - depth) * 0.8 * share
    light = np.stack([-at[0], -at[1], depth])
    light /= np.linalg.norm(light, axis=0)
    lambert = np.clip((normal * light).sum(0), 0, 1)
    half = light + np.array([0, 0, 1.0])[:, None, None]
    half /= np.linalg.norm(half, axis=0)
    wet = np.clip((normal * half).sum(0), 0, 1) ** 90 * (field(rng, grid.shape, 1.6) > 0.7) * (field(rng, grid.shape, 10) > 0.2)
    contrast = who.options["contrast"]
    red = np.array([0.86, 0.44, 0.36], np.float32)[:, None, None] * (1 + 0.05 * field(rng, grid.shape, 12))
    vessel = np.exp(-((field(rng, grid.shape, 5) / 0.05) ** 2)) * (field(rng, grid.shape, 14) > 0) * (1 - share)
    red = red * (1 - np.array([0.05, 0.22, 0.18])[:, None, None] * vessel)
    tint = np.array([0.02, -0.13, -0.10]) * (1 + 0.4 * p["tint"][0]) if p["tint"][1] > -0.5 else np.array([0.06, 0.12, 0.10])
    red = red * (1 + contrast * share * tint[:, None, None] * (1 + 0.3 * field(rng, grid.shape, 3)))
    fall = (60 / depth) ** 1.2 * (1 - 0.35 * (np.hypot(*at) / 100) ** 2)
    rgb = red * (0.35 + 0.7 * lambert) * fall + 0.55 * ndimage.gaussian_filter(wet * fall, 0.7)
    corner = np.abs(at).sum(0) < 132
    frame = corner & (np.abs(at).max(0) < 77)
    rgb = ndimage.gaussian_filter(rgb, (0, 0.6, 0.6)) * frame + 0.012 * rng.standard_normal(rgb.shape)
    image = np.clip(np.round(255 * np.clip(rgb, 0, 1) ** 0.9), 0, 255).astype(np.uint8)
    return Drawing(grid, {"RGB": image}, {"reference": label * frame})


PHANTOMS = (
    Phantom(
        name="polyp",
        title="Colonoscopy frames with polyps",
        dims=2,
        modality="RGB",
        channels=("RGB",),
        labels=("background", "polyp"),
        splits=(36, 9, 18),
        targets={"class": {"kind": "nominal", "levels": ["none", "flat", "sessile"]}},
        text="160 x 160 pixels; folds, vessels, highlights and vignetting; one frame in ten has no polyp.",
        options={"contrast": Option(1.0, float, "colour difference of the polyp; 0: shape and shading alone")},
        sketch=sketch,
        render=render,
    ),
)
