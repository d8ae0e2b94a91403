"""SiNGR: segmentation as a regression of how sure a voxel is, by its geodesic distance from the border of the structure.

Where the image changes slowly the certainty grows slowly: a blurred border has a wide belt of doubt, a sharp one a narrow one. A margin
keeps the two sides apart: inside values lie in 0.5..1, outside in -1..-0.5. Any network learns the map by its tanh and a signed focal L1.

Dang, Nguyen and Tiulpin, SiNGR: Brain Tumor Segmentation via Signed Normalized Geodesic Transform Regression, MICCAI 2024,
https://arxiv.org/abs/2405.16813.

Key components: ``certainty``, the transform (once per case, cached); ``ops.geodesic``; ``focal_l1`` with a detached weight that a wrong
sign keeps at 1 or more. The network is the planned U-Net or that of any segmenter (``--part network=SLUG``), and so is its training.

Where we differ or had to choose:

* The border is the structure's own outermost voxels, so that a border voxel has 0.5 (the published code takes Canny edges of each axial
  slice, whose side is not defined). Sweeps go on until nothing changes (published: four).
* A zero of the raw image is sure background where the plan crops to the body because zeros lie outside (skull-stripped volumes), as
  published. Elsewhere it is a value like others: in CT it is water, and specks of it would be sure background beside a structure.
* Of a small structure nearly all voxels are -1. A network that starts at 0, or with logits far out, spends a short training on getting
  there. A logit is -1.5 + 0.3 x what the network gives: background from the first step, and nothing is sure.
* Published training: Adam at 1e-4 (``--set lr=1e-4``) falling to a tenth after 70 % of 200 epochs, flips only. Some hundred steps want
  5e-3, the default; the rest is the common plan's, whose rotations blend the two sides.

Good to know: every channel is a modality; each one's map reaches 1, their mean may not. Overlapping structures have a map each. A structure
of border voxels alone is taken for sure, 1 and -1. Certainty is learnt more slowly than hard labels; by plain L1, whose best constant
answer is -1 for a small structure, more slowly still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_erosion, generate_binary_structure
from torch import Tensor

from ..core.case import Case
from ..core.errors import UsageError
from ..core.method import Derived
from ..core.plan import Plan
from ..ops.components import bounding_box
from ..ops.geodesic import geodesic_distance
from .focal_l1 import focal_l1


class SiNGR:
    """Objective of ``methods.targeted``; ``(logits (B, K, *s), {'certainty': (B, K, *s)}, *, weight (B, *s)) -> scalar``.

    ``geodesic``: the share of intensity in a step's cost (0: distances alone); ``margin``: the least certainty; ``alpha``, ``beta``: of
    the focal weight; ``plain``: L1 without a weight.
    """

    readout, start, gain, spatial, levels = "tanh", -1.5, 0.3, "full", (1.0,)

    def __init__(self, *, geodesic: float = 0.5, margin: float = 0.5, alpha: float = 2.0, beta: float = 1.0, plain: bool = False):
        if not (0 <= geodesic <= 1 and 0 <= margin < 1):
            raise UsageError("shares lie between 0 and 1", where="geodesic, margin", found=(geodesic, margin))
        self.geodesic, self.margin, self.plain, self.focal = geodesic, margin, plain, dict(alpha=alpha, beta=beta)

    @property
    def preparation(self) -> str:
        return f"{self.geodesic} {self.margin}"

    def targets(self, case: Case, masks: np.ndarray, plan: Plan) -> Mapping[str, Derived]:
        """'certainty' (K, *s) of masks (K, *s) bool; outside the case is sure background, and outside the body where the plan says that
        zeros are that."""
        image, body = standardised(case, zeros_outside=plan.crop_to_body)
        spacing = case.geometry.spacing
        maps = [certainty(m, image, spacing, body=body, geodesic=self.geodesic, margin=self.margin) for m in masks]
        return {"certainty": Derived(np.stack(maps), fill=-1.0)}

    def __call__(
        self, logits: Tensor, target: Mapping[str, Tensor], *, weight: Tensor | None = None, ignore_index: int | None = None
    ) -> Tensor:
        p, y = logits.float().tanh(), target["certainty"]
        weight = None if weight is None else weight.unsqueeze(1)
        if self.plain:
            return focal_l1(p, y, alpha=1.0, beta=0.0, weight=weight)
        return focal_l1(p, y, wrong="at least one", detach=True, weight=weight, **self.focal)


def standardised(case: Case, *, zeros_outside: bool) -> tuple[np.ndarray, np.ndarray]:
    """The images (C, *s) of a prepared case with mean 0 and sd 1 over the body, and the body (C, *s) bool: where the raw image is not 0
    if ``zeros_outside`` (skull-stripped and padded images), else everywhere (in CT 0 is a value like others)."""
    image, body = case.stack(), []
    for name, channel in case.images.items():
        source = case.native.images.get(name, channel) if zeros_outside else channel
        data = np.asarray(source.data if source.geometry == case.geometry else source.on(case.geometry, "nearest").data)
        body.append(data != 0 if zeros_outside else np.ones(data.shape, bool))
    body = np.concatenate(body)
    for x, inside in zip(image, body, strict=True):
        values = x[inside] if inside.any() else x
        x -= values.mean()
        x /= max(float(values.std()), 1e-8)
    return image, body


def certainty(
    mask: np.ndarray,
    image: np.ndarray,
    spacing: Sequence[float],
    *,
    body: np.ndarray | None = None,
    geodesic: float = 0.5,
    margin: float = 0.5,
) -> np.ndarray:
    """(*s) float32: the mean over ``image`` (C, *s) of signed normalised geodesic maps of ``mask`` (*s) bool.

    Outwards the distance G (mm and intensities) stops at the largest one inside, F, and belongs to voxels whose Euclidean distance is one
    that occurs inside; further voxels, and those outside ``body`` (C, *s) bool, have the largest G of these. G / F, signed, then moves
    off 0 by ``margin``. -1 everywhere for an empty mask, 1 for a full one. Paths stay within the box around those voxels.
    """
    mask = np.asarray(mask, bool)
    if mask.all() or not mask.any():
        return np.where(mask, np.float32(1), np.float32(-1))
    edge = mask & ~binary_erosion(mask, generate_binary_structure(mask.ndim, 1), border_value=1)
    flat = np.zeros(mask.shape, np.float32)
    tight = bounding_box(mask, [1] * mask.ndim)
    reach = geodesic_distance(edge[tight], flat[tight], spacing, weight=0.0)[mask[tight]].max()
    box = bounding_box(mask, [int(np.ceil(reach / s)) + 1 for s in spacing])
    inside, edge = mask[box], edge[box]
    near = ~inside & (geodesic_distance(edge, flat[box], spacing, weight=0.0) <= reach)
    out = np.zeros(mask.shape, np.float32)
    for c, x in enumerate(image):
        away = geodesic_distance(edge, x[box], spacing, weight=geodesic)
        deepest = away[inside].max()
        furthest = min(away[near].max(initial=0) / deepest, 1) if deepest > 0 and near.any() else 1.0
        share = np.full(mask.shape, furthest, np.float32)
        share[box] = np.where(inside | near, np.minimum(away / deepest, 1) if deepest > 0 else 1.0, furthest)
        if body is not None:
            share[~mask & ~body[c]] = furthest
        out += margin + (1 - margin) * share
    return np.where(mask, out, -out) / len(image)
