"""HybridGNet's claim: part of the image hidden by a black box, a U-Net's organs break up, contours from a graph stay whole.

And its decoder's: points that hear from their neighbours lie better than those of fully connected layers from the same code. Simulated
radiographs have corresponding landmarks; the real ones have lung masks alone, along whose contours landmarks are sampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vesalius.core.case import Case, Image
from vesalius.core.geometry import LongestSide
from vesalius.core.manifest import Manifest
from vesalius.core.method import Method
from vesalius.core.plan import Plan
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.landmarks import LandmarkRecipe
from vesalius.methods.planned import PlannedUNet
from vesalius.networks.hybridgnet import HybridGNet

BOX = 0.3  # of the image's sides: 38 of 128 pixels, the far end of the specification's 0 to 40


class Hidden:
    """Test images with a black box somewhere in their middle half; training images as they are."""

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        case = super().derive(case, rng, training=training)
        if training:
            return case
        where = np.random.default_rng(zlib.crc32(case.id.encode())).uniform(0.25, 0.75, 2)
        return case.with_(images={name: _boxed(image, where) for name, image in case.images.items()})


def _boxed(image: Image, where: np.ndarray) -> Image:
    """``image`` with the box around ``where``, fractions of the sides."""
    data = np.array(image.data)
    sides = np.array(data.shape[1:])
    low = ((where - BOX / 2) * sides).astype(int).clip(0)
    high = low + (BOX * sides).astype(int)
    data[:, low[0] : high[0], low[1] : high[1]] = data.min()
    return replace(image, source=data)


class HiddenUNet(Hidden, PlannedUNet):
    """The planned U-Net, tested behind the box."""


class HiddenHybridGNet(Hidden, LandmarkRecipe):
    """HybridGNet, tested behind the box."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None):
        super().__init__(plan, manifest, parts=parts, network=HybridGNet)


def study() -> Study:
    return Study(
        slug="hybridgnet",
        claim="behind a black box, contours from a graph decoder stay nearer to the organs and in one piece, where a U-Net's masks do not",
        arms=(
            Arm("unet", "unet"),
            Arm("hybridgnet", "hybridgnet"),
            Arm("dense decoder", "hybridgnet", {"decoder": "dense"}),
            Arm("unet, part hidden", HiddenUNet),
            Arm("hybridgnet, part hidden", HiddenHybridGNet),
        ),
        data=(
            Data("phantom:chest-radiograph?structures=organs&cases=168&seed=1"),
            Data("../shared/data/2d/cxr_lungs", iterations=400),
        ),
        baseline="unet",
        expects=(
            Expect("hybridgnet, part hidden", "hd95", "lower", against="unet, part hidden"),
            Expect("hybridgnet, part hidden", "betti0_error", "lower", against="unet, part hidden"),
            Expect("hybridgnet, part hidden", "dsc", "higher", against="unet, part hidden"),
            Expect("hybridgnet", "assd", "lower", against="dense decoder"),
        ),
        metrics=("dsc", "hd95", "assd", "betti0_error"),
        iterations=500,
        plan={"grid": LongestSide(64), "patch": (64, 64), "batch": 4, "features": (8, 16, 32, 64), "test_mirror": ()},
    )
