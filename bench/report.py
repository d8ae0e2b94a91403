"""Seconds and size of a comparison page of 5 methods x 200 cases (synthetic scores of 3 structures, small 3D masks).

    .venv/bin/python bench/report.py [--out FOLDER]        writes bench/results/report.json

The whole of ``write_report``: statistics, figures, page and the files beside it, in one process with one thread. Its CPU time counts,
which is the wall time of a machine that does nothing else; ``wall_seconds`` is what it took here.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import table

METHODS, CASES, STRUCTURES = ("unet", "mean-teacher", "sdl-seg", "lung-morphology", "saliency-acm"), 200, ("liver", "kidney", "tumour")
SECONDS, MEGABYTES = 10.0, 15.0
METRICS = {"dsc": ("higher", ""), "iou": ("higher", ""), "hd95": ("lower", "mm"), "assd": ("lower", "mm"), "nsd": ("higher", "")}


def scores() -> list[dict]:
    """Rows of every method, case, structure and metric; a share of the distances is undefined."""
    rng, rows = np.random.default_rng(0), []
    for s, structure in enumerate(STRUCTURES):
        volume = rng.lognormal(3 - s, 0.8, CASES)
        ease = np.clip(0.9 - 0.08 * s + 0.03 * np.log(volume) / 3 + rng.normal(0, 0.04, CASES), 0.2, 0.97)
        for k, method in enumerate(METHODS):
            dsc = np.clip(ease + 0.006 * k + rng.normal(0, 0.02, CASES), 0, 0.995)
            for n in range(CASES):
                d = float(dsc[n])
                far = None if rng.uniform() < 0.01 else 20 * (1 - d) + 1
                values = {"dsc": d, "iou": d / (2 - d), "hd95": far, "assd": None if far is None else far / 4, "nsd": min(1.0, d + 0.02)}
                facts = {
                    "case": f"case_{n:03d}",
                    "patient": f"p{n // 2:03d}",
                    "structure": structure,
                    "method": method,
                    "rater": "reference",
                }
                facts |= {"reference_ml": float(volume[n]), "predicted_ml": float(volume[n] * (1 + rng.normal(0.01 * k, 0.05)))}
                for metric, value in values.items():
                    better, unit = METRICS[metric]
                    why = {"note": "empty prediction"} if value is None else {}
                    rows.append({**facts, "metric": metric, "value": value, "better": better, "unit": unit, "kind": "quality", **why})
    cost = {"metric": "seconds", "kind": "cost", "unit": "s"}
    rows += [
        {**cost, "case": f"case_{n:03d}", "method": m, "value": 1.0 + k + n % 7 / 10} for k, m in enumerate(METHODS) for n in range(CASES)
    ]
    return rows


class Pictures(Mapping):
    """A small volume with three balls a case, made when it is asked for."""

    def __getitem__(self, case: str):
        from vesalius.report.page import CasePicture

        rng, shape = np.random.default_rng(int(case[-3:])), (96, 96, 40)
        at = np.indices(shape, np.float32)

        def balls(shift: float) -> np.ndarray:
            out = np.zeros(shape, np.int16)
            for k, centre in enumerate(((40, 40, 20), (64, 60, 18), (40, 66, 22)), 1):
                out[sum(((a - c - shift) / r) ** 2 for a, c, r in zip(at, centre, (16 - 3 * k, 15 - 3 * k, 9 - k), strict=True)) < 1] = k
            return out

        reference = balls(0.0)
        image = (reference * 40 + rng.normal(0, 15, shape)).astype(np.float32)[None]
        given = {m: balls(0.7 * (len(METHODS) - k)) for k, m in enumerate(METHODS)}
        return CasePicture(case, image, (0.8, 0.8, 2.5), reference, given, ("background", *STRUCTURES))

    def __iter__(self) -> Iterator[str]:
        return (f"case_{n:03d}" for n in range(CASES))

    def __len__(self) -> int:
        return CASES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    given = parser.parse_args().out
    rows = scores()
    from vesalius.report.page import write_report

    facts = {
        m: {
            "title": f"Method {k}",
            "evidence": "proof",
            "seconds": 90.0 + 40 * k,
            "peak memory GiB": 1.0 + 0.3 * k,
            "parameters": 2_000_000 * (k + 1),
            "iterations": 500,
            "deviations": ["asks for 2.5D patches"] if k == 2 else [],
        }
        for k, m in enumerate(METHODS)
    }
    columns = {"site": {f"case_{n:03d}": "ABC"[n % 3] for n in range(CASES)}, "age": {f"case_{n:03d}": 30 + n % 50 for n in range(CASES)}}
    with tempfile.TemporaryDirectory() as folder:
        start, wall = time.process_time(), time.perf_counter()
        page = write_report(
            given or folder,
            title="Five methods on two hundred synthetic cases",
            rows=rows,
            methods=facts,
            cases=Pictures(),
            manifest={"name": "synthetic", "cases": CASES, "licence": "CC0"},
            plan={"command": "python bench/report.py"},
            columns=columns,
            margin={"dsc": 0.02},
        )
        seconds, wall, size = time.process_time() - start, time.perf_counter() - wall, page.stat().st_size / 1e6
    record = table.result(
        f"page of {len(METHODS)} methods x {CASES} cases x {len(STRUCTURES)} structures ({seconds:.1f} CPU s, {size:.1f} MB)",
        "the limit of ten seconds",
        f"< {SECONDS:g} s and < {MEGABYTES:g} MB",
        SECONDS / seconds,
        ".venv/bin/python bench/report.py",
        met=seconds < SECONDS and size < MEGABYTES,
        details={"cpu_seconds": round(seconds, 2), "wall_seconds": round(wall, 2), "megabytes": round(size, 2), "rows": len(rows)},
    )
    if given:
        print(record)
    else:
        print(table.write("report", [record]))


if __name__ == "__main__":
    main()
