"""TransDAE's claims: attention of two kinds against twice the same, and interacting skips against plain ones, slice by slice.

All arms look twice in every block and take the same steps from random weights, at nearly the same cost: .038 to .040 GFLOPs a slice and
.23 to .26 M parameters (spatial attention has the most, for its strided convolutions; plain skips lack a fortieth of the parameters and a
twentieth of the work). The hippocampus is read at .55 mm in the slice, as it is small beside places of stride 4; of such small maps the
spatial attention's keys are half as coarse as by default. AdamW stands for the ancestor's 400 epochs of SGD. Slices are one batch.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"widths": (16, 32, 64), "depth": 1, "heads": (1, 2, 4), "reductions": (4, 2, 1)}
TRAINING = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05, "clip": 1.0}
BUDGET = {**SMALL, **TRAINING}


def study() -> Study:
    return Study(
        slug="transdae",
        claim="dual attention and interacting skips segment organs on slices better than attention of one kind and plain skips",
        arms=(
            Arm("channel attention", "transdae", {**BUDGET, "attention": "channel"}),
            Arm("spatial attention", "transdae", {**BUDGET, "attention": "spatial"}),
            Arm("plain skips", "transdae", {**BUDGET, "skips": "plain"}),
            Arm("transdae", "transdae", BUDGET),
        ),
        data=(
            Data("../shared/data/3d/msd_hippocampus", plan={"grid": Spacing(1.0, 0.55, 0.55), "patch": (6, 96, 64)}),
            Data("../shared/data/3d/acdc_scribble", plan={"grid": Spacing(10.0, 3.0, 3.0), "patch": (8, 64, 64)}, iterations=500),
        ),
        baseline="channel attention",
        expects=(
            Expect("transdae", "dsc", "higher"),
            Expect("transdae", "dsc", "higher", against="spatial attention"),
            Expect("transdae", "dsc", "higher", against="plain skips"),
        ),
        metrics=("dsc", "hd95"),
        iterations=200,
        plan={"batch": 2, "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
