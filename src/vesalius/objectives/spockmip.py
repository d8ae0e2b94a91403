"""SPOCKMIP: vessels stay connected when their projections are compared, too.

A gap of a few voxels hardly changes an overlap in 3D, but it shows in a maximum intensity projection, where a vessel is a line. Beside the
focal Tversky loss of the volume, that of its projections along z, or x, y and z, is minimised.

Radhakrishna et al., SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity Projection as Loss, 2024,
https://arxiv.org/abs/2407.08655.

Key components: ``focal_tversky``; the answer's projection passes its gradient to the one brightest voxel of each ray; projections of the
whole volume's labels, where they are asked for, once per case and cached (``targets``).

Where we differ or had to choose:

* A patch's projection is compared with that of the patch's own labels. The published code takes the whole volume's over the patch's
  footprint (``--set target=volume``) and so asks for vessels that run outside the patch, which only false alarms can give: of the phantom's
  volumes of 64 voxels, about a third of what patches of 32 are asked for. Where the patch is the volume both are the same.
* Patches are mirrored and turned by quarters only (the plan's other poses would tilt the rays).
* Published training: Adam, 1e-4, patches of 64 voxels; here it is the common plan's.

Good to know: levels of a deeply supervised network weigh 1, 0.66, 0.34, made to sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.case import Case
from ..core.errors import UsageError
from ..core.method import Derived
from ..core.plan import Plan
from .focal_tversky import focal_tversky


class SPOCKMIP:
    """Objective of ``methods.targeted``; ``(logits (B, K, *s), target, *, weight (B, *s)) -> scalar``. ``target``: 'masks' (B, K, *s),
    'to_case' (B, 4, 4) patch voxels -> case voxels, and of the volume's projections 'shadow' (B, K, *s).

    ``axes``: of the case, 'z' (the last) or all three, whose losses are added; ``target``: whose projection is asked for; ``mip_weight``
    of the projections, the rest is the volume's; ``alpha`` (of misses), ``gamma`` and ``smooth``: of the focal Tversky loss.
    """

    readout, start, gain, spatial, levels = "sigmoid", 0.0, 1.0, "exact", (1.0, 0.66, 0.34)

    def __init__(
        self,
        *,
        axes: Literal["z", "xyz"] = "xyz",
        target: Literal["patch", "volume"] = "patch",
        mip_weight: float = 0.3,
        alpha: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1.0,
    ):
        if not 0 <= mip_weight <= 1:
            raise UsageError("the projections' weight is a share", where="mip_weight", found=mip_weight, allowed="0 to 1")
        self.axes, self.target, self.mip_weight = (2,) if axes == "z" else (0, 1, 2), target, mip_weight
        self.tversky = dict(alpha=alpha, gamma=gamma, smooth=smooth)

    @property
    def preparation(self) -> str:
        return f"{self.axes} {self.projects_volume}"

    @property
    def projects_volume(self) -> bool:
        return self.target == "volume" and self.mip_weight > 0

    def targets(self, case: Case, masks: np.ndarray, plan: Plan) -> Mapping[str, Derived]:
        """'shadow' (K, *s) of masks (K, *s) bool: in bit a of the number at a voxel, whether its ray along case axis a meets the mask."""
        if not self.projects_volume:
            return {}
        shadow = np.zeros(masks.shape, np.float32)
        for a in self.axes:
            shadow += 2**a * masks.any(1 + a, keepdims=True)
        return {"shadow": Derived(shadow)}

    def __call__(
        self, logits: Tensor, target: Mapping[str, Tensor], *, weight: Tensor | None = None, ignore_index: int | None = None
    ) -> Tensor:
        p, y = logits.float().sigmoid(), target["masks"].float()
        weight = None if weight is None else weight.unsqueeze(1)
        loss = (1 - self.mip_weight) * focal_tversky(p, y, weight=weight, **self.tversky)
        if not self.mip_weight:
            return loss
        if weight is not None:  # what nobody spoke for casts no shadow
            p, y = p * weight, y * weight
        shadow = target["shadow"].round().int() if self.projects_volume else None
        mips = [self.projected(p, y, shadow, target["to_case"], b) for b in range(len(p))]
        return loss + self.mip_weight * torch.stack(mips).mean()

    def projected(self, p: Tensor, y: Tensor, shadow: Tensor | None, to_case: Tensor, b: int) -> Tensor:
        """The projections' losses of item ``b``, added over the axes."""
        terms = []
        for a in self.axes:
            ray = 1 + int(to_case[b, a, :-1].abs().argmax())  # the patch axis that runs along the case's
            asked = (y[b] if shadow is None else (shadow[b] >> a & 1).float()).amax(ray)
            terms.append(focal_tversky(project(p[b], ray)[None], asked[None], **self.tversky))
        return torch.stack(terms).sum()


def project(p: Tensor, axis: int) -> Tensor:
    """Maximum along ``axis``; of equal maxima one voxel gets the gradient."""
    return p.max(axis).values
