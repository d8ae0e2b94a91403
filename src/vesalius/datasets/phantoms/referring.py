"""referring: discs, squares and crosses, small or large, bright or dark, and expressions each of which means one of them, or none.

Three to five (``most``) shapes that do not touch lie on an uneven grey ground with noise (64 x 64 pixels of 1 mm); the class says the
shape. The small ones have about a third of the area of the large ones. Every case comes with expressions (``ops.wording``: by name,
attributes, place, extremes, relations and contrasts whose words mean another object in another order; about a fifth mean nothing in the
image), whose ids begin with their kind.

Known answers: ``shapes`` (how many), ``large_mm2`` (area of the largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.manifest import Manifest
from .forms import centred, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE = 64
RADII = {"small": (5.0, 6.0), "large": (9.0, 10.5)}  # of a disc of the same area, mm
TRIES = 200


def distance(at: np.ndarray, shape: int, radius: float) -> np.ndarray:
    """Signed distance (mm, negative inside, exact at the sides) of points (2, ...) to a disc (1), square (2) or cross (3) about 0 with the
    area of a disc of ``radius``."""
    x, y = np.abs(at)
    area = np.pi * radius**2
    if shape == 1:
        return np.hypot(x, y) - radius
    if shape == 2:
        return np.maximum(x, y) - np.sqrt(area) / 2
    arm = np.sqrt(area / 20)  # bars of 2 arm x 6 arm: 20 arm^2 together
    return np.minimum(np.maximum(x - 3 * arm, y - arm), np.maximum(y - 3 * arm, x - arm))


def sketch(who: Who) -> Scene:
    """Shapes one after the other wherever there is room; (shape, radius, bright, centre) each."""
    rng, placed = who.rng(), []
    for _ in range(int(rng.integers(min(3, who.options["most"]), who.options["most"] + 1))):
        shape, bright = int(rng.integers(1, 4)), bool(rng.integers(2))
        radius = float(rng.uniform(*RADII["large" if rng.random() < 0.4 else "small"]))
        for _ in range(TRIES):
            reach = _reach(shape, radius)
            centre = rng.uniform(reach - SIDE / 2 + 1, SIDE / 2 - reach - 1, 2)
            if all(np.hypot(*(centre - c)) > reach + _reach(s, r) + 2 for s, r, _, c in placed):
                placed.append((shape, radius, bright, centre))
                break
    large = max(np.pi * r**2 for _, r, _, _ in placed)
    return Scene({"shapes": len(placed), "large_mm2": round(float(large), 1)}, {"placed": placed})


def _reach(shape: int, radius: float) -> float:
    """Of a circle about the shape."""
    return radius * (1.0, np.sqrt(np.pi / 2), np.sqrt(np.pi / 2))[shape - 1]


def render(who: Who, scene: Scene) -> Drawing:
    """Image (1, 64, 64) float32: ground 0, shapes +-1, noise."""
    rng, grid = who.rng(1), centred((SIDE, SIDE), 1.0)
    at = world(grid)
    image, label = 0.2 * field(rng, grid.shape, 12), np.zeros(grid.shape, np.int16)
    for shape, radius, bright, centre in scene.parts["placed"]:
        d = distance(at - np.asarray(centre, np.float32)[:, None, None], shape, radius)
        image += np.clip(0.5 - d, 0, 1) * (1 if bright else -1)
        label[d < 0] = shape
    image += who.options["noise"] * rng.standard_normal(grid.shape, dtype=np.float32)
    return Drawing(grid, {"image": image[None].astype(np.float32)}, {"reference": label})


@dataclass(frozen=True)
class Referring(Phantom):
    """A phantom whose cases come with expressions."""

    def open(self, cases: Any, seed: int, given: Mapping[str, Any]) -> Manifest:
        from ..views import templated

        drawn = super().open(cases, seed, given)
        options = self.settle(given)
        return replace(templated(drawn, options["expressions"], options["kinds"]), name=self.name)


PHANTOMS = (
    Referring(
        name="referring",
        title="Shapes and expressions that mean one of them, or none",
        dims=2,
        modality="synthetic",
        channels=("image",),
        labels=("background", "disc", "square", "cross"),
        splits=(200, 8, 40),
        text="Discs, squares and crosses that differ in size, brightness and place, with expressions that mean one of them or none.",
        sketch=sketch,
        render=render,
        options={
            "noise": Option(0.15, float, "standard deviation; shapes are +-1"),
            "most": Option(5, (2, 3, 4, 5), "shapes in an image"),
            "expressions": Option(10, int, "a case"),
            "kinds": Option("", str, "of expressions, 'place|contrast'; all"),
        },
    ),
)
