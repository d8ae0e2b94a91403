"""Accuracy per CPU-minute: ``unet`` and a plain MONAI BasicUNet recipe side by side on the same split, minutes and machine.

    python bench/accuracy.py hippocampus --minutes 8 --seeds 3
    python bench/accuracy.py kvasir --minutes 8 --seeds 3

Writes bench/results/accuracy_<data>_<minutes>min.json. The peer: BasicUNet with features 16-128, fp32, AdamW 2e-3, cosine, batch 2 (3D)
or 8 (2D), Dice + cross-entropy, flips, on the same prepared cases; its minutes count training only, ours also preparing and validating.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import table

from vesalius.core.case import Image
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.evaluate import mean_dsc, score
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.progress import Progress
from vesalius.engine.restore import restore
from vesalius.report.statistics import mean_interval, paired_difference

DATA = {"hippocampus": "3d/msd_hippocampus", "kvasir": "2d/kvasir_seg"}
TARGET = {("hippocampus", 8): 0.87, ("hippocampus", 20): 0.885}


def ours(manifest, split, plan, minutes, seed, out) -> dict[str, float]:
    tick = time.monotonic()
    trained = api.train("unet", manifest, out, seed=seed, minutes=minutes, plan=plan, split=split, progress=Progress())
    print(f"  unet seed {seed}: {time.monotonic() - tick:.0f} s, {trained.record['facts']}", flush=True)
    return {case.id: mean_dsc(rows) for case, _, rows, _ in api.score_split(trained, split.test, metrics=("dsc",))}


def peer(manifest, split, plan, minutes, seed) -> dict[str, float]:
    """The MONAI recipe on the cases prepared by our plan (so that only network and training differ)."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    read = api.reader(manifest)
    cache = Cache(manifest, plan, None, read)
    cases = [cache[c] for c in (*split.train, *split.val)]
    k, dims = manifest.classes, manifest.dims
    net = BasicUNet(dims, plan.in_channels, k, features=(16, 16, 32, 64, 128, 16))
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    batch, patch = (2, plan.patch) if dims == 3 else (8, plan.patch)
    tick, limit, steps = time.monotonic(), minutes * 60, 0
    while (spent := time.monotonic() - tick) < limit:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * spent / limit))
        images, labels = zip(*[_crop(cases[rng.integers(len(cases))], patch, rng) for _ in range(batch)], strict=True)
        loss = loss_of(net(torch.from_numpy(np.stack(images))), torch.from_numpy(np.stack(labels))[:, None].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    print(f"  BasicUNet seed {seed}: {steps} steps, loss {loss.item():.3f}", flush=True)
    net.eval()
    out = {}
    for i in split.test:
        case = read(i)
        prepared = prepare(case, plan)
        with torch.no_grad():
            logits = sliding_window_inference(torch.from_numpy(prepared.stack())[None], patch, 1, net, overlap=0.5, mode="gaussian")
        answer = Prediction(probability=Image(logits.softmax(1)[0].numpy(), prepared.geometry))
        out[i] = mean_dsc(score(restore(answer, prepared.geometry, case.geometry, plan.classes), case, metrics=("dsc",)))
    return out


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    args = parser.parse_args()
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / DATA[args.data]
    manifest = open_dataset(root)
    split = manifest.split()
    plan, _ = api.plan_for(manifest, split)
    scratch = Path(tempfile.mkdtemp(prefix="vesalius-accuracy-"))
    results: dict[str, list[dict[str, float]]] = {"unet": []} | ({} if args.only_ours else {"MONAI BasicUNet": []})
    try:
        for seed in range(args.seeds):
            results["unet"].append(ours(manifest, split, plan, args.minutes, seed, scratch / str(seed)))
            if not args.only_ours:
                results["MONAI BasicUNet"].append(peer(manifest, split, plan, args.minutes, seed))
            print({k: [round(float(np.mean(list(v.values()))), 4) for v in runs] for k, runs in results.items()}, flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    flat = {k: [v for run in runs for v in run.values()] for k, runs in results.items()}
    patients = [manifest[c].patient for run in results["unet"] for c in run]
    by_seed = {k: [float(np.mean(list(run.values()))) for run in runs] for k, runs in results.items()}
    details = {k: mean_interval(v, patients).to_json() | {"by seed": by_seed[k]} for k, v in flat.items()}
    if not args.only_ours:
        details["difference"] = paired_difference(flat["unet"], flat["MONAI BasicUNet"], patients)
    details["plan"] = {"patch": plan.patch, "batch": plan.batch, "features": plan.features}
    target = TARGET.get((args.data, int(args.minutes)))
    mine, theirs = details["unet"]["mean"], None if args.only_ours else details["MONAI BasicUNet"]["mean"]
    words = f"DSC {mine:.4f}" + (f" against {theirs:.4f}" if theirs else "")
    better = not args.only_ours and details["difference"]["low"] is not None and details["difference"]["low"] > 0
    table.write(
        f"accuracy_{args.data}_{args.minutes:g}min",
        [
            table.result(
                f"unet on {manifest.name} test, {args.minutes:g} minutes of training, {args.seeds} seeds: {words}",
                "MONAI 1.6 BasicUNet recipe, same minutes" if theirs else "none in this run",
                f"DSC >= {target}" if target else "above the peer",
                mine / theirs if theirs else 1.0,
                " ".join([".venv/bin/python", *sys.argv]),
                details=details,
                met=mine >= target if target else better,
            )
        ],
    )


if __name__ == "__main__":
    main()
