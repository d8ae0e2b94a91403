"""DSC + HD95 + ASSD + NSD of a large label pair: Vesalius against MONAI and surface-distance; and many cases in worker processes.

    .venv/bin/python bench/metrics.py                 writes bench/results/metrics.json

The pair is ten wobbly ellipsoids, drawn twice with small differences, at 0.8 x 0.8 x 2.5 mm. Every tool runs alone in a process of its own,
on one thread, after a small pair has done its imports and compilation; tools take turns and the median counts. Seconds are the processor's
(one thread, so they are the wall's on an idle machine), and memory is the growth of the process's peak over what it held before. MONAI
takes one-hot tensors, as its metrics ask for; surface-distance takes masks, as its README shows. Both come with our own environment
([test] and [monai]): no peers are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import table

SPACING, TOLERANCE = (0.8, 0.8, 2.5), 2.0
TOOLS = ("vesalius", "surface-distance", "MONAI")
NAMED = ("dsc", "hd95", "assd", "nsd")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def pair(shape: tuple[int, ...], labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference), uint8: the same ellipsoids with other small shifts and sizes; later ones lie over earlier ones."""
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    wobble = 0.12 * np.sin(grid[0] / 6) * np.cos(grid[1] / 5) + 0.1 * np.sin(grid[2] / 4)
    maps = []
    for draw in (1, 2):
        place, change, out = np.random.default_rng(seed), np.random.default_rng((seed, draw)), np.zeros(shape, np.uint8)
        for k in range(1, labels + 1):
            centre = place.uniform(0.25, 0.75, 3) * shape + change.normal(0, 2, 3)
            radius = place.uniform(0.06, 0.22, 3) * shape * (1 + change.normal(0, 0.04, 3))
            out[sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) + wobble <= 1] = k
        maps.append(out)
    return maps[0], maps[1]


# ------------------------------------------------------------------------------------------------------------------------------ the tools
def by_vesalius(p: np.ndarray, r: np.ndarray, labels: int) -> list[list[float]]:
    from vesalius.core.case import LabelMap
    from vesalius.core.geometry import Geometry
    from vesalius.metrics import score_case

    names = ("background", *(f"s{k}" for k in range(1, labels + 1)))
    maps = (LabelMap(x, Geometry.of(x.shape, SPACING), names) for x in (p, r))
    rows = score_case(*maps, case_id="bench", metrics=NAMED, tolerances=TOLERANCE)
    return [[s.value for s in rows if s.metric == name] for name in NAMED]


def by_surface_distance(p: np.ndarray, r: np.ndarray, labels: int) -> list[list[float]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.metrics.judge import metrics as judge  # lends the package the names it misses in newer numpy and scipy
    from tests.metrics.judge import surface_metrics

    found = []
    for k in range(1, labels + 1):
        a, b = p == k, r == k
        of_surface = surface_metrics(a, b, SPACING, TOLERANCE)
        found.append([judge.compute_dice_coefficient(b, a), of_surface["hd95"], of_surface["assd"], of_surface["nsd"]])
    return np.array(found, float).T.tolist()


def by_monai(p: np.ndarray, r: np.ndarray, labels: int) -> list[list[float]]:
    import warnings

    import torch
    from monai import metrics
    from monai.metrics import compute_dice

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    a, b = (torch.from_numpy(np.stack([x == k for k in range(labels + 1)]))[None] for x in (p, r))
    found = [
        compute_dice(a, b, include_background=False),
        metrics.compute_hausdorff_distance(a, b, percentile=95, spacing=SPACING),
        metrics.compute_average_surface_distance(a, b, symmetric=True, spacing=SPACING),
        metrics.compute_surface_dice(a, b, [TOLERANCE] * labels, spacing=SPACING),
    ]
    return [f[0].tolist() for f in found]


def measure(tool: str, path: Path, labels: int) -> dict:
    """In a process of its own: seconds of the processor and on the wall, the growth of peak memory in MiB, and the values."""
    run = {"vesalius": by_vesalius, "surface-distance": by_surface_distance, "MONAI": by_monai}[tool]
    run(*pair((24, 24, 16), 2), 2)
    with np.load(path) as stored:
        p, r = stored["p"], stored["r"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = held("VmRSS")
    start, wall = time.process_time(), time.perf_counter()
    values = run(p, r, labels)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    return {"seconds": seconds, "wall": wall, "peak_mib": held("VmHWM") - before, "values": values}


def held(key: str) -> float:
    """MiB this process holds (VmRSS) or held at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def in_process(tool: str, path: Path, labels: int) -> dict:
    command = [sys.executable, __file__, "--tool", tool, "--file", path, "--labels", str(labels)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        sys.exit(f"{tool} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------------------------------------------ many cases
def score_one(seed: int) -> float:
    p, r = _SMALL[seed % len(_SMALL)]
    return by_vesalius(p, r, 3)[0][0]


def prepare_worker() -> None:
    """Small pairs to score again and again, made before the clock starts."""
    global _SMALL
    _SMALL = [pair((96, 96, 48), 3, seed) for seed in range(4)]
    score_one(0)


def cases_per_second(workers: int, cases: int) -> float:
    with ProcessPoolExecutor(workers, initializer=prepare_worker) as pool:
        list(pool.map(score_one, range(8 * workers), chunksize=1))
        start = time.perf_counter()
        list(pool.map(score_one, range(cases), chunksize=10))
        return cases / (time.perf_counter() - start)


def rows(runs: dict[str, list[dict]], what: str, repeats: int) -> list[dict]:
    import importlib.metadata

    seconds = {t: round(median(r["seconds"] for r in runs[t]), 4) for t in TOOLS}
    walls = {t: round(median(r["wall"] for r in runs[t]), 4) for t in TOOLS}
    memory = {t: round(median(r["peak_mib"] for r in runs[t]), 1) for t in TOOLS}
    ours, judge = (np.array(runs[t][0]["values"]) for t in TOOLS[:2])
    gap = float(np.abs(ours - judge).max())
    details = {
        "cpu_seconds": seconds,
        "wall_seconds": walls,
        "peak_mib": memory,
        "largest_difference_to_surface_distance": gap,
        "repeats": repeats,
    }
    command = " ".join([".venv/bin/python bench/metrics.py", *sys.argv[1:]])
    versions = {t: f"{t} {importlib.metadata.version(t.lower())}" for t in TOOLS[1:]}
    found = []
    for tool, target in (("MONAI", 15.0), ("surface-distance", 2.0)):
        ratio, same = seconds[tool] / seconds["vesalius"], gap <= 1e-9
        words, agreement = (", equal to 1e-9", float(same)) if tool == "surface-distance" else ("", None)
        met = bool(ratio >= target and (same or agreement is None))
        found.append(
            table.result(what, versions[tool], f">= {target:g}x{words}", ratio, command, met=met, agreement=agreement, details=details)
        )
    least = min(memory[t] for t in TOOLS[1:])
    ratio = least / max(memory["vesalius"], 0.1)
    met = bool(memory["vesalius"] <= least)
    peer = "the leaner of MONAI and surface-distance"
    found.append(
        table.result(f"peak memory of the same, {memory['vesalius']:.0f} MiB", peer, ">= 1x", ratio, command, met=met, details=details)
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="runs per tool; the median counts")
    parser.add_argument("--cases", type=int, default=1000, help="cases scored by one and by two workers")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.tool:
        return print(json.dumps(measure(options.tool, options.file, options.labels)))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.npz"
        p, r = pair(tuple(options.shape), options.labels)
        np.savez(path, p=p, r=r)
        del p, r
        runs: dict[str, list[dict]] = {tool: [] for tool in TOOLS}
        for _ in range(options.repeats):
            for tool in TOOLS:
                runs[tool].append(in_process(tool, path, options.labels))
    size = "x".join(map(str, options.shape))
    results = rows(runs, f"DSC + HD95 + ASSD + NSD of a {size} pair, {options.labels} labels, 0.8 x 0.8 x 2.5 mm", options.repeats)

    os.environ.update(ONE_THREAD)
    speed = {n: [] for n in (1, 2)}
    for _ in range(3):
        for workers in speed:
            speed[workers].append(cases_per_second(workers, options.cases))
    ratio = median(two / one for one, two in zip(speed[1], speed[2], strict=True))
    results.append(
        table.result(
            f"{options.cases} cases (96x96x48, 3 labels) scored by two worker processes",
            "one worker process",
            ">= 1.8x on 2 cores",
            ratio,
            " ".join([".venv/bin/python bench/metrics.py", *sys.argv[1:]]),
            met=ratio >= 1.8 if load < 0.5 else None,  # two workers cannot be judged on cores that others use
            details={"cases_per_second": {str(n): [round(v, 2) for v in s] for n, s in speed.items()}, "load_before": round(load, 2)},
        )
    )
    table.write("metrics", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
