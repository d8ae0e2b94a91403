"""SAUNA's claim: certainty by border and thickness teaches more than hard labels, above all on thin vessels. The same U-Net, rate and steps
in all arms.

Every network is tested on its own data set and, as it is, on pictures of the other one's camera ('METRIC, other set'). Images are read at
384 pixels, so that a training takes seconds; answers are scored on the original ones. The length of the centre line that is found stands
for thin vessels: they are most of it.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study

OTHER = {"drive_vessels": "chase_db1", "chase_db1": "drive_vessels"}
METRICS = ("iou", "dsc", "length_detected", "cldice")
ELSEWHERE = ("iou, other set", "length_detected, other set")


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Every arm trained on ``manifest``, once a seed; rows of its test cases and of the other set's."""
    rows, split = [], manifest.held_out()
    tests = {"": manifest, ", other set": open_dataset(manifest.root.parent / OTHER[manifest.root.name])}
    for seed in range(seeds):
        for arm in study.arms:
            run = api.train(
                arm.method, manifest, folder / arm.name / f"seed_{seed}", options=arm.options, seed=seed, iterations=iterations,
                plan_overrides=plan, split=split, validations=study.validations, resume=True, progress=progress,
            )  # fmt: skip
            for word, data in tests.items():
                for case in map(api.reader(data), data.held_out().test):
                    for s in score(infer(run.method, case, run.plan, seed=seed), case, metrics=METRICS):
                        row = {"method": arm.name, "seed": seed, "case": s.case, "patient": s.patient, "rater": s.rater}
                        rows.append({**row, "structure": s.structure, "metric": s.metric + word, "value": s.value})
    return rows


def study() -> Study:
    return Study(
        slug="sauna",
        claim="the same U-Net finds more of the vessels' centre lines, at a better overlap, from SAUNA's maps than from hard labels",
        arms=(
            Arm("hard labels", "unet", {"lr": 5e-3}),
            Arm("sauna", "sauna"),
            Arm("sauna, a ratio for each side", "sauna", {"form": "split"}),
            Arm("sauna without thickness", "sauna", {"thickness": False}),
        ),
        data=(Data("../shared/data/2d/drive_vessels"), Data("../shared/data/2d/chase_db1")),
        baseline="hard labels",
        expects=(
            Expect("sauna", "iou", "higher"),
            Expect("sauna", "length_detected", "higher"),
            Expect("sauna", "length_detected", "higher", against="sauna without thickness"),
            Expect("sauna", "iou, other set", "higher"),
        ),
        metrics=(*METRICS, *ELSEWHERE),
        seeds=3,
        iterations=250,
        plan={"grid": LongestSide(384), "patch": (96, 96), "batch": 6, "features": (8, 16, 32, 64), "overlap": 0.25, "test_mirror": ()},
        measure=measure,
    )
