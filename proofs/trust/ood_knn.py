"""The claim of OOD by nearest neighbours: distances in pooled features find the cases a segmenter fails on better than raw Mahalanobis."""

from __future__ import annotations

import numpy as np

from vesalius import catalog
from vesalius.core.case import Image, LabelMap
from vesalius.core.geometry import LongestSide
from vesalius.datasets import open_dataset
from vesalius.datasets.phantoms.corruption import KINDS
from vesalius.engine import api
from vesalius.engine.audit import as_seen, damage
from vesalius.engine.evaluate import mean_dsc, score
from vesalius.engine.prepare import prepare
from vesalius.engine.restore import restore
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.trust.ood_knn import Detector
from vesalius.metrics.classification import auroc

FOREIGN = {"cxr_lungs": "busi_seg", "msd_hippocampus": "acdc_scribble"}  # ultrasound for X-ray, cardiac for brain MR
SEVERITIES, CASES, OTHERS, KNOWN = (1, 3, 5), 6, 4, (40, 16)  # test cases, foreign ones, known training and validation cases


def foreign(case, native, plan):
    """An image of another modality in this one's place: nothing that the model knows is in it."""
    image = next(iter(case.images.values()))
    grey = Image(np.asarray(image.data, np.float32).mean(0, keepdims=True), image.geometry)
    nothing = LabelMap(np.zeros(image.geometry.shape, np.int16), image.geometry, plan.classes)
    return native.with_(id=f"foreign {case.id}", images={plan.channels[0]: grey}, labels={"reference": nothing})


def versions(trained, manifest):
    """The test cases as they are and damaged in every way, and the foreign ones."""
    read, test = api.reader(manifest), trained.split.test[:CASES]
    for n, i in enumerate(test):
        case = as_seen(read(i), trained.plan)
        yield case
        yield from (damage(case, kind, s, [n, k]) for k, kind in enumerate(KINDS) for s in SEVERITIES)
    other = open_dataset(manifest.root.parent / FOREIGN[manifest.name])
    for c in other.cases[:OTHERS]:
        yield foreign(api.reader(other)(c.id), read(test[0]), trained.plan)


def look(tap, case):
    """(features, DSC of the answer)."""
    prepared = prepare(case.without_labels(), tap.plan, tap)
    features, answer = tap.features(prepared, np.random.default_rng(0))
    return features, mean_dsc(score(restore(answer, prepared.geometry, case.geometry, tap.plan.classes), case, metrics=("dsc",)))


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """AUROC of finding answers with a DSC below the 5th percentile of validation, per seed: over all cases, and within each patient."""
    rows = []
    for seed in range(seeds):
        split = manifest.split(0, 4, seed=seed)
        trained = api.train(
            "unet", manifest, folder / f"seed_{seed}", seed=seed, iterations=iterations, plan_overrides=plan, split=split, validations=1,
            resume=True, progress=progress,
        )  # fmt: skip
        tap = catalog.build("ood-knn", trained.plan, manifest, {"segmenter": trained.method})
        read = api.reader(manifest)
        known = np.stack([look(tap, as_seen(read(i), trained.plan))[0] for i in split.train[: KNOWN[0]]])
        limit = np.quantile([look(tap, as_seen(read(i), trained.plan))[1] for i in split.val[: KNOWN[1]]], 0.05)
        seen = [(case.patient, *look(tap, case)) for case in versions(trained, manifest)]
        seen = [s for s in seen if np.isfinite(s[2])]
        patients, failed = np.array([s[0] for s in seen]), np.array([s[2] < limit for s in seen])
        for arm in study.arms:
            options = {("statistic" if k == "distance" else k): v for k, v in arm.options.items()}
            distance = Detector(**options).fit(known).distance(np.stack([s[1] for s in seen]))
            row = {"method": arm.name, "seed": seed, "better": "higher"}
            rows.append({**row, "case": f"seed {seed}", "patient": f"seed {seed}", "metric": "auroc", "value": auroc(distance, failed)})
            for p in dict.fromkeys(patients):
                own = patients == p
                rows.append({**row, "case": p, "patient": p, "metric": "auroc within patient", "value": auroc(distance[own], failed[own])})
    return rows


def study() -> Study:
    small = {"patch": (96, 96), "grid": LongestSide(96), "batch": 4, "features": (8, 16, 32, 64), "test_mirror": ()}
    return Study(
        slug="ood-knn",
        claim="nearest neighbours in pooled bottleneck features find failures better than Mahalanobis' distance of the raw features",
        arms=(
            Arm("raw Mahalanobis", "ood-knn", {"reducer": "none", "distance": "mahalanobis"}),
            Arm("PCA Mahalanobis", "ood-knn", {"reducer": "pca", "distance": "mahalanobis", "components": 8}),
            Arm("KNN raw", "ood-knn", {"reducer": "none", "distance": "knn"}),
            Arm("KNN pooled", "ood-knn", {"reducer": "pool", "distance": "knn"}),
            Arm("KNN global", "ood-knn", {"reducer": "global", "distance": "knn"}),
        ),
        data=(
            Data("../shared/data/2d/cxr_lungs", plan=small),
            Data(
                "../shared/data/3d/msd_hippocampus",
                iterations=60,
                plan={"batch": 2, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
            ),
        ),
        baseline="raw Mahalanobis",
        expects=(
            Expect("KNN pooled", "auroc", "higher"),
            Expect("KNN pooled", "auroc within patient", "higher"),
            Expect("PCA Mahalanobis", "auroc", "higher"),
        ),
        metrics=("auroc", "auroc within patient"),
        iterations=80,
        measure=measure,
    )
