"""lesion-types: an organ with lesions of two types, and in the test cases one of a third type that no label names.

A lobulated organ (100, sd 6 over 3 mm) on a darker, uneven ground; cysts are dark (58) and smooth, solid lesions bright (142) and grained.
Every case has one to three of these. A test case also has one lesion of a type that training never shows, as large as the others: 'mottled'
(patches as dark as cysts and as bright as solid lesions, 2 mm across), 'calcified' (230) or 'layered' (stripes 3 mm wide). The reference
calls it organ, which is where it lies; the ROI 'unseen' says where it is. All is blurred by 0.7 mm and seen in noise of sd 9.

Known answers: mm^2 of 'cyst', 'solid' and 'unseen'.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .forms import Blob, apart, centred, coverage, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE = 96  # pixels of 1 mm
KNOWN = {"cyst": (58.0, 2.0), "solid": (142.0, 14.0)}  # mean and texture sd
ROOM = 22.0  # mm from the organ's middle that lesions' middles keep to


def sketch(who: Who) -> Scene:
    """Organ and lesions: known types in all cases, the unseen one in test cases."""
    rng = who.rng()
    organ = Blob.draw(rng, rng.normal(0, 3, 2), float(rng.uniform(3200, 4200)), bumps=5, height=0.25, sharpness=3.0, elongation=0.08)
    kinds = [list(KNOWN)[k] for k in rng.integers(0, 2, int(rng.integers(1, 4)))]
    kinds = (["unseen"] if who.split == "test" else []) + kinds
    areas = rng.uniform(70, 190, len(kinds))
    angle = lambda: rng.uniform(0, 2 * np.pi)
    within = lambda: organ.centre + ROOM * np.sqrt(rng.uniform()) * np.array([np.cos(a := angle()), np.sin(a)])
    places = apart(len(kinds), [1.3 * np.sqrt(a / np.pi) for a in areas], within, gap=2.0)
    draw = lambda place, area: Blob.draw(rng, place, float(area), bumps=5, height=0.3, elongation=0.1)
    lesions = [(k, draw(place, a)) for k, place, a in zip(kinds, places, areas, strict=False)]
    table = {f"{k}_mm2": round(sum(b.volume() for kind, b in lesions if kind == k), 2) for k in (*KNOWN, "unseen")}
    return Scene(table, {"organ": organ, "lesions": lesions})


def render(who: Who, scene: Scene) -> Drawing:
    rng, grid = who.rng(1), centred((SIDE, SIDE), 1.0)
    at = world(grid)
    image = 45 + 12 * field(rng, grid.shape, 8)
    body = coverage(scene.parts["organ"].distance(at), 1.0)
    image = image * (1 - body) + body * (100 + 6 * field(rng, grid.shape, 3))
    label, unseen = (body >= 0.5).astype(np.int16), np.zeros(grid.shape, np.int16)
    for kind, blob in scene.parts["lesions"]:
        inside = coverage(blob.distance(at), 1.0)
        image = image * (1 - inside) + inside * _tissue(kind if kind in KNOWN else who.options["unseen"], at, rng)
        if kind in KNOWN:
            label[inside >= 0.5] = 2 + list(KNOWN).index(kind)
        else:
            label[inside >= 0.5], unseen[inside >= 0.5] = 1, 1
    image = ndimage.gaussian_filter(image, 0.7) + 9 * rng.standard_normal(grid.shape)
    return Drawing(grid, {"image": image[None].astype(np.float32)}, {"reference": label}, {"unseen": unseen})


def _tissue(kind: str, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape = at.shape[1:]
    low, high = (mean for mean, _ in KNOWN.values())
    if kind in KNOWN:
        mean, texture = KNOWN[kind]
        return mean + texture * field(rng, shape, 1.5)
    if kind == "calcified":
        return np.full(shape, 230.0)
    if kind == "mottled":
        return np.where(field(rng, shape, 1.5) > 0, high, low)
    a = rng.uniform(0, np.pi)
    return np.where(np.sin(2 * np.pi * (np.cos(a) * at[0] + np.sin(a) * at[1]) / 6) > 0, high, low)


PHANTOMS = (
    Phantom(
        name="lesion-types",
        title="An organ with two types of lesion, and in test cases one that no label names",
        dims=2,
        modality="synthetic",
        channels=("image",),
        labels=("background", "organ", *KNOWN),
        splits=(40, 8, 24),
        rois=("unseen",),
        options={"unseen": Option("mottled", ("mottled", "calcified", "layered"), "the type that only test cases have")},
        text="96 x 96 pixels of 1 mm, for methods that say what is unlike their training; ROI 'unseen' is the truth about that.",
        sketch=sketch,
        render=render,
    ),
)
