"""The claim of light whole-volume segmentation: as good as a U-Net on slabs. That it costs less is measured by ``bench/pls_net.py``.

Neither data set holds meningiomas (none is public and small): organs and hippocampi stand in, so this tests the network, not the disease.
"""

from __future__ import annotations

from collections.abc import Mapping

from vesalius.core.geometry import Spacing
from vesalius.core.manifest import Manifest
from vesalius.core.method import Method
from vesalius.core.plan import Plan
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.learned import Segmenter


class SlabUNet(Segmenter):
    """The planned U-Net on axial slabs: the plan's patch, 16 slices thick."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None):
        super().__init__(plan.derive(patch=(*plan.patch[:2], 16)), manifest, parts=parts)


# Equal steps for all arms. The paper trains for two days at a constant rate; so few want a schedule and averaging, as the U-Net has.
BUDGET = {"lr": 3e-3, "schedule": "cosine", "warmup": 0.05, "ema": 0.98}


def study() -> Study:
    return Study(
        slug="meningioma-pls",
        claim="a quarter million parameters that see the whole volume segment no worse than a U-Net that sees slabs",
        arms=(
            Arm("unet on slabs", SlabUNet),
            Arm("pls-net, Dice alone", "meningioma-pls", BUDGET),
            Arm("pls-net, Dice + CE", "meningioma-pls", {**BUDGET, "ce_weight": 1.0}),
        ),
        data=(
            Data("phantom:torso-ct?cases=24", plan={"grid": Spacing(6.3, 6.3, 6.0), "patch": (48, 40, 32)}),
            Data("../shared/data/3d/msd_hippocampus", plan={"patch": (32, 48, 32)}),
        ),
        baseline="unet on slabs",
        expects=(Expect("pls-net, Dice alone", "dsc", "higher"), Expect("pls-net, Dice + CE", "dsc", "higher")),
        metrics=("dsc", "hd95"),
        iterations=150,
        plan={
            "batch": 2,
            "features": (8, 16, 32),
            "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
            "kernels": ((3, 3, 3),) * 3,
            "test_mirror": (),
        },
    )
