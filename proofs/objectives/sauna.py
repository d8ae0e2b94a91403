"""SAUNA's claim: certainty by border and thickness teaches more than hard labels, above all on thin vessels. The same U-Net in all arms.

Images are read at 384 pixels, so that a training takes seconds; answers are scored on the original ones. The length of the centre line that
is found stands for thin vessels: they are most of it.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="sauna",
        claim="the same U-Net finds more of the vessels' centre lines, at a better overlap, from SAUNA's maps than from hard labels",
        arms=(
            Arm("hard labels", "unet"),
            Arm("sauna", "sauna"),
            Arm("sauna without thickness", "sauna", {"thickness": False}),
        ),
        data=(Data("../shared/data/2d/drive_vessels"), Data("../shared/data/2d/chase_db1")),
        baseline="hard labels",
        expects=(
            Expect("sauna", "iou", "higher"),
            Expect("sauna", "length_detected", "higher"),
            Expect("sauna", "length_detected", "higher", against="sauna without thickness"),
        ),
        metrics=("iou", "dsc", "length_detected", "cldice"),
        seeds=3,
        iterations=250,
        plan={"grid": LongestSide(384), "patch": (96, 96), "batch": 6, "features": (8, 16, 32, 64), "overlap": 0.25, "test_mirror": ()},
    )
