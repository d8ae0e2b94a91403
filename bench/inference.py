"""Sliding-window inference on the CPU: Vesalius against nnU-Net v2 and MONAI, same weights, volume, window, step and blending.

    bench/setup_peers.sh                              once
    .venv/bin/python bench/inference.py               writes bench/results/inference.json

Each library runs in a process of its own, so that peak memory is its own. See README.md for what is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from unet3d import CLASSES, UNet3d, torso

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "bench"
WEIGHTS, VOLUME = WORK / "unet3d.safetensors", WORK / "volume.npz"
TARGET, AGREE, PROBES = 4.0, 0.995, 6
PEERS = {"nnunet": "nnunetv2", "monai": "monai"}


def train(steps: int) -> None:
    """A minute of training on small crops of other bodies: enough for labels that mean something."""
    from safetensors.torch import save_file
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    rng, net, size = np.random.default_rng(0), UNet3d(), 48
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    bodies = [torso((128, 128, 96), seed) for seed in range(100, 104)]
    for step in range(steps):
        image, labels = bodies[step % len(bodies)]
        if step % 2:  # every other crop around a nodule, the rest anywhere
            spots = np.argwhere(labels == 3)
            corner = np.clip(spots[rng.integers(len(spots))] - size // 2, 0, np.array(image.shape) - size)
        else:
            corner = [rng.integers(0, n - size + 1) for n in image.shape]
        at = tuple(slice(c, c + size) for c in corner)
        x, y = torch.from_numpy(image[at])[None, None], torch.from_numpy(labels[at].astype(np.int64))[None]
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x).float()
        loss = cross_entropy(logits, y, weight=torch.tensor([1.0, 1.0, 1.0, 2.0]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 12.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f"training {step + 1}/{steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    save_file(net.state_dict(), WEIGHTS)


def network() -> UNet3d:
    from safetensors.torch import load_file

    net = UNet3d()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def run_nnunet(net: UNet3d, image: torch.Tensor, patch: tuple[int, ...]):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(0.5, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = net
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    return lambda: predictor.predict_sliding_window_return_logits(image), {}


def run_monai(net: UNet3d, image: torch.Tensor, patch: tuple[int, ...]):
    from monai.inferers import sliding_window_inference

    weights = torch.ones(1, 1)
    for n in patch:  # MONAI's own map without its floor of 1e-3, see README.md
        x = torch.arange(n) - (n - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (x / (n / 8)) ** 2)
    return lambda: sliding_window_inference(image[None], patch, 1, net, overlap=0.5, mode="gaussian", roi_weight_map=weights)[0], {}


def run_vesalius(net: UNet3d, image: torch.Tensor, patch: tuple[int, ...]):
    from vesalius.inferers import SlidingWindow, accelerate

    start, inferer = time.perf_counter(), SlidingWindow(patch, overlap=0.5)
    probe = inferer.some(image, PROBES)
    forward = accelerate(net, tuple(probe.shape), probe=probe)
    facts = {"choosing_seconds": round(time.perf_counter() - start, 2), "choice": forward.choice}
    return lambda: inferer(forward, image), facts


def run_float32(net: UNet3d, image: torch.Tensor, patch: tuple[int, ...]):
    """What the numbers mean without any rounding to less: torch float32, blended in float32."""
    from vesalius.inferers import SlidingWindow

    return lambda: SlidingWindow(patch, overlap=0.5)(net, image), {}


def central(image: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    low = [(n - p) // 2 for n, p in zip(image.shape[1:], patch)]
    return image[(slice(None), *(slice(a, a + p) for a, p in zip(low, patch)))].contiguous()


RUNS = {"nnunet": run_nnunet, "monai": run_monai, "vesalius": run_vesalius, "float32": run_float32}


def measure(library: str, patch: tuple[int, ...], repeats: int) -> None:
    """In the process of one library: labels to WORK, facts as the last line of stdout."""
    torch.set_num_threads(os.cpu_count())
    image = torch.from_numpy(np.load(VOLUME)["image"])[None]
    with torch.inference_mode():
        net = network()
        net(central(image, patch)[None])
        run, facts = RUNS[library](net, image, patch)
        seconds, cpu = [], []
        for _ in range(repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            logits = run()
            seconds.append(round(time.perf_counter() - start, 3))
            cpu.append(round(time.process_time() - start_cpu, 3))
        np.save(WORK / f"{library}.npy", logits.float().argmax(0).numpy().astype(np.uint8))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": min(seconds), "every_run": seconds, "cpu_seconds": min(cpu), "peak_rss_gib": round(peak, 2), **facts}))


def dsc(a: np.ndarray, b: np.ndarray) -> list[float]:
    """DSC of each foreground class of two label maps."""
    return [round(2 * float(((a == k) & (b == k)).sum()) / max(1, int((a == k).sum() + (b == k).sum())), 5) for k in range(1, CLASSES)]


def in_process(library: str, options: argparse.Namespace) -> dict:
    python = ROOT / (".venv-peers" if library in PEERS else ".venv") / "bin" / "python"
    repeats = 1 if library == "float32" else options.repeats
    command = [python, __file__, "--run", library, "--repeats", str(repeats), "--patch", *map(str, options.patch)]
    print(f"running {library}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{library} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer_version(package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([ROOT / ".venv-peers/bin/python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 192, 128))
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), help="multiples of 16")
    parser.add_argument("--steps", type=int, default=80, help="training steps when no weights are there yet")
    parser.add_argument("--repeats", type=int, default=1, help="whole volumes per library; the fastest counts")
    parser.add_argument("--run", choices=sorted(RUNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return measure(options.run, tuple(options.patch), options.repeats)

    import table

    WORK.mkdir(parents=True, exist_ok=True)
    if not WEIGHTS.exists():
        train(options.steps)
    image, truth = torso(tuple(options.shape), seed=7)
    np.savez(VOLUME, image=image)
    facts = {library: in_process(library, options) for library in ("vesalius", *PEERS, "float32")}
    labels = {library: np.load(WORK / f"{library}.npy") for library in facts}
    size, given = "x".join(map(str, options.shape)), sys.argv[1:]
    results = []
    for library, package in PEERS.items():
        agreement = min(dsc(labels["vesalius"], labels[library]))
        ratio = facts[library]["seconds"] / facts["vesalius"]["seconds"]
        results.append(
            table.result(
                f"3D sliding-window inference, {size} volume, {'x'.join(map(str, options.patch))} windows, step 0.5, Gaussian",
                f"{library} {peer_version(package)}",
                f">= {TARGET:g}x, DSC >= {AGREE}",
                ratio,
                " ".join([".venv/bin/python bench/inference.py", *given]),
                met=ratio >= TARGET and agreement >= AGREE,
                agreement=agreement,
                details={
                    "vesalius": facts["vesalius"],
                    library: facts[library],
                    "dsc_against_truth": {name: dsc(labels[name], truth) for name in ("vesalius", library, "float32")},
                    "dsc_against_float32": {name: dsc(labels[name], labels["float32"]) for name in ("vesalius", library)},
                },
            )
        )
    path = table.write("inference", results)
    print(json.dumps(results, indent=1))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
