"""The claim of lung morphology, its two parts apart and together: gated skips, and the clean-up of the mask."""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="lung-morphology",
        claim="the clean-up of the mask takes away false lung far from the border, and gates do not harm",
        arms=(
            Arm("unet", "unet"),
            Arm("gates", "lung-morphology", {"cleanup": False}),
            Arm("clean-up", "lung-morphology", {"gates": False}),
            Arm("lung-morphology", "lung-morphology"),
        ),
        data=(Data("phantom:chest-radiograph?cases=40"), Data("../shared/data/2d/cxr_lungs")),
        baseline="unet",
        expects=(Expect("lung-morphology", "hd95", "lower"),),
        metrics=("dsc", "hd95"),
        iterations=200,
        plan={"grid": LongestSide(128), "patch": (128, 128), "batch": 4, "features": (8, 16, 32, 64)},
    )
