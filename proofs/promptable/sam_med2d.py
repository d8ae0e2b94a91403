"""Coarse boxes and two corrections: LiteMedSAM as it is, at 256 pixels, and tuned for two minutes on the user's own images at 128."""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="sam-med2d",
        claim="tuned with coarse boxes and corrections, the model needs less exact boxes, gains more from clicks, and loses nothing",
        arms=(Arm("lite-medsam", "lite-medsam"), Arm("sam-med2d", "sam-med2d", {"side": 128, "corrections": 3})),
        data=(
            Data("../shared/data/2d/kvasir_seg"),
            Data("../shared/data/2d/ph2_skin"),
            Data("../shared/data/2d/busi_seg"),
            Data("../shared/data/2d/cxr_lungs"),
        ),
        baseline="lite-medsam, box20",
        expects=(
            Expect("sam-med2d, box20", "dsc", "higher"),
            Expect("sam-med2d, box20+2clicks", "dsc", "higher", against="lite-medsam, box20+2clicks"),
            Expect("sam-med2d, box20+2clicks", "dsc", "higher", against="sam-med2d, box20"),
            Expect("sam-med2d, box", "dsc", "higher", against="lite-medsam, box", margin=0.005),
        ),
        metrics=("dsc",),
        seeds=3,
        iterations=60,
        prompts=("box", "box20", "box20+2clicks"),
        plan={"precision": "bf16"},
    )
