"""The baseline that CURVAS measures: a U-Net taught by several raters, its probabilities scaled to how often they are right.

The protocol is ``metrics.curvas``, its data ``datasets.curvas``. The challenge prescribes no training; its finding is that calibrated
models win. Here the planned U-Net learns the share of raters who say each class (or one rater at a time, or only where all agree), and
one temperature for all logits (Guo et al. 2017, https://arxiv.org/abs/1706.04599) is fitted on the validation cases against every rater.
Dividing logits changes no decision, so DSC stays what it was.

Riera-Marin et al., CURVAS challenge results, https://arxiv.org/abs/2505.08685. The soft target is our choice among the spec's three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core.case import IGNORE, Batch
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run
from ...core.plan import Plan
from ...metrics.calibration import fit_temperature
from ...objectives.dice_ce import deep
from ...ops.opinions import opinions
from ..planned import PlannedUNet

VOXELS = 100_000  # of a case and rater in the fit of the temperature, evenly spread


class CurvasUNet(PlannedUNet):
    """``learn``: 'mean' (the share of raters who say a class), 'random' (one rater a sample and step), 'consensus' (voxels all agree on).
    ``temperature``: fitted on the validation cases (None), or fixed: 1 leaves probabilities as they are, less makes them surer."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        learn: Literal["mean", "random", "consensus"] = "mean",
        temperature: float | None = None,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        if temperature is not None and not temperature > 0:
            raise UsageError("a temperature is positive", where="temperature", found=temperature, allowed="none (fitted), or above 0")
        super().__init__(plan, manifest, parts=parts, lr=lr, weight_decay=weight_decay, ema=ema)
        self.learn, self.fixed = learn, temperature
        self.register_buffer("temperature", torch.tensor(float(temperature or 1.0)))

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> CurvasUNet:
        run.train(self, train, val)
        if self.fixed is None:
            logits, said = (np.concatenate(x, axis=-1) for x in zip(*self._answers(val or train, run), strict=True))
            self.temperature.fill_(fit_temperature(logits, said))
            run.log(temperature=float(self.temperature))
        return self

    def _answers(self, cases: Sequence[str], run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(logits (K, n), labels (n,)) of every rater of every case at temperature 1: log-probabilities are logits."""
        for case, prediction in run.infer(self, cases):
            p = np.asarray(prediction.probability.data)
            p = p.reshape(len(p), -1)[:, :: max(1, p[0].size // VOXELS)]
            for name in opinions(case.labels):
                said = np.asarray(case.labels[name].data).reshape(-1)[:: max(1, case.labels[name].data.size // VOXELS)]
                yield np.log(np.maximum(p, 1e-12)), said.astype(np.int64)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        maps = torch.stack([batch.labels[name] for name in opinions(batch.labels)])  # (R, B, *s)
        logits = self.network(batch.image)
        if self.learn == "mean":
            target, weight = shares(maps, self.out_channels)
            return {"segmentation": deep(self.objective, logits, target, weight=weight)}
        if self.learn == "random":
            chosen = torch.randint(len(maps), (maps.shape[1],), device=maps.device)
            target = maps[chosen, torch.arange(maps.shape[1], device=maps.device)]
        else:
            target = torch.where((maps == maps[:1]).all(0), maps[0], IGNORE)
        return {"segmentation": deep(self.objective, logits, target, ignore_index=IGNORE)}

    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits.float() / self.temperature)


def shares(maps: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """((B, K, *s) share of raters who say each class, of those who spoke; (B, *s) 1 where anyone did, None when all did everywhere)."""
    spoken = maps != IGNORE
    said = torch.stack([(maps == k).float().sum(0) for k in range(classes)], 1)
    number = spoken.sum(0).unsqueeze(1)
    return said / number.clamp_min(1), None if spoken.all() else spoken.any(0).float()
