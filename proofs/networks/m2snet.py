"""M2SNet's claims: subtraction against a sum, and LossNet on against off, with the same parameters and the same steps.

All arms have the same small backbone from random weights (the paper's has seen ImageNet and trains 50 epochs). LossNet has few, random,
fixed filters here, so what it adds is a comparison of borders, not ImageNet's eye. ``unit=single``, MSNet's one scale, is left to a longer
budget.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"depths": (1, 1, 1, 1), "width": 16, "channels": 16, "loss_width": 8, "loss_size": 64}
TRAINING = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05}
BUDGET = {**SMALL, **TRAINING}


def study() -> Study:
    return Study(
        slug="m2snet",
        claim="levels joined by multi-scale subtraction segment better than added ones, and LossNet adds to that",
        arms=(
            Arm("without subtraction", "m2snet", {**BUDGET, "unit": "add"}),
            Arm("without LossNet", "m2snet", {**BUDGET, "features": 0.0}),
            Arm("m2snet", "m2snet", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/kvasir_seg"),
            Data("../shared/data/2d/busi_seg"),
        ),
        baseline="without subtraction",
        expects=(
            Expect("m2snet", "dsc", "higher"),
            Expect("m2snet", "dsc", "higher", against="without LossNet"),
        ),
        metrics=("dsc", "nsd", "hd95"),
        iterations=240,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
    )
