"""The effort protocol: how many prompts until a mask is good, one after the other or all at once, by clicks and by scribbles on slices.

No placenta scan is public: the breast ultrasound phantom stands in, and what is called success lies at the DSC that a small network can
reach (``GOOD``; the paper: 0.95). It was chosen by a look at the phantom's cases of another seed.
"""

from __future__ import annotations

import numpy as np

from vesalius.core.geometry import Spacing
from vesalius.core.prompt import Point
from vesalius.engine import api
from vesalius.engine.interact import Session, simulate, structures
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.interaction import effort_area, noc, success_rate
from vesalius.metrics.overlap import dsc
from vesalius.ops import prompts as users

GOOD, BUDGET, CASES = 0.9, 8, 16  # DSC, prompts, test cases


def one_by_one(method, case, plan, word: str) -> list[float]:
    """DSC of the case's one structure after each of ``BUDGET`` prompts, each at the sight of the last answer."""
    ((name, truth),) = structures(case, plan.classes).items()
    mode = f"{BUDGET}clicks" if word == "click" else "+".join(["scribble"] * BUDGET)
    return [dsc(_mask(answer, name), truth) for answer in simulate(method, case, plan, mode)]


def at_once(method, case, plan) -> list[float]:
    """DSC after 1, 2 .. ``BUDGET`` clicks in one turn, drawn without an answer to look at: uniformly on the structure."""
    ((name, truth),) = structures(case, plan.classes).items()
    index, _ = users.clicks(truth, None, np.random.default_rng(0), count=BUDGET, policy="uniform")
    points = [Point(tuple(at), True, name) for at in case.geometry.to_world(index)]
    session, out = Session(method, case, plan), []
    for n in range(1, BUDGET + 1):
        out.append(dsc(_mask(session.ask(points[:n]), name), truth))
        session.undo()
    return out


def _mask(answer, name: str) -> np.ndarray:
    return np.asarray(answer.probability.data)[answer.names.index(name)] >= answer.threshold


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """One training a seed; of each test case and way of prompting the last DSC, the area under the effort curve, the prompts to success
    (``BUDGET`` where it fails) and whether it succeeds."""
    rows, split, read = [], manifest.split(), api.reader(manifest)
    for seed in range(seeds):
        run = api.train(
            study.slug, manifest, folder / f"seed_{seed}", options=study.arms[0].options, seed=seed, iterations=iterations,
            plan_overrides=plan, split=split, validations=0, resume=True, progress=progress,
        )  # fmt: skip
        for case in map(read, split.test[:CASES]):
            curves = {"all at once": at_once(run.method, case, run.plan)}
            curves |= {f"{word}s one by one": one_by_one(run.method, case, run.plan, word) for word in ("click", "scribble")}
            for name, curve in curves.items():
                row = {"method": name, "case": case.id, "patient": case.patient, "seed": seed}
                values = {
                    "dsc": (curve[-1], "higher"),
                    "effort area": (effort_area([curve]), "higher"),
                    "prompts": (noc(curve, GOOD, cap=BUDGET), "lower"),
                    "success": (success_rate([curve], GOOD, budget=BUDGET), "higher"),
                }
                rows += [{**row, "metric": k, "value": float(v), "better": better} for k, (v, better) in values.items()]
    return rows


def study() -> Study:
    small = {"features": (8, 16, 32), "dim": 32, "depth": 2, "heads": 2, "interactions": 4, "clicks": 3, "lr": 4e-3}
    small |= {"boxes": 0.0, "scribbles": 0.25}
    return Study(
        slug="prism-placenta",
        claim="prompts given one after the other reach a better mask, and sooner a good one, than as many at once",
        arms=(
            Arm("all at once", "prism-placenta", small),
            Arm("clicks one by one", "prism-placenta", small),
            Arm("scribbles one by one", "prism-placenta", small),
        ),
        data=(Data("phantom:abus?seed=1"),),
        baseline="all at once",
        expects=(
            Expect("clicks one by one", "dsc", "higher"),
            Expect("clicks one by one", "success", "higher"),
            Expect("clicks one by one", "prompts", "lower"),
        ),
        metrics=("dsc", "effort area", "prompts", "success"),
        seeds=3,
        iterations=400,
        plan={"batch": 2, "patch": (24, 24, 24), "grid": Spacing(1.5, 1.2, 1.5)},
        measure=measure,
    )
