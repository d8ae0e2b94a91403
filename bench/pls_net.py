"""What a 128^3 volume costs on the CPU: PLS-Net in one pass against a 3D U-Net on axial slabs.

    .venv/bin/python bench/pls_net.py                 writes bench/results/pls_net.json

Each network runs in a process of its own with torch alone (float32, all cores, random weights: the work is the same). Seconds are those of
the processor; memory is what the forward adds to the resident set of the idle process, at its peak.
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

import torch

SIDE, SLAB, OVERLAP, CLASSES = 128, 32, 0.25, 2
COMMAND = ".venv/bin/python bench/pls_net.py"


def measure(name: str, repeats: int) -> None:
    """In the process of one network: facts as the last line of stdout."""
    from unet3d import UNet3d

    from vesalius.inferers.sliding import SlidingWindow
    from vesalius.networks.pls_net import PLSNet

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    net = (PLSNet(1, CLASSES, spatial_dims=3) if name == "pls" else UNet3d(classes=CLASSES)).eval()
    window = SlidingWindow((SIDE, SIDE, SIDE if name == "pls" else SLAB), overlap=OVERLAP)
    image = torch.rand(1, SIDE, SIDE, SIDE)
    with torch.inference_mode():
        net(torch.rand(1, 1, 32, 32, 32))  # libraries load and allocate once
        idle, cpu = resident(), []
        for _ in range(repeats):
            start = time.process_time()
            labels = window(net, image).argmax(0)
            cpu.append(round(time.process_time() - start, 2))
    assert labels.shape == (SIDE,) * 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {"cpu_seconds": min(cpu), "every_run": cpu, "added_gib": round(peak - idle, 3), "peak_rss_gib": round(peak, 3)}
    print(json.dumps({**facts, "windows": window.count((SIDE,) * 3), "parameters": sum(p.numel() for p in net.parameters())}))


def resident() -> float:
    """GiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def in_process(name: str, repeats: int) -> dict:
    command = [sys.executable, __file__, "--run", name, "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2, help="volumes per network; the cheapest counts")
    parser.add_argument("--run", choices=("pls", "unet"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return measure(options.run, options.repeats)

    import table

    pls, unet = in_process("pls", options.repeats), in_process("unet", options.repeats)
    peer = f"3D U-Net of {unet['parameters'] / 1e6:.1f} M parameters on {unet['windows']} slabs of {SLAB} slices, overlap {OVERLAP}"
    small = pls["parameters"] < 1_000_000
    results = []
    for what, key in (("CPU seconds", "cpu_seconds"), ("memory added at its peak", "added_gib")):
        ratio = unet[key] / pls[key]
        results.append(
            table.result(
                f"meningioma-pls ({pls['parameters'] / 1e6:.2f} M parameters), {what} for a {SIDE}^3 volume",
                peer,
                "< 1 M parameters, > 1x",
                ratio,
                COMMAND,
                met=small and ratio > 1,
                details={"pls_net": pls, "slab_unet": unet},
            )
        )
    table.write("pls_net", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
