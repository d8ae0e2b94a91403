"""The study's question at equal cost: is 3D best, and what does each bridge between 2D and 3D gain, on thick slices and on cubes?

Every arm takes as many steps as the operations of the 2D arm's steps pay for: a bridge has to earn its price. In ACDC slices are several
times as far apart as pixels, in the hippocampus voxels are cubes. The source trains to convergence, which favours what costs more. Votes
that are counted ('majority', 'weighted') are two readings of the same three networks, which are trained once; what is learnt has a
training of its own. A step of three views costs three of 2D's, and almost six where slices are thick, as the side views hardly shrink
there: what votes lose on thick slices is short training, too.

Beside DSC and HD95 the table has the networks' size, what a step costs (the 2D arm's is 1), and the time of a volume. Borders as
a guide and squeeze-and-excitation where features meet are options, left to more time.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from vesalius.core.geometry import Spacing
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.prepare import prepare
from vesalius.engine.restore import restore
from vesalius.engine.study import Arm, Data, Expect, Study, read_as, trained_once

BUDGET = {"cost": "flops", "lr": 4e-3, "ema": 0.95}
SEQUENCE = {**BUDGET, "warm": 0.3}
CUBES = {
    "grid": Spacing(1.5, 1.5, 1.5),
    "patch": (24, 32, 24),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "kernels": ((3, 3, 3),) * 3,
}
THICK = {
    "grid": Spacing(10.0, 3.0, 3.0),
    "patch": (7, 56, 56),
    "features": (8, 16, 32, 64),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
ON_THICK, ON_CUBES = "dsc, thick slices", "dsc, cubes"
COSTS = ("thousand parameters", "cost of a step", "ms a volume")


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Rows of every test case and arm: DSC and HD95 of each structure, and what the arm costs."""
    side = plan["grid"].spacing
    metrics = {"dsc": ON_THICK if max(side) > 2 * min(side) else ON_CUBES, "hd95": "hd95"}
    split, rows, read = manifest.split(), [], api.reader(manifest)
    common, _ = api.plan_for(manifest, split, overrides=plan, progress=progress)
    for seed in range(seeds):
        how = dict(seed=seed, taught=taught, iterations=iterations, plan=common, split=split, progress=progress)
        for arm, trained in trained_once(study.arms, manifest, folder, **how):
            method = read_as(trained, arm)
            own = {"method": arm.name, "seed": seed}
            size = sum(p.numel() for p in method.network.parameters()) / 1000
            for name, value in zip(COSTS, (size, 1 / method.share()), strict=False):
                rows.append({**own, "case": "", "patient": f"seed {seed}", "metric": name, "value": value})
            for i in split.test:
                case = read(i)
                prediction, ms = asked(method, trained.plan, case)
                row = {**own, "case": i, "patient": case.patient}
                for s in score(prediction, case, metrics=tuple(metrics)):
                    rows.append({**row, "structure": s.structure, "metric": metrics[s.metric], "value": s.value})
                rows.append({**row, "metric": COSTS[2], "value": ms})
    return rows


def taught(options):
    """The options of the arm whose training this one shares: how votes are counted is no matter of training."""
    return {**options, "vote": "majority"} if options.get("vote") == "weighted" else options


def asked(method, plan, case):
    """(prediction on the case's own grid, ms that the method took for the prepared volume)."""
    ready = prepare(case.without_labels(), plan, method)
    began = time.perf_counter()
    with torch.no_grad():
        said = method.predict(ready, rng=np.random.default_rng(0))
    ms = 1000 * (time.perf_counter() - began)
    return restore(said, ready.geometry, case.geometry, plan.classes, largest_component=plan.largest_component), ms


def study() -> Study:
    made = lambda name, budget=BUDGET, **options: Arm(name, "two-and-half-d", {**budget, **options})
    return Study(
        slug="two-and-half-d",
        claim="at equal cost a bridge between 2D and 3D beats 2D, and 3D where slices are thick",
        arms=(
            made("2d", arm="2d"),
            made("3 slices", arm="slices"),
            made("5 slices", arm="slices", slices=5),
            made("7 slices", arm="slices", slices=7),
            made("3 views, majority", arm="views", vote="majority"),
            made("3 views, weighted", arm="views", vote="weighted"),
            made("3 views, learned", arm="views", vote="learned"),
            made("recurrent", SEQUENCE, arm="recurrent"),
            made("attention", SEQUENCE, arm="attention"),
            made("fused encoders", arm="fused", meet="encoder"),
            made("fused outputs", arm="fused", meet="output"),
            made("3d", arm="3d"),
        ),
        data=(
            Data("../shared/data/3d/acdc_scribble", plan=THICK, metrics=(ON_THICK, "hd95", *COSTS)),
            Data("../shared/data/3d/msd_hippocampus", plan=CUBES, metrics=(ON_CUBES, "hd95", *COSTS)),
        ),
        baseline="2d",
        expects=(
            *(
                Expect(arm, metric, "higher")
                for metric in (ON_THICK, ON_CUBES)
                for arm in ("3 slices", "recurrent", "attention", "fused encoders", "fused outputs")
            ),
            *(Expect(arm, m, "lower", against="3 slices", margin=0.01) for m in (ON_THICK, ON_CUBES) for arm in ("5 slices", "7 slices")),
            Expect("3 slices", ON_THICK, "higher", against="3d"),
            Expect("3 views, majority", ON_THICK, "lower"),
            Expect("3 views, weighted", ON_THICK, "higher", against="3 views, majority"),
            Expect("3 views, majority", ON_CUBES, "higher"),
            Expect("3 views, learned", ON_CUBES, "higher", against="3 views, majority"),
        ),
        metrics=(ON_THICK, ON_CUBES, "hd95", *COSTS),
        iterations=360,
        plan={"batch": 2, "features": (8, 16, 32), "precision": "32", "overlap": 0.25, "test_mirror": ()},
        measure=measure,
    )
