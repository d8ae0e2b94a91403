"""Tumour-preserving registration's claim: relative to its organ a tumour keeps its size, and organs lie over each other as well as before.

Every test pair is a case without a tumour (fixed) and one with (moving). The three arms have one budget: the first stage alone all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vesalius.core.case import Case
from vesalius.core.prediction import Prediction
from vesalius.engine import api
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.overlap import dsc

OPTIONS = {"features": (8, 16, 16), "refine": (16, 8), "lr": 2e-3, "smooth": 0.25}
MASKED = {**OPTIONS, "second_pass": False, "volume": 0.5, "share": 0.4}  # the first pass leaves hardly any tumour for a second to find


def rows_of(answer: Prediction, pair: Case) -> Iterator[tuple[str, float]]:
    """The tumour's size after over before, relative to the organ's (tumour included); that as a factor of at least 1 either way, squared
    (STSR); and the organ's overlap. A tumour that vanished counts as one voxel."""
    fixed, moving = pair.sides()
    before, after = (np.asarray(label.data) for label in (moving.labels["reference"], answer.labels["reference"]))
    organ, tumour = (max(np.count_nonzero(after >= k), 1) / max(np.count_nonzero(before >= k), 1) for k in (1, 2))
    kept = tumour / organ
    yield "tumour size", kept
    yield "STSR", max(kept, 1 / kept) ** 2
    yield "organ DSC", dsc(after > 0, np.asarray(fixed.labels["reference"].data) > 0)


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per test pair and arm: sizes and overlap, and the table's own TRE of landmarks and share of folded voxels."""
    out = []
    for seed in range(seeds):
        for arm in study.arms:
            trained = api.train(
                arm.method, manifest, folder / f"{arm.name.replace(' ', '-')}_{seed}", seed=seed, iterations=iterations,
                options=dict(arm.options), plan_overrides=plan, validations=0, resume=True, progress=progress,
            )  # fmt: skip
            for pair, answer, scores, _ in api.score_split(trained, manifest.where("test"), seed=seed, metrics=("tre", "folding")):
                row = {"method": arm.name, "case": pair.id, "patient": pair.patients[1], "seed": seed}
                out += [{**row, "metric": s.metric, "value": s.value, "better": "lower"} for s in scores]
                better = {"STSR": "lower", "tumour size": "zero", "organ DSC": "higher"}
                out += [{**row, "metric": name, "value": value, "better": better[name]} for name, value in rows_of(answer, pair)]
    return out


def study() -> Study:
    slug = "tumor-preserving-registration"
    return Study(
        slug=slug,
        claim="relative to its organ a tumour keeps its size, while organs overlap as well as with similarity alone",
        arms=(
            Arm("similarity alone", slug, {**OPTIONS, "mask": "none"}),
            Arm("hard mask", slug, {**MASKED, "mask": "hard"}),
            Arm("soft mask", slug, {**MASKED, "mask": "soft"}),
        ),
        data=(Data("phantom:organ-pairs-2d?seed=1"),),
        baseline="similarity alone",
        expects=(
            Expect("soft mask", "STSR", "lower"),
            Expect("soft mask", "STSR", "lower", against="hard mask"),
        ),
        metrics=("STSR", "tumour size", "organ DSC", "tre", "folding"),
        iterations=700,
        plan={"patch": (64, 64), "batch": 4, "workers": 0, "threads": 1},
        measure=measure,
    )
