"""PULASki's claim: the same sampler covers several raters better when its samples are compared with all of them as a set."""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

LEARNING = {"lr": 1e-3, "samples": 16}  # the published 1e-4 is for 500 epochs


def study() -> Study:
    return Study(
        slug="pulaski",
        claim="samples trained by a distance between sets are nearer to the raters than those of the same network trained by cross-entropy",
        arms=(
            Arm("cross-entropy", "pulaski", {**LEARNING, "distance": "ce"}),
            Arm("pulaski", "pulaski", LEARNING),
        ),
        data=(
            Data("phantom:shapes-2d?raters=4&cases=120"),
            Data("../shared/data/2d/lidc_multirater?render=ct"),
            Data("../shared/data/2d/drishti_disc_cup?votes=cup_votes", plan={"patch": (128, 128)}),
            Data("../shared/data/2d/chase_db1", plan={"grid": LongestSide(192), "patch": (128, 128)}),
        ),
        baseline="cross-entropy",
        expects=(Expect("pulaski", "ged", "lower"),),
        metrics=("ged", "dice_max", "multirater_ece"),
        iterations=200,
        plan={"patch": (64, 64), "batch": 4, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
