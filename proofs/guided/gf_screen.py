"""GF-Screen's claim: at the lesion recall of the full sliding window, most windows and their false alarms are saved.

Both glances have the same focus, bit for bit (the reinforcement does not reach it), so arms differ in the windows they segment and in
nothing else. From which p(look) a window is segmented is decided on the validation cases (the training case where there are none): the
highest threshold at which no lesion is lost that the full window finds. A cost ratio is CPU seconds of the whole prediction, glance
included, over those of the full window for the same case. A lesion is a connected set of voxels and found when one of its voxels is; a
false alarm is a predicted set that meets no lesion. 'least 0.9' is the paper's fixed threshold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from vesalius.core.case import Case
from vesalius.core.geometry import Spacing
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.prepare import prepare
from vesalius.engine.restore import restore
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.detection import objects
from vesalius.ops.components import components

EVERY = "every window"
ABDOMEN = {
    "CT": {"mean": 40.0, "sd": 80.0, "p005": -175.0, "p995": 250.0}
}  # the paper's window, HU; the phantom's air would rule the plan's
PUBLISHED = 0.9
THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def answer(trained: api.Trained, case: Case, prepared: Case, least: float):
    """(prediction on the case's grid, CPU seconds of looking and segmenting)."""
    trained.method.least = least
    with torch.no_grad():
        tick = time.process_time()
        found = trained.method.eval().predict(prepared, rng=np.random.default_rng(0))
        seconds = time.process_time() - tick
    return restore(found, prepared.geometry, case.geometry, trained.plan.classes), seconds


def detected(prediction, case: Case) -> tuple[int, int, int]:
    """(lesions found, lesions, false alarms); all foreground is lesion."""
    masks = (np.asarray(m.data) > 0 for m in (prediction.label, case.labels["reference"]))
    both = objects(*(components(m)[0] for m in masks), case.geometry.spacing)
    return int(both.common.any(0).sum()), len(both.size_reference), int((~both.common.any(1)).sum())


def calibrated(trained: api.Trained, cases: Sequence[tuple[Case, Case]]) -> float:
    """The highest threshold at which the cases lose no lesion that every window finds; 0 if there is none, or no lesion is found at all."""
    hits = lambda case, prepared, least: detected(answer(trained, case, prepared, least)[0], case)[0]
    wanted = [hits(*c, 0.0) for c in cases]
    for least in THRESHOLDS if any(wanted) else ():
        if all(n == 0 or hits(*c, least) >= n for c, n in zip(cases, wanted, strict=True)):
            return least
    return 0.0


def measures(found, case: Case, cost: float) -> dict[str, float | None]:
    hits, lesions, alarms = detected(found, case)
    return {
        "lesion recall": hits / lesions if lesions else None,
        "windows skipped": 1 - found.table["kept_share"],
        "cost ratio": cost,
        "false alarms": alarms,
        "dsc": score(found, case, metrics=("dsc",))[0].value,
    }


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """One training per seed and glance; the full window is that of the last, whose focus is the others'."""
    read, split, out = api.reader(manifest), manifest.split(), []
    cases: dict[str, tuple[Case, Case]] = {}
    for seed in range(seeds):
        for arm in study.arms[1:]:
            trained = api.train(
                arm.method, manifest, folder / f"{arm.name.replace(' ', '-')}_{seed}", options=arm.options, seed=seed,
                iterations=iterations, plan_overrides=plan, split=split, validations=0, resume=True, progress=progress,
            )  # fmt: skip
            if not cases:  # prepared alike for all arms: they share the plan
                natives = [read(i) for i in (*(split.val or split.train[:1]), *split.test)]
                cases = {c.id: (c, prepare(c.without_labels(), trained.plan, trained.method)) for c in natives}
            least = calibrated(trained, [cases[i] for i in split.val or split.train[:1]])
            progress.say(f"{arm.name}, seed {seed}: windows of p(look) >= {least} are segmented")
            for i in split.test:
                full, seconds = answer(trained, *cases[i], 0.0)
                found, mine = answer(trained, *cases[i], least)
                fixed = measures(answer(trained, *cases[i], PUBLISHED)[0], cases[i][0], 0.0)
                rows = {arm.name: measures(found, cases[i][0], mine / seconds)}
                rows[arm.name] |= {f"{m}, least {PUBLISHED}": fixed[m] for m in ("lesion recall", "windows skipped")}
                if arm == study.arms[-1]:
                    rows[EVERY] = measures(full, cases[i][0], 1.0)
                row = {"case": i, "patient": manifest[i].patient, "seed": seed}
                out += [{**row, "method": name, "metric": m, "value": v} for name, ms in rows.items() for m, v in ms.items()]
    return out


def study() -> Study:
    common = {"segmented": 8, "blocks": 1, "lr": 4e-3, "glance_lr": 1e-3}  # seconds instead of 500 epochs
    return Study(
        slug="gf-screen",
        claim="a glance taught by what segmenting earned skips most windows at the lesion recall of the full sliding window",
        arms=(
            Arm(EVERY, "gf-screen", {**common, "least": 0.0}),
            Arm("glance by cross-entropy", "gf-screen", {**common, "policy_weight": 0.0}),
            Arm("gf-screen", "gf-screen", common),
        ),
        data=(
            Data("phantom:torso-ct?lesions=true&organs=false", plan={"intensities": ABDOMEN}),
            Data("../shared/data/3d/brats2013_deepmedic", iterations=40, plan={"grid": Spacing(2.0, 2.0, 2.0)}),
        ),
        baseline=EVERY,
        expects=(
            Expect("gf-screen", "windows skipped", "higher"),
            Expect("gf-screen", "cost ratio", "lower"),
            Expect("gf-screen", "false alarms", "lower"),
            Expect("gf-screen", "windows skipped", "higher", against="glance by cross-entropy"),
        ),
        metrics=(
            "lesion recall",
            "windows skipped",
            "cost ratio",
            "false alarms",
            "dsc",
            f"lesion recall, least {PUBLISHED}",
            f"windows skipped, least {PUBLISHED}",
        ),
        iterations=250,
        plan={
            "patch": (16, 16, 16),
            "batch": 4,
            "features": (8, 16, 32),
            "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
            "kernels": ((3, 3, 3),) * 3,
            "deep_supervision": False,  # a lesion of a voxel or two is not there at half the size
            "augmentation": {"mirror_p": 0.5},
            "mirror_axes": (0, 1, 2),
            "overlap": 0.5,
            "test_mirror": (),
            "precision": "32",
        },
        measure=measure,
    )
