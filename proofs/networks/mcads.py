"""MCADS's claim: on one encoder, its decoder restores nuclei better than bilinear and transposed ones without attention.

The encoder is the paper's at an eighth of its width; all arms take the same steps. The paper trains 200 epochs on augmented patches.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"width": 8, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05}


def study() -> Study:
    return Study(
        slug="mcads",
        claim="depth-to-space and residual attention restore nuclei better than bilinear or transposed enlarging",
        arms=(
            Arm("bilinear decoder", "mcads", {**BUDGET, "restore": "bilinear", "attention": False}),
            Arm("transposed decoder", "mcads", {**BUDGET, "restore": "transposed", "attention": False}),
            Arm("mcads", "mcads", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/dsb2018_nuclei", plan={"grid": LongestSide(112)}),
            Data("../shared/data/2d/monuseg_nuclei", plan={"grid": LongestSide(208)}),
        ),
        baseline="bilinear decoder",
        expects=(
            Expect("mcads", "dsc", "higher"),
            Expect("mcads", "dsc", "higher", against="transposed decoder"),
        ),
        metrics=("dsc", "iou", "hd95"),
        iterations=200,
        plan={"patch": (64, 64), "batch": 4, "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
