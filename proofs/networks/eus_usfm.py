"""Few labels after guessing hidden blocks and bands of all training frames, against the same fine-tuning of the same network from random
weights, and against as many steps on the labels alone; at one's own centre (BUSI) and at a centre never seen (speckle phantom).

``layer_decay`` keeps the weights of a long pretraining near what they are; it would hold back random ones, so no arm has it. Splits are by
patient: the study's other question, what frame-wise splits would add, is refused by the engine. Components: a run keeps the largest alone
where its validation cases gain by that, in every arm; one arm always does.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"dim": 64, "depth": 4, "heads": 4, "patch": 8, "width": 24, "block": 16, "lr": 2e-3, "layer_decay": 1.0, "rate": 2e-3}
SHARE = 2 / 3  # of the steps without labels


def study() -> Study:
    return Study(
        slug="eus-usfm",
        claim="a transformer that learnt ultrasound without labels makes more of few labels, also at a centre it never saw",
        arms=(
            Arm("from scratch", "eus-usfm", {**SMALL, "pretext": "none", "pretrain": SHARE}),
            Arm("from scratch, all steps", "eus-usfm", {**SMALL, "pretext": "none", "pretrain": 0.0}),
            Arm("eus-usfm", "eus-usfm", {**SMALL, "pretrain": SHARE}),
            Arm("eus-usfm, largest component", "eus-usfm", {**SMALL, "pretrain": SHARE, "keep_largest": True}),
        ),
        data=(
            Data("../shared/data/2d/busi_seg", labelled=8),
            Data("phantom:ultrasound?centre=external", labelled=5, metrics=("dsc", "iou", "sensitivity", "specificity", "accuracy")),
        ),
        baseline="from scratch",
        expects=(
            Expect("eus-usfm", "dsc", "higher"),
            Expect("eus-usfm, largest component", "betti0_error", "lower", against="eus-usfm"),
        ),
        metrics=("dsc", "iou", "sensitivity", "specificity", "accuracy", "betti0_error"),
        iterations=360,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 4, "precision": "32", "test_mirror": ()},
    )
