"""How fast a training patch is augmented: Vesalius against batchgeneratorsv2, MONAI and TorchIO, one thread each.

    python bench/augmentation.py [--rounds 20]        writes bench/results/augmentation.json

One float32 channel and one int16 label, cut as 96^3 from 128^3 (TorchIO, which keeps sizes, is given 96^3). Every random transform has
probability 1: rotation and scaling (first five rows: elastic deformation too), then noise, blur, low resolution, brightness, contrast and
gamma in nnU-Net's ranges; TorchIO has no brightness and no contrast and is spared them. Labels are read as each library does by default:
nearest, except batchgeneratorsv2 (bilinear, as in nnU-Net; its nearest mode is timed as well). The peers run in .venv-peers
(bench/setup_peers.sh).
Seconds are CPU time of the process, so that other work on the machine counts little; the figure is the median over the rounds.
Linear interpolation is checked to be the same: our patch against batchgeneratorsv2's own at its own random affine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import table

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
SIDE, SOURCE, ROUNDS = 96, 128, 20
TARGETS = {"batchgeneratorsv2": 5.0, "monai": 4.0, "torchio": 3.0}
TOLERANCE = 1e-3  # of a z-score, by float32 grids of the peer


def volume(side: int = SOURCE) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random z-scored volume (1, side, side, side) with three classes."""
    x = np.random.default_rng(0).standard_normal((side, side, side)).astype(np.float32)
    spectrum = np.fft.rfftn(x)
    f = [np.fft.fftfreq(side), np.fft.fftfreq(side), np.fft.rfftfreq(side)]
    low_pass = np.exp(-300 * sum(g**2 for g in np.meshgrid(*f, indexing="ij")))
    x = np.fft.irfftn(spectrum * low_pass, s=x.shape, axes=(0, 1, 2)).astype(np.float32)
    x = (x - x.mean()) / x.std()
    return x[None], ((x > 0.5).astype(np.int16) + (x > 1.2))[None]


# ------------------------------------------------------------------------------------------------- each gives a function of no arguments
def vesalius(elastic: bool) -> Callable[[], object]:
    from vesalius.core.case import Sample
    from vesalius.core.plan import Plan
    from vesalius.ops import augment

    strength = {k: 1.0 if k.endswith("_p") else v for k, v in augment.PRESETS["full"].items()}
    strength["bend_p"] = float(elastic)
    plan, rng = Plan(dims=3, augmentation=strength), np.random.default_rng(0)
    image, label = volume()
    pose = augment.pose_at((SOURCE / 2,) * 3, (SIDE,) * 3)

    def once() -> object:
        sample = Sample("bench", image, {"reference": label[0]}, (SIDE,) * 3, pose, (1.0, 1.0, 1.0))
        return augment.default(sample, rng, plan).patch

    return once


def batchgeneratorsv2(elastic: bool, mode_seg: str = "bilinear") -> Callable[[], object]:
    import torch
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    spatial = _bgv2_spatial(float(elastic), mode_seg)
    pipeline = ComposeTransforms(
        [
            spatial,
            GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True),
            GaussianBlurTransform((0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=1, benchmark=True),
            MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1),
            ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False, p_per_channel=1),
            SimulateLowResolutionTransform((0.5, 1), synchronize_channels=False, synchronize_axes=True, ignore_axes=(), p_per_channel=1),
            GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1),
        ]
    )
    image, label = map(torch.as_tensor, volume())
    return lambda: pipeline(image=image.clone(), segmentation=label.clone())


def _bgv2_spatial(p_elastic: float, mode_seg: str = "bilinear"):
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    turn = (-np.pi / 6, np.pi / 6)
    return SpatialTransform(
        (SIDE,) * 3,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=p_elastic,
        p_rotation=1,
        rotation=turn,
        p_scaling=1,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        mode_seg=mode_seg,
    )


def batchgeneratorsv2_nearest(elastic: bool) -> Callable[[], object]:
    return batchgeneratorsv2(elastic, "nearest")


def monai(elastic: bool) -> Callable[[], object]:
    import monai.transforms as mt
    import torch

    low, high = 1 / 1.4 - 1, 1 / 0.7 - 1
    spatial = {
        "spatial_size": (SIDE,) * 3,
        "prob": 1,
        "rotate_range": (np.pi / 6,) * 3,
        "scale_range": ((low, high),) * 3,
        "mode": ("bilinear", "nearest"),
        "padding_mode": "zeros",
    }
    both = ["image", "label"]
    pipeline = mt.Compose(
        [
            mt.Rand3DElasticd(both, (5, 8), (50, 150), **spatial) if elastic else mt.RandAffined(both, **spatial),
            mt.RandGaussianNoised(["image"], prob=1, std=0.3),
            mt.RandGaussianSmoothd(["image"], (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=1),
            mt.RandScaleIntensityd(["image"], (-0.25, 0.25), prob=1),
            mt.RandScaleIntensityFixedMeand(["image"], (-0.25, 0.25), preserve_range=True, prob=1),
            mt.RandSimulateLowResolutiond(["image"], prob=1, zoom_range=(0.5, 1.0)),
            mt.RandAdjustContrastd(["image"], prob=1, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )
    image, label = map(torch.as_tensor, volume())
    return lambda: pipeline({"image": image, "label": label})


def torchio(elastic: bool) -> Callable[[], object]:
    import torch
    import torchio as tio

    pipeline = tio.Compose(
        [
            tio.RandomAffine(scales=(0.7, 1.4), degrees=30, isotropic=True, default_pad_value=0, p=1),
            *([tio.RandomElasticDeformation(num_control_points=7, max_displacement=7.5, p=1)] if elastic else []),
            tio.RandomNoise(std=(0, 0.3), p=1),
            tio.RandomBlur(std=(0.5, 1.0), p=1),
            tio.RandomAnisotropy(downsampling=(1, 2), p=1),
            tio.RandomGamma(log_gamma=(-0.36, 0.4), p=1),
        ]
    )
    edge = (SOURCE - SIDE) // 2
    image, label = (torch.as_tensor(x[:, edge:-edge, edge:-edge, edge:-edge].copy()) for x in volume())
    return lambda: pipeline(tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label)))


CONTESTANTS = {f.__name__: f for f in (vesalius, batchgeneratorsv2, batchgeneratorsv2_nearest, monai, torchio)}


# ------------------------------------------------------------------------------------------------------------------------- measurement
def measure(name: str, elastic: bool, rounds: int) -> dict:
    """CPU seconds a patch of one contestant, in this process."""
    import torch

    torch.set_num_threads(1)
    once = CONTESTANTS[name](elastic)
    for _ in range(3):
        once()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        once()
        seconds.append(time.process_time() - start)
    quarter, median, three = map(float, np.percentile(seconds, [25, 50, 75]))
    return {"library": name, "elastic": elastic, "seconds": median, "quartiles": [quarter, three], "patches_per_second": 1 / median}


def peer_patch(path: Path) -> dict:
    """batchgeneratorsv2's own affine patch and its matrix, for the check."""
    import torch

    np.random.seed(0)
    image, _ = volume()
    transform = _bgv2_spatial(0.0)
    parameters = transform.get_parameters(image=torch.as_tensor(image))
    np.savez(path, patch=transform._apply_to_image(torch.as_tensor(image), **parameters).numpy(), affine=parameters["affine"])
    return {"written": str(path)}


def same_interpolation(folder: Path) -> float:
    """Greatest difference of our linear patch from batchgeneratorsv2's at the same affine, in sd of the volume."""
    from vesalius.ops.warp import read_patch

    run(["--check", str(folder / "peer.npz")], PEERS)
    with np.load(folder / "peer.npz") as peer:
        pose = np.eye(4)
        pose[:3, :3] = peer["affine"][:3, :3]
        pose[:3, 3] = (SOURCE - 1) / 2 - pose[:3, :3] @ np.full(3, (SIDE - 1) / 2)
        return float(np.abs(read_patch(volume()[0], (SIDE,) * 3, pose) - peer["patch"]).max())


def run(arguments: list[str], python: Path) -> dict:
    one = {k: "1" for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    done = subprocess.run([str(python), __file__, *arguments], env={**os.environ, **one}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=CONTESTANTS, help="measure one library in this process")
    parser.add_argument("--elastic", action="store_true", help="with --only: elastic deformation too")
    parser.add_argument("--check", type=Path, help="write batchgeneratorsv2's patch there")
    options = parser.parse_args()
    if options.only or options.check:
        print(json.dumps(measure(options.only, options.elastic, options.rounds) if options.only else peer_patch(options.check)))
        return
    if not PEERS.exists():
        sys.exit(f"{PEERS} is missing: run bench/setup_peers.sh first")
    rows = []
    for flags in (["--elastic"], []):
        for name in CONTESTANTS:
            python = Path(sys.executable) if name == "vesalius" else PEERS
            rows.append(run(["--only", name, "--rounds", str(options.rounds), *flags], python))
            ours = next(r for r in rows if r["library"] == "vesalius" and r["elastic"] == rows[-1]["elastic"])
            rows[-1].update(times_faster=rows[-1]["seconds"] / ours["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        difference = same_interpolation(Path(folder))
    results = [_result(peer, rows, difference, options.rounds) for peer in TARGETS]
    table.write("augmentation", results)
    print(json.dumps(results, indent=1))
    if not all(r["met"] for r in results):
        sys.exit(1)


def _result(peer: str, rows: list[dict], difference: float, rounds: int) -> dict:
    """The table's row of one peer: the lesser of its two ratios, with and without elastic deformation."""
    mine = [r for r in rows if r["library"].startswith(peer)]
    ratio = min(r["times_faster"] for r in mine if r["library"] == peer)
    same = difference <= TOLERANCE
    return table.result(
        f"augmentation of a {SIDE}^3 patch, image and labels, one core; the lesser of with and without elastic deformation",
        f"{peer} {peer_version(peer)}",
        f">= {TARGETS[peer]:g}x, same linear interpolation",
        ratio,
        ".venv/bin/python bench/augmentation.py" + (f" --rounds {rounds}" if rounds != ROUNDS else ""),
        met=ratio >= TARGETS[peer] and same,
        agreement=1.0 if same else 0.0,
        details={
            "vesalius": [r for r in rows if r["library"] == "vesalius"],
            peer: mine,
            "interpolation_difference_sd": difference,
            "interpolation_tolerance_sd": TOLERANCE,
        },
    )


def peer_version(package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([PEERS, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
