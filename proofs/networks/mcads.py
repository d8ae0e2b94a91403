"""MCADS's claim: on one encoder, restoring from channels and correcting by attention finds nuclei better than either alone or neither.

The encoder is the paper's at an eighth of its width; all arms take the same steps. Where nothing is restored from channels, interpolation
and two 3x3 convolutions take as many multiplications, with 18 weights a pair of channels for the 45 of depth-to-space (.59 and .81 M
parameters in all). Attention is a tenth of the work and .03 M parameters; nothing stands for it where it is left out. The paper trains 200
epochs on augmented patches.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"width": 8, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05}
INTERPOLATED = {**BUDGET, "restore": "resize-convolution"}


def study() -> Study:
    return Study(
        slug="mcads",
        claim="depth-to-space and residual attention restore nuclei better than bilinear enlarging, and than either without the other",
        arms=(
            Arm("bilinear", "mcads", {**INTERPOLATED, "attention": False}),
            Arm("bilinear, attention", "mcads", INTERPOLATED),
            Arm("depth-to-space", "mcads", {**BUDGET, "attention": False}),
            Arm("mcads", "mcads", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/dsb2018_nuclei", plan={"grid": LongestSide(112)}),
            Data("../shared/data/2d/monuseg_nuclei", plan={"grid": LongestSide(256)}, iterations=400),
        ),
        baseline="bilinear",
        expects=(
            Expect("mcads", "dsc", "higher"),
            Expect("mcads", "dsc", "higher", against="bilinear, attention"),
            Expect("mcads", "dsc", "higher", against="depth-to-space"),
        ),
        metrics=("dsc", "iou", "hd95"),
        iterations=260,
        plan={"patch": (64, 64), "batch": 4, "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
