"""The claim of unsupervised bias discovery: predicted Dice tells which site a model is worse for, where confidence does not.

Site B's images come as negatives (as from a device that stores MONOCHROME1); models are trained on a share r of site A and 1 - r of site B,
so that the true gap runs from one sign to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vesalius.core.geometry import LongestSide
from vesalius.core.manifest import Split
from vesalius.core.prediction import Score
from vesalius.engine import api
from vesalius.engine.audit import damage
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.trust.rca_bias import pair_gaps
from vesalius.metrics.overlap import dsc
from vesalius.ops.rca import Bank, align, reverse_accuracy, signature, working

SHARES, TRAIN, REFERENCES, LONGEST = (0.0, 0.25, 0.5, 0.75, 1.0), 12, 3, 96


@dataclass(frozen=True)
class TwoDevices:
    """A phantom's renderer, with the images of site B as negatives."""

    made: Any

    def __call__(self, ref):
        case = self.made(ref)
        return damage(case, "inversion", 5, [0]) if ref.table["site"] == "B" else case


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per seed over the shares: |estimated - true| gap of each, their correlation and the share of equal signs."""
    manifest = replace(manifest, built_in=TwoDevices(manifest.built_in))
    read, site = api.reader(manifest), {c.id: str(c.table["site"]) for c in manifest.cases}
    split, channel = manifest.split(), manifest.channels[0]
    bank = Bank.of((read(i) for i in split.train), channel, LONGEST, lambda _, image: signature(image))
    ready = {}  # registration does not depend on the model
    for i in split.test:
        case = read(i)
        image = working(case.images[channel], LONGEST)
        chosen = bank.choose(signature(image), REFERENCES, manifest.names[1:])
        ready[i] = (case, chosen, align(image, bank, chosen, kind="deformable"))
    rows = []
    for seed in range(seeds):
        gaps = {name: [] for name in ("true", *(arm.name for arm in study.arms))}
        order = np.random.default_rng(seed).permutation(split.train)
        of = {s: [str(i) for i in order if site[str(i)] == s] for s in "AB"}
        for share in SHARES:
            n = round(share * TRAIN)
            part = Split((*of["A"][:n], *of["B"][: TRAIN - n]), (), split.test)
            where = folder / f"seed_{seed}" / f"share_{share}"
            trained = api.train(
                "unet", manifest, where, seed=seed, iterations=iterations, plan_overrides=plan, split=part, resume=True, progress=progress
            )
            found = {name: [] for name in gaps}
            for i, (case, chosen, transforms) in ready.items():
                answer = infer(trained.method, case, trained.plan, probability=True)
                mask = np.asarray(answer.label.data) == 1
                quality = reverse_accuracy(answer.label, bank, chosen, transforms, dsc)[manifest.names[1]].best
                sure = float(np.asarray(answer.probability.data)[1][mask].mean()) if mask.any() else None
                values = {"true": dsc(mask, np.asarray(case.labels["reference"].data) == 1), "rca-bias": quality, "mean confidence": sure}
                for name, value in values.items():
                    found[name].append(Score(i, "quality", value, manifest.names[1], patient=case.patient))
            for name, scores in found.items():
                gaps[name].append(next((g.value for g in pair_gaps(scores, site, by="site")), np.nan))
        true = np.array(gaps["true"])
        for arm in study.arms:
            guess, row = np.array(gaps[arm.name]), {"method": arm.name, "seed": seed}
            whole = {"case": f"seed {seed}", "patient": f"seed {seed}"}
            fine = np.isfinite(guess) & np.isfinite(true)
            correlation = float(np.corrcoef(guess[fine], true[fine])[0, 1]) if fine.sum() > 2 else None
            rows.append({**row, **whole, "metric": "correlation", "value": correlation})
            rows.append({**row, **whole, "metric": "sign agreement", "value": float((np.sign(guess) == np.sign(true))[fine].mean())})
            for share, g, t in zip(SHARES, guess, true, strict=True):
                name = f"share {share} of seed {seed}"
                values = {"error": abs(g - t), "estimated gap": g, "true gap": t}
                rows += [{**row, "case": name, "patient": name, "metric": m, "value": _known(v)} for m, v in values.items()]
    return rows


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def study() -> Study:
    return Study(
        slug="rca-bias",
        claim="the gap in predicted Dice between sites is nearer the true gap than the gap in mean confidence",
        arms=(Arm("mean confidence", "rca-bias"), Arm("rca-bias", "rca-bias")),
        data=(Data("phantom:chest-radiograph?occluded=0"),),
        baseline="mean confidence",
        expects=(Expect("rca-bias", "error", "lower"),),
        metrics=("error", "correlation", "sign agreement"),
        iterations=80,
        plan={"grid": LongestSide(80), "patch": (80, 80), "batch": 4, "features": (8, 16, 32, 64)},
        measure=measure,
    )
