"""SDSeg's claim: with the loss on the clean latent one reverse step is as good as fifty, and without it not. What a step costs is measured.

The paper takes its autoencoder ready-made; here each data set has one, trained first on the training cases, which serves all arms and
seeds. U-Net and image encoder are trained from scratch in seconds at 48 pixels, and answer with the velocity: the same losses, but noise
would have to be told to three digits before a latent can be read from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from vesalius.core.case import Case
from vesalius.core.geometry import LongestSide
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import prepare
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.generative.sdseg import SDSeg
from vesalius.metrics.overlap import dsc

SIZES = {"features": (8, 16, 32), "width": 48, "multiples": (1, 2), "dropout": 0.0, "lr": 3e-3, "predicts": "velocity"}
FIRST, CASES, NOISES, SPREAD_OF = 300, 12, 5, 4  # iterations of the autoencoder, test cases, draws of the noise, of this many cases
STEPS = "steps"  # an option of prediction alone: arms that differ in it share their weights


class FirstTraining(SDSeg):
    """The autoencoder's training and no other."""

    def fit(self, train, val, run):
        self.learn_autoencoder(train, run, 1.0)
        return self


def given_autoencoder(manifest, folder: Path, split, **settings) -> tuple[str, SDSeg]:
    """(the folder of a data set's autoencoder, a method that has it)."""
    trained = api.train(FirstTraining, manifest, folder / "first", iterations=FIRST, options=SIZES, split=split, resume=True, **settings)
    trained.method.autoencoder.network.save_pretrained(folder / "autoencoder")
    return str(folder / "autoencoder"), trained.method


def round_trip(method: SDSeg, case: Case) -> float | None:
    """DSC of the prepared reference with what the autoencoder makes of it: no answer can be much better."""
    truth = np.asarray(next(iter(prepare(case, method.plan).labels.values())).data) == 1
    mask = torch.from_numpy(np.where(truth, 1.0, -1.0).astype(np.float32))[None, None]
    mask = pad(mask, [side for n in reversed(truth.shape) for side in (0, -n % method.multiple)], value=-1.0)
    with torch.no_grad():
        again = method.autoencoder.decode(method.autoencoder.encode(mask))[0].numpy() > 0
    return dsc(again[tuple(slice(n) for n in truth.shape)], truth)


def answers(trained: api.Trained, case: Case, noises: int) -> Iterator[tuple[str, float | None]]:
    """Seconds from the case in memory to its label map, DSC and, over ``noises``, the standard deviation of the DSC."""
    truth = np.asarray(case.labels["reference"].data) == 1
    found = lambda seed: np.asarray(infer(trained.method, case, trained.plan, seed=seed).label.data) == 1
    tick = time.perf_counter()
    mask = found(0)
    yield "seconds", time.perf_counter() - tick
    yield "dsc", dsc(mask, truth)
    if noises:
        known = [v for s in range(noises) if (v := dsc(found(s), truth)) is not None]
        yield "spread", float(np.std(known)) if known else None


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per seed, arm and test case: DSC, seconds, how many times faster than fifty steps, and for some the spread over noises."""
    read, split, rows = api.reader(manifest), manifest.split(), []
    settings = dict(plan_overrides=plan, validations=1, progress=progress)
    cases = [read(i) for i in split.test[:CASES]]
    given, first = given_autoencoder(manifest, folder, split, **settings)
    for seed in range(seeds):
        fifty: dict[str, float] = {}
        for arm in study.arms:
            options = {k: v for k, v in arm.options.items() if k != STEPS}
            options |= {"pretrained": given} if arm.method == "sdseg" else {}
            out = folder / f"{arm.name.partition(', ')[0].replace(' ', '-')}_{seed}"
            trained = api.train(
                arm.method, manifest, out, seed=seed, iterations=iterations, options=options, split=split, resume=True, **settings
            )
            if STEPS in arm.options:
                trained.method.sampler = replace(trained.method.sampler, steps=arm.options[STEPS])
            infer(trained.method, cases[0], trained.plan)  # warm
            for at, case in enumerate(cases):
                values = dict(answers(trained, case, NOISES if at < SPREAD_OF and arm.options.get(STEPS) == 1 else 0))
                if arm.name == study.baseline:
                    fifty[case.id] = values["seconds"]
                    values["round trip"] = round_trip(first, case)
                values["times faster"] = fifty[case.id] / values["seconds"]
                row = {"method": arm.name, "case": case.id, "patient": case.patient, "seed": seed}
                rows += [{**row, "metric": k, "value": v} for k, v in values.items()]
    return rows


def study() -> Study:
    noise = {**SIZES, "latent_weight": 0.0}
    return Study(
        slug="sdseg",
        claim="a latent diffusion model whose clean latent is supervised segments in one reverse step as well as in fifty, and faster",
        arms=(
            Arm("sdseg, 50 steps", "sdseg", {**SIZES, STEPS: 50}),
            Arm("sdseg, 1 step", "sdseg", {**SIZES, STEPS: 1}),
            Arm("noise loss alone, 50 steps", "sdseg", {**noise, STEPS: 50}),
            Arm("noise loss alone, 1 step", "sdseg", {**noise, STEPS: 1}),
            Arm("unet", "unet"),
        ),
        data=(Data("phantom:shapes-2d?cases=60&classes=2"), Data("../shared/data/2d/kvasir_seg")),
        baseline="sdseg, 50 steps",
        expects=(
            Expect("sdseg, 1 step", "dsc", "higher", margin=0.01),
            Expect("sdseg, 1 step", "dsc", "higher", against="noise loss alone, 1 step"),
            Expect("sdseg, 1 step", "times faster", "higher"),
        ),
        metrics=("dsc", "times faster", "seconds", "spread", "round trip"),
        iterations=400,
        plan={"grid": LongestSide(48), "patch": (48, 48), "batch": 8, "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
        measure=measure,
    )
