"""QTSeg's claims: dual-mix queries against a plain decoder of equal cost, and levels dealt out anew against levels as they are.

All arms have the same narrow encoder from random weights and take the same steps. ``decoder=cross``, queries that look at the map itself,
is left to a longer budget.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"width": 8, "hidden": 128, "lr": 2e-3, "weight_decay": 1e-2, "warmup": 0.05, "clip": 1.0}


def study() -> Study:
    return Study(
        slug="qtseg",
        claim="dual-mix queries over distributed levels segment better than a plain decoder of equal cost",
        arms=(
            Arm("plain decoder", "qtseg", {**BUDGET, "decoder": "plain", "distribute": False}),
            Arm("without distribution", "qtseg", {**BUDGET, "distribute": False}),
            Arm("qtseg", "qtseg", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/ph2_skin", iterations=80),
            Data("../shared/data/2d/kvasir_seg", iterations=240),
            Data("../shared/data/2d/busi_seg", iterations=240),
        ),
        baseline="plain decoder",
        expects=(
            Expect("qtseg", "dsc", "higher"),
            Expect("qtseg", "dsc", "higher", against="without distribution"),
        ),
        metrics=("dsc", "iou", "hd95"),
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
    )
