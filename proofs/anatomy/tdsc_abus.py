"""The reference pipeline's three choices, each taken away: lesion-centred patches, scored components, a classifier that sees the crop."""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="tdsc-abus",
        claim="lesion-centred patches outline better, scored components detect better, and the crop tells malignant from benign",
        arms=(
            Arm("patches anywhere", "tdsc-abus", {"foreground": 0.0}),
            Arm("unscored", "tdsc-abus", {"scored": False}),
            Arm("whole volume", "tdsc-abus", {"crop": False}),
            Arm("tdsc-abus", "tdsc-abus"),
        ),
        data=(Data("phantom:abus"),),
        baseline="patches anywhere",
        expects=(
            Expect("tdsc-abus", "dsc", "higher"),
            Expect("tdsc-abus", "froc", "higher", against="unscored"),
            Expect("tdsc-abus", "auroc", "higher", against="whole volume"),
        ),
        metrics=("dsc", "hd_sitk", "froc", "auroc"),
        seeds=3,
        iterations=150,
        plan={"patch": (32, 32, 24), "batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
