"""What PRISM claims: turns better the mask, the corrective network more than the main one alone, and the predicted Dice tells the masks.

After eighty steps the network segments without a look at the clicks; some hundred more teach it what they mean.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from vesalius.core.geometry import Spacing
from vesalius.core.prompt import Candidates
from vesalius.engine import api
from vesalius.engine.interact import simulate, structures
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.overlap import dsc

CASES, TURNS = 10, 5  # test cases; clicks of a session, one a turn


def curve(method, case, plan, mode: str) -> list[float]:
    """Mean DSC over the case's structures after each turn of the simulated user ``mode``."""
    truths, out = structures(case, plan.classes), []
    for answer in simulate(method, case, plan, mode):
        masks = dict(zip(answer.names, np.asarray(answer.probability.data) >= answer.threshold, strict=True))
        out.append(float(np.mean([dsc(masks[name], truth) for name, truth in truths.items()])))
    return out


class AnyMask:
    """In its ``with`` block a method's masks are chosen by lot instead of by what they are expected to be worth."""

    def __init__(self, method, case: str):
        self.method, self.decode = method, method.network.decode
        self.lot = torch.Generator().manual_seed(zlib.crc32(case.encode()))

    def __enter__(self):
        self.method.network.decode = self._drawn

    def __exit__(self, *_):
        self.method.network.decode = self.decode

    def _drawn(self, *given) -> Candidates:
        answer = self.decode(*given)
        return Candidates(answer.logits, torch.rand(answer.quality.shape, generator=self.lot).to(answer.quality))


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """One training with and one without the corrective network a seed; sessions of the first also with masks chosen by lot."""
    rows, split, read = [], manifest.split(), api.reader(manifest)
    for seed in range(seeds):
        runs = {
            arm.name: api.train(
                arm.method, manifest, folder / arm.name.replace(" ", "_") / f"seed_{seed}", options=arm.options, seed=seed,
                iterations=iterations, plan_overrides=plan, split=split, validations=0, resume=True, progress=progress,
            )
            for arm in study.arms if arm.name != "any mask"
        }  # fmt: skip
        for case in map(read, split.test[:CASES]):
            for arm in study.arms:
                run = runs.get(arm.name) or runs["prism"]
                if arm.name in runs:
                    scores = curve(run.method, case, run.plan, f"{TURNS}clicks")
                else:
                    with AnyMask(run.method, f"{case.id} {seed}"):
                        scores = curve(run.method, case, run.plan, f"{TURNS}clicks")
                for mode in study.prompts:
                    row = {"method": f"{arm.name}, {mode}", "case": case.id, "patient": case.patient, "seed": seed}
                    rows.append({**row, "metric": "dsc", "value": scores[int(mode[0]) - 1], "better": "higher"})
    return rows


def study() -> Study:
    small = {"features": (8, 16, 32), "dim": 32, "depth": 2, "heads": 2, "interactions": 4, "clicks": 3, "lr": 4e-3}
    small |= {"boxes": 0.0, "scribbles": 0.0}
    return Study(
        slug="prism",
        claim="each turn betters the mask, the corrective network more than the main one alone, and the predicted Dice chooses well",
        arms=(
            Arm("without refiner", "prism", {**small, "refine": False}),
            Arm("any mask", "prism", small),
            Arm("prism", "prism", small),
        ),
        data=(
            Data("phantom:shapes-3d?cases=40", iterations=300, plan={"patch": (24, 24, 24)}),
            Data("../shared/data/3d/msd_hippocampus", plan={"patch": (24, 32, 24), "grid": Spacing(1.5, 1.5, 1.5)}),
        ),
        baseline="without refiner, 5clicks",
        expects=(
            Expect("prism, 5clicks", "dsc", "higher", against="prism, 1click"),
            Expect("prism, 5clicks", "dsc", "higher"),
            Expect("prism, 5clicks", "dsc", "higher", against="any mask, 5clicks"),
        ),
        metrics=("dsc",),
        seeds=3,
        iterations=500,
        prompts=("1click", "3clicks", "5clicks"),
        plan={"batch": 2},
        measure=measure,
    )
