"""Few labels after guessing hidden blocks and bands of 400 frames, against the same fine-tuning of the same network from random weights,
and against as many steps on the labels alone; at the centres it learnt from (A, B) and at a third one that it never saw (C).

Frames are of a sector probe with an uneven gain. Of linear frames with an even one four labels and sixty steps from random weights already
reach a DSC of .89 on validation cases, so that nothing is left to learn beforehand. The pretext sees all training frames, and no label. The
pretrained transformer is tuned with a ``layer_decay`` of .75, which keeps it near what it learnt; random weights would be held back by
that and have none. BUSI, with 44 frames to learn from, is too small for a pretext and is left out.

Splits are by patient: the study's other question, what frame-wise splits would add, is refused by the engine. No arm's run keeps largest
components by itself; one arm is the same network, asked to. 'several components': the share of answers with more than one.
"""

from __future__ import annotations

import numpy as np

from vesalius.core.geometry import LongestSide
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study, read_as, trained_once
from vesalius.ops.components import components

SMALL = {"dim": 64, "depth": 4, "heads": 4, "patch": 8, "width": 24, "block": 16, "lr": 2e-3, "layer_decay": 1.0, "rate": 2e-3}
TUNED = {**SMALL, "layer_decay": 0.75}
SHARE = 0.8  # of the steps without labels
LABELLED = 4  # frames
LOOK = "geometry=sector&corruption=bias&severity=5&corrupted=all"
OWN = tuple(f"phantom:ultrasound?centre={c}&{LOOK}&cases=1,1,12" for c in "AB")
SCORES = ("dsc", "iou", "sensitivity", "specificity", "accuracy")


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Rows of every arm's answers for test cases of the third centre, and their DSC for others of the centres it learnt from."""
    split, rows = manifest.split(), []
    for seed in range(seeds):
        shown = api.hide_labels(manifest, split.train, LABELLED, seed)
        common, _ = api.plan_for(shown, split, overrides=plan, progress=progress)
        how = dict(seed=seed, taught=taught, iterations=iterations, plan=common, split=split, progress=progress)
        for arm, trained in trained_once(study.arms, shown, folder, **how):
            method, own = read_as(trained, arm), {"method": arm.name, "seed": seed}
            for case, label, found in answers(method, manifest, split.test):
                row = {**own, "case": case.id, "patient": case.patient}
                rows += [{**row, "structure": s.structure, "metric": s.metric, "value": s.value} for s in found]
                rows.append({**row, "metric": "several components", "value": float(several(label))})
            for where in OWN:
                other = open_dataset(where)
                for case, _, found in answers(method, other, other.split().test):
                    row = {**own, "case": f"{where} {case.id}", "patient": f"{where} {case.patient}", "metric": "dsc, own centres"}
                    rows += [{**row, "structure": s.structure, "value": s.value} for s in found if s.metric == "dsc"]
    return rows


def taught(options):
    """Which component of an answer is kept is no matter of training."""
    return {k: v for k, v in options.items() if k != "keep_largest"}


def answers(method, manifest, cases):
    """(case, label map, scores) of each; what the run found out about largest components is left aside."""
    read = api.reader(manifest)
    for case in map(read, cases):
        said = infer(method, case, method.plan.derive(largest_component=()))
        yield case, np.asarray(said.label.data), score(said, case, metrics=SCORES)


def several(label: np.ndarray) -> bool:
    """Whether there is more than one component of foreground."""
    return len(components(label > 0)[1]) > 1


def study() -> Study:
    return Study(
        slug="eus-usfm",
        claim="a transformer that learnt ultrasound without labels makes more of few labels, also at a centre it never saw",
        arms=(
            Arm("from scratch", "eus-usfm", {**SMALL, "pretext": "none", "pretrain": SHARE}),
            Arm("from scratch, all steps", "eus-usfm", {**SMALL, "pretext": "none", "pretrain": 0.0}),
            Arm("eus-usfm", "eus-usfm", {**TUNED, "pretrain": SHARE}),
            Arm("eus-usfm, largest component", "eus-usfm", {**TUNED, "pretrain": SHARE, "keep_largest": True}),
        ),
        data=(Data(f"phantom:ultrasound?centre=external&{LOOK}&cases=400,12,24"),),
        baseline="from scratch",
        expects=(
            Expect("eus-usfm", "dsc", "higher"),
            Expect("eus-usfm", "dsc, own centres", "higher"),
            Expect("eus-usfm", "dsc", "higher", against="from scratch, all steps"),
            Expect("eus-usfm, largest component", "several components", "lower", against="eus-usfm"),
            Expect("eus-usfm, largest component", "dsc", "higher", against="eus-usfm", margin=0.01),
        ),
        metrics=(*SCORES, "dsc, own centres", "several components"),
        iterations=960,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
        measure=measure,
    )
