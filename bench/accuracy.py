"""Accuracy per CPU-minute: ``unet``, a plain MONAI BasicUNet recipe and nnU-Net on the same split, minutes and machine.

    python bench/accuracy.py hippocampus --minutes 8 --calibrate      how many steps of each fit in a minute; alone on the machine
    python bench/accuracy.py hippocampus --minutes 8                  three recipes, three seeds, one after the other
    python bench/accuracy.py kvasir --minutes 8 --only nnunet --seed 1

A training is decided by its number of steps, so the minutes are spent once, when steps are timed: build/bench/steps_<data>.json. Every
finished training is kept in build/bench/accuracy and not done again; bench/results/accuracy_<data>_<minutes>min.json is made of what is
there. The peers: MONAI's BasicUNet with features 16-128, fp32, AdamW 2e-3, cosine, batch 2 (3D) or 8 (2D), Dice + cross-entropy, flips,
on the cases prepared by our plan; nnU-Net's own plan, preprocessing, augmentation, trainer and predictor (nnunet_peer.py, .venv-peers).
Both peers train on training and validation cases; ours sets the validation cases aside and pays for looking at them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import table

from vesalius.core.case import Image, LabelMap
from vesalius.core.manifest import Manifest, Split
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.evaluate import mean_dsc, score
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.progress import Progress
from vesalius.engine.restore import restore
from vesalius.io import read_labels, write_image, write_labels
from vesalius.report.statistics import mean_interval, paired_difference

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "bench"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
DATA = {"hippocampus": "3d/msd_hippocampus", "kvasir": "2d/kvasir_seg"}
TARGET = {("hippocampus", 8): 0.87, ("hippocampus", 20): 0.885}
VALIDATING = 0.04  # share of our minutes that the loop sets aside for validations
CALIBRATION = 50.0  # seconds each


class Stopwatch(Progress):
    """Silent progress that keeps when each step of the training ended, in seconds since the task began."""

    def __init__(self):
        super().__init__(quiet=True)
        self.ends: list[float] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0):
        start = time.monotonic()

        def advance(n: int = 1, text: str = "", total: int | None = None) -> None:
            if name.startswith("training") and n:
                self.ends.append(time.monotonic() - start)

        yield advance


@dataclass
class Bench:
    """The data that every recipe gets. ``scratch`` is outside the repository and goes when the command ends."""

    manifest: Manifest
    split: Split
    plan: Plan
    scratch: Path

    def read(self, case: str):
        return api.reader(self.manifest)(case)

    @cached_property
    def digest(self) -> str:
        facts = [self.manifest.digest(), self.split.to_json(), self.plan.to_json()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def score(self, answer: Prediction, case) -> float:
        return mean_dsc(score(answer, case, metrics=("dsc",)))


# ------------------------------------------------------------- each: train so many steps, or for so many seconds; then DSC by test case
class Unet:
    title = "unet"

    def __init__(self, bench: Bench):
        self.bench = bench

    def time(self, seconds: float) -> dict:
        watch = Stopwatch()
        trained = self._train(0, watch, minutes=seconds / 60, validations=1)
        return {"ends": watch.ends, "share": 1 - VALIDATING, "precision": trained.record["facts"]["budget.main"]["precision"]}

    def dsc(self, steps: int, seed: int, timed: dict) -> dict[str, float]:
        trained = self._train(seed, Progress(), iterations=steps, plan=self.bench.plan.derive(precision=timed["precision"]))
        return {case.id: mean_dsc(rows) for case, _, rows, _ in api.score_split(trained, self.bench.split.test, metrics=("dsc",))}

    def _train(self, seed: int, progress: Progress, *, plan: Plan | None = None, **budget):
        b = self.bench
        out = Path(tempfile.mkdtemp(dir=b.scratch)) / "run"
        return api.train("unet", b.manifest, out, seed=seed, plan=plan or b.plan, split=b.split, progress=progress, **budget)


class Monai:
    title = "MONAI BasicUNet"

    def __init__(self, bench: Bench):
        self.bench = bench

    def time(self, seconds: float) -> dict:
        return {"ends": self._train(10**6, 0, seconds)[1]}

    def dsc(self, steps: int, seed: int, timed: dict) -> dict[str, float]:
        import torch
        from monai.inferers import sliding_window_inference

        b = self.bench
        net, _ = self._train(steps, seed)
        net.eval()
        out = {}
        for i in b.split.test:
            case = b.read(i)
            prepared = prepare(case, b.plan)
            with torch.no_grad():
                logits = sliding_window_inference(torch.from_numpy(prepared.stack())[None], b.plan.patch, 1, net, 0.5, mode="gaussian")
            answer = Prediction(probability=Image(logits.softmax(1)[0].numpy(), prepared.geometry))
            out[i] = b.score(restore(answer, prepared.geometry, case.geometry, b.plan.classes), case)
        return out

    def _train(self, steps: int, seed: int, seconds: float = math.inf):
        import torch
        from monai.losses import DiceCELoss
        from monai.networks.nets import BasicUNet

        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(seed)
        rng, b = np.random.default_rng(seed), self.bench
        cache = Cache(b.manifest, b.plan, None, b.read)
        cases = [cache[c] for c in (*b.split.train, *b.split.val)]
        net = BasicUNet(b.manifest.dims, b.plan.in_channels, b.manifest.classes, features=(16, 16, 32, 64, 128, 16))
        loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
        batch, start, ends = 2 if b.manifest.dims == 3 else 8, time.monotonic(), []
        while len(ends) < steps and time.monotonic() - start < seconds:
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * len(ends) / steps))
            images, labels = zip(*[_crop(cases[rng.integers(len(cases))], b.plan.patch, rng) for _ in range(batch)], strict=True)
            loss = loss_of(net(torch.from_numpy(np.stack(images))), torch.from_numpy(np.stack(labels))[:, None].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append(time.monotonic() - start)
        return net, ends


def _crop(case, patch, rng):
    image, label = np.asarray(case.image), np.asarray(next(iter(case.labels.values())))
    pads = [(max(0, p - n) // 2, max(0, p - n) - max(0, p - n) // 2) for p, n in zip(patch, label.shape, strict=True)]
    image, label = np.pad(image, [(0, 0), *pads]), np.pad(label, pads)
    start = [rng.integers(0, n - p + 1) for p, n in zip(patch, label.shape, strict=True)]
    at = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
    image, label = image[(slice(None), *at)], label[at]
    if rng.random() < 0.5:  # left-right
        axis = 0 if len(patch) == 3 else 1
        image, label = np.flip(image, axis + 1), np.flip(label, axis)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


class NNUNet:
    """nnU-Net in .venv-peers on a converted copy of the data in the scratch folder."""

    title = "nnU-Net"

    def __init__(self, bench: Bench):
        self.bench, self.folder = bench, bench.scratch / "nnunet"
        self.ending = ".nii.gz" if bench.manifest.dims == 3 else ".png"

    def time(self, seconds: float) -> dict:
        return self._run("--seconds", str(seconds))

    def dsc(self, steps: int, seed: int, timed: dict) -> dict[str, float]:
        self._run("--steps", str(steps), "--seed", str(seed))
        out = {}
        for i in self.bench.split.test:
            case = self.bench.read(i)
            path = self.folder / "results" / "predictions" / f"{_name(i)}{self.ending}"
            labels = read_labels(path, values=range(self.bench.manifest.classes), names=self.bench.plan.classes)
            answer = LabelMap(np.asarray(labels.data), case.geometry, self.bench.plan.classes)
            out[i] = self.bench.score(Prediction(labels={"prediction": answer}), case)
        return out

    def _run(self, *arguments: str) -> dict:
        if not self.folder.exists():
            self._convert()
            self._call("--prepare")
        return self._call(*arguments)

    def _call(self, *arguments: str) -> dict:
        folders = {f"nnUNet_{k}": str(self.folder / k) for k in ("raw", "preprocessed", "results")}
        workers = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false"}
        configuration = "3d_fullres" if self.bench.manifest.dims == 3 else "2d"
        command = [PEERS, Path(__file__).with_name("nnunet_peer.py"), configuration, *arguments]
        done = subprocess.run(command, env={**os.environ, **folders, **workers}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"nnU-Net failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def _convert(self) -> None:
        """nnU-Net's layout: one image file a case (RGB stays together), labels 0..K-1; training and validation cases train."""
        b, raw = self.bench, self.folder / "raw" / "Dataset001_Bench"
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (raw / name).mkdir(parents=True)
        train = [*b.split.train, *b.split.val]
        for i in (*train, *b.split.test):
            case = b.read(i)
            (image,) = case.images.values()
            write_image(raw / ("imagesTr" if i in train else "imagesTs") / f"{_name(i)}_0000{self.ending}", image.data, image.geometry)
            if i in train:
                label = next(iter(case.labels.values()))
                write_labels(raw / "labelsTr" / f"{_name(i)}{self.ending}", label.data, label.geometry)
        (only,) = b.manifest.channels
        channels = {str(k): only[k] for k in range(3)} if only == "RGB" else {"0": only}
        labels = {name: k for k, name in enumerate(b.plan.classes)}
        facts = {"channel_names": channels, "labels": labels, "numTraining": len(train), "file_ending": self.ending}
        (raw / "dataset.json").write_text(json.dumps(facts))


def _name(case: str) -> str:
    return case.replace("/", "_")


Recipe = Unet | Monai | NNUNet
RECIPES = {"unet": Unet, "monai": Monai, "nnunet": NNUNet}


# ---------------------------------------------------------------------------------------------------------------------------- budgets
def calibrate(recipes: Mapping[str, Recipe], data: str, seconds: float) -> dict:
    """Steps per minute of each recipe on this machine, kept in build/bench/steps_<data>.json with what was timed."""
    path = WORK / f"steps_{data}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, recipe in recipes.items():
        facts = recipe.time(seconds)
        ends = facts.pop("ends")
        rate = steps_per_minute(ends) * facts.pop("share", 1.0)
        known[name] = {
            "steps_per_minute": round(rate, 2),
            "timed_steps": len(ends),
            "digest": recipe.bench.digest,
            **facts,
            "load": round(os.getloadavg()[0], 1),
        }
        print(f"{name}: {known[name]}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def steps_per_minute(ends: Sequence[float]) -> float:
    """From when steps ended: those after the first third, in which workers start and queues fill."""
    first = min(len(ends) // 3, len(ends) - 2)
    if first < 0:
        sys.exit(f"only {len(ends)} steps were timed: calibrate with more --seconds")
    return 60 * (len(ends) - 1 - first) / (ends[-1] - ends[first])


def trained(recipe: Recipe, seed: int, timed: dict, minutes: float, path: Path) -> dict:
    """The record of one training: read where it was finished before with as many steps on the same data and plan, else made."""
    steps = max(1, int(minutes * timed["steps_per_minute"]))
    key = {"steps": steps, "digest": recipe.bench.digest}
    if path.exists() and (record := json.loads(path.read_text())) and {k: record[k] for k in key} == key:
        return record
    print(f"{recipe.title}, seed {seed}: {steps} steps", flush=True)
    start = time.monotonic()
    dsc = recipe.dsc(steps, seed, timed)
    record = {**key, "seconds_with_testing": round(time.monotonic() - start, 1), "dsc": dsc}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record


# ------------------------------------------------------------------------------------------------------------------------------ table
def write(bench: Bench, data: str, minutes: float, timed: dict, folder: Path) -> None:
    """One row a peer, from the finished trainings of this data and plan."""
    runs: dict[str, dict[int, dict]] = {name: {} for name in RECIPES}
    for path in sorted(folder.glob("*.json")):
        name, seed = path.stem.rsplit("_", 1)
        record = json.loads(path.read_text())
        if record["digest"] == bench.digest:
            runs[name][int(seed)] = record
    if not runs["unet"]:
        return print("no finished training of unet yet: no row written")
    target = TARGET.get((data, int(minutes)))
    facts = {name: _summary(bench, of) | {"calibration": timed.get(name)} for name, of in runs.items() if of}
    peers = [n for n in ("monai", "nnunet") if set(runs[n]) & set(runs["unet"])]
    plan = {"patch": bench.plan.patch, "batch": bench.plan.batch, "features": bench.plan.features}
    results = []
    for peer in peers or [None]:
        details = {"unet": facts["unet"], "plan": plan, "budget": "steps that fit in the minutes, timed beforehand (see calibration)"}
        ratio, words, met = 1.0, "", None
        mine = facts["unet"]["mean"]
        if peer:
            shared = sorted(set(runs[peer]) & set(runs["unet"]))
            ours, theirs = ([runs[n][s]["dsc"][c] for s in shared for c in bench.split.test] for n in ("unet", peer))
            patients = [bench.manifest[c].patient for _ in shared for c in bench.split.test]
            details |= {peer: facts[peer], "difference": paired_difference(ours, theirs, patients), "seeds in common": shared}
            ratio, words = mine / facts[peer]["mean"], f" against {facts[peer]['mean']:.4f}"
            low = details["difference"]["low"]
            met = low is not None and low > 0
        met = met if target is None else mine >= target and met is not False
        seeds = f"{len(runs['unet'])} seed{'s' * (len(runs['unet']) > 1)}"
        results.append(
            table.result(
                f"unet on {bench.manifest.name} test, {minutes:g} minutes of training, {seeds}: DSC {mine:.4f}{words}",
                f"{RECIPES[peer].title}, same minutes" if peer else "none in this run",
                " and ".join(([f"DSC >= {target}"] if target else []) + ["above the peer"]),
                ratio,
                f".venv/bin/python bench/accuracy.py {data} --minutes {minutes:g}",
                details=details,
                met=met,
            )
        )
    print(f"written to {table.write(f'accuracy_{data}_{minutes:g}min', results)}")


def _summary(bench: Bench, runs: dict[int, dict]) -> dict:
    """Mean over seeds and cases with its bootstrap interval over patients, and each seed's own mean."""
    values = [run["dsc"][c] for run in runs.values() for c in bench.split.test]
    patients = [bench.manifest[c].patient for _ in runs for c in bench.split.test]
    by_seed = {str(seed): round(float(np.mean(list(run["dsc"].values()))), 5) for seed, run in runs.items()}
    return mean_interval(values, patients).to_json() | {"by seed": by_seed, "steps": sorted({run["steps"] for run in runs.values()})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--seed", type=int, help="this seed only")
    parser.add_argument("--only", choices=RECIPES, help="this recipe only")
    parser.add_argument("--calibrate", action="store_true", help="time the steps anew, and train nothing")
    parser.add_argument("--seconds", type=float, default=CALIBRATION, help="how long the steps of each recipe are timed")
    args = parser.parse_args()
    manifest = open_dataset(ROOT.parent / "shared" / "data" / DATA[args.data])
    split = manifest.split()
    names = [args.only] if args.only else list(RECIPES)
    steps, folder = WORK / f"steps_{args.data}.json", WORK / "accuracy" / f"{args.data}_{args.minutes:g}min"
    if "nnunet" in names and not PEERS.exists():
        sys.exit(f"{PEERS} is missing: run bench/setup_peers.sh first")
    with tempfile.TemporaryDirectory(prefix="vesalius-accuracy-") as scratch:
        bench = Bench(manifest, split, api.plan_for(manifest, split, minutes=args.minutes)[0], Path(scratch))
        known = json.loads(steps.read_text()) if steps.exists() else {}
        recipes = {name: RECIPES[name](bench) for name in names}
        untimed = recipes if args.calibrate else {n: r for n, r in recipes.items() if known.get(n, {}).get("digest") != bench.digest}
        if untimed:
            known = calibrate(untimed, args.data, args.seconds)
        if args.calibrate:
            return
        for seed in range(args.seeds) if args.seed is None else [args.seed]:
            for name, recipe in recipes.items():
                record = trained(recipe, seed, known[name], args.minutes, folder / f"{name}_{seed}.json")
                print(f"{name}, seed {seed}: DSC {np.mean(list(record['dsc'].values())):.4f}", flush=True)
        write(bench, args.data, args.minutes, known, folder)


if __name__ == "__main__":
    main()
