"""MomentumNet's claim: blocks with a velocity segment better than plain residual blocks, at the same parameters and the same steps.

The encoder is narrow, with six blocks in its longest stage, from random weights (the paper's is a ResNet-50). No value of gamma was found;
0.9 is the library's, 0.5 stands between. Reversible and stored training give the same gradients (a test holds that), so one is enough here.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"depths": (3, 4, 6, 3), "width": 8}
TRAINING = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05}
BUDGET = {**SMALL, **TRAINING}


def study() -> Study:
    return Study(
        slug="momentum-net",
        claim="residual blocks with momentum segment better than plain ones",
        arms=(
            Arm("plain residual", "momentum-net", {**BUDGET, "gamma": 0.0}),
            Arm("gamma 0.5", "momentum-net", {**BUDGET, "gamma": 0.5}),
            Arm("momentum-net", "momentum-net", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/cxr_lungs", iterations=100),
            Data("../shared/data/2d/kvasir_seg", iterations=240),
        ),
        baseline="plain residual",
        expects=(Expect("momentum-net", "dsc", "higher"), Expect("gamma 0.5", "dsc", "higher")),
        metrics=("dsc", "nsd", "hd95"),
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
    )
