"""The wall time of ``vesalius methods`` and ``vesalius --help``, and that neither imports torch.

    .venv/bin/python bench/listing.py                 writes bench/results/listing.json

Whole processes, from start to exit, median of seven. The peer is the import of torch alone, which a catalogue that builds its entries
from code has to wait for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import table

COMMANDS = (("methods",), ("--help",))
HEAVY = ("torch", "monai", "SimpleITK", "matplotlib", "pandas", "openvino", "scipy")
REPEATS, LIMIT = 7, 0.4


def seconds(command: list[str]) -> float:
    """Median wall time of a command that has to succeed."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return round(median(times), 4)


def heavy_imports(arguments: tuple[str, ...]) -> list[str]:
    """Which heavy libraries the command line imports for these arguments, as ``-X importtime`` tells."""
    code = f"import sys; sys.argv = ['vesalius', *{list(arguments)!r}]; from vesalius.cli import main; main()"
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True).stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in told.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in imported]


def main() -> None:
    vesalius = Path(sys.executable).with_name("vesalius")
    torch = seconds([sys.executable, "-c", "import torch"])
    results = []
    for arguments in COMMANDS:
        taken, heavy = seconds([str(vesalius), *arguments]), heavy_imports(arguments)
        results.append(
            table.result(
                f"vesalius {' '.join(arguments)} ({taken:.2f} s)",
                f"import torch alone ({torch:.2f} s)",
                f"< {LIMIT:g} s, no torch",
                torch / taken,
                ".venv/bin/python bench/listing.py",
                met=taken < LIMIT and not heavy,
                details={"seconds": taken, "import_torch_seconds": torch, "heavy_imports": heavy, "repeats": REPEATS},
            )
        )
    table.write("listing", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
