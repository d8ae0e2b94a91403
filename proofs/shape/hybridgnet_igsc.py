"""The claim of image-to-graph skips: points that look at the image again end nearer to the borders than those from the code alone.

Simulated radiographs have corresponding landmarks to measure it by. At 64 pixels the published levels 6 and 5 have maps of 2 and 4 pixels a
side, where a window is the whole map; levels 3 and 2 have 16 and 32, as levels 6 and 5 have at 512 pixels. Both are tried.
"""

from __future__ import annotations

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="hybridgnet-igsc",
        claim="points that read the encoder's maps where they believe to be end nearer to the borders than those from a global code",
        arms=(
            Arm("hybridgnet", "hybridgnet"),
            Arm("1 skip", "hybridgnet-igsc", {"levels": (3,)}),
            Arm("2 skips", "hybridgnet-igsc", {"levels": (3, 2)}),
            Arm("2 skips, coarsest maps", "hybridgnet-igsc", {"levels": (6, 5)}),
            Arm("2 skips, one pixel", "hybridgnet-igsc", {"levels": (3, 2), "window": 1}),
        ),
        data=(
            Data("phantom:chest-radiograph?structures=organs&cases=168&seed=1"),
            Data("../shared/data/2d/cxr_lungs", metrics=("dsc", "hd95")),  # masks only
        ),
        baseline="hybridgnet",
        expects=(
            Expect("2 skips", "mre", "lower"),
            Expect("2 skips", "dsc", "higher"),
            Expect("1 skip", "mre", "lower"),
            Expect("2 skips", "mre", "lower", against="1 skip"),
        ),
        metrics=("mre", "dsc", "hd95"),
        iterations=500,
        plan={"grid": LongestSide(64), "patch": (64, 64), "batch": 4},
    )
