"""SCOPE's claim: the grid graph keeps vessels connected, beside the same convolutions alone and taught by the same clDice.

All arms have the same small VGG from random weights, the same clDice, crops and steps. The graph's arms have the graph more (.142 M
parameters for .138, a sixth more work), so one has it without edges: there a node hears of nobody, at the same cost. Images are read at 384
pixels, DRIVE's at two thirds of their size, so nodes are 2 pixels a side and not 4; answers are scored on the original ones. Broken
branches are those of which less than four fifths of the centre line is found: one minus ``branches_detected``.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study

SMALL = {"width": 8, "hidden": 32, "patch": 2, "lr": 2e-3}


def study() -> Study:
    return Study(
        slug="scope",
        claim="a graph over patches breaks fewer vessels than the same convolutions with clDice, at no lower overlap",
        arms=(
            Arm("CNN + clDice", "scope", {**SMALL, "graph": False}),
            Arm("no edges + clDice", "scope", {**SMALL, "edges": "none"}),
            Arm("scope", "scope", SMALL),
        ),
        data=(Data("../shared/data/2d/drive_vessels"), Data("../shared/data/2d/chase_db1")),
        baseline="CNN + clDice",
        expects=(
            Expect("scope", "cldice", "higher"),
            Expect("scope", "branches_detected", "higher"),
            Expect("scope", "betti_error", "lower"),
            Expect("scope", "dsc", "higher", margin=0.01),
            Expect("scope", "cldice", "higher", against="no edges + clDice"),
        ),
        metrics=("dsc", "cldice", "betti0_error", "betti_error", "branches_detected"),
        seeds=3,
        iterations=240,
        plan={"grid": LongestSide(384), "patch": (96, 96), "batch": 4, "overlap": 0.25, "precision": "32", "test_mirror": ()},
    )
