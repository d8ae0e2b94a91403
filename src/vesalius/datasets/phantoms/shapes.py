"""shapes-2d, shapes-3d: bright and dark ellipses in noise, for contract tests; milliseconds a case.

A bright ellipsoid (+2 s, class 'bright') and a dark one (-2 s, class 'dark') that do not touch, on a background of unit Gaussian noise
(s = 1) times 100, float32. ``geometry`` chooses how the grid lies: 'ras', 'lps', 'oblique' (20 degrees about two axes, 3D; quarter-pixel
origin in 2D) or 'anisotropic' (z spacing 3 x; row spacing 2 x in 2D). With ``empty`` every third case has no foreground.
Known answers: ``bright_mm`` and ``dark_mm`` (volume mm^3, area mm^2 in 2D, of the ellipsoids), ``kind`` (which is larger).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.geometry import Geometry
from .forms import ellipsoid
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who


def _grid(dims: int, how: str) -> Geometry:
    shape = (64, 64) if dims == 2 else (24, 24, 24)
    if dims == 2:
        return Geometry.of(shape, (2.0, 1.0) if how == "anisotropic" else 1.0, origin=(0.25, -0.25) if how == "oblique" else None)
    direction = np.eye(3)
    if how == "lps":
        direction = np.diag([-1.0, -1.0, 1.0])
    elif how == "oblique":
        c, s = np.cos(np.pi / 9), np.sin(np.pi / 9)
        direction = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return Geometry.of(shape, (2.0, 2.0, 6.0) if how == "anisotropic" else 2.0, origin=(30.0, -20.0, 10.0), direction=direction)


def _sketch(who: Who, dims: int) -> Scene:
    rng, grid = who.rng(), _grid(dims, who.options["geometry"])
    if who.options["empty"] and who.place % 3 == 2:
        return Scene({"bright_mm": 0.0, "dark_mm": 0.0, "kind": "none"}, {"solids": []})
    n = np.array(grid.shape, float)
    low, high = 0.3 * n, 0.7 * n
    a = rng.uniform(low, high)
    a[0] = n[0] * rng.uniform(0.25, 0.3)
    b = rng.uniform(low, high)
    b[0] = n[0] * rng.uniform(0.7, 0.75)
    radii = rng.uniform(0.13, 0.19, (2, dims)) * n
    ball = (np.pi if dims == 2 else 4 * np.pi / 3) * grid.voxel_volume
    size = [float(ball * np.prod(r)) for r in radii]
    kind = "bright" if size[0] > size[1] else "dark"
    return Scene({"bright_mm": round(size[0], 2), "dark_mm": round(size[1], 2), "kind": kind}, {"solids": list(zip((a, b), radii))})


def _render(who: Who, scene: Scene, dims: int) -> Drawing:
    rng, grid = who.rng(1), _grid(dims, who.options["geometry"])
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in grid.shape], indexing="ij"))
    label, image = np.zeros(grid.shape, np.int16), rng.standard_normal(grid.shape, dtype=np.float32)
    for k, (centre, radii) in enumerate(scene.parts["solids"]):
        inside = ellipsoid(index, centre, radii) < 0
        image[inside] += (2.0, -2.0)[k]
        if k < who.options["classes"] - 1:
            label[inside] = k + 1
    return Drawing(grid, {"image": 100 * image[None]}, {"reference": label})


def sketch_2d(who: Who) -> Scene:
    return _sketch(who, 2)


def sketch_3d(who: Who) -> Scene:
    return _sketch(who, 3)


def render_2d(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, 2)


def render_3d(who: Who, scene: Scene) -> Drawing:
    return _render(who, scene, 3)


def _adapt(phantom: Phantom, options: Mapping[str, Any]) -> Phantom:
    return replace(phantom, labels=phantom.labels[: options["classes"]])


_OPTIONS = {
    "geometry": Option("ras", ("ras", "lps", "oblique", "anisotropic"), "how the grid lies in the world"),
    "empty": Option(False, bool, "every third case has no foreground"),
    "classes": Option(3, (2, 3), "with background"),
}
_SHARED = dict(
    modality="synthetic",
    channels=("image",),
    labels=("background", "bright", "dark"),
    splits=(6, 2, 2),
    options=_OPTIONS,
    targets={"kind": {"kind": "nominal", "levels": ["none", "bright", "dark"]}},
    adapt=_adapt,
)
PHANTOMS = (
    Phantom(
        name="shapes-2d",
        title="A bright and a dark ellipse in noise",
        dims=2,
        text="64 x 64 pixels, for contract tests.",
        sketch=sketch_2d,
        render=render_2d,
        **_SHARED,
    ),
    Phantom(
        name="shapes-3d",
        title="A bright and a dark ellipsoid in noise",
        dims=3,
        text="24 x 24 x 24 voxels, for contract tests.",
        sketch=sketch_3d,
        render=render_3d,
        **_SHARED,
    ),
)
