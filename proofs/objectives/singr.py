"""SiNGR's claim: geodesic certainty teaches borders better than hard labels. The same U-Net in all arms.

Fewer than some hundred steps show nothing but that a saturated tanh learns late.
"""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="singr",
        claim="the same U-Net has a lower HD95 and no lower DSC from geodesic certainty than from hard labels",
        arms=(
            Arm("hard labels", "unet"),
            Arm("singr", "singr"),
            Arm("singr, Euclidean", "singr", {"geodesic": 0.0}),
        ),
        data=(
            Data("phantom:shapes-3d?cases=30&corruption=blur&corrupted=all&severity=3"),
            Data("../shared/data/3d/msd_hippocampus"),
        ),
        baseline="hard labels",
        expects=(
            Expect("singr", "hd95", "lower"),
            Expect("singr", "dsc", "higher", margin=0.01),
            Expect("singr", "hd95", "lower", against="singr, Euclidean"),
        ),
        metrics=("dsc", "hd95", "assd"),
        seeds=3,
        iterations=250,
        plan={"patch": (24, 24, 24), "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
