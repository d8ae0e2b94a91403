"""Prostate zones: two branches, each for zones that touch each other, which then have to agree about all of them.

First each branch, a U-Net of its own, learns the zones of its group; everything else is background to it. Then both learn all zones at a
lower rate, and are pulled towards equal answers, which needs no label, so that unlabelled volumes join. From its last features each
branch also tells how far every voxel is from the borders of its own zones.

Das, Ghosh and Stober, PI-RADS v2 compliant automated segmentation of prostate zones using co-training motivated multi-task dual-path CNN
(2023), https://arxiv.org/abs/2309.12970; network after Meyer et al., ISBI 2019. Where we had to choose, [inferred] as only the abstract
was at hand:

* The groups are an option; by default the first half of the zones and the others (PZ and TZ, DPU and AFS). The forms of the agreement
  (mean squared difference, or symmetric KL) and of the second task (signed distances, or borders) and their weights are options, too.
* Each branch has a map for every zone from the beginning. In the first stage it is asked for those of its group alone, and a voxel of the
  other group is background; so the second stage starts from all of the first one's weights.
* The agreement grows to its weight over ``ramp`` of the second stage: a branch that was never taught the other's zones says at first that
  they are not there, and would unteach them.
* After the first stage alone, a zone's odds against the background are those of its own branch. After the second, the branches'
  probabilities are averaged; ``owner`` is the weight of the branch whose group a zone is in.
* Both branches are the plan's U-Net, so that a comparison with ``unet`` shows the scheme alone; ``backbone='meyer'`` is the paper's, with
  one axis of thick slices. Optimiser, rate, augmentation and largest components are the common plan's. Meyer's filling of voxels that lost
  their label with the zone of the largest signed distance is left out, so that a voxel is background where the branches say so.

Key components: ``Branch``, ``agreement``, ``signed_distances`` (once per case, cached).

Good to know: ``groups=all`` is one branch for all zones, the baseline in the same code; two branches cost twice as much a step, so that a
fair baseline is ``groups=all`` with ``widen=1.42``, which has as many parameters and operations as both branches together. Any data
set of two zones or more trains, such as the prostate of the Medical Segmentation Decathlon (PZ and TZ, a branch each). Where training cases
without labels exist, or ``--labelled N`` hides some, half of every batch of the second stage is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.case import IGNORE, Batch, Case, Condition
from ...core.errors import UsageError, nearest
from ...core.geometry import coarsest
from ...core.manifest import Manifest
from ...core.method import Clock, Derived, Method, Run, Sampling, Stage, Stream
from ...core.plan import Plan
from ...networks.blocks.conv import conv
from ...networks.feature_unet import FeatureUNet
from ...networks.zone_unet import ZoneUNet
from ...objectives.dice_ce import DiceCE
from ...objectives.ramps import sigmoid_ramp
from ..learned import Segmenter

DISTANCES = "zone distances"


class ProstateZones(Segmenter):
    """``groups``: the zones of each branch as 'PZ+TZ', 'DPU+AFS' (empty: halves of the zones in order; 'all': one branch). ``until`` which
    stage to train; ``finetune``: the second one's share of the budget, at ``finetune_rate`` of the rate. ``agreement`` and ``auxiliary``
    weigh their terms (0: none), the first after ``ramp`` of its stage; ``form`` of the first; ``task`` of the second, with distances cut
    at ``reach_mm``. ``widen``: channels of each branch's network as a multiple of the backbone's own."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        objective: Callable[[], Callable] = DiceCE,
        groups: tuple[str, ...] = (),
        until: Literal["apart", "together"] = "together",
        backbone: Literal["planned", "meyer"] = "planned",
        widen: float = 1.0,
        finetune: float = 0.3,
        finetune_rate: float = 0.1,
        agreement: float = 1.0,
        ramp: float = 0.5,
        form: Literal["mse", "kl"] = "mse",
        auxiliary: float = 1.0,
        task: Literal["distance", "border"] = "distance",
        reach_mm: float = 10.0,
        owner: float = 0.5,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        for name, value, low, high in (
            ("finetune", finetune, 0, 1),
            ("finetune_rate", finetune_rate, 0, 10),
            ("reach_mm", reach_mm, 0, 1e4),
            ("widen", widen, 0, 10),
        ):
            if not low < value < high:
                raise UsageError("this lies outside its range", where=name, found=value, allowed=f"above {low}, below {high}")
        if min(agreement, auxiliary) < 0 or not 0.5 <= owner <= 1 or not 0 <= ramp <= 1:
            allowed, found = "weights from 0, owner 0.5 to 1, ramp 0 to 1", (agreement, auxiliary, owner, ramp)
            raise UsageError("no such weights", where="agreement, auxiliary, owner, ramp", found=found, allowed=allowed)
        if plan.mirror_pairs:  # a distance map does not know its partner
            plan = plan.derive(mirror_axes=tuple(a for a in plan.mirror_axes if a != (0 if plan.dims == 3 else 1)))
        self.groups, self.backbone, self.widen, self.auxiliary = grouped(groups, plan.classes), backbone, widen, auxiliary
        super().__init__(plan, manifest, parts=parts, objective=objective, lr=lr, weight_decay=weight_decay, ema=ema)
        multiple = self.network[0].body.multiple
        self.plan = plan.derive(patch=tuple(-(-n // m) * m for n, m in zip(plan.patch, multiple, strict=True)))
        self.until = until if len(self.groups) == 2 else "apart"
        self.finetune, self.finetune_rate, self.agreement, self.ramp, self.form = finetune, finetune_rate, agreement, ramp, form
        self.task, self.reach_mm, self.owner, self.unlabelled = task, reach_mm, owner, False

    def build(self, network: None = None) -> nn.ModuleList:
        p, size = self.plan, (self.in_channels, self.out_channels)
        wide = lambda n: max(1, round(n * self.widen))
        levels = dict(features=tuple(wide(n) for n in p.features), strides=p.strides, kernels=p.kernels)
        thick = dict(across=coarsest(p.grid.spacing) if p.grid.spacing else p.dims - 1, width=wide(16))
        planned = self.backbone == "planned"
        make = lambda: FeatureUNet(*size, spatial_dims=p.dims, **levels) if planned else ZoneUNet(*size, spatial_dims=p.dims, **thick)
        return nn.ModuleList(Branch(make(), p.dims, len(group) if self.auxiliary else 0) for group in self.groups)

    # training ------------------------------------------------------------------------------------------------------------------------
    @property
    def preparation(self) -> str:
        return f"signed distances to {self.reach_mm} mm" if self.auxiliary else ""

    def targets(self, case: Case) -> Mapping[str, Derived]:
        """Every zone's signed distance as a share of the reach; outside the case is far from every zone."""
        if case.label is None or not self.auxiliary:
            return {}
        if case.label.overlapping:
            raise UsageError("zones do not overlap", where=f"case {case.id}", found="a map of its own for each structure")
        masks = np.asarray(case.label.data) == np.arange(1, self.out_channels).reshape(-1, *[1] * self.plan.dims)
        return {DISTANCES: Derived(signed_distances(masks, case.geometry.spacing, self.reach_mm), fill=-1.0)}

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> ProstateZones:
        self.unlabelled = any(not self.manifest[c].labels for c in train)
        return super().fit(train, val, run)

    def stages(self) -> tuple[Stage, ...]:
        if self.until == "apart":
            return (Stage("apart"),)
        return Stage("apart", 1 - self.finetune), Stage("together", self.finetune)

    def sampling(self, stage: Stage) -> Sampling:
        if stage.name != "together" or not self.unlabelled:
            return Sampling()
        half = max(1, self.plan.batch // 2)
        return Sampling(streams=(Stream("labelled", half), Stream("unlabelled", half, "unlabelled")))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.lr * (self.finetune_rate if self.stage.name == "together" else 1)
        return {"main": torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=self.weight_decay)}

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None or batch.label.ndim == batch.image.ndim:
            found = "cases without a reference label" if batch.label is None else "overlapping structures"
            raise UsageError("this method learns from label maps of zones that do not overlap", where=type(self).__name__, found=found)
        together, n, terms, answers = clock.stage == "together", len(batch), {}, []
        image = torch.cat([batch.image, *(free.image for free in batch.streams.values())])
        for name, branch, group in zip("AB", self.network, self.groups):
            logits, maps = branch(image)
            answers.append(logits)
            asked, label = (logits[:n], batch.label) if together else own(logits[:n], batch.label, group)
            terms[f"{name}/segmentation"] = self.objective(asked, label, ignore_index=IGNORE)
            if self.auxiliary:
                terms[f"{name}/{self.task}"] = self.auxiliary * self.second_task(maps[:n], batch, group)
        if together and self.agreement:
            terms["agreement"] = self.agreement * sigmoid_ramp(clock.fraction, until=self.ramp) * agreement(*answers, self.form)
        return terms

    def second_task(self, maps: Tensor, batch: Batch, group: tuple[int, ...]) -> Tensor:
        """Mean absolute error (B, len(group), *s) where somebody spoke: of distances in -1..1, or of how near a border is, 0..1."""
        distance = batch.maps[DISTANCES][:, [k - 1 for k in group]]
        target = distance if self.task == "distance" else 1 - distance.abs()
        known = (batch.label != IGNORE).unsqueeze(1)
        return ((maps.float() - target).abs() * known).sum() / (known.sum() * len(group)).clamp_min(1)

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """Log-probabilities (B, K, *s) of both branches together; of the averaged weights when evaluating."""
        branches = self.network if self.training or self.ema is None else self.ema.average
        answers = [branch(image)[0].float() for branch in branches]
        if self.until == "apart" or self.stage.name == "apart":
            return joined(answers, self.groups)
        return averaged(answers, self.groups, self.owner)


class Branch(nn.Module):
    """A network that gives its last features, and a second head on these: (logits (B, K, *s), maps (B, ``maps``, *s))."""

    def __init__(self, body: FeatureUNet | ZoneUNet, dims: int, maps: int):
        super().__init__()
        self.body = body
        self.second = conv(dims, body.head.in_channels, maps, 1) if maps else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.body.tapped(x)
        return logits, self.second(features)


# ---------------------------------------------------------------------------------------------------------------------- zones and groups
def grouped(groups: Sequence[str], classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Class indices of each branch's zones, each zone in one group. Raises UsageError."""
    zones = tuple(range(1, len(classes)))
    if tuple(groups) == ("all",):
        return (zones,)
    if len(zones) < 2:
        raise UsageError("two branches need two zones or more", where="groups", found=", ".join(classes[1:]), fix="--set groups=all")
    if not groups:
        half = (len(zones) + 1) // 2
        return zones[:half], zones[half:]
    named = [[n.strip() for n in group.split("+")] for group in groups]
    said = [n for group in named for n in group]
    unknown = next((n for n in said if n not in classes[1:]), None)
    if unknown is not None:
        raise UsageError(f"there is no zone '{unknown}'", where="groups", fix=nearest(unknown, classes[1:]))
    if len(named) != 2 or sorted(said) != sorted(classes[1:]):
        raise UsageError("each zone is in one of two groups", where="groups", found=tuple(groups), allowed=", ".join(classes[1:]))
    return tuple(tuple(classes.index(n) for n in group) for group in named)


def own(logits: Tensor, label: Tensor, group: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The logits (B, 1 + len(group), *s) of the background and a group, and the label map in their order; other zones are background."""
    mine = torch.zeros_like(label)
    for i, k in enumerate(group, start=1):
        mine[label == k] = i
    mine[label == IGNORE] = IGNORE
    return logits[:, [0, *group]], mine


def agreement(a: Tensor, b: Tensor, form: str = "mse") -> Tensor:
    """How much two branches' answers (logits (B, K, *s)) differ: the mean squared difference of probabilities over classes and voxels, or
    the mean over voxels of the symmetric KL divergence. Symmetric; 0 for equal answers alone; the gradient reaches both."""
    log_p, log_q = a.float().log_softmax(1), b.float().log_softmax(1)
    if form == "mse":
        return F.mse_loss(log_p.exp(), log_q.exp())
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()


def joined(answers: Sequence[Tensor], groups: Sequence[tuple[int, ...]]) -> Tensor:
    """Log-probabilities in which each zone has the odds against the background that its own branch gives it."""
    odds = torch.zeros_like(answers[0])
    for logits, group in zip(answers, groups, strict=True):
        odds[:, list(group)] = logits[:, list(group)] - logits[:, :1]
    return odds.log_softmax(1)


def averaged(answers: Sequence[Tensor], groups: Sequence[tuple[int, ...]], owner: float) -> Tensor:
    """Log of the branches' mean probability; a zone's own branch weighs ``owner``, the other 1 - ``owner``; normalised over classes."""
    share = answers[0].new_full((len(answers), answers[0].shape[1]), 0.5)
    for i, group in enumerate(groups):
        share[:, list(group)] = 1 - owner
        share[i, list(group)] = owner
    p = sum(w.view(1, -1, *[1] * (a.ndim - 2)) * a.softmax(1) for w, a in zip(share, answers, strict=True))
    return (p / p.sum(1, keepdim=True)).clamp_min(1e-12).log()


def signed_distances(masks: np.ndarray, spacing: Sequence[float], reach_mm: float) -> np.ndarray:
    """(K, *s) float32 in -1..1: distance (mm) to the border of each mask (K, *s) bool as a share of the reach, positive inside. -1 for a
    zone that is absent, 1 for one that is everywhere."""
    from edt import sdf

    found = [
        sdf(np.ascontiguousarray(m), anisotropy=tuple(float(s) for s in spacing), parallel=1) / reach_mm
        if m.any() and not m.all()
        else np.where(m, 1.0, -1.0)
        for m in masks
    ]
    return np.clip(np.stack(found), -1, 1).astype(np.float32)
