"""Reading a NIfTI volume: Vesalius (verified) against nibabel, first and second read.

    .venv/bin/python bench/reading.py                 writes bench/results/reading.json

A 512 x 512 x 300 int16 .nii.gz is made in a temporary folder and read whole once, untimed, so that the disk plays no part. Each read
runs in a process of its own, after a tiny file has done the imports. nibabel comes with our own environment: no peers are needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import table

FIRST, SECOND = 2.2, 40.0
READERS = ("nibabel", "vesalius", "vesalius cached")


def make(path: Path, shape: tuple[int, ...]) -> None:
    """A body with noise in air: the grey values and the compression ratio (about 2) of a CT."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    body = ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1)[..., None]
    tissue = 40 + 60 * np.sin(7 * x)[..., None] * np.cos(5 * y)[..., None]
    data = np.full(shape, -1000, np.int16)
    for k in range(shape[2]):
        data[..., k] = np.where(body, tissue + rng.normal(0, 20, (*shape[:2], 1)), -1000 + rng.normal(0, 8, (*shape[:2], 1)))[..., 0]
    nib.save(nib.Nifti1Image(data, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def measure(reader: str, path: Path, cache: Path) -> dict:
    """In a process of its own: the seconds of one read into an array, and the sum of its voxels.

    A tiny file is read first, so that every import is done.
    """
    import nibabel as nib

    from vesalius.io import read_image

    readers = {
        "nibabel": lambda p: np.asarray(nib.load(p).dataobj),
        "vesalius": lambda p: read_image(p).data,
        "vesalius cached": lambda p: read_image(p, cache=cache).data,
    }
    readers[reader](path.with_name("tiny.nii.gz"))
    start = time.perf_counter()
    data = readers[reader](path)
    seconds = time.perf_counter() - start
    total = int(data.sum(dtype=np.int64))
    used = time.perf_counter() - start
    return {"seconds": seconds, "seconds_to_sum": used, "sum": total, "dtype": str(data.dtype), "voxels": int(data.size)}


def in_process(reader: str, path: Path, cache: Path) -> dict:
    command = [sys.executable, __file__, "--reader", reader, "--file", path, "--cache", cache]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{reader} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--repeats", type=int, default=5, help="reads per reader; the median counts")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        return print(json.dumps(measure(options.reader, options.file, options.cache)))

    import nibabel as nib

    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "volume.nii.gz", Path(folder) / "cache"
        make(path, tuple(options.shape))
        make(path.with_name("tiny.nii.gz"), (4, 4, 4))
        size = path.stat().st_size
        path.read_bytes()
        in_process("vesalius cached", path, cache)  # the first read with a cache fills it
        runs = {reader: [in_process(reader, path, cache) for _ in range(options.repeats)] for reader in READERS}
    if len({(r["sum"], r["voxels"]) for group in runs.values() for r in group}) != 1:
        sys.exit("the readers disagree about the voxels")
    seconds, used = ({r: round(median(x[key] for x in runs[r]), 5) for r in READERS} for key in ("seconds", "seconds_to_sum"))
    what = f"{'x'.join(map(str, options.shape))} int16 .nii.gz ({size / 2**20:.0f} MiB)"
    results = []
    for reader, words, target in (("vesalius", "first read, verified", FIRST), ("vesalius cached", "second read, cached", SECOND)):
        ratio = seconds["nibabel"] / seconds[reader]
        results.append(
            table.result(
                f"reading {what}, {words}",
                f"nibabel {nib.__version__}",
                f">= {target:g}x",
                ratio,
                " ".join([".venv/bin/python bench/reading.py", *sys.argv[1:]]),
                met=ratio >= target,
                agreement=1.0,
                details={"seconds": seconds, "seconds_until_every_voxel_was_summed": used, "repeats": options.repeats},
            )
        )
    table.write("reading", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
