"""SimPLe's claim: from extreme points alone, contrast, then spreading by likeness, then training afresh each make the masks better."""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study

# The paper's SGD is for 400 epochs; its 100 iterations of propagation are a larger share of a short training.
BUDGET = {"optimizer": "adamw", "finetune": 0.15}


def study() -> Study:
    return Study(
        slug="simple-dcemri",
        claim="contrast between sure voxels, labels spread by likeness and training afresh each improve on masks from extreme points",
        arms=(
            Arm("points, no contrast", "simple-dcemri", {**BUDGET, "until": "contrast", "contrast": 0.0}),
            Arm("contrast", "simple-dcemri", {**BUDGET, "until": "contrast"}),
            Arm("contrast, propagation", "simple-dcemri", {**BUDGET, "until": "propagate"}),
            Arm("simple-dcemri", "simple-dcemri", BUDGET),
            Arm("unet, full masks", "unet"),
        ),
        data=(
            Data("phantom:shapes-3d?cases=30"),
            Data("../shared/data/3d/msd_hippocampus", labelled=20),
            Data("../shared/data/3d/acdc_scribble?structure=left ventricle", plan={"patch": (10, 64, 64)}),
        ),
        baseline="points, no contrast",
        expects=(
            Expect("contrast", "dsc", "higher"),
            Expect("contrast, propagation", "dsc", "higher", against="contrast"),
            Expect("simple-dcemri", "dsc", "higher", against="contrast, propagation"),
            Expect("unet, full masks", "dsc", "higher", against="simple-dcemri"),
        ),
        iterations=300,
        plan={"patch": (24, 32, 24), "batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
