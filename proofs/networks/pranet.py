"""PraNet's claim: erasing what was found makes the refinement look at borders. Against keeping it and doing neither.

The three forms of PraNet have the same small backbone and the same training. The paper's 20 epochs from ImageNet weights at a constant
small rate are out of reach of the steps that each training has here, from scratch, so the rate is higher and falls, and there is one
scale. ``attention=off``, the partial decoder alone, is left to a longer budget.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"depths": (1, 1, 1, 1), "width": 16, "channels": 16, "scales": ()}
TRAINING = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05, "ema": 0.0}
BUDGET = {**SMALL, **TRAINING}


def study() -> Study:
    return Study(
        slug="pranet",
        claim="reverse attention finds polyps and their borders better than forward attention and than no attention",
        arms=(
            Arm("no attention", "pranet", {**BUDGET, "attention": "uniform"}),
            Arm("forward attention", "pranet", {**BUDGET, "attention": "forward"}),
            Arm("pranet", "pranet", BUDGET),
        ),
        data=(
            Data("phantom:polyp?cases=60&contrast=3", iterations=100),
            Data("../shared/data/2d/kvasir_seg", iterations=160),
            Data("../shared/data/2d/ph2_skin", iterations=80),
        ),
        baseline="no attention",
        expects=(
            Expect("pranet", "dsc", "higher"),
            Expect("pranet", "nsd", "higher"),
            Expect("pranet", "nsd", "higher", against="forward attention"),
        ),
        metrics=("dsc", "nsd", "hd95"),
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 4, "features": (8, 16, 32, 64), "test_mirror": ()},
    )
