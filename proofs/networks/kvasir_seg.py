"""Kvasir-SEG's protocol on a third of its frames: clustered colours against ResUNet, by DSC and IoU of each frame, averaged.

ResUNet is the paper's at a quarter of its width, for minutes instead of 150 epochs; frames are squeezed into one window, as there. The
fuzzy clusters' polyp is chosen by a rule learnt from the same training frames. The paper's mean IoU averages polyp and background; here
IoU is the polyp's alone, the harder half.
"""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study

BUDGET = {"width": 16, "whole": True, "size": (128, 128), "lr": 1e-3, "schedule": "cosine", "warmup": 0.05, "ema": 0.95}


def study() -> Study:
    return Study(
        slug="kvasir-seg",
        claim="a residual U-Net overlaps polyps better than clustered colours do",
        arms=(Arm("fuzzy c-means", "fuzzy-c-means"), Arm("resunet", "kvasir-seg", BUDGET)),
        data=(Data("../shared/data/2d/kvasir_seg"),),
        baseline="fuzzy c-means",
        expects=(Expect("resunet", "dsc", "higher"), Expect("resunet", "iou", "higher")),
        metrics=("dsc", "iou", "hd95"),
        iterations=400,
        plan={"patch": (128, 128), "batch": 8, "precision": "32", "test_mirror": ()},
    )
