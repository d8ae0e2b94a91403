"""SlideSegmenter's claim: votes for centroids count the cross-sections where connected components cannot, and change nothing where every
section is one piece. Against the same network without votes, whose tissue's components are the sections, and against Otsu's threshold.

On slides of one piece a section the three should count alike; torn ones tell them apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vesalius.core.case import Case, LabelMap
from vesalius.core.method import Method
from vesalius.core.prediction import Prediction
from vesalius.core.prompt import Prompt
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.pathology.slide_segmenter import SlideSegmenter
from vesalius.ops.components import components

SMALL = {
    "filters": 8,
    "factors": (2, 4, 4),
    "distance_factor": 20.0,
    "pixels_per_bin": 2,
    "sigma": 3.0,
    "filter_size": 15,
    "least": 0.2,
    "lr": 2e-3,
}
LEAST = 60  # px: smaller components are dust


def counted(label: np.ndarray, case: Case) -> Prediction:
    """The components of the tissue that are no dust, as sections."""
    ids, sizes = components(label == 1)
    keep = np.flatnonzero(sizes >= LEAST) + 1
    found = np.searchsorted(keep, ids) + 1
    found[~np.isin(ids, keep)] = 0
    grid = case.geometry
    names = ("background", "tissue", "pen")
    return Prediction(
        labels={"prediction": LabelMap(label, grid, names)},
        instances=LabelMap(found.astype(np.int32), grid, ("background", "section"), instances=True),
        table={"sections": float(len(keep))},
    )


class Otsu(Method):
    """Stained is what Otsu's threshold of the saturation says; colours far from haematoxylin and eosin (more green or blue than red) are
    pen."""

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        from skimage.filters import threshold_otsu

        image = np.asarray(case.stack(self.plan.channels), np.float32)
        spread = image.max(0) - image.min(0)
        on = spread > threshold_otsu(spread)
        pen = on & (np.argmin(image, 0) == 0) & (image[0] < 0.5)
        return counted(np.where(pen, 2, on).astype(np.uint8), case)


class Components(SlideSegmenter):
    """The same network; its votes are not counted."""

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        return counted(np.asarray(super().predict(case, prompts, rng=rng).label.data), case)


def study() -> Study:
    return Study(
        slug="slide-segmenter",
        claim="votes for the centroid put the fragments of a section together: fewer miscounted sections than connected components",
        arms=(Arm("otsu", Otsu), Arm("components", Components, SMALL), Arm("slide-segmenter", "slide-segmenter", SMALL)),
        data=(Data("phantom:slide?seed=1"), Data("phantom:slide?fragments=false&seed=1")),
        baseline="components",
        expects=(
            Expect("slide-segmenter", "column_mae", "lower"),
            Expect("slide-segmenter", "column_mae", "lower", against="otsu"),
            Expect("slide-segmenter", "dsc", "higher", against="otsu"),
        ),
        metrics=("dsc", "column_mae"),
        iterations=200,
        plan={"patch": (128, 128), "batch": 4, "features": (8, 16, 32, 64), "test_mirror": ()},
    )
