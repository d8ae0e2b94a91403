"""D-Former's claim: local and dilated windows by turns against local ones only, and against shifted ones, at the same parameters and cost.

All arms are the same network, of three stages and patches of two voxels in the plane; only which tokens look at each other in every second
block differs.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"width": 24, "depths": (2, 2, 2), "heads": (2, 4, 8), "patch": (2, 2, 2), "group": (3, 4, 4), "lr": 3e-3}


def study() -> Study:
    return Study(
        slug="d-former",
        claim="windows that are local and dilated by turns segment better than local ones, at the same cost",
        arms=(
            Arm("local only", "d-former", {**SMALL, "scopes": "local"}),
            Arm("shifted", "d-former", {**SMALL, "scopes": "shifted"}),
            Arm("d-former", "d-former", SMALL),
        ),
        data=(
            Data("../shared/data/3d/msd_hippocampus", plan={"patch": (32, 40, 32)}),
            Data(
                "../shared/data/3d/acdc_scribble",
                plan={"grid": Spacing(10.0, 3.0, 3.0), "patch": (8, 64, 64)},
                iterations=800,  # at 260 the DSC is .17
            ),
        ),
        baseline="local only",
        expects=(
            Expect("d-former", "dsc", "higher"),
            Expect("d-former", "dsc", "higher", against="shifted"),
        ),
        metrics=("dsc", "hd95"),
        iterations=260,
        plan={"batch": 2, "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
