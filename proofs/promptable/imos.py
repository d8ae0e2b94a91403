"""What a memory is worth: masks of 1, 2 and 4 slices carried on, copied from the nearest of them, and carried with the last frame alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vesalius.core.manifest import Manifest
from vesalius.core.method import Run
from vesalius.core.plan import Plan
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.prompted import SequenceMethod


class Nearest(SequenceMethod):
    """The control arm: every slice gets the nearest outlined slice's masks; nothing is learnt."""

    every = 10**9  # a copy is not remembered as if it were seen

    def __init__(self, plan: Plan, manifest: Manifest, *, parts=None):
        super().__init__(plan, manifest, parts=parts)
        self.here = torch.nn.Parameter(torch.zeros(1))  # where tensors go

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> Nearest:
        return self

    def embed(self, image, condition=None):
        return image

    def memory(self):
        return None

    def remember(self, frame, masks, memory, *, given, at):
        return masks

    def carry(self, frame, memory):
        return memory, memory


def study() -> Study:
    small = {"key": 16, "value": 32, "every": 2, "frames": 6, "lr": 4e-3, "hard": 1.0}
    return Study(
        slug="imos",
        claim="from few outlined slices a memory of what was seen carries masks farther than a copy of the nearest, or than the last frame",
        arms=(
            Arm("nearest copy", Nearest),
            Arm("last frame", "imos", {**small, "recall": "last"}),
            Arm("imos", "imos", small),
        ),
        data=(
            Data("../shared/data/3d/msd_hippocampus", iterations=250),
            Data("../shared/data/3d/acdc_scribble", plan={"patch": (6, 80, 80), "batch": 2}),
            Data("phantom:torso-ct", plan={"patch": (64, 64, 36), "batch": 2}),
        ),
        baseline="nearest copy, 1slice",
        expects=(
            Expect("imos, 1slice", "dsc", "higher"),
            Expect("imos, 1slice", "dsc", "higher", against="last frame, 1slice"),
            Expect("imos, 2slices", "dsc", "higher", against="nearest copy, 2slices"),
            Expect("imos, 4slices", "dsc", "higher", against="nearest copy, 4slices"),
            Expect("imos, 4slices", "dsc", "higher", against="imos, 1slice"),
        ),
        metrics=("dsc",),
        seeds=3,
        iterations=130,
        prompts=("1slice", "2slices", "4slices"),
        plan={"batch": 4, "features": (8, 16, 32)},
    )
