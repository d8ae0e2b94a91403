"""SAUNA: retinal vessels as a regression of signed soft labels that know where an annotator was in doubt.

A mask becomes a map in -1..1: near a border the value is small, but a thin vessel, which is nothing but border, is not doubted on its
ridge. The network's tanh is fitted to it by a focal L1 and a Jaccard metric loss that is defined on signed soft maps.

Dang, Nguyen and Tiulpin, Image-level Regression for Uncertainty-aware Retinal Image Segmentation, 2024, https://arxiv.org/abs/2405.16815.

Key components: ``certainty``, the transform (once per case, cached; moved and cropped with the image); ``jaccard``; ``focal_l1``. The
network is the planned U-Net or that of any segmenter (``--part network=SLUG``), and so is its training.

Where we differ or had to choose:

* Distances are exact Euclidean ones (published: a chamfer of 5 x 5) and each structure has a map of its own. The greatest thickness T is
  that of the image, not of the patch. Sums of the Jaccard loss run over the batch, one ratio a structure.
* A logit is -1 + 0.3 x what the network gives. Most pixels are background: a network that starts with logits far out learns late that some
  are not, and how late depends on the seed.
* Published training: Adam at 1e-4 (``--set lr=1e-4``) falling to a tenth after two thirds of 300 epochs, on whole images of 512 pixels.
  Some hundred steps want 5e-3, the default; patches and the rest are the common plan's.

Good to know: in the Jaccard loss's default form foreground and background share one ratio, most of which is background.
``--set form=split`` gives each its own, so that vessels count as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from ..core.case import Case
from ..core.method import Derived
from ..core.plan import Plan
from ..ops.guidance import distance_to_mask
from .focal_l1 import focal_l1


class SAUNA:
    """Objective of ``methods.targeted``; ``(logits (B, K, *s), {'certainty': (B, K, *s)}, *, weight (B, *s)) -> scalar``.

    ``thickness``: whether thin vessels are lifted (off: a plain normalised signed distance). ``alpha``, ``beta``: of the focal weight;
    ``detach``: that weight is a constant to the gradient. ``jaccard_weight`` of the Jaccard loss beside the focal L1, in its ``form``:
    foreground and background in one ratio ('joint') or a ratio each, summed ('split').
    """

    readout, start, gain, spatial, levels = "tanh", -1.0, 0.3, "full", (1.0,)

    def __init__(
        self,
        *,
        thickness: bool = True,
        alpha: float = 2.0,
        beta: float = 1.0,
        detach: bool = False,
        jaccard_weight: float = 1.0,
        form: Literal["joint", "split"] = "joint",
    ):
        self.thickness, self.focal = thickness, dict(alpha=alpha, beta=beta, detach=detach)
        self.jaccard_weight, self.form = jaccard_weight, form

    @property
    def preparation(self) -> str:
        return f"{self.thickness}"

    def targets(self, case: Case, masks: np.ndarray, plan: Plan) -> Mapping[str, Derived]:
        """'certainty' (K, *s) of masks (K, *s) bool; outside the case is sure background."""
        maps = [certainty(m, case.geometry.spacing, thickness=self.thickness) for m in masks]
        return {"certainty": Derived(np.stack(maps), fill=-1.0)}

    def __call__(
        self, logits: Tensor, target: Mapping[str, Tensor], *, weight: Tensor | None = None, ignore_index: int | None = None
    ) -> Tensor:
        p, y = logits.float().tanh(), target["certainty"]
        weight = None if weight is None else weight.unsqueeze(1)
        return focal_l1(p, y, weight=weight, **self.focal) + self.jaccard_weight * jaccard(p, y, form=self.form, weight=weight)


def certainty(mask: np.ndarray, spacing: Sequence[float], *, thickness: bool = True) -> np.ndarray:
    """(*s) float32 in -1..1, positive exactly on ``mask`` (*s) bool; -1 everywhere for an empty mask, 1 for a full one.

    Boundary map b = (D+ - D-) / T of the distances to the background and to the mask (those clipped at T = max D+), in voxels of the
    finest side; thickness t = the largest distance in a window of about T, by T. Vessel: b + (1 - t); background: b - (1 - t).
    """
    mask = np.asarray(mask, bool)
    if mask.all() or not mask.any():
        return np.where(mask, np.float32(1), np.float32(-1))
    step = np.asarray(spacing, float) / min(spacing)
    inside, outside = distance_to_mask(~mask, step), distance_to_mask(mask, step)
    greatest = inside.max()
    outside = np.minimum(outside, greatest)
    boundary = (inside - outside) / (greatest + np.float32(1e-6))
    if not thickness:
        return boundary
    window = [int(np.ceil(greatest / s)) // 2 * 2 + 1 for s in step]
    largest = np.where(mask, *(maximum_filter(d, window, mode="constant") for d in (inside, outside)))
    lift = 1 - np.minimum(largest / greatest, 1)
    return np.clip(boundary + np.where(mask, lift, -lift), -1, 1)


def jaccard(p: Tensor, y: Tensor, *, form: Literal["joint", "split"] = "joint", weight: Tensor | None = None) -> Tensor:
    """Scalar: 1 - I / U of signed maps ``p`` and ``y`` (B, K, *s) in -1..1, a mean over the K structures; 0 where they are equal.

    For either sign, x and z the positive parts of +-p and +-y: I = |x + z| - |x - z| and U = |x + z| + |x - z|, sums over the batch. On
    maps of -1 and 1 I / U is the Jaccard index. ``weight`` (B, 1, *s) weighs voxels.
    """
    w, axes = 1.0 if weight is None else weight.to(p.dtype), (0, *range(2, p.ndim))
    sums = []
    for sign in (1, -1):
        x, z = torch.relu(sign * p), torch.relu(sign * y)
        sums.append((((x + z) * w).sum(axes), ((x - z).abs() * w).sum(axes)))
    both, apart = (torch.stack(s) for s in zip(*sums, strict=True))
    if form == "joint":
        both, apart = both.sum(0, keepdim=True), apart.sum(0, keepdim=True)
    return (2 * apart / (both + apart).clamp_min(1e-8)).sum(0).mean()  # 1 - I / U
