"""Targeted: a network taught by maps made of the labels. The objective says which, and compares; everything else is the Segmenter's.

An objective paper is one file in ``objectives/`` and a card whose ``recipe`` names this base and the objective. Maps are made of the whole
case, once, and cached; patches of them move with the image. Any network learns from them: the planned U-Net, or the one that a part lends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..core.case import IGNORE, Batch, Case, Condition, LabelMap
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.method import Clock, Derived, Method, Sampling, Stage
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..inferers.sliding import SlidingWindow
from .learned import Segmenter


class Objective(Protocol):
    """``readout``: how a structure's logit becomes its probability, 'tanh' | 'sigmoid'; ``start``, ``gain``: a logit is start + gain x
    what the network gives; ``spatial``: poses that keep the maps true; ``levels``: weights of a deeply supervised network's maps, finest
    first, halved beyond the last; ``preparation``: what the maps depend on beside the case."""

    readout: str
    start: float
    gain: float
    spatial: str
    levels: tuple[float, ...]
    preparation: str

    def targets(self, case: Case, masks: np.ndarray, plan: Plan) -> Mapping[str, Derived]:
        """Maps of a case prepared by ``plan`` (with the method's channels) and the ``masks`` (K, *s) bool of its K structures."""

    def __call__(
        self, logits: Tensor, target: Mapping[str, Tensor], *, weight: Tensor | None = None, ignore_index: int | None = None
    ) -> Tensor:
        """Scalar of ``logits`` (B, K, *s); ``target``: maps, 'masks' (B, K, *s), 'to_case'; ``weight`` (B, *s): 0 where nobody spoke."""


_SURE = 1 - 1e-6  # no blend is surer than this
_LINKS = {  # by readout: logit -> what the person sees, and back
    "tanh": (torch.tanh, lambda p: p.clamp(-_SURE, _SURE).atanh()),
    "sigmoid": (torch.sigmoid, lambda p: p.logit(1 - _SURE)),
}


class Targeted(Segmenter):
    """``part`` network: a segmenter of the catalogue that lends its network (untrained) and the window it needs; trained as options say.

    The network gives one map a structure (a lent one's are taken less its background's), of which the objective makes logits. Coarser maps
    of a deeply supervised network are read at the patch's size. Windows are blended as probabilities. Structures may overlap: then each is
    present from probability 0.5 on. Data with left-right pairs of classes are not mirrored left-right, as a map does not know its partner.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] | None = None,
        objective: Callable[[], Objective],
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        if parts:
            lender = _lender(parts)
            plan, network = lender.plan, lambda *_, **__: lender.network
        if plan.mirror_pairs:
            plan = plan.derive(mirror_axes=tuple(a for a in plan.mirror_axes if a != (0 if plan.dims == 3 else 1)))
        super().__init__(plan, manifest, network=network, objective=objective, lr=lr, weight_decay=weight_decay, ema=ema)
        self.readout = self.objective.readout
        self.register_buffer("overlapping", torch.tensor(False))
        self.register_buffer("line", torch.tensor([self.objective.start, self.objective.gain]))  # a run keeps that it was trained with

    @property
    def out_channels(self) -> int:
        return len(self.plan.classes) - 1

    @property
    def preparation(self) -> str:
        return f"{type(self.objective).__name__} {self.objective.preparation}"

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(spatial=self.objective.spatial)

    def targets(self, case: Case) -> Mapping[str, Derived]:
        if case.label is None:
            return {}
        seen = replace(case, images={name: case.images[name] for name in self.channels})
        return self.objective.targets(seen, structures(case.label, self.out_channels), self.plan)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        label = batch.label
        if label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        if label.ndim == batch.image.ndim:
            self.overlapping.fill_(True)
            masks, weight = label[:, -self.out_channels :] > 0, None
        else:
            masks = torch.stack([label == k + 1 for k in range(self.out_channels)], 1)
            weight = (label != IGNORE).float() if (label == IGNORE).any() else None
        target = {**batch.maps, "masks": masks, "to_case": batch.to_case}
        maps = self.network(batch.image)
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        levels = [_at(self.logits(m), batch.image.shape[2:]) for m in maps]
        shares = _shares(self.objective.levels, len(levels))
        terms = [s * self.objective(level, target, weight=weight) for s, level in zip(shares, levels, strict=True)]
        return {"segmentation": sum(terms)}

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, K, *s) logits of the structures, of the averaged network when evaluating."""
        maps = super().forward(image)
        return self.logits(maps if isinstance(maps, Tensor) else maps[0])

    def logits(self, maps: Tensor) -> Tensor:
        """One logit a structure (B, K, *s), of a network's maps (B, K or K + 1, *s)."""
        signed = maps if maps.shape[1] == self.out_channels else maps[:, 1:] - maps[:, :1]
        return self.line[0] + self.line[1] * signed

    def inferer(self) -> SlidingWindow:
        return replace(super().inferer(), link=_LINKS[self.readout])

    def finish(self, maps: Tensor, case: Case) -> Prediction:
        prediction = super().finish(maps, case)
        if not self.overlapping:
            return prediction
        p = prediction.probability
        return prediction.with_(probability=replace(p, source=p.data[1:]), threshold=0.5)


def structures(label: LabelMap, number: int) -> np.ndarray:
    """(number, *s) bool: the masks of the foreground classes."""
    data = np.asarray(label.data)
    return data[-number:] > 0 if label.overlapping else np.stack([data == k + 1 for k in range(number)])


def _lender(parts: Mapping[str, Method]) -> Segmenter:
    part = parts.get("network")
    if set(parts) != {"network"}:
        raise UsageError("this method takes one part", found=", ".join(parts), allowed="network", fix="--part network=SLUG")
    if not isinstance(part, Segmenter) or part.derived:
        raise UsageError("only a segmenter of the plan's images can lend its network", where="--part network", found=type(part).__name__)
    return part


def _shares(levels: Sequence[float], number: int) -> list[float]:
    """``number`` weights that sum to 1."""
    weights = [levels[i] if i < len(levels) else levels[-1] * 0.5 ** (i - len(levels) + 1) for i in range(number)]
    return [w / sum(weights) for w in weights]


def _at(logits: Tensor, size: Sequence[int]) -> Tensor:
    if logits.shape[2:] == tuple(size):
        return logits
    return interpolate(logits, tuple(size), mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)
