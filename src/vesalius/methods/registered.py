"""Registration: a pair of cases in, where each point of the fixed one lies in the moving one out. The base of the registration papers.

Both images are resized to one window and the network answers in its voxels; the field goes home in world mm on the fixed image's grid.
The engine draws training pairs, lays the moving image and its labels on the fixed grid, and scores them: a method sees no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..core.case import Batch, Case, Condition, Sample
from ..core.errors import DataError, GeometryError, UsageError
from ..core.geometry import Grid
from ..core.manifest import Manifest
from ..core.method import Clock, Method, Sampling, Stage, Stream
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..core.prompt import Prompt
from ..inferers.whole import Whole
from ..networks.voxelmorph import VoxelMorph
from ..objectives.registration import correlation_loss, local_correlation_loss, roughness
from ..ops.augment import render
from ..ops.displacement import in_world, shared
from ..ops.flow import warp
from .learned import LearnedMethod

SIDES = ("fixed", "moving")


class Registration(LearnedMethod):
    """``network(2 C, d, spatial_dims=d)`` maps both images to a flow in voxels; trained by how alike the warped moving image is to the
    fixed one (``alike`` times 1 - correlation, of all voxels or 'local') and by the flow's roughness (``smooth``).

    ``start``: where the images lie before anything is learnt. 'frame': fields of view are laid over each other, whatever their worlds
    (two patients); 'world': as their headers say (one patient, or images aligned beforehand), and a pair without overlap is refused.
    ``size``: the window, voxels (default: the plan's patch), rounded up to the network's multiple.
    """

    unit = "pair"

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] = VoxelMorph,
        size: tuple[int, ...] = (),
        start: Literal["frame", "world"] = "frame",
        similarity: Literal["correlation", "local"] = "correlation",
        alike: float = 4.0,
        smooth: float = 1.0,
        lr: float = 1e-4,
    ):
        super().__init__(plan, manifest, parts=parts)
        if size and (len(size) != plan.dims or min(size) < 1):
            raise UsageError("a window has a positive side for each axis", where="size", found=tuple(size), allowed=f"{plan.dims} numbers")
        self.start, self.similarity, self.alike, self.smooth, self.lr = start, similarity, alike, smooth, lr
        self.factory = network
        self.network = self.build()
        window = tuple(-(-n // m) * m for n, m in zip(size or plan.patch, self.network.multiple, strict=True))
        self.plan = plan.derive(patch=window, grid=Grid(size=window))

    def build(self, further: int = 0) -> nn.Module:
        """A network of both images and ``further`` channels."""
        return self.factory(2 * self.in_channels + further, self.plan.dims, spatial_dims=self.plan.dims)

    # training ------------------------------------------------------------------------------------------------------------------------
    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="pair", streams=(Stream("main", self.plan.batch, "all"),), spatial="none", world=self.start == "world")

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """As it is: a pair is its own variation, and one of two mirrored would be another task."""
        return render(sample, fill=[float(channel.min()) for channel in sample.image])

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        fixed, moving = batch.image, batch.views[0].image
        return self.terms(fixed, moving, self.network(torch.cat([fixed, moving], 1)))

    def terms(self, fixed: Tensor, moving: Tensor, flow: Tensor, *, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Similarity, of voxels as ``weight`` (B, 1, *s) says, and smoothness."""
        loss = local_correlation_loss if self.similarity == "local" else correlation_loss
        return {
            "similarity": self.alike * loss(fixed, warp(moving, flow), weight=weight),
            "smoothness": self.smooth * roughness(flow),
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.Adam(self.parameters(), lr=self.lr)}

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """(B, 2 C, *s), the fixed image's channels first -> {"flow": (B, d, *s) voxels}."""
        return {"flow": self.network(image)}

    def inferer(self) -> Callable:
        return Whole(self.plan.patch)

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        device = next(self.parameters()).device
        both = torch.from_numpy(np.concatenate(self.stacked(case))).to(device)
        return self.finish(self.inferer()(self.fast_forward, both), case)

    def stacked(self, case: Case) -> list[np.ndarray]:
        """(C, *window) of the fixed and of the moving image, where ``start`` says that they lie."""
        fixed, moving = (tuple(f"{side}:{c}" for c in self.channels) for side in SIDES)
        lacking = [n for n in (*fixed, *moving) if n not in case.images]
        if lacking:
            raise DataError(f"image '{lacking[0]}' is missing", where=f"case {case.id}", found=list(case.images), allowed="pairs of cases")
        if self.start == "world":
            grid = case.images[fixed[0]].geometry
            _check_overlap(case, fixed[0], moving[0])
            on = {n: case.images[n].on(grid, fill=float(np.min(case.images[n].data))) for n in moving}
            case = case.with_(images=on)
        stacks = [np.ascontiguousarray(case.stack(names)) for names in (fixed, moving)]
        for side, stack in zip(SIDES, stacks, strict=True):
            if not np.ptp(stack):
                raise DataError(f"the {side} image is constant, so nothing can be matched", where=f"case {case.id}")
        return stacks

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        fixed, moving = (case.images[f"{side}:{self.channels[0]}"].geometry for side in SIDES)
        flow = maps["flow"].float().cpu().numpy()
        return Prediction(displacement=in_world(flow, fixed, moving if self.start == "frame" else fixed))


def _check_overlap(case: Case, fixed: str, moving: str) -> None:
    here, there = case.images[fixed].geometry, case.images[moving].geometry
    if not shared(here, there):
        raise GeometryError(
            "the images of this pair do not overlap in the world",
            where=f"case {case.id}",
            found=f"fixed {here.describe()}; moving {there.describe()}",
            fix="check the pair; images of two patients are laid over each other with --set start=frame",
        )
