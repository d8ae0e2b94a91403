"""TransDAE's claims: dual attention against none, and interacting skips against plain ones, slice by slice.

All arms take the same steps from random weights; without attention or interaction there are fewer parameters, as that is what is left out.
AdamW stands for the ancestor's 400 epochs of SGD. Slices of a volume are one batch. ``attention=channel``, two looks of one kind, is left
to a longer budget.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"widths": (16, 32, 64), "depth": 1, "heads": (1, 2, 4)}
TRAINING = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05, "clip": 1.0}
BUDGET = {**SMALL, **TRAINING}


def study() -> Study:
    return Study(
        slug="transdae",
        claim="dual attention and interacting skips segment organs on slices better than none and plain ones",
        arms=(
            Arm("attention off", "transdae", {**BUDGET, "attention": "off"}),
            Arm("plain skips", "transdae", {**BUDGET, "skips": "plain"}),
            Arm("transdae", "transdae", BUDGET),
        ),
        data=(Data("../shared/data/3d/acdc_scribble", plan={"grid": Spacing(10.0, 2.0, 2.0), "patch": (4, 96, 96)}),),
        baseline="attention off",
        expects=(
            Expect("transdae", "dsc", "higher"),
            Expect("transdae", "dsc", "higher", against="plain skips"),
        ),
        metrics=("dsc", "hd95"),
        iterations=260,
        plan={"batch": 2, "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
