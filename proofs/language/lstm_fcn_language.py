"""Do the words choose the object? One net that reads nothing, a bag of words, or the words in order; without coordinates; unstaged."""

from __future__ import annotations

import numpy as np

from vesalius.core.manifest import Manifest
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.classification import auroc
from vesalius.metrics.overlap import counts, iou

SIZE = {"widths": (8, 16), "convs": (1, 1), "fc": 32, "features": 32, "embedding": 32, "hidden": 48, "mlp": 128}
LEARNING = {"lr": 1e-2, "shares": (0.15, 0.3, 0.55)}
CASES = 60  # of real data, to train on


def some(manifest: Manifest) -> Manifest:
    """All of a phantom, the first cases of real data."""
    if manifest.root.name.startswith("built-in"):
        return manifest
    train, test = manifest.where("train"), manifest.where("test")
    return manifest.only((*train[:CASES], *test[: CASES // 3]))


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per test expression IoU and whether it is 0.5 at least, or, where it means nothing, whether the mask is empty; per seed the overall
    IoU and how well the score tells the two kinds of expression apart."""
    manifest = some(manifest)
    read, out, split = api.reader(manifest), [], manifest.held_out()
    common, _ = api.plan_for(manifest, split, overrides=plan, progress=progress)
    for seed in range(seeds):
        for arm in study.arms:
            trained = api.train(
                arm.method, manifest, folder / f"{arm.name.replace(' ', '-')}_{seed}", seed=seed, iterations=iterations,
                options=arm.options, plan=common, split=split, validations=1, resume=True, progress=progress,
            )  # fmt: skip
            scores, present, overlaps = [], [], []
            for i in split.test:
                case = read(i)
                if not case.queries:
                    continue
                answer = infer(trained.method, case, trained.plan)
                for q in case.queries:
                    row = {"method": arm.name, "case": i, "patient": case.patient, "structure": q.id, "seed": seed, "better": "higher"}
                    found, target = mask(answer, q.id), np.asarray(q.target.data) > 0
                    scores.append(answer.table[f"query:{q.id}"])
                    present.append(bool(target.any()))
                    if present[-1]:
                        value = iou(found, target)
                        overlaps.append(counts(found, target))
                        kind = q.id.partition("-")[0]
                        named = {"iou": value, "precision@0.5": float(value >= 0.5), f"iou, {kind}": value}
                    else:
                        named = {"nothing, mask empty": float(not found.any())}
                    out += [{**row, "metric": k, "value": v} for k, v in named.items()]
            inter, union = sum(c.tp for c in overlaps), sum(c.tp + c.fp + c.fn for c in overlaps)
            row = {"method": arm.name, "case": "", "patient": f"seed {seed}", "seed": seed, "better": "higher"}
            out.append({**row, "metric": "overall iou", "value": inter / union})
            out.append({**row, "metric": "auroc of the score", "value": auroc(np.array(scores), np.array(present))})
    return out


def mask(answer, name: str) -> np.ndarray:
    """(*spatial) bool: the answer to one expression."""
    label = answer.label
    return np.asarray(label.data)[label.names.index(name)] if label.overlapping else np.asarray(label.data) == label.names.index(name)


def study() -> Study:
    paper = {**SIZE, **LEARNING}
    return Study(
        slug="lstm-fcn-language",
        claim="the words of an expression, in their order, choose the object; one that reads nothing or a bag of words finds it less often",
        arms=(
            Arm("reads nothing", "lstm-fcn-language", {**paper, "text": "none"}),
            Arm("bag of words", "lstm-fcn-language", {**paper, "text": "bag"}),
            Arm("lstm-fcn-language", "lstm-fcn-language", paper),
            Arm("no coordinates", "lstm-fcn-language", {**paper, "coordinates": False}),
            Arm("pixels alone", "lstm-fcn-language", {**paper, "shares": (0.0, 0.0, 1.0)}),
        ),
        data=(
            Data("phantom:referring?most=2&kinds=attribute|place|contrast"),
            Data(
                "../shared/data/2d/cxr_lungs?queries=templated&kinds=place|contrast",
                iterations=150,
                metrics=("iou", "precision@0.5", "overall iou", "iou, place", "iou, contrast"),
            ),
        ),
        baseline="reads nothing",
        expects=(
            Expect("lstm-fcn-language", "iou", "higher"),
            Expect("lstm-fcn-language", "precision@0.5", "higher"),
            Expect("lstm-fcn-language", "iou", "higher", against="bag of words"),
            Expect("lstm-fcn-language", "iou, contrast", "higher", against="bag of words"),
            Expect("lstm-fcn-language", "iou, place", "higher", against="no coordinates"),
            Expect("lstm-fcn-language", "auroc of the score", "higher"),
            Expect("lstm-fcn-language", "iou", "higher", against="pixels alone"),
        ),
        metrics=(
            "iou",
            "precision@0.5",
            "overall iou",
            "iou, attribute",
            "iou, place",
            "iou, contrast",
            "nothing, mask empty",
            "auroc of the score",
        ),
        iterations=600,
        plan={"patch": (48, 48), "batch": 16, "workers": 0, "augmentation": {}},
        measure=measure,
    )
