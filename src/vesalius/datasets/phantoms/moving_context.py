"""moving-context: an object whose surroundings mislead, for learning from few labels (the setting of TraCoCo).

48^3 voxels of 1 mm. Two textures fill the volume: rough (correlated over 1.2 voxels) on one side of a random smooth sheet, fine (0.5
voxel) on the other. The landmark is a bright ring (torus), the object a lobulated solid of 2-3 mL that differs from its surroundings by
only ``contrast`` (0.9) sd of the texture. Blobs of equal size and texture but opposite contrast are distractors.

In labelled training and validation cases the object always lies beside the landmark, 15 mm in +x. In the other training cases and in test
cases it lies anywhere at least 20 mm from the landmark: a network that has learnt "beside the ring" fails. ``labelled`` (default 4)
training cases keep their labels. ``context='fixed'`` keeps the object beside the landmark in test cases too (the control arm). Known
answers: ``volume_ml``, ``beside`` (1 when the object is beside the landmark), ``gap_mm`` between object and landmark.
"""

from __future__ import annotations

import numpy as np

from .forms import Blob, centred, coverage, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE = 48


def sketch(who: Who) -> Scene:
    """Where landmark, object and distractors are."""
    rng = who.rng()
    volume = float(rng.uniform(1800, 2800))
    labelled = who.options["labelled"] is None or who.place < who.options["labelled"]
    beside = who.split == "val" or (who.split == "train" and labelled) or who.options["context"] == "fixed"
    while True:
        ring = rng.uniform([-14, -14, -14], [2 if beside else 14, 14, 14])
        spot = ring + [15.0, 0, 0] + rng.normal(0, 0.8, 3) if beside else rng.uniform(-14, 14, 3)
        if np.abs(spot).max() < 15.5 and (beside or np.linalg.norm(spot - ring) > 20):
            break
    others = []
    while len(others) < 2:
        p = rng.uniform(-15, 15, 3)
        if min(np.linalg.norm(p - q) for q in (ring, spot, *others)) > 14:
            others.append(p)
        elif rng.uniform() < 0.005:
            break
    blob = Blob.draw(rng, spot, volume, elongation=0.08)
    table = {"volume_ml": round(volume / 1000, 3), "beside": int(beside), "gap_mm": round(float(np.linalg.norm(spot - ring)), 2)}
    return Scene(table, {"ring": ring, "blob": blob, "others": [Blob.draw(rng, p, volume) for p in others]})


def render(who: Who, scene: Scene) -> Drawing:
    """The volume: float32, texture sd 1 times 100."""
    rng, p = who.rng(1), scene.parts
    grid = centred((SIDE,) * 3, 1.0)
    at = world(grid)
    sheet = coverage(8 * field(rng, grid.shape, 10) + at[2], 3.0)
    image = sheet * field(rng, grid.shape, 1.2) + (1 - sheet) * field(rng, grid.shape, 0.5)
    x = at - p["ring"].astype(np.float32).reshape(3, 1, 1, 1)
    torus = np.sqrt((np.sqrt(x[0] ** 2 + x[1] ** 2) - 4.5) ** 2 + x[2] ** 2) - 1.8
    image += 4 * coverage(torus, 1.0)
    distance = p["blob"].distance(at)
    image += who.options["contrast"] * coverage(distance, 1.0)
    for other in p["others"]:
        image -= who.options["contrast"] * coverage(other.distance(at), 1.0)
    return Drawing(grid, {"image": (100 * image).astype(np.float32)[None]}, {"reference": (distance < 0).astype(np.int16)})


PHANTOMS = (
    Phantom(
        name="moving-context",
        title="An object beside a landmark in labelled data and anywhere in test data",
        dims=3,
        modality="synthetic",
        channels=("image",),
        labels=("background", "object"),
        splits=(24, 4, 10),
        text="""48 x 48 x 48 voxels; 4 of 24 training cases keep their labels (option labelled). The labelled context misleads: test objects
        lie away from the landmark.""",
        options={
            "labelled": Option(4, int, "training cases that keep their labels"),
            "context": Option("moving", ("moving", "fixed"), "'fixed': beside the landmark in test cases too"),
            "contrast": Option(0.9, float, "of the object, in sd of the texture"),
        },
        sketch=sketch,
        render=render,
    ),
)
