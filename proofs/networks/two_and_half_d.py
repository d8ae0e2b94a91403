"""The study's question at equal cost: is 3D best, and what does each bridge between 2D and 3D gain, on thick slices and on cubes?

Every arm takes as many steps as the operations of the 2D arm's steps pay for: a bridge has to earn its price. In ACDC slices are several
times as far apart as pixels, in the hippocampus voxels are cubes. The source trains to convergence, which favours what costs more. Fused 2D
and 3D features, the other votes and other numbers of slices are options, left to more time.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"cost": "flops", "lr": 4e-3, "ema": 0.95}
SEQUENCE = {**BUDGET, "warm": 0.3}
CUBES = {
    "grid": Spacing(1.5, 1.5, 1.5),
    "patch": (24, 32, 24),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "kernels": ((3, 3, 3),) * 3,
}
THICK = {
    "grid": Spacing(10.0, 3.0, 3.0),
    "patch": (7, 56, 56),
    "features": (8, 16, 32, 64),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
}


def study() -> Study:
    return Study(
        slug="two-and-half-d",
        claim="at equal cost a bridge between 2D and 3D beats 2D, and 3D where slices are thick",
        arms=(
            Arm("2d", "two-and-half-d", {**BUDGET, "arm": "2d"}),
            Arm("3 slices", "two-and-half-d", {**BUDGET, "arm": "slices"}),
            Arm("3 views", "two-and-half-d", {**BUDGET, "arm": "views", "vote": "weighted"}),
            Arm("recurrent", "two-and-half-d", {**SEQUENCE, "arm": "recurrent"}),
            Arm("attention", "two-and-half-d", {**SEQUENCE, "arm": "attention"}),
            Arm("3d", "two-and-half-d", {**BUDGET, "arm": "3d"}),
        ),
        data=(
            Data("../shared/data/3d/acdc_scribble", plan=THICK),
            Data("../shared/data/3d/msd_hippocampus", plan=CUBES, iterations=100),
        ),
        baseline="2d",
        expects=(
            Expect("3 slices", "dsc", "higher"),
            Expect("recurrent", "dsc", "higher"),
            Expect("attention", "dsc", "higher"),
            Expect("3 slices", "dsc", "higher", against="3d"),
        ),
        metrics=("dsc", "hd95"),
        iterations=140,
        plan={"batch": 2, "features": (8, 16, 32), "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
