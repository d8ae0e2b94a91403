"""A slide of 40k x 40k pixels: SlideSegmenter's lazy prediction against reading the slide whole. Seconds a gigapixel and peak memory.

    .venv/bin/python bench/slide.py                   writes bench/results/slide.json
    .venv/bin/python bench/slide.py --side 4000       small, writes nothing

The pyramid is synthetic and written tile by tile into a temporary folder (or kept at --file). Each way runs in a process of its own, whose
peak resident memory is taken. The naive way reads the finest level whole, reduces it and predicts the same. The network is the paper's,
untrained: its work does not depend on its weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import table

MM, WORKING = 0.00025, 0.008  # spacing of the finest level and of 1.25x, mm
MOST = 2.0  # GiB
WAYS = ("lazy", "naive")


def paint(grid) -> np.ndarray:
    """Round sections in rows on glass, with bands of stain."""
    r, c = (grid.origin[a] + grid.spacing[a] * np.arange(n, dtype=np.float32) for a, n in enumerate(grid.shape))
    tissue = np.hypot((r % 2.5 - 1.25)[:, None], (c % 2.5 - 1.25)[None]) < 0.8
    stain = 20 * np.sin(60 * r)[:, None] * np.cos(45 * c)[None]
    return np.stack([np.where(tissue, level + stain, 243) for level in (190, 110, 180)]).astype(np.uint8)


def lazy(path: Path) -> dict:
    """Tile by tile at 1.25x, as the engine prepares and predicts it; with polygons."""
    from vesalius.core.case import Image
    from vesalius.io.wsi import Slide

    with Slide(path) as slide:
        grid = slide.geometry.with_spacing((WORKING, WORKING))
        return answer(Image(slide.image().source.on(grid).then(lambda x: x.astype(np.float32) / 255), grid))


def naive(path: Path) -> dict:
    """The finest level whole in memory, its mean over blocks, and the same prediction."""
    from vesalius.core.case import Image
    from vesalius.io.wsi import Slide

    with Slide(path) as slide:
        grid = slide.geometry.with_spacing((WORKING, WORKING))
        whole = slide.read((0, 0), slide.geometry.shape)
        (h, w), k = grid.shape, slide.geometry.shape[0] // grid.shape[0]
        small = whole[:, : h * k, : w * k].reshape(3, h, k, w, k).mean((2, 4), dtype=np.float32) / 255
        return answer(Image(small, grid))


def answer(image) -> dict:
    import torch

    from vesalius.core.case import Case
    from vesalius.core.manifest import Manifest
    from vesalius.core.plan import Plan
    from vesalius.engine.progress import Progress
    from vesalius.methods.pathology.slide_segmenter import SlideSegmenter
    from vesalius.ops.polygons import annotations

    torch.set_num_threads(2)
    classes = ("background", "tissue", "pen")
    manifest = Manifest("bench", None, 2, ("RGB",), {n: k for k, n in enumerate(classes)}, ())
    torch.manual_seed(0)
    method = SlideSegmenter(Plan(2, ("RGB",), 3, classes, patch=(512, 512)), manifest).eval()
    with Progress().task("tiles", 1) as bar, torch.no_grad():
        method.progress = lambda n, of: bar(n, total=of)
        found = method.predict(Case("slide", images={"RGB": image}), rng=np.random.default_rng(0))
    polygons, _ = annotations(found.label.data, image.geometry, classes, found.instances.data)
    return {"polygons": len(polygons)}


def measure(way: str, path: Path) -> dict:
    start = time.perf_counter()
    facts = {"lazy": lazy, "naive": naive}[way](path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, **facts}


def in_process(way: str, path: Path) -> dict:
    done = subprocess.run([sys.executable, __file__, "--way", way, "--file", path], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the {way} way failed with code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--file", type=Path, help="where the pyramid is kept")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return print(json.dumps(measure(options.way, options.file)))

    from vesalius.core.geometry import Geometry
    from vesalius.io.wsi import write_pyramid

    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "slide.tif"
        if not path.exists():
            write_pyramid(path, paint, Geometry.of((options.side, options.side), MM), factors=(1, 4, 16))
        runs = {way: in_process(way, path) for way in WAYS}
    giga = options.side**2 / 1e9
    seconds = {way: round(run["seconds"] / giga, 2) for way, run in runs.items()}
    peak = {way: round(run["gib"], 2) for way, run in runs.items()}
    result = table.result(
        f"predicting a {options.side} x {options.side} slide in tiles, with polygons",
        "reading it whole, then the same prediction",
        f"< {MOST:g} GiB",
        seconds["naive"] / seconds["lazy"],
        " ".join([".venv/bin/python bench/slide.py", *sys.argv[1:]]),
        met=peak["lazy"] < MOST,
        details={"seconds_per_gigapixel": seconds, "peak_gib": peak},
    )
    if options.side >= 40_000:
        table.write("slide", [result])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
