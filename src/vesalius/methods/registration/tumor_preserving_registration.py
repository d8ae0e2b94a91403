"""Tumour-preserving registration: what has no counterpart keeps its size, and nobody has to say where it is.

A network trained for similarity alone makes a tumour that the other patient does not have vanish by shrinking it. Where it shrinks tissue
more than the organ around it, there is a tumour: from the first network's Jacobian comes a soft mask, and a second network is trained in
which masked voxels need not look alike but have to change their size as the organ does.

Dong et al., Preserving Tumor Volumes for Unsupervised Medical Image Registration, ICCV 2023, https://arxiv.org/abs/2309.10153. The
authors' code was read for: the covariance alone is weighted; |J| is multiplied by the organ's scale; the band at the organ's border;
the ratio of a second registration of the warped image. Not here: the affine network and the recursive cascade before VoxelMorph (fields
of view are laid over each other instead), the bilateral filter, TransMorph. Ours: the template is the labelled training case most like
the others, the two stages share one budget, and the way back of the second pass is both ways one after the other.

## Key components
- `masks`: template -> organ, Jacobian of the frozen first network -> how much more than the organ each voxel shrinks -> mask.
- `volume_preserving` and the weighted `correlation_loss` in `objectives/registration.py`; `VoxelMorph`; `ops/flow.py`.

## Good to know
- One case with the organ's label is needed, the template; tumours are never labelled, and labels elsewhere are only for scoring.
- The mask finds what *shrinks*; `both_ways` adds what swells. A tumour that looks like its organ is not squeezed and so not found.
- `vesalius predict RUN FIXED MOVING` writes the field (world mm, NIfTI intent 1006), the warped image and, of a data set, the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.case import Batch, Case, Condition, Image
from ...core.errors import DataError, UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Stage
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.voxelmorph import VoxelMorph
from ...objectives.registration import box_mean, volume_preserving
from ...ops.flow import compose, determinant, warp
from ..registered import Registration

FIRST, SECOND = "similarity", "preserving"
_MOST = 3.0  # |J| is trusted within 1/3 to 3
_BAND = 3  # side of the cube that decides what belongs to the organ's border
_CANDIDATES = 16  # training cases among which the template is chosen


class TumorPreserving(Registration):
    """``mask``: 'soft', 'hard', or 'none' (the first network alone, with the whole budget). A voxel counts as tumour from ``threshold``
    times the organ's shrinkage on; ``steepness`` of the soft mask's sigmoid. ``boundary``: voxels with less than this share of organ in
    the 3-cube around them are left out (0: none). ``both_ways``: swelling counts, too. ``second_pass``: the ratio is that of registering
    the warped image once more. ``volume``: weight of keeping the size. ``share`` of the budget goes to the first network; the second begins
    anew, or, ``warm``, as the first. ``organ``: its classes (default: every foreground class, lesions
    in it included); ``template``: the case that shows it."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] = VoxelMorph,
        mask: Literal["soft", "hard", "none"] = "soft",
        threshold: float = 1.5,
        steepness: float = 5.0,
        volume: float = 0.1,
        boundary: float = 0.5,
        both_ways: bool = False,
        second_pass: bool = True,
        share: float = 0.5,
        warm: bool = False,
        organ: tuple[str, ...] = (),
        template: str = "",
        size: tuple[int, ...] = (),
        start: Literal["frame", "world"] = "frame",
        similarity: Literal["correlation", "local"] = "correlation",
        alike: float = 4.0,
        smooth: float = 1.0,
        lr: float = 1e-4,
    ):
        given = dict(network=network, size=size, start=start, similarity=similarity, alike=alike, smooth=smooth, lr=lr)
        super().__init__(plan, manifest, parts=parts, **given)
        if not 0 < share < 1:
            raise UsageError("the first stage takes a part of the budget", where="share", found=share, allowed="between 0 and 1")
        unknown = [n for n in organ if n not in manifest.names[1:]]
        if unknown:
            raise UsageError(f"the data set has no class '{unknown[0]}'", where="organ", allowed=", ".join(manifest.names[1:]))
        self.mask, self.threshold, self.steepness, self.volume, self.boundary = mask, threshold, steepness, volume, boundary
        self.both_ways, self.second_pass, self.organ, self.template = both_ways, second_pass, tuple(organ), template
        self.share, self.warm = share, warm
        if mask != "none":
            self.second = self.build(1)
            self.register_buffer("template_image", torch.zeros(1, self.in_channels, *self.plan.patch))
            self.register_buffer("template_organ", torch.zeros(1, 1, *self.plan.patch))

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> TumorPreserving:
        if self.mask != "none":
            case, organ = self._template(train, run)
            self.template_image[0] = torch.from_numpy(case.stack(self.channels))
            self.template_organ[0, 0] = torch.from_numpy(organ)
        return super().fit(train, val, run)

    def _template(self, train: Sequence[str], run: Run) -> tuple[Case, np.ndarray]:
        """The case asked for, else of the first labelled training cases the one most like the others; and its organ (*window) 0, 1."""
        ids = [self.template] if self.template else [c for c in train if self.manifest[c].labels][:_CANDIDATES]
        found = [(case, organ) for case in map(run.prepared, ids) if (organ := self._organ(case)) is not None]
        if not found:
            what = "no training case shows the organ" if not self.template else "the template does not show the organ"
            raise DataError(what, where=self.manifest.name, found=f"{len(ids)} labelled cases looked at", fix="label the organ in one case")
        likeness = np.zeros(len(found))
        for a, b in combinations(range(len(found)), 2):
            likeness[[a, b]] += np.corrcoef(found[a][0].stack(self.channels).ravel(), found[b][0].stack(self.channels).ravel())[0, 1]
        return found[int(likeness.argmax())]

    def _organ(self, case: Case) -> np.ndarray | None:
        label = case.labels.get("reference") or next(iter(case.labels.values()), None)
        if label is None or label.overlapping:
            return None
        wanted = [k for k, n in enumerate(label.names) if (n in self.organ if self.organ else k)]
        inside = np.isin(np.asarray(label.data), wanted)
        return inside.astype(np.float32) if inside.any() else None

    def stages(self) -> Sequence[Stage]:
        if self.mask == "none":
            return (Stage(FIRST),)
        return Stage(FIRST, self.share, trainable=("network",)), Stage(SECOND, 1 - self.share, trainable=("second",))

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if clock.stage != SECOND:
            return super().losses(batch, clock, turn)
        if clock.step == 0 and self.warm:
            self._as_the_first()
        fixed, moving = batch.image, batch.views[0].image
        organ, mask = self.masks(fixed, moving)
        flow = self.second(torch.cat([fixed, moving, organ + mask], 1))
        warped, scale = warp(mask, flow), organ_scale(organ, warp(organ, flow))
        terms = self.terms(fixed, moving, flow, weight=1 - warped)
        return terms | {"volume": self.volume * volume_preserving(flow, warped, scale, most=_MOST)}

    @torch.no_grad()
    def _as_the_first(self) -> None:
        """The second network as the first one, which does not look at the mask."""
        for mine, theirs in zip(self.second.parameters(), self.network.parameters(), strict=True):
            mine.zero_()[tuple(slice(n) for n in theirs.shape)] = theirs

    # the mask ------------------------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def masks(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """(organ, mask) (B, 1, *s) on the moving image: where it is by the template, and what shrinks there more than it does."""
        many = len(moving)
        towards = self._flow(moving, self.template_image.expand(many, -1, *self.plan.patch))
        organ = warp(self.template_organ.expand(many, -1, *self.plan.patch), towards)
        there, back, moved = self._there_and_back(fixed, moving)
        seen = organ
        if self.second_pass:
            seen = warp(organ, there)
            there, again, _ = self._there_and_back(fixed, moved)
            back = compose(back, again)
        ratio = warp(self.shrinkage(there, seen), back)
        chosen = torch.sigmoid(self.steepness * (ratio - self.threshold)) if self.mask == "soft" else (ratio > self.threshold).float()
        return organ, chosen * (organ > 0.5)

    def _flow(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return self.network(torch.cat([fixed, moving], 1))

    def _there_and_back(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first network's flow, its reverse by registering the other way round, and the warped moving image."""
        there = self._flow(fixed, moving)
        moved = warp(moving, there)
        return there, self._flow(moving, moved), moved

    def shrinkage(self, flow: Tensor, organ: Tensor) -> Tensor:
        """(B, 1, *s) on the fixed image: how many times more than the organ (B, 1, *s, on the moving one) tissue shrinks; 0 outside the
        organ and in the band along its border."""
        moved = warp(organ, flow)
        inside = (moved > 0.5).float()
        ratio = box_mean(determinant(flow).abs().clamp(1 / _MOST, _MOST)[:, None], 3)
        ratio = torch.maximum(ratio, 1 / ratio) if self.both_ways else ratio
        kept = inside * (box_mean(inside, _BAND) >= self.boundary)
        return ratio * organ_scale(organ, moved).view(-1, 1, *[1] * (flow.ndim - 2)) * kept

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """{"flow"} and, of the second network, the {"mask"} it was told, on the moving image."""
        if self.mask == "none" or self.stage.name == FIRST:
            return super().forward(image, condition)
        organ, mask = self.masks(*image.chunk(2, 1))
        return {"flow": self.second(torch.cat([image, organ + mask], 1)), "mask": mask}

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        found = super().finish(maps, case)
        if "mask" not in maps:
            return found
        side = "moving" if self.start == "frame" else "fixed"
        grid = case.images[f"{side}:{self.channels[0]}"].geometry
        return found.with_(images={"mask": Image(maps["mask"].float().cpu().numpy(), grid, normalise=False, name="mask")})


def organ_scale(organ: Tensor, warped: Tensor) -> Tensor:
    """(B,) how much larger the organ is after warping, counted in voxels (no gradient); 1 where there is none."""
    before, after = ((x > 0.5).flatten(1).sum(1) for x in (organ, warped))
    return torch.where((before > 0) & (after > 0), after / before.clamp_min(1), 1.0)
