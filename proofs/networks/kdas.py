"""KDAS's claim: a small student that is told what a large teacher's map attends to, against the student alone and plain distillation.

The student has a seventh of the teacher's parameters. Both start from random weights (the paper's have seen ImageNet, and train 100
epochs), so the rate is higher and falls, and there is one scale. The students of all arms but one have the same seeds and the same steps;
the teacher has as many again, which 'student alone, all steps' has for itself: what the teacher costs, spent on the student.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"width": 16, "depths": (1, 1, 1, 1), "channels": 16, "teacher_width": 32, "teacher_depths": (2, 2, 2, 2), "scales": ()}
BUDGET = {**SMALL, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05}


def study() -> Study:
    return Study(
        slug="kdas",
        claim="attention supervision and symmetric guidance make a student better than it is alone, and than plain distillation does",
        arms=(
            Arm("student alone", "kdas", {**BUDGET, "distil": "none"}),
            Arm("student alone, all steps", "kdas", {**BUDGET, "distil": "none", "share": 0.0}),
            Arm("plain distillation", "kdas", {**BUDGET, "distil": "kl"}),
            Arm("kdas", "kdas", BUDGET),
        ),
        data=(Data("../shared/data/2d/kvasir_seg"),),
        baseline="student alone",
        expects=(
            Expect("kdas", "dsc", "higher"),
            Expect("kdas", "dsc", "higher", against="plain distillation"),
            Expect("kdas", "dsc", "higher", against="student alone, all steps"),
        ),
        metrics=("dsc", "nsd", "hd95"),
        iterations=200,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
    )
