"""Do both views at once tell cancers better than the average of two single-view scores, and than the same network from scratch?

All arms have the same number of iterations and of pictures a batch: 'average' spends on single views what the others spend on pairs. What a
missing view costs is measured too: each test breast is shown by either view alone. On real crops (mini-MIAS) the first transfer is asked by
itself: does a trunk that has learnt the phantom's patches and views make a better classifier of crops than one from scratch?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vesalius.core.case import Case
from vesalius.core.geometry import Grid
from vesalius.core.manifest import Manifest, Split
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.breast.two_view_mammo import ViewClassifier
from vesalius.metrics import pool
from vesalius.metrics.score import score_prediction

PHANTOM = "phantom:mammogram?cases=200,1,150&seed=1"
CROPS = "../shared/data/2d/mini_mias_roi"
SMALL = {"size": (96, 72), "tile": 32, "width": 0.25, "depth": 0.3, "stride": 8, "drop_path": 0.0, "blocks": 1, "lr": 2e-3}
ARMS = {"average": (0.5, 0.5, 0.0), "from scratch": (0.0, 0.0, 1.0), "two-view-mammo": (0.5, 0.25, 0.25)}
TURNED = {"mirror_p": 0.5, "rotation_p": 0.3, "rotation": 25.0}  # degrees, as in the paper; blur would hide thin spicules
CLASSES = {"class": {"kind": "nominal", "levels": ["normal", "benign", "malignant"]}}


class Crops(ViewClassifier):
    """A classifier of crops, with the trunk of a two-view run in ``start`` (empty: from scratch)."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts=None, start: str = ""):
        trunk = {k: SMALL[k] for k in ("width", "depth", "stride", "drop_path")}
        plan = plan.derive(grid=Grid(size=(64, 64)), patch=(64, 64), mirror_axes=(0, 1))
        super().__init__(plan, manifest, target="class", trunk=trunk, blocks=0, lr=1e-3)
        if start:
            self.trunk.load_state_dict(api.open_run(start).method.parts["single"].trunk.state_dict())


def trained(arm: Arm, manifest: Manifest, split: Split, plan: Plan, folder: Path, seed: int, iterations: int, progress) -> api.Trained:
    where = folder / f"{arm.name.replace(' ', '-')}_{seed}"
    common = {"seed": seed, "iterations": iterations, "plan": plan, "split": split, "resume": True, "progress": progress}
    return api.train(arm.method, manifest, where, options=arm.options, **common)


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    measured = of_breasts if manifest.built_in is not None else of_crops
    return measured(study, manifest, folder, seeds, iterations, plan, progress)


def of_breasts(study, manifest, folder, seeds, iterations, plan, progress) -> list[dict]:
    """Per seed and arm the AUROC of both views and of one view alone (either, together), and per breast the squared error."""
    split = Split(manifest.where("train"), (), manifest.where("test"))
    plan, _ = api.plan_for(manifest, split, overrides=plan, progress=progress)
    read, out = api.reader(manifest), []
    cases = [read(i) for i in split.test]
    for seed in range(seeds):
        for arm in study.arms:
            run = trained(arm, manifest, split, plan, folder, seed, iterations, progress)
            scored = {"auroc": [(infer(run.method, c, run.plan), c) for c in cases]}
            if "single" in run.method.parts:
                scored["auroc of one view"] = list(either_view(run, cases))
            row = {"method": arm.name, "seed": seed, "better": "higher"}
            for name, pairs in scored.items():
                out.append({**row, "case": "", "patient": f"seed {seed}", "metric": name, "value": area(pairs, manifest.targets)})
            for answer, case in scored["auroc"]:
                error = (answer.table["malignant"] - case.table["malignant"]) ** 2
                out.append({**row, "case": case.id, "patient": case.patient, "metric": "squared error", "value": error, "better": "lower"})
    return out


def either_view(run: api.Trained, cases: list[Case]) -> Iterator[tuple]:
    """Each breast as if one view had not been taken: (answer, case) by the other."""
    for case in cases:
        for gone, there in (("CC", "MLO"), ("MLO", "CC")):
            alone = case.with_(id=f"{case.id}/{there}", images={gone: None}, labels={gone: None})
            yield infer(run.method, alone, run.plan.derive(channels=(there,))), alone


def area(pairs: list[tuple], targets: Mapping[str, Any]) -> float | None:
    """The AUROC over (answer, case), of more than two classes the mean of each against the rest."""
    rows = [row for answer, case in pairs for row in score_prediction(answer, case, metrics=("auroc",), targets=targets)]
    return pool(rows)[0].value


def of_crops(study, manifest, folder, seeds, iterations, plan, progress) -> list[dict]:
    """Per seed the AUROC over normal, benign and malignant crops, with the trunk of a short two-view run and from scratch."""
    manifest = replace(manifest, targets=CLASSES)
    split = Split(manifest.where("train"), (), manifest.where("test"))
    breasts, arms, out = open_dataset(PHANTOM), {a.name: a for a in study.arms}, []
    source = Split(breasts.where("train"), (), ())
    plan, _ = api.plan_for(manifest, split, overrides=plan, progress=progress)
    first, _ = api.plan_for(breasts, source, overrides=study.plan, progress=progress)
    read = api.reader(manifest)
    for seed in range(seeds):
        start = trained(arms["average"], breasts, source, first, folder / "start", seed, iterations, progress)
        for name, options in (("from scratch", {}), ("two-view-mammo", {"start": str(start.folder)})):
            run = trained(Arm(name, Crops, options), manifest, split, plan, folder, seed, iterations, progress)
            pairs = [(infer(run.method, c, run.plan), c) for c in map(read, split.test)]
            value = area(pairs, CLASSES)
            row = {"method": name, "seed": seed, "better": "higher", "case": "", "patient": f"seed {seed}"}
            out.append({**row, "metric": "auroc of crops", "value": value})
    return out


def study() -> Study:
    return Study(
        slug="two-view-mammo",
        claim="both views at once, from patches over single views, beat the average of two single-view scores and training from scratch",
        arms=tuple(Arm(name, "two-view-mammo", {**SMALL, "shares": shares}) for name, shares in ARMS.items()),
        data=(Data(PHANTOM, metrics=("auroc", "auroc of one view", "squared error")), Data(CROPS, 150, metrics=("auroc of crops",))),
        baseline="average",
        expects=(
            Expect("two-view-mammo", "auroc", "higher"),
            Expect("two-view-mammo", "auroc", "higher", against="from scratch"),
            Expect("two-view-mammo", "auroc of crops", "higher", against="from scratch"),
        ),
        metrics=("auroc", "auroc of one view", "squared error", "auroc of crops"),
        iterations=500,
        plan={"workers": 0, "batch": 16, "precision": "32", "augmentation": TURNED},
        measure=measure,
    )
