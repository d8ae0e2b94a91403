"""MPU-Net's claims: attention, gates and joined scales against the same U-shape without them, and against a U-Net of its size.

'unet' has five levels of 8 to 128 channels, MPU-Net's in this size: as many parameters (1.35 million), and 7 % (torso) and 27 % (ACDC)
more operations. It is there as it is planned, and with the rate and normalisation of the others, one output and no average of weights:
either way so few steps are few for it. 'bare' has neither of the three and takes the finest map alone, with the same loss and nearly as
many parameters.
In the torso a left kidney looks like a right one, and only where it lies tells which it is: what position attention is for. 'slices'
is the form in which a series of slices with two neighbours each is segmented in 2D. AdamW stands for the 600 epochs of Adam.

The authors' code swaps false positives and false negatives: the precision it reports is sensitivity (and its specificity the negative
predictive value). Here are both under their own names.
"""

from __future__ import annotations

from vesalius.core.geometry import Spacing
from vesalius.engine.study import Arm, Data, Expect, Study

TRAINING = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "warmup": 0.05, "clip": 1.0}
BUDGET = {"width": 4, "dropout": 0.0, **TRAINING}
BATCHED = {"lr": 3e-3, "ema": 0.0, "deep_supervision": False, "norm": "batch"}
THICK = {
    "grid": Spacing(10.0, 3.0, 3.0),
    "patch": (8, 64, 64),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
}
CUBES = {
    "grid": Spacing(8.0, 8.0, 8.0),
    "patch": (40, 32, 24),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    "kernels": ((3, 3, 3),) * 5,
}


def study() -> Study:
    return Study(
        slug="mpu-net",
        claim="position attention, gates and joined scales segment organs better than a U-Net",
        arms=(
            Arm("unet", "unet"),
            Arm("unet, batch norm", "unet", BATCHED),
            Arm("bare", "mpu-net", {**BUDGET, "attention": False, "gates": False, "joined": False}),
            Arm("slices", "mpu-net", {**BUDGET, "form": "slices"}),
            Arm("mpu-net", "mpu-net", BUDGET),
        ),
        data=(Data("../shared/data/3d/acdc_scribble", plan=THICK), Data("phantom:torso-ct?cases=24", plan=CUBES)),
        baseline="unet",
        expects=(
            Expect("mpu-net", "dsc", "higher"),
            Expect("mpu-net", "dsc", "higher", against="unet, batch norm"),
            Expect("mpu-net", "dsc", "higher", against="bare"),
        ),
        metrics=("dsc", "hd95", "mcc", "precision", "sensitivity", "specificity"),
        iterations=200,
        plan={"batch": 2, "features": (8, 16, 32, 64, 128), "precision": "32", "overlap": 0.25, "test_mirror": ()},
    )
