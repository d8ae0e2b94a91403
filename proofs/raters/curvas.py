"""What CURVAS claims to measure: of three predictors that decide alike, the one whose probabilities are right as often as they say wins."""

from __future__ import annotations

from collections.abc import Sequence

from vesalius.core.geometry import NATIVE
from vesalius.core.method import Run
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.raters.curvas import CurvasUNet


class Overconfident(CurvasUNet):
    """The control arm: the calibrated temperature divided by five, whatever confidence the training ended in."""

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> CurvasUNet:
        super().fit(train, val, run)
        self.temperature /= 5
        return self


def study() -> Study:
    return Study(
        slug="curvas",
        claim="at equal decisions, ECE against every rater and CRPS of the volume prefer the calibrated predictor to an overconfident one",
        arms=(
            Arm("overconfident", Overconfident),
            Arm("as trained", "curvas", {"temperature": 1.0}),
            Arm("curvas", "curvas"),
        ),
        data=(Data("phantom:torso-ct?raters=3&cases=18"),),
        baseline="overconfident",
        expects=(Expect("curvas", "multirater_ece", "lower"), Expect("curvas", "volume_crps", "lower")),
        metrics=("consensus_dsc", "multirater_ece", "volume_crps"),
        seeds=3,
        iterations=150,
        # the native grid: a temperature changes no decision, but what is resampled between two classes could change
        plan={"grid": NATIVE, "patch": (32, 32, 16), "batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
