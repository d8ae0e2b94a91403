"""M2SNet's claims: subtraction against a sum and against concatenation, and LossNet on against off, with the same parameters and steps.

All arms have the same small backbone from random weights (the paper's has seen ImageNet and trains 50 epochs). LossNet has few, random,
fixed filters here, so what it adds is a comparison of borders, not ImageNet's eye; a step with it costs half as much again. 'redundancy'
is how alike the levels are that the decoder is handed: the cosine over channels of every two of them, averaged over a test image.
``unit=single``, MSNet's one scale, is left to a longer budget.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from vesalius.core.geometry import LongestSide
from vesalius.engine import api
from vesalius.engine.prepare import prepare
from vesalius.engine.study import Arm, Data, Expect, Study, compared
from vesalius.networks.blocks.resize import resize_like

SMALL = {"depths": (1, 1, 1, 1), "width": 16, "channels": 16, "loss_width": 16, "loss_size": 64}
BUDGET = {**SMALL, "lr": 2e-3}


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """A comparison of the arms, and the redundancy of every test image."""
    scores = tuple(m for m in study.metrics if m != "redundancy")
    rows = compared(study, manifest, folder, scores, seeds=seeds, iterations=iterations, plan=plan, progress=progress)
    read, tests = api.reader(manifest), manifest.split().test
    for arm in study.arms:
        for seed in range(seeds):
            trained = api.open_run(folder / arm.name / f"seed_{seed}")
            for case in map(read, tests):
                value = redundancy(trained.method.eval(), prepare(case.without_labels(), trained.plan, trained.method))
                row = {"method": arm.name, "case": case.id, "patient": case.patient, "seed": seed}
                rows.append({**row, "metric": "redundancy", "value": value})
    return rows


def redundancy(method, case) -> float:
    """Mean cosine of every two of the pyramid's answers, at the size of the finest, over the image's places."""
    with torch.no_grad():
        seen = []
        handle = method.network.pyramid.register_forward_hook(lambda module, given, levels: seen.extend(levels))
        method(torch.from_numpy(np.ascontiguousarray(case.stack(method.channels)))[None])
        handle.remove()
        levels = [resize_like(level, seen[0]) for level in seen]
        return float(np.mean([cosine_similarity(a, b, dim=1).mean() for a, b in combinations(levels, 2)]))


def study() -> Study:
    return Study(
        slug="m2snet",
        claim="levels joined by multi-scale subtraction segment better than added or joined ones and say less twice; LossNet helps",
        arms=(
            Arm("without subtraction", "m2snet", {**BUDGET, "unit": "add"}),
            Arm("concatenation", "m2snet", {**BUDGET, "unit": "concat"}),
            Arm("without LossNet", "m2snet", {**BUDGET, "features": 0.0}),
            Arm("m2snet", "m2snet", BUDGET),
        ),
        data=(
            Data("../shared/data/2d/kvasir_seg"),
            Data("../shared/data/2d/busi_seg"),
        ),
        baseline="without subtraction",
        expects=(
            Expect("m2snet", "dsc", "higher"),
            Expect("m2snet", "dsc", "higher", against="concatenation"),
            Expect("m2snet", "dsc", "higher", against="without LossNet"),
            Expect("m2snet", "redundancy", "lower"),
        ),
        metrics=("dsc", "nsd", "hd95", "redundancy"),
        iterations=240,
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
        measure=measure,
    )
