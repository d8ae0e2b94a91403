"""Arenas: every network, or every objective with the same U-Net, on one data set; same plan, same minutes, three seeds.

    .venv/bin/python bench/arena.py kvasir                  train what is missing, test, write bench/arenas/kvasir.json
    .venv/bin/python bench/arena.py kvasir --only pranet    train this one; nothing is written
    .venv/bin/python bench/arena.py --list                  the arenas and who competes in them
    taskset -c 0 .venv/bin/python bench/arena.py kvasir     on one core, so that another arena may run on the next

Otherwise alone on the machine: minutes are turned into steps by timing them. Finished trainings are kept in build/bench/arenas and not done
again, so that an arena may be filled over several evenings; one of other minutes, cores or another version of the data has a folder of its
own, and what was trained with older code of a method is trained again. ``make docs`` writes docs/arenas/<name>.md from the results.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import table

from vesalius import catalog
from vesalius.core.geometry import Spacing
from vesalius.core.machine import cores
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.compare import compare
from vesalius.engine.progress import Progress
from vesalius.engine.record import read_json, write_json
from vesalius.report.tables import number

ROOT = Path(__file__).resolve().parent.parent
DATA, WORK, OUT = ROOT.parent / "shared" / "data", ROOT / "build" / "bench" / "arenas", ROOT / "bench" / "arenas"
BASELINE, SEEDS = "unet", 3


@dataclass(frozen=True)
class Arena:
    """``kind`` of card that competes, and who ``beside``; ``metrics``: the first one ranks; ``title`` says for whom the page is; ``plan``:
    what it has otherwise than the data would be planned."""

    title: str
    where: str
    kind: str
    minutes: float
    metrics: tuple[str, ...] = ("dsc", "hd95")
    beside: tuple[str, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)

    def methods(self) -> list[str]:
        """``unet``, all of its kind that need nothing but labels of such data, and those beside them."""
        dims = open_dataset(DATA / self.where).dims
        fits = lambda c: c.kind == self.kind and dims in c.dims and c.supervision == "full" and set(c.learns) <= {"labels"}
        return [BASELINE, *sorted(slug for slug, card in catalog.cards().items() if fits(card) and slug != BASELINE), *self.beside]


VESSELS = ("dsc", "cldice", "betti0_error")
COARSE = {  # an eighth of the voxels: at ACDC's own 1.5 mm a U-Net has not learnt anything in three minutes of one core
    "grid": Spacing(10.0, 3.0, 3.0),
    "patch": (8, 64, 64),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
}
ARENAS = {
    "kvasir": Arena("Networks on a polyp: Kvasir-SEG", "2d/kvasir_seg", "network", 2),
    "nuclei": Arena("Networks on nuclei: DSB 2018", "2d/dsb2018_nuclei", "network", 1),
    "hippocampus": Arena("Networks on a small 3D organ: MSD hippocampus", "3d/msd_hippocampus", "network", 3),
    "acdc": Arena("Networks on anisotropic volumes: ACDC", "3d/acdc_scribble", "network", 3, plan=COARSE),
    "drive": Arena("Objectives, and a network made for vessels: DRIVE", "2d/drive_vessels", "objective", 2, VESSELS, ("scope",)),
    "chase": Arena("Objectives, and a network made for vessels: CHASE_DB1", "2d/chase_db1", "objective", 2, VESSELS, ("scope",)),
}


def folder_of(name: str, arena: Arena, minutes: float) -> Path:
    manifest = open_dataset(DATA / arena.where)
    facts = f"{manifest.digest()} {minutes:g} {cores()} {arena.metrics}" + f" {arena.plan}" * bool(arena.plan)
    key = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return WORK / f"{name}-{key}"


def run(name: str, arena: Arena, methods: list[str], minutes: float, seeds: int) -> Path:
    out = folder_of(name, arena, minutes)
    for slug in methods:
        mark, code = out / slug / "code", catalog.digest(slug)
        if not mark.exists() or mark.read_text() != code:
            shutil.rmtree(out / slug, ignore_errors=True)
            mark.parent.mkdir(parents=True)
            mark.write_text(code)
    compare(
        methods, DATA / arena.where, out, seeds=seeds, minutes=minutes, validations=1, metrics=arena.metrics, baseline=BASELINE,
        plan_overrides=arena.plan, title=arena.title, progress=Progress(),
    )  # fmt: skip
    return out


def giga_flops(folder: Path) -> float:
    """Of predicting one patch, multiplications and additions, 1e9."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    trained = api.open_run(folder)
    method, plan = trained.method.eval().requires_grad_(False), trained.method.plan  # the counter cannot follow parameters given to modules
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method(torch.zeros(1, plan.in_channels, *plan.patch))
    return counter.get_total_flops() / 1e9


def peak_gib(arena: Arena, slug: str, minutes: float) -> float:
    """Peak memory of a training's first steps, in this process."""
    manifest = open_dataset(DATA / arena.where)
    split = manifest.held_out()
    plan, _ = api.plan_for(manifest, split, minutes=minutes, overrides=arena.plan)
    with tempfile.TemporaryDirectory() as folder:
        return api.train(slug, manifest, folder, iterations=3, validations=0, plan=plan, split=split).record["peak_memory_gib"]


def apart(name: str, slug: str, minutes: float) -> float:
    """``peak_gib`` in a process of its own: what others left behind does not count."""
    command = [sys.executable, __file__, name, "--memory", slug, "--minutes", str(minutes)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def record(name: str, arena: Arena, out: Path, methods: list[str], minutes: float, seeds: int) -> dict:
    """What the page shows: per method means with intervals, differences to the baseline, places and how firm they are, and costs."""
    summary = read_json(out / "summary.json")
    first = next(row["structure"] for row in summary["rows"] if row["metric"] == arena.metrics[0])
    scores = {(row["method"], row["metric"]): row for row in summary["rows"] if row["structure"] == first}
    seconds = {row["method"]: row["mean"] for row in summary["rows"] if row["metric"] == "seconds"}
    ranked = next(r for r in summary["ranking"] if r["scheme"] == "mean rank")
    keep = ("mean", "low", "high", "difference", "difference_low", "difference_high", "undefined", "p_holm")
    rows = []
    for slug in methods:
        runs = [read_json(out / slug / f"seed_{seed}" / "run.json") for seed in range(seeds)]
        steps = [sum(v["iterations"] for k, v in r["facts"].items() if k.startswith("budget.")) for r in runs]
        rows.append(
            {
                "method": slug,
                "code": catalog.digest(slug),
                "scores": {m: {k: scores[slug, m][k] for k in keep} for m in arena.metrics},
                "place": ranked["place"][slug],
                "stability": ranked["stability"][slug],
                "parameters": runs[0]["parameters"],
                "gflops": round(giga_flops(out / slug / "seed_0"), 3),
                "steps": round(sum(steps) / len(steps)),
                "memory_gib": round(apart(name, slug, minutes), 2),
                "seconds_a_case": seconds[slug],
            }
        )
    patch = api.open_run(out / BASELINE / "seed_0").plan.patch
    facts = {"tau": ranked["tau"], "tests": ranked["patients"], "patch": list(patch), "seeds": seeds, "minutes": minutes}
    other = f" --minutes {minutes:g}" * (minutes != arena.minutes)
    command = f"{'taskset -c 0 ' * (cores() == 1)}.venv/bin/python bench/arena.py {name}{other}"
    return {**asdict(arena), **facts, "rows": rows, "command": command, "machine": table.machine(), "date": time.strftime("%Y-%m-%d")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=ARENAS)
    parser.add_argument("--minutes", type=float, help="a training; default: the arena's own")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", help="train and test one method beside the baseline")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list or not given.name:
        for name, arena in ARENAS.items():
            print(f"{name}: {arena.where}, {arena.minutes:g} minutes a training: {', '.join(arena.methods())}")
        return
    arena = ARENAS[given.name]
    if given.memory:
        return print(peak_gib(arena, given.memory, given.minutes))
    minutes, methods = given.minutes or arena.minutes, arena.methods() if not given.only else [BASELINE, given.only]
    out = run(given.name, arena, methods, minutes, given.seeds)
    found = record(given.name, arena, out, methods, minutes, given.seeds)
    for row in sorted(found["rows"], key=lambda r: r["place"]):
        print(f"{row['place']:2d}. {row['method']:16s} " + "  ".join(f"{m} {number(row['scores'][m]['mean'])}" for m in arena.metrics))
    if not given.only:
        OUT.mkdir(exist_ok=True)
        write_json(OUT / f"{given.name}.json", found)


if __name__ == "__main__":
    main()
