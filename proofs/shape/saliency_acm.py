"""The claim of the saliency-driven contour: image and saliency together segment better than either alone, and than Chan-Vese."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vesalius.core.case import Case, LabelMap
from vesalius.core.method import Method
from vesalius.core.prediction import Prediction
from vesalius.engine.study import Arm, Data, Expect, Study


class ChanVese(Method):
    """Two global means (Chan and Vese 2001), scikit-image's; the object is the darker side, as in the other arms."""

    intensity = "byte"

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        from skimage.segmentation import chan_vese

        grey = case.stack(self.plan.channels).mean(0)
        mask = chan_vese(grey, mu=0.1)
        if mask.any() and not mask.all() and grey[mask].mean() > grey[~mask].mean():
            mask = ~mask
        return Prediction(labels={"prediction": LabelMap(mask.astype(np.int16), case.geometry, self.manifest.names)})


def study() -> Study:
    lungs = {"polarity": "dark", "fill_holes": True, "keep": 2}
    return Study(
        slug="saliency-acm",
        claim="a local fit of image and saliency together beats either alone and Chan-Vese",
        arms=(
            Arm("LIF", "saliency-acm", {**lungs, "a": 0.0}),
            Arm("saliency only", "saliency-acm", {**lungs, "b": 0.0}),
            Arm("saliency-acm", "saliency-acm", lungs),
            Arm("Chan-Vese", ChanVese),
        ),
        data=(Data("phantom:chest-radiograph?cases=40"), Data("../shared/data/2d/cxr_lungs")),
        baseline="LIF",
        expects=(Expect("saliency-acm", "dsc", "higher"), Expect("saliency-acm", "dsc", "higher", against="Chan-Vese")),
        seeds=1,  # nothing is random
    )
