"""What PRISM Lite claims: clicks mend an automatic mask, it is the clicks that do it, and they mend a bad one too.

On the images' own grid: the network works at half of its resolution, and at 1.5 mm every turn rounds the hippocampus off. A quarter of the
steps train the segmenter; after some hundred steps the corrections hardly know clicks yet.
"""

from __future__ import annotations

import numpy as np

from vesalius.engine import api
from vesalius.engine.interact import respond, simulate, structures
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.overlap import dsc

CASES, TURNS = 16, 5  # test cases; clicks of a session, one a turn


def automatic(method, case) -> list[float]:
    """Mean DSC over the case's structures of the mask that the segmenter gives by itself, once for each turn."""
    part = method.parts["segmenter"]
    found = np.asarray(respond(part, case, part.plan).label.data)
    truths = structures(case, part.plan.classes)
    return [float(np.mean([dsc(found == part.plan.classes.index(n), t) for n, t in truths.items()]))] * TURNS


def clicked(method, case, *, bad: bool = False) -> list[float]:
    """The same after each click; ``bad``: half of every automatic mask, along the first axis, is missing at the start."""
    truths, out, tensor = structures(case, method.plan.classes), [], method.tensor
    method.tensor = (lambda prepared: halved(tensor(prepared), method.in_channels)) if bad else tensor
    try:
        for answer in simulate(method, case, method.plan, f"{TURNS}clicks"):
            masks = dict(zip(answer.names, np.asarray(answer.probability.data) >= answer.threshold, strict=True))
            out.append(float(np.mean([dsc(masks[name], truth) for name, truth in truths.items()])))
    finally:
        method.tensor = tensor
    return out


def halved(seen, channels: int):
    """(1, C + K, *s) with the structures' probabilities 0 in the lower half of where one is likely."""
    found = (seen[0, channels:].sum(0) > 0.5).nonzero()[:, 0]
    if len(found):
        seen[:, channels:, : int(found.median())] = 0
    return seen


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """One training with clicks and one without a seed; the automatic mask and the bad start are those of the first."""
    rows, split, read = [], manifest.split(), api.reader(manifest)
    for seed in range(seeds):
        seeing, blind = (
            api.train(
                arm.method, manifest, folder / arm.name.replace(" ", "_") / f"seed_{seed}", options=arm.options, seed=seed,
                iterations=iterations, plan_overrides=plan, split=split, validations=0, resume=True, progress=progress,
            ).method.eval()
            for arm in study.arms if arm.name in ("prism-lite", "clicks unseen")
        )  # fmt: skip
        for case in map(read, split.test[:CASES]):
            curves = {"automatic": automatic(seeing, case), "clicks unseen": clicked(blind, case), "prism-lite": clicked(seeing, case)}
            for name, scores in {**curves, "bad start": clicked(seeing, case, bad=True)}.items():
                for mode in study.prompts:
                    row = {"method": f"{name}, {mode}", "case": case.id, "patient": case.patient, "seed": seed}
                    rows.append({**row, "metric": "dsc", "value": scores[int(mode[0]) - 1], "better": "higher"})
    return rows


def study() -> Study:
    small = {"interactions": 6, "clicks": 3, "scribbles": 0.0, "share": 0.25}
    return Study(
        slug="prism-lite",
        claim="a tenth of a million parameters and a few clicks better an automatic mask, and mend a bad one",
        arms=(
            Arm("automatic", "prism-lite", small),
            Arm("prism-lite", "prism-lite", small),
            Arm("clicks unseen", "prism-lite", {**small, "guided": False}),
            Arm("bad start", "prism-lite", small),
        ),
        data=(Data("../shared/data/3d/msd_hippocampus", plan={"patch": (32, 40, 32)}),),
        baseline="automatic, 5clicks",
        expects=(
            Expect("prism-lite, 5clicks", "dsc", "higher"),
            Expect("prism-lite, 5clicks", "dsc", "higher", against="clicks unseen, 5clicks"),
            Expect("bad start, 5clicks", "dsc", "higher", against="bad start, 1click"),
        ),
        metrics=("dsc",),
        seeds=3,
        iterations=800,
        prompts=("1click", "5clicks"),
        plan={"batch": 2, "features": (8, 16, 32), "test_mirror": ()},
        measure=measure,
    )
