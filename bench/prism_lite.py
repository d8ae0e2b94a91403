"""What one more click costs in a 128^3 volume on the CPU: PRISM Lite against PRISM at the published width.

    .venv/bin/python bench/prism_lite.py                   writes bench/results/prism_lite.json
    .venv/bin/python bench/prism_lite.py --side 64         small, writes nothing

Each method runs in a process of its own (float32, all cores, random weights: the work is the same). An edit is from the clicks on the
model's grid to the logits of the new mask, after what is done once an image: PRISM's encoders, and for PRISM Lite the automatic mask, whose
seconds are those of its segmenter and are not counted. Seconds are wall time, the least of the repeats; parameters leave the segmenter out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import torch

SIDE, LIMIT = 128, 1.0  # voxels along a side; seconds of an edit
COMMAND = ".venv/bin/python bench/prism_lite.py"


def measure(name: str, side: int, repeats: int) -> None:
    """In the process of one method: facts as the last line of stdout."""
    from vesalius import catalog
    from vesalius.core.plan import Plan
    from vesalius.core.prompt import Asked, Turn
    from vesalius.datasets import open_dataset

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    manifest = open_dataset("phantom:shapes-3d")
    plan = Plan(dims=3, channels=("image",), classes=manifest.names, patch=(side,) * 3)
    method = catalog.build(name, plan, manifest).eval()
    image = torch.rand(1, 1, side, side, side)
    start = 8 * (image > 0.5).float() - 4
    with torch.inference_mode():
        began = time.perf_counter()
        embedding = method.embed(image)
        once = time.perf_counter() - began
        history, seconds = [], []
        for n in range(repeats + 1):  # the first turn is not timed: libraries load and allocate
            clicks = Asked(torch.randint(0, side, (1, 1, 3)).float(), torch.tensor([[n % 2]]))
            history.append(Turn(clicks, start))
            began = time.perf_counter()
            start = method.reply(embedding, history)
            seconds.append(round(time.perf_counter() - began, 3))
    assert start.shape == image.shape and torch.isfinite(start).all()
    facts = {"seconds": min(seconds[1:]), "every_turn": seconds, "once_an_image": round(once, 3)}
    print(json.dumps({**facts, "parameters": sum(p.numel() for p in method.parameters())}))


def in_process(name: str, side: int, repeats: int) -> dict:
    command = [sys.executable, __file__, "--run", name, "--side", str(side), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=SIDE, help="voxels along a side; other than the default writes nothing")
    parser.add_argument("--repeats", type=int, default=4, help="turns that are timed; the quickest counts")
    parser.add_argument("--run", choices=("prism", "prism-lite"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return measure(options.run, options.side, options.repeats)

    import table

    lite, full = (in_process(name, options.side, options.repeats) for name in ("prism-lite", "prism"))
    peer = f"prism, {full['parameters'] / 1e6:.1f} M parameters, {full['seconds']:.2f} s after {full['once_an_image']:.2f} s once an image"
    details, size = {"prism-lite": lite, "prism": full}, f"{options.side}^3"
    results = [
        table.result(
            f"prism-lite, an edit in a {size} volume ({lite['seconds']:.2f} s)",
            peer,
            f"< {LIMIT:g} s, > 1x",
            full["seconds"] / lite["seconds"],
            COMMAND,
            met=lite["seconds"] < LIMIT and full["seconds"] > lite["seconds"],
            details=details,
        ),
        table.result(
            f"prism-lite, parameters ({lite['parameters'] / 1e6:.2f} M)",
            peer,
            "> 100x (the paper)",
            full["parameters"] / lite["parameters"],
            COMMAND,
            met=full["parameters"] > 100 * lite["parameters"],
            details=details,
        ),
    ]
    if options.side == SIDE:
        table.write("prism_lite", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
