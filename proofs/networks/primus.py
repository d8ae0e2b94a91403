"""Primus's question: does performance survive without the transformer? A twin has as many parameters as remain when the blocks are gone.

In the torso a left kidney looks like a right one: telling them apart needs more than a token sees. The paper asks hybrids of convolutions
and attention the same; a step of one costs several of Primus's, so that half is left to ``networks.ablation`` and more time.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"depth": 2, "heads": 2, "dim": 48, "drop_path": 0.0, "lr": 3e-3, "schedule": "cosine", "ema": 0.98}


def study() -> Study:
    return Study(
        slug="primus",
        claim="without its transformer Primus loses what it can do",
        arms=(Arm("primus without blocks", "primus", {**BUDGET, "identity": True}), Arm("primus", "primus", BUDGET)),
        data=(
            Data("phantom:torso-ct?cases=24", plan={"grid": Spacing(6.3, 6.3, 6.0), "patch": (48, 40, 32)}),
            Data("../shared/data/3d/msd_hippocampus", plan={"patch": (32, 48, 32)}),
        ),
        baseline="primus without blocks",
        expects=(Expect("primus", "dsc", "higher"), Expect("primus", "hd95", "lower")),
        metrics=("dsc", "hd95"),
        iterations=900,
        plan={"batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
