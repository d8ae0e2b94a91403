"""Seconds to evaluate 1,000 small cases with one and with two worker processes.

    .venv/bin/python bench/evaluate.py        writes bench/results/evaluate.json (with --cases N it only prints: another N is another bench)

Label files of 96x96x60 voxels with four structures, all default metrics. A first evaluation of a few cases in this process warms the disk
cache and numba's; starting the workers counts. The ratio is that of the busiest process's CPU seconds (parent, or a worker's share), which
is the wall time of a machine that does nothing else; ``wall_seconds`` and ``load`` in the details tell what it took here, and beside what.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: a worker is one core

import numpy as np
import table

CASES, TARGET = 1000, 1.7
SHAPE, SPACING = (96, 96, 60), (0.9, 0.9, 2.5)
DIFFERENT = 40  # case files; the rest are links to them


def make(folder: Path, cases: int) -> None:
    """Predictions and references: four ellipsoids a case."""
    from vesalius.core.geometry import Geometry
    from vesalius.io import write_labels

    grid, at = Geometry.of(SHAPE, SPACING), np.indices(SHAPE, np.float32)
    centres = ((30, 30, 21), (66, 33, 36), (33, 66, 39), (66, 66, 21))
    for name in ("pred", "ref"):
        (folder / name).mkdir()
    for n in range(cases):
        rng = np.random.default_rng(n)
        for name in ("pred", "ref"):
            path = folder / name / f"case_{n:04d}.nii.gz"
            if n >= DIFFERENT:
                os.link(folder / name / f"case_{n % DIFFERENT:04d}.nii.gz", path)
                continue
            out = np.zeros(SHAPE, np.uint8)
            for k, centre in enumerate(centres, 1):
                radii = rng.uniform((10, 10, 9), (18, 18, 15))
                out[sum(((a - c) / r) ** 2 for a, c, r in zip(at, centre, radii, strict=True)) < 1] = k
            write_labels(path, out, grid)


def cpu_seconds() -> np.ndarray:
    """(2,): of this process, and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([u.ru_utime + u.ru_stime for u in used])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=CASES)
    cases = parser.parse_args().cases
    from vesalius.core.manifest import CaseRef, Manifest
    from vesalius.engine import evaluate as ev

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, cases)
        refs = tuple(CaseRef(f"case_{n:04d}", f"case_{n:04d}", labels={"reference": f"case_{n:04d}.nii.gz"}) for n in range(cases))
        manifest = Manifest("bench", folder / "ref", 3, (), {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}, refs)
        few = ev.evaluate(folder / "pred", manifest.only([c.id for c in refs[:8]]), workers=0).rows
        job = ev._Job(
            manifest, folder / "pred", ev.find_predictions(folder / "pred", [c.id for c in refs])[0], ev.RULES, ev.TOLERANCE, None
        )
        wall, cpu, rows = {}, {}, {}
        for workers in (1, 2):
            start, before = time.perf_counter(), cpu_seconds()
            rows[workers] = [r for part, _ in ev._in_workers(job, [c.id for c in refs], workers) for r in part]
            wall[workers], cpu[workers] = time.perf_counter() - start, cpu_seconds() - before
    same = rows[1] == rows[2] and rows[1][: len(few)] == few
    busiest = {n: float(max(parent, children / n)) for n, (parent, children) in cpu.items()}
    record = table.result(
        f"evaluate {cases} cases of {'x'.join(map(str, SHAPE))}, 4 structures: two worker processes ({busiest[2]:.1f} CPU s each)",
        f"one worker process ({busiest[1]:.1f} CPU s)",
        f">= {TARGET:g}x, the same rows",
        busiest[1] / busiest[2],
        ".venv/bin/python bench/evaluate.py",
        met=bool(busiest[1] / busiest[2] >= TARGET and same),
        agreement=float(same),
        details={
            "wall_seconds": {str(n): round(v, 2) for n, v in wall.items()},
            "cpu_seconds": {str(n): [round(float(x), 2) for x in v] for n, v in cpu.items()},
            "wall_ratio": round(wall[1] / wall[2], 3),
            "rows": len(rows[2]),
            "load": [round(v, 1) for v in os.getloadavg()],
        },
    )
    print(record)
    if cases == CASES:
        print(table.write("evaluate", [record]))


if __name__ == "__main__":
    main()
