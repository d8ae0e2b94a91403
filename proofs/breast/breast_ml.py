"""Are options found by a Parzen estimator better than those found at random, and these than the defaults? Nested cross-validation."""

from __future__ import annotations

import numpy as np

from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study

MODELS = {"coimbra": "logistic", "impedance": "tree", "wisconsin": "logistic"}
OUTER, GAPS = 5, 0.3


def with_gaps(case, columns, seed):
    """The case with about a third of its numbers missing (never all), the same for every arm."""
    rng = np.random.default_rng([seed, *case.id.encode()])
    gone = [c for c in columns if rng.random() < GAPS][: len(columns) - 1]
    return case.with_(table=dict.fromkeys(gone))


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per seed and outer fold of the training cases: the AUROC on the held-out part as it is and with gaps, and the best inner value."""
    rows, read = [], api.reader(manifest)
    inside = manifest.only(manifest.where("train") or [c.id for c in manifest.cases])
    for seed in range(seeds):
        for fold in range(OUTER):
            split = inside.held_out(fold, OUTER, seed=seed)
            for arm in study.arms:
                trained = api.train(
                    arm.method, inside, folder / f"{arm.name}_{seed}_{fold}", seed=seed, split=split, resume=True, progress=progress,
                    options={"target": "class", "model": MODELS[manifest.name], **arm.options}, plan_overrides=plan,
                )  # fmt: skip
                method, cases = trained.method, [read(i) for i in split.test]
                truth = np.array([method._level(c.table["class"]) for c in cases])
                values = {"inner auroc": (method.found["curve"] or [None])[-1]}
                for name, shown in (("auroc", cases), ("auroc with gaps", [with_gaps(c, method.columns, seed) for c in cases])):
                    said = [infer(method, c, trained.plan).table["class"] for c in shown]
                    values[name] = method.value(np.array([[p[level] for level in method.target["levels"]] for p in said]), truth)
                row = {"method": arm.name, "case": f"fold {fold}", "patient": f"fold {fold}", "seed": seed, "better": "higher"}
                rows += [{**row, "metric": k, "value": v} for k, v in values.items()]
    return rows


def study() -> Study:
    some = {"trials": 25, "startup": 8, "folds": 3}
    return Study(
        slug="breast-ml",
        claim="options found by a Parzen estimator beat as many random ones, and these the defaults",
        arms=(
            Arm("default", "breast-ml", {"search": "none"}),
            Arm("random", "breast-ml", {"search": "random", **some}),
            Arm("tpe", "breast-ml", {"search": "tpe", **some}),
        ),
        data=tuple(Data(f"../shared/data/2d/tabular_breast/{name}") for name in ("coimbra", "impedance", "wisconsin")),
        baseline="default",
        expects=(
            Expect("random", "auroc", "higher"),
            Expect("tpe", "auroc", "higher"),
            Expect("tpe", "auroc", "higher", against="random"),
            Expect("tpe", "inner auroc", "higher", against="random"),
        ),
        metrics=("auroc", "auroc with gaps", "inner auroc"),
        measure=measure,
    )
