"""What clicks are worth: learnt from corrections, from the first click alone, and not seen at all."""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="interactive-fcn",
        claim="trained where its own answer is wrong, a network gains from corrections what one trained with first clicks does not",
        arms=(
            Arm("first click only", "interactive-fcn", {"corrections": False}),
            Arm("clicks unseen", "interactive-fcn", {"guided": False}),
            Arm("interactive-fcn", "interactive-fcn", {"interactions": 8}),
        ),
        data=(
            Data("phantom:blobs"),
            Data("../shared/data/2d/kvasir_seg", plan={"patch": (128, 128), "grid": LongestSide(128)}),
        ),
        baseline="first click only, 5clicks",
        expects=(
            Expect("interactive-fcn, 5clicks", "dsc", "higher"),
            Expect("interactive-fcn, 5clicks", "dsc", "higher", against="interactive-fcn, 1click"),
            Expect("interactive-fcn, 1click", "dsc", "higher", against="clicks unseen, 1click"),
        ),
        metrics=("dsc",),
        seeds=3,
        iterations=200,
        prompts=("1click", "3clicks", "5clicks"),
        plan={"patch": (96, 96), "batch": 4, "features": (8, 16, 32, 64)},
    )
