"""Lung morphology: a U-Net whose skips are gated by attention, and a mask that is cleaned by what lungs look like.

The gates pass only what the coarser level finds important; opening, closing, hole filling and the two largest components then remove
specks, bridges and gas bubbles from the mask. The clean-up happens in ONE place: ``finish``, on the prepared grid, before restoration.

Naqvi et al., Improved lung segmentation based on U-Net architecture and morphological operations, 2022, https://arxiv.org/abs/2210.10545;
gates after Oktay et al. 2018, https://arxiv.org/abs/1804.03999. Only the abstract could be read. [inferred]: the gates, the order of the
clean-up, its radii and the loss. Deviations: the network has the plan's depth, width (the paper's reading is 64-128-256-512-1024, see
``features``), strided convolutions, instance normalisation, optimiser and augmentation, so that comparisons are fair; intensities are the
plan's instead of [0, 1], without CLAHE.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor, nn

from ...core.case import Case, LabelMap
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...objectives.dice_ce import DiceCE
from ...ops.morphology import clean
from ..learned import Segmenter

REFERENCE_SIDE = 256  # px: the image side for which the radii are given


class LungMorphology(Segmenter):
    """``gates``: attention gates on the skips. ``cleanup``: clean the mask, with disc radii ``opening`` and ``closing`` (pixels of an image
    whose longest side is 256, scaled with the image; 2-5 in our reading), ``fill_holes``, and the ``keep`` largest components of each
    class (0: all). ``features``: channels of each stage, halving the image at each; empty: the plan's topology. ``norm`` is 'batch' in
    the paper. ``ce_weight``: cross-entropy beside Dice (0: Dice alone). ``lr``, ``weight_decay`` and ``ema`` see ``Segmenter``.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        gates: bool = True,
        cleanup: bool = True,
        opening: float = 2.0,
        closing: float = 3.0,
        fill_holes: bool = True,
        keep: int = 2,
        features: tuple[int, ...] = (),
        norm: Literal["instance", "batch", "group"] = "instance",
        ce_weight: float = 1.0,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        for name, value in (("opening", opening), ("closing", closing), ("keep", keep), ("ce_weight", ce_weight)):
            if not value >= 0:
                raise UsageError("this is not negative", where=f"lung-morphology {name}", found=value)
        self._network = dict(gates=gates, norm=norm)
        if features:
            self._network |= dict(features=features, strides=_halving(plan, features), kernels=())
        self.cleanup, self.opening, self.closing, self.fill_holes, self.keep = cleanup, opening, closing, fill_holes, keep
        objective = partial(DiceCE, ce_weight=ce_weight)
        super().__init__(plan, manifest, parts=parts, objective=objective, lr=lr, weight_decay=weight_decay, ema=ema)

    def build(self, network=None, **options) -> nn.Module:
        """The planned U-Net with gated skips."""
        return super().build(network, **{**self._network, **options})

    def finish(self, maps: Tensor | Mapping[str, Tensor], case: Case) -> Prediction:
        """The network's probabilities as they are, and the cleaned label map, which stands above them."""
        raw = super().finish(maps, case)
        if not self.cleanup:
            return raw
        label = raw.decide(self.plan.classes).label
        return raw.with_(labels={"prediction": LabelMap(self.cleaned(label.data), label.geometry, label.names)})

    def cleaned(self, label: np.ndarray) -> np.ndarray:
        """Each class of a label map (*spatial) cleaned; no class grows into what the network gave to another."""
        scale = max(label.shape) / REFERENCE_SIDE
        out = np.zeros_like(label)
        for k in range(1, len(self.plan.classes)):
            mask = clean(
                label == k,
                opening=self.opening * scale,
                closing=self.closing * scale,
                fill_holes=self.fill_holes,
                keep=self.keep or None,
            )
            out[mask & ((label == k) | (label == 0)) & (out == 0)] = k
        return out


def _halving(plan: Plan, features: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Strides of a network that halves every axis on entering each stage but the first."""
    step = 2 ** (len(features) - 1)
    if any(n % step for n in plan.patch):
        raise UsageError(
            f"{len(features)} stages need patch sides that are multiples of {step}",
            where="lung-morphology features",
            found=f"patch {plan.patch}",
            fix="give fewer stages, or another patch",
        )
    return ((1,) * plan.dims, *[(2,) * plan.dims] * (len(features) - 1))
