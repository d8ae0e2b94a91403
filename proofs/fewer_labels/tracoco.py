"""TraCoCo's claim: labels learnt in one context, tested in others. And the same arms on real hippocampi with few labels."""

from __future__ import annotations

from dataclasses import replace

from vesalius.core.manifest import Manifest
from vesalius.engine.study import Arm, Study

LABELLED = 4
ITERATIONS = 300
# The same for both arms that co-train: a few hundred steps are too few for the paper's SGD, and T is 40 passes over the labelled cases.
BUDGET = {"optimizer": "adamw", "ramp": 40 * LABELLED / ITERATIONS}


def few(manifest: Manifest) -> Manifest:
    """The first ``LABELLED`` training cases keep their labels; a phantom that hides its own stays as it is."""
    known = [c.id for c in manifest.cases if c.split == "train" and c.labels]
    hidden = set(known[LABELLED:])
    return replace(manifest, cases=tuple(replace(c, labels={}) if c.id in hidden else c for c in manifest.cases))


def study() -> Study:
    plain = {**BUDGET, "agreement": "mse", "translation": 0.0}
    return Study(
        slug="tracoco",
        claim="translation consistency and confident agreement beat co-training with MSE where the labelled context misleads",
        arms=(
            Arm("co-training, MSE", "tracoco", plain, train_on=few),
            Arm("unet, labelled only", "unet", train_on=few),
            Arm("tracoco", "tracoco", BUDGET, train_on=few),
        ),
        data=(f"phantom:moving-context?labelled={LABELLED}", "../shared/data/3d/msd_hippocampus"),
        baseline="co-training, MSE",
        expects={"tracoco": {"dsc": "higher"}},
        seeds=3,
        iterations=ITERATIONS,
        plan={"patch": (32, 32, 32), "batch": 2, "features": (8, 16, 32)},
    )
