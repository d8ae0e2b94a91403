"""Few labels after pretext stages on all training cases, against the same fine-tuning of the same network from random weights."""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

# The published SGD with LARC, transformer and one clustering an epoch are for 300 epochs; half of this budget is 200 steps.
PRETEXT = {"optimizer": "adamw", "rate": 3e-3, "rounds": 10, "slice_clusters": 16, "slice_batch": 16, "projection": 32}
SMALL = {**PRETEXT, "dim": 64, "depth": 2, "heads": 4, "hidden": 72, "lr": 8e-3}


def study() -> Study:
    return Study(
        slug="image-volume-ssl",
        claim="pretrained without labels on slices and volumes, the network makes more of few labels than from random weights",
        arms=(
            Arm("from scratch", "image-volume-ssl", {**SMALL, "pretext": ()}),
            Arm("image-volume-ssl", "image-volume-ssl", SMALL),
        ),
        data=(
            Data("../shared/data/3d/msd_hippocampus", labelled=4),
            Data("phantom:torso-ct", labelled=3, iterations=600, plan={"patch": (40, 32, 16), "grid": Spacing(8.4, 8.4, 6.0)}),
        ),
        baseline="from scratch",
        expects=(Expect("image-volume-ssl", "dsc", "higher"),),
        iterations=400,
        plan={"patch": (32, 48, 16), "batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
