"""The claim of cross-modality priors: many labelled CT, redrawn as MR under a loss that keeps structures, help where few MR are labelled.

CT and MR are different subjects, as in the paper. All arms train the same U-Net with the same augmentation on the same labelled MR; the
one on real MR alone has the whole budget, the others give half of it to the translation. Kidneys of the torso phantom stand for tumours.
Real data are not here: of the two BraTS patients at hand one is for testing, so that no two contrasts of different patients remain.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vesalius.core.case import Case, LabelMap
from vesalius.core.geometry import Spacing
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import read_case
from vesalius.datasets.phantoms import open_phantom
from vesalius.engine import api
from vesalius.engine.compare import compare
from vesalius.engine.infer import answer
from vesalius.engine.prepare import prepare
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.guided.cross_modality_prior import PART, histogram_divergence

PRIOR, FEW = 16, 2  # labelled CT, labelled MR among those for training
SMALL = {"filters": 8, "blocks": 2, "layers": 2, "gan_lr": 3e-4, "identity": 5.0, "slices": 2, "share": 0.6}


@dataclass(frozen=True, repr=False)
class Unpaired:
    """CaseRef -> Case: '<contrast>_<id>' is case <id> of that contrast's data set, its only image named by it, its kidneys labelled."""

    homes: Mapping[str, Manifest]

    def __repr__(self) -> str:  # the same in every process: caches go by it
        return f"Unpaired(kidneys, {', '.join(f'{k} {v.digest()}' for k, v in self.homes.items())})"

    def __call__(self, ref: CaseRef) -> Case:
        contrast, _, own = ref.id.partition("_")
        case = read_case(self.homes[contrast], own)
        image, label = next(iter(case.images.values())), case.labels["reference"]
        kidneys = np.isin(label.data, [k for k, name in enumerate(label.names) if "kidney" in name]).astype(np.int16)
        known = {"reference": LabelMap(kidneys, label.geometry, ("background", "kidney"))} if ref.labels else {}
        return replace(case, id=ref.id, patient=ref.patient, images={contrast: replace(image, name=contrast)}, labels=known)


def unpaired(mr: Manifest) -> Manifest:
    """Labelled CT and mostly unlabelled MR of other patients; validation and test are MR."""
    ct = open_phantom("torso-ct", cases={"train": PRIOR})
    rows = [(ct, "CT", c, True) for c in ct.where("train")] + [(mr, "MR", c, i < FEW) for i, c in enumerate(mr.where("train"))]
    rows += [(mr, "MR", c, True) for split in ("val", "test") for c in mr.where(split)]
    cases = []
    for home, contrast, c, labelled in rows:
        labels = dict(home[c].labels) if labelled else {}
        named = {"id": f"{contrast}_{c}", "patient": f"{contrast} {home[c].patient}", "images": {contrast: ""}}
        cases.append(replace(home[c], **named, labels=labels, table={}))
    homes = {"CT": ct, "MR": mr}
    facts = {"channels": ("CT", "MR"), "modality": "CT, MR", "labels": {"background": 0, "kidney": 1}, "mirror": (), "folds": ()}
    return replace(mr, name=f"{mr.name}-unpaired", cases=tuple(cases), built_in=Unpaired(homes), **facts)


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """A comparison of the arms, and how far the foreground of pseudo MR is from that of real test MR (KL of their histograms, by seed)."""
    data = unpaired(manifest)
    compare(
        study.arms, data, folder, seeds=seeds, iterations=iterations, validations=1, plan_overrides=plan, metrics=("dsc", "hd95"),
        baseline=study.baseline, title=f"{study.slug}: {study.claim}", progress=progress,
    )  # fmt: skip
    with (folder / "scores.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["metric"] in ("dsc", "hd95")]
    read = api.reader(data)
    for arm in (a for a in study.arms if a.options.get("translate", True)):
        for seed in range(seeds):
            trained = api.open_run(folder / arm.name / f"seed_{seed}")
            real = [inside(prepare(read(c), trained.plan), "MR") for c in data.where("test")]
            made = [drawn(trained.method.parts[PART], read(c.id)) for c in data.cases if "CT" in c.images]
            kl = histogram_divergence(np.concatenate(made), np.concatenate(real))
            at = {"case": f"seed {seed}", "patient": f"seed {seed}", "seed": seed}
            rows.append({"method": arm.name, **at, "metric": "kl", "value": kl, "better": "lower"})
    return rows


def inside(prepared: Case, name: str) -> np.ndarray:
    """Prepared intensities of the foreground."""
    return np.asarray(prepared.images[name].data)[0][np.asarray(prepared.labels["reference"].data) > 0]


def drawn(translator, case: Case) -> np.ndarray:
    """The same of a CT's pseudo MR."""
    prepared, prediction = answer(translator, case, translator.plan)
    made = Case(case.id, images=prediction.images, labels={"reference": case.labels["reference"].on(prepared.geometry)})
    return inside(prepare(made, translator.plan.derive(channels=("MR",))), "MR")


def study() -> Study:
    return Study(
        slug="cross-modality-prior",
        claim="a few real MR and pseudo MR of labelled CT beat the few alone; a loss that keeps structures beats CycleGAN",
        arms=(
            Arm("real MR, augmented", "cross-modality-prior", {**SMALL, "translate": False}),
            Arm("CycleGAN", "cross-modality-prior", {**SMALL, "shape": 0.0, "location": 0.0}),
            Arm("cross-modality prior", "cross-modality-prior", SMALL),
        ),
        data=(Data("phantom:torso-mr?cases=24"),),
        baseline="real MR, augmented",
        expects=(
            Expect("cross-modality prior", "dsc", "higher"),
            Expect("cross-modality prior", "hd95", "lower"),
            Expect("cross-modality prior", "dsc", "higher", against="CycleGAN"),
            Expect("cross-modality prior", "kl", "lower", against="CycleGAN"),
        ),
        metrics=("dsc", "hd95", "kl"),
        iterations=600,
        plan={
            "grid": Spacing(6.3, 6.3, 9.0),
            "patch": (48, 40, 16),
            "batch": 4,
            "features": (12, 24, 48),
            "overlap": 0.25,
            "test_mirror": (),
            "precision": "32",
        },
        measure=measure,
    )
