"""The claim of CheXmask's quality index: with five references and a deformation it follows the true Dice better than with one, affine."""

from __future__ import annotations

import numpy as np

from vesalius.core.case import LabelMap
from vesalius.datasets import read_case
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.metrics.overlap import dsc
from vesalius.ops.components import largest
from vesalius.ops.morphology import dilate, erode
from vesalius.ops.rca import Bank, align, reverse_accuracy, signature, working

LONGEST = 128


def degraded(label: np.ndarray):
    """Masks of graded quality made from a true one (class 1): moved, shrunk, grown, half of it, one lung, a box, and as it is."""
    mask, side = label == 1, label.shape[1]
    yield mask
    yield from (np.roll(mask, round(share * side), axis) for share in (0.03, 0.06, 0.12, 0.25) for axis in (0, 1))
    for radius in (0.01, 0.03, 0.06):
        yield erode(mask, radius * side)
        yield dilate(mask, radius * side)
    yield largest(mask, 1)
    yield mask & (np.arange(len(mask))[:, None] < np.median(np.flatnonzero(mask.any(1))))
    box = np.zeros_like(mask)
    box[tuple(slice(n // 4, 3 * n // 4) for n in mask.shape)] = True
    yield box


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per test case the mean absolute error of the predicted Dice and its correlation with the true one; and the correlation over all."""
    split = manifest.split()
    bank = Bank.of((read_case(manifest, i) for i in split.train), manifest.channels[0], LONGEST, lambda _, image: signature(image))
    rows, both = [], {arm.name: [] for arm in study.arms}
    for i in split.test:
        case = read_case(manifest, i)
        image = working(case.images[manifest.channels[0]], LONGEST)
        label = next(iter(case.labels.values())).on(image.geometry)
        masks = [LabelMap(m.astype(np.int16), image.geometry, manifest.names) for m in degraded(np.asarray(label.data))]
        true = np.array([dsc(np.asarray(m.data) == 1, np.asarray(label.data) == 1) for m in masks])
        for arm in study.arms:
            chosen = bank.choose(signature(image), arm.options["references"], manifest.names[1:])
            transforms = align(image, bank, chosen, kind=arm.options["kind"])
            found = np.array([reverse_accuracy(m, bank, chosen, transforms, dsc)[manifest.names[1]].best for m in masks])
            both[arm.name].append((found, true))
            row = {"method": arm.name, "case": i, "patient": case.patient, "seed": 0}
            rows.append({**row, "metric": "error", "value": float(np.abs(found - true).mean()), "better": "lower"})
            rows.append({**row, "metric": "correlation", "value": float(np.corrcoef(found, true)[0, 1]), "better": "higher"})
    for name, pairs in both.items():
        x, y = (np.concatenate(v) for v in zip(*pairs, strict=True))
        value = float(np.corrcoef(x, y)[0, 1])
        rows.append({"method": name, "case": "all", "patient": "all", "seed": 0, "metric": "correlation over all", "value": value})
    return rows


def study() -> Study:
    return Study(
        slug="chexmask",
        claim="five similar references and a deformation predict the Dice of degraded masks better than one reference, affine",
        arms=(
            Arm("1 reference, affine", "chexmask", {"references": 1, "kind": "affine"}),
            Arm("5 references, affine", "chexmask", {"references": 5, "kind": "affine"}),
            Arm("chexmask", "chexmask", {"references": 5, "kind": "deformable"}),
        ),
        data=(Data("../shared/data/2d/cxr_lungs"),),
        baseline="1 reference, affine",
        expects=(Expect("chexmask", "error", "lower"), Expect("chexmask", "correlation", "higher")),
        metrics=("error", "correlation", "correlation over all"),
        seeds=1,  # nothing is random
        measure=measure,
    )
