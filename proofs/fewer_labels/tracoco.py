"""TraCoCo's claim: labels are learnt in one context and tested in others, where co-training alone repeats what the context taught it."""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study

LABELLED, ITERATIONS = 4, 250
# The same for both arms that co-train: a few hundred steps are too few for the paper's SGD, and T is 40 passes over the labelled cases.
BUDGET = {"optimizer": "adamw", "ramp": 40 * LABELLED / ITERATIONS}


def study() -> Study:
    return Study(
        slug="tracoco",
        claim="translation consistency and confident agreement beat co-training with MSE where the labelled context misleads",
        arms=(
            Arm("co-training, MSE", "tracoco", {**BUDGET, "agreement": "mse", "translation": 0.0}),
            Arm("unet, labelled only", "unet"),
            Arm("tracoco", "tracoco", BUDGET),
        ),
        data=(Data(f"phantom:moving-context?labelled={LABELLED}"),),
        baseline="co-training, MSE",
        expects=(Expect("tracoco", "dsc", "higher"), Expect("tracoco", "dsc", "higher", against="unet, labelled only")),
        iterations=ITERATIONS,
        plan={"patch": (32, 32, 32), "batch": 2, "features": (8, 16, 32)},
    )
