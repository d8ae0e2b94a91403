"""Every benchmark, one after the other, then the table of bench/README.md: ``make bench`` (hours, mostly training, which is kept).

python bench/run.py [--quick]     --quick leaves the trainings out
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
QUICK = [
    "listing.py",
    "reading.py",
    "augmentation.py",
    "inference.py --repeats 2",
    "pls_net.py",
    "metrics.py",
    "report.py",
    "evaluate.py",
    "annotator.py",
    "prism_lite.py",
]
LONG = ["accuracy.py hippocampus --minutes 8", "accuracy.py hippocampus --minutes 20", "accuracy.py kvasir --minutes 2", "promptable.py"]


def main() -> None:
    failed = []
    for command in QUICK + ([] if "--quick" in sys.argv else LONG):
        script, *arguments = command.split()
        print(f"== {command}", flush=True)
        if subprocess.run([sys.executable, BENCH / script, *arguments]).returncode:
            failed.append(command)
    subprocess.run([sys.executable, BENCH / "table.py"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
