"""The claim of prostate-zones: two branches, then agreement, then a second task, each against what was there before.

All arms have the same steps, labelled cases, parameters and operations: the one branch of the baseline is so much wider that it costs what
two do (the second task's heads add half a per cent). Agreement also sees as many cases without labels. The paper's gains are largest where
a zone is thin (DPU, AFS). Short trainings want a higher rate, a shorter average of the weights, and a second stage that can still teach
each branch the other's zones; the branch of the thin zones, to which nearly all is background, finds them late.
"""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"lr": 5e-3, "ema": 0.95, "finetune": 0.5, "finetune_rate": 0.5}
APART = {**BUDGET, "until": "apart", "auxiliary": 0.0}


def study() -> Study:
    return Study(
        slug="prostate-zones",
        claim="two branches for connected zones, their agreement and a second task each bring the zones' borders closer",
        arms=(
            Arm("one wide branch", "prostate-zones", {**APART, "groups": ("all",), "widen": 1.42}),
            Arm("two branches", "prostate-zones", APART),
            Arm("two branches, agreement", "prostate-zones", {**BUDGET, "auxiliary": 0.0}),
            Arm("prostate-zones", "prostate-zones", BUDGET),
        ),
        data=(Data("phantom:prostate-zones?cases=44,4,10&labelled=20"),),
        baseline="one wide branch",
        expects=(
            Expect("two branches", "assd", "lower"),
            Expect("two branches, agreement", "assd", "lower", against="two branches"),
            Expect("prostate-zones", "assd", "lower", against="two branches, agreement"),
            Expect("prostate-zones", "assd", "lower"),
        ),
        metrics=("dsc", "assd"),
        iterations=600,
        plan={"patch": (48, 48, 12), "batch": 2, "features": (8, 16, 32), "precision": "32", "test_mirror": ()},
    )
