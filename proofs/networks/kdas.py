"""KDAS's claim: a small student that is told what a large teacher's map attends to, against the student alone and plain distillation.

The student has a seventh of the teacher's parameters. Both start from random weights (the paper's have seen ImageNet, and train 100
epochs), so the rate is higher and falls, and there is one scale. A teacher is trained once a seed, twice as long as a student, and teaches
both distilled students; it is an arm of its own, since one that is no better than the student has nothing to teach. Students have the
same seeds and the same steps, a distilled step costing nearly two plain ones; 'student alone, all steps' has the teacher's steps as well,
each of which costs two and a half of its own.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine import api
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"width": 16, "depths": (1, 1, 1, 1), "channels": 16, "scales": ()}
BUDGET = {**SMALL, "lr": 2e-3, "weight_decay": 1e-2}
ALONE = {**BUDGET, "distil": "none", "share": 0.0}
STEPS = {"teacher": 400, "student alone, all steps": 600}  # of the others the study's


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Score rows of the test cases; a seed's teacher is trained first and lent to the arms that take one."""
    rows, split = [], manifest.split()
    for seed in range(seeds):
        lent = folder / "teacher" / f"seed_{seed}"
        for arm in study.arms:
            taught = arm.options.get("distil") != "none"
            trained = api.train(
                arm.method, manifest, folder / arm.name / f"seed_{seed}", seed=seed, iterations=STEPS.get(arm.name, iterations),
                options={**arm.options, **({"teacher": str(lent)} if taught else {})}, split=split, plan_overrides=plan,
                validations=1, resume=True, progress=progress,
            )  # fmt: skip
            for _, _, scores, _ in api.score_split(trained, split.test, seed=seed, progress=progress, metrics=study.metrics):
                rows += [{**s.to_json(), "method": arm.name, "seed": seed} for s in scores]
    return rows


def study() -> Study:
    return Study(
        slug="kdas",
        claim="attention supervision and symmetric guidance make a student better than it is alone, and than plain distillation does",
        arms=(
            Arm("teacher", "kdas", {**ALONE, "width": 32, "depths": (2, 2, 2, 2)}),
            Arm("student alone", "kdas", ALONE),
            Arm("student alone, all steps", "kdas", ALONE),
            Arm("plain distillation", "kdas", {**BUDGET, "distil": "kl"}),
            Arm("kdas", "kdas", BUDGET),
        ),
        data=(Data("../shared/data/2d/kvasir_seg"),),
        baseline="student alone",
        expects=(
            Expect("teacher", "dsc", "higher"),
            Expect("kdas", "dsc", "higher"),
            Expect("kdas", "dsc", "higher", against="plain distillation"),
            Expect("kdas", "dsc", "higher", against="student alone, all steps"),
        ),
        metrics=("dsc", "nsd", "hd95"),
        iterations=200,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
        measure=measure,
    )
