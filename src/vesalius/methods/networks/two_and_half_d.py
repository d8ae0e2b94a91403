"""2.5D: the families between a slice-wise 2D network and a 3D one, as one method whose ``arm`` says which, at equal steps or equal cost.

A volume can be segmented slice by slice, with its neighbouring slices as channels, from three sides with a vote, by a network that reads
the slices in order, by one that is told what the neighbours were taken for, by 2D and 3D features together, or in 3D. Which pays depends on
how thick the slices are. Here backbone, objective, optimiser, data and inference are one, and the arm is an option:

* ``2d`` and ``3d`` have none of their own.
* ``slices``: how many are seen at once (``slices``, 3).
* ``views``: ``vote`` 'majority', 'weighted' (the slices' own view counts ``weight`` times) or 'learned' (``see_image``: by the image too).
* ``recurrent``: ``warm``, the share of the steps in which the 2D network learns alone first.
* ``attention``: ``guide``, the 'shape' or the 'border' of what the neighbours were taken for; ``warm``.
* ``fused``: ``meet``, the 'encoder' or the 'output', where 2D and 3D features meet; ``join`` 'add' or 'se' (squeeze-and-excitation).

Zhang, Liao, Ding and Zhang, Bridging 2D and 3D segmentation networks for computation efficient volumetric medical image segmentation: an
empirical study of 2.5D solutions, 2020, https://arxiv.org/abs/2010.06163. Ours, as the source at hand does not say: the formulas of
``networks.two_and_half_d``, ``weight`` 2, ``warm`` half, sequences as long as the planned patch. Depth, strides and kernels are the plan's.

Key components: ``bridge`` and its families; ``cost='flops'``, which gives every arm as many steps as the 2D arm's operations pay for.

Good to know: slices lie across the coarsest axis of the plan's grid (``axis``). Patches end somewhere, and there a slice is its own
neighbour: plan a patch that holds all slices where there are few. An option of another arm is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.case import IGNORE, Batch
from ...core.errors import UsageError
from ...core.geometry import coarsest
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Stage
from ...core.plan import Plan
from ...inferers.sliding import SlidingWindow
from ...networks.two_and_half_d import ARMS, bridge
from ..recipe import Recipe

ALONE = "slices alone"  # the stage in which the 2D part learns first
OWN = {  # option -> its default, and who reads it
    "slices": (3, lambda o: o["arm"] == "slices"),
    "vote": ("learned", lambda o: o["arm"] == "views"),
    "weight": (2.0, lambda o: o["arm"] == "views" and o["vote"] == "weighted"),
    "see_image": (False, lambda o: o["arm"] == "views" and o["vote"] == "learned"),
    "guide": ("shape", lambda o: o["arm"] == "attention"),
    "meet": ("output", lambda o: o["arm"] == "fused"),
    "join": ("add", lambda o: o["arm"] == "fused"),
    "warm": (0.5, lambda o: o["arm"] in ("recurrent", "attention")),
}


class TwoAndHalfD(Recipe):
    """``arm`` and its options: see the module. ``axis``: slices lie across it (-1: the coarsest of the plan's grid). ``width``: feature
    maps of the first level, doubled at each further one of the plan's. ``cost``: 'steps' trains every arm as long as planned, 'flops' as
    long as the 2D arm's floating-point operations pay for. Adam at ``lr``, halved when the mean loss of an epoch has not fallen for
    ``patience`` epochs (0: never); ``ema`` as elsewhere."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        arm: Literal["2d", "slices", "views", "recurrent", "attention", "fused", "3d"] = "slices",
        slices: int = 3,
        vote: Literal["majority", "weighted", "learned"] = "learned",
        weight: float = 2.0,
        see_image: bool = False,
        guide: Literal["shape", "border"] = "shape",
        meet: Literal["encoder", "output"] = "output",
        join: Literal["add", "se"] = "add",
        warm: float = 0.5,
        axis: int = -1,
        width: int = 8,
        cost: Literal["steps", "flops"] = "steps",
        lr: float = 1e-3,
        patience: int = 20,
        ema: float = 0.0,
    ):
        own = {"slices": slices, "vote": vote, "weight": weight, "see_image": see_image, "guide": guide, "meet": meet, "join": join}
        _check({**own, "arm": arm, "warm": warm, "width": width, "axis": axis, "patience": patience})
        self.arm, self.own, self.warm, self.width, self.cost, self.patience = arm, own, warm, width, cost, patience
        spacing = plan.grid.spacing or tuple(1 / k for k in next(iter(plan.kernels), (1, 1, 1)))
        self.axis = axis if axis >= 0 else coarsest(spacing)
        constant = dict(schedule="constant", warmup=0.0, clip=0.0, weight_decay=0.0)
        super().__init__(plan, manifest, parts=parts, levels="equal", optimizer="adam", lr=lr, ema=ema, **constant)
        self.register_buffer("plateau", torch.zeros(6, dtype=torch.float64))

    def build(self, network: Callable[..., nn.Module] | None = None, **options: Any) -> nn.Module:
        features = tuple(self.width * 2**i for i in range(len(self.plan.features)))
        planned = dict(features=features, strides=self.plan.strides, kernels=self.plan.kernels)
        return bridge(self.in_channels, self.out_channels, **{"arm": self.arm, "axis": self.axis, **planned, **self.own, **options})

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> TwoAndHalfD:
        share = 1.0 if self.cost == "steps" else self.share()
        run.log(steps_share=share)
        run.train(self, train, val, share=share)
        return self

    def stages(self) -> Sequence[Stage]:
        if self.arm not in ("recurrent", "attention") or not self.warm:
            return (Stage(),)
        return Stage(ALONE, self.warm, trainable=("network.unet", "network.head")), Stage("main", 1 - self.warm)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if self.stage.name == ALONE and batch.label is not None:
            terms = {"segmentation": self.objective(self.network.alone(batch.image), batch.label, ignore_index=IGNORE)}
        else:
            terms = super().losses(batch, clock, turn)
        self.seen = sum(terms.values()).detach()
        return terms

    def after_step(self, clock: Clock) -> None:
        """The plateau: [epoch, sum of its losses, their number, best mean so far, epochs since, halvings], of one stage."""
        super().after_step(clock)
        p = self.plateau
        if clock.step == 0:
            p.copy_(torch.tensor([0, 0, 0, torch.inf, 0, 0]))
        if clock.epoch != p[0]:
            better = p[1] / p[2] < p[3]
            p[3], p[4] = torch.minimum(p[1] / p[2], p[3]), 0 if better else p[4] + 1
            if self.patience and p[4] >= self.patience:
                p[4], p[5] = 0, p[5] + 1
            p[0], p[1], p[2] = clock.epoch, 0, 0
        p[1], p[2] = p[1] + self.seen.to(p), p[2] + 1

    def learning_rate(self, clock: Clock) -> float:
        return 0.5 ** float(self.plateau[5]) if clock.step else 1.0

    # cost ----------------------------------------------------------------------------------------------------------------------------
    def share(self) -> float:
        """Steps that cost as many operations as one of the 2D arm's, at most 1."""
        mine = sum(stage.share * self._flops(self.network, stage) for stage in self.stages())
        return min(1.0, self._flops(self.build(arm="2d"), Stage()) / mine)

    def _flops(self, network: nn.Module, stage: Stage) -> int:
        return training_flops(network, (self.in_channels, *self.plan.patch), alone=stage.name == ALONE)

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def inferer(self) -> SlidingWindow:
        p = self.plan
        return ThroughSlices(p.patch, overlap=p.overlap, batch=2, mirror_axes=p.test_mirror, axis=self.axis)


@dataclass(frozen=True)
class ThroughSlices(SlidingWindow):
    """Windows that are no deeper across ``axis`` than the image is: no empty slice becomes a neighbour."""

    axis: int = 2

    def rows(self, forward: Callable[..., Any], image: Tensor, **how: Any) -> Iterator[tuple[str, int, Tensor]]:
        patch = tuple(min(p, n) if a == self.axis else p for a, (p, n) in enumerate(zip(self.patch, image.shape[1:], strict=True)))
        return SlidingWindow.rows(replace(self, patch=patch), forward, image, **how)


def training_flops(network: nn.Module, window: Sequence[int], *, alone: bool = False) -> int:
    """Floating-point operations of convolutions and products in one training step on one window (C, *s), forward and backward. Nothing is
    computed: shapes are enough. ``alone``: only the network's slices alone."""
    from torch.utils.flop_counter import FlopCounterMode

    empty = copy.deepcopy(network).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        maps = (empty.alone if alone else empty)(torch.empty(1, *window, device="meta"))
        sum(m.sum() for m in ([maps] if isinstance(maps, Tensor) else maps)).backward()
    return counter.get_total_flops()


def _check(given: Mapping[str, Any]) -> None:
    if given["arm"] not in ARMS:
        raise UsageError("unknown family", where="arm", found=given["arm"], allowed=", ".join(ARMS))
    for name, (default, read) in OWN.items():
        if given[name] != default and not read(given):
            fix = "leave it out, or choose the arm (and vote) that has it"
            raise UsageError(f"'{name}' means nothing to this arm", where="arm", found=given["arm"], fix=fix)
    for name, fine, allowed in (
        ("warm", 0 <= given["warm"] < 1, "0 to below 1"),
        ("weight", given["weight"] > 0, "above 0"),
        ("width", given["width"] >= 1, "1 or more"),
        ("axis", given["axis"] in (-1, 0, 1, 2), "0, 1, 2, or -1 for the coarsest"),
        ("patience", given["patience"] >= 0, "0 or more"),
    ):
        if not fine:
            raise UsageError(f"impossible '{name}'", where=name, found=given[name], allowed=allowed)
