"""blobs: several bodies that look alike, each a structure of its own; only a click says which one is meant.

Two to five blobs of nearly the same brightness, with irregular outlines, on a ground that is as bright in places; some touch. Which is
'a', which 'b' is chance, so that no network can name them from the image; interactive methods are measured on it. ``shape='star'`` draws
stars instead of round blobs, for what a method never saw. Known answers: ``count``.
"""

from __future__ import annotations

import numpy as np

from ...core.geometry import Geometry
from .forms import coverage, field
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE, SPACING = 96, 1.0
NAMES = ("a", "b", "c", "d", "e")
OVERLAP = 2.0  # mm that two circles may share; the later blob covers the earlier one


def sketch(who: Who) -> Scene:
    """Centres and radii of blobs that hardly overlap; names are drawn last."""
    rng, blobs = who.rng(), []
    wanted = int(rng.integers(2, len(NAMES) + 1))
    for _ in range(200):
        radius = rng.uniform(7, 15)
        centre = rng.uniform(radius + 3, SIDE - radius - 3, 2)
        if all(np.hypot(*(centre - c)) > radius + r - OVERLAP for c, r in blobs):
            blobs.append((centre, radius))
        if len(blobs) == wanted:
            break
    names = rng.permutation(len(NAMES))[: len(blobs)]
    return Scene({"count": len(blobs)}, {"blobs": [(c, r, int(k) + 1) for (c, r), k in zip(blobs, names, strict=True)]})


def render(who: Who, scene: Scene) -> Drawing:
    rng, grid = who.rng(1), Geometry.of((SIDE, SIDE), SPACING)
    at = np.stack(np.meshgrid(*[SPACING * np.arange(n) for n in grid.shape], indexing="ij"))
    image, label = 0.6 * field(rng, grid.shape, 8), np.zeros(grid.shape, np.int16)
    for centre, radius, k in scene.parts["blobs"]:
        distance = _outline(at - centre.reshape(2, 1, 1), radius, who.options["shape"], rng)
        inside = coverage(distance, SPACING)
        image += inside * rng.uniform(1.0, 1.4)
        label[inside >= 0.5] = k
    image += 0.5 * rng.standard_normal(grid.shape)
    return Drawing(grid, {"image": (100 * image[None]).astype(np.float32)}, {"reference": label})


def _outline(off: np.ndarray, radius: float, shape: str, rng: np.random.Generator) -> np.ndarray:
    """Distance (mm, negative inside) to a closed line whose radius varies with the angle: by few low waves, or as a five-pointed star."""
    length, angle = np.hypot(*off), np.arctan2(off[1], off[0])
    if shape == "star":
        r = radius * (0.55 + 1.0 * np.abs((5 * (angle + rng.uniform(0, np.pi)) / (2 * np.pi)) % 1 - 0.5))
    else:
        r = radius * (1 + sum(rng.uniform(0, 0.08) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5)))
    return length - r


PHANTOMS = (
    Phantom(
        name="blobs",
        title="Two to five bodies alike: which is which, only a click can say",
        dims=2,
        modality="synthetic",
        channels=("image",),
        labels=("background", *NAMES),
        splits=(60, 8, 30),
        options={"shape": Option("round", ("round", "star"), "outlines: round blobs or stars")},
        text="96 x 96 pixels of 1 mm. For promptable methods: the names of the bodies are chance.",
        sketch=sketch,
        render=render,
    ),
)
