"""MaxQuery as a method: clusters taught by two losses; beside the label map, a map of what is unlike every cluster, and one number a case.

The idea, the source and what we had to choose: ``networks.maxquery``; the second loss: ``objectives.maxquery``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core.case import IGNORE, Batch, Case, Condition, Image
from ...core.errors import UsageError, nearest
from ...core.manifest import Manifest
from ...core.method import Clock, Method
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.blocks.padding import pad_to_multiple
from ...networks.maxquery import MaxQuery, score
from ...objectives.maxquery import QueryDistribution
from ...objectives.ramps import poly_decay
from ..learned import Segmenter

BACKGROUND, ORGAN, LESION = range(3)


class MaxQuerySegmenter(Segmenter):
    """Gives images['ood'] (1, *s) in [0, 1), 0 outside what is predicted as foreground, and table['ood'], its ``case_score`` over that.

    ``lesions``: which classes are lesions; empty: all but the background and, where there are two or more, the first, the organ.
    ``qd_weight`` of the query-distribution loss. ``smooth``: sd (mm) of the Gaussian that the score is blurred with. ``optimizer``: 'radam'
    is the laboratory's, with a ``lr`` of 1e-4 for a thousand epochs; some hundred steps of that leave everything background.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., torch.nn.Module] = MaxQuery,
        lesions: tuple[str, ...] = (),
        qd_weight: float = 1.0,
        smooth: float = 1.0,
        case_score: Literal["max", "mean"] = "max",
        optimizer: Literal["radam", "adamw"] = "radam",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        ema: float = 0.0,
    ):
        if qd_weight < 0 or smooth < 0:
            raise UsageError("these are not negative", where="qd_weight, smooth", found=(qd_weight, smooth))
        super().__init__(plan, manifest, parts=parts, network=network, lr=lr, weight_decay=weight_decay, ema=ema)
        patch = tuple(-(-n // m) * m for n, m in zip(plan.patch, self.network.multiple, strict=True))
        self.plan = plan.derive(patch=patch)
        self.qd_weight, self.smooth, self.case_score, self.optimizer = qd_weight, smooth, case_score, optimizer
        self.distribution = QueryDistribution(self.network.sizes, groups(plan.classes, lesions))

    def build(self, network: Callable[..., torch.nn.Module] | None = None, **options) -> torch.nn.Module:
        p = self.plan
        return super().build(network, features=p.features, strides=p.strides, kernels=p.kernels, **options)

    # training ------------------------------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        found = self.network.clusters(batch.image)
        terms = {"segmentation": sum(self.objective(c.logits, batch.label, ignore_index=IGNORE) for c in found) / len(found)}
        if self.qd_weight:
            spread = sum(self.distribution(c.assignment, batch.label, ignore_index=IGNORE) for c in found) / len(found)
            terms["query distribution"] = self.qd_weight * spread
        return terms

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        kind = torch.optim.RAdam if self.optimizer == "radam" else torch.optim.AdamW
        return {"main": kind(self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay)}

    def learning_rate(self, clock: Clock) -> float:
        return poly_decay(clock.fraction)

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        return self.fast_forward(image)["logits"]

    def fast_forward(self, image: Tensor | None, condition: Condition | None = None) -> dict[str, Tensor]:
        """'logits' (B, K, *s) and 'ood' (B, 1, *s), the MaxQuery score, of the averaged network when evaluating, where there is one."""
        network = self.network if self.training or self.ema is None else self.ema.average
        last = network.answer(pad_to_multiple(image, network.multiple))
        window = (..., *(slice(n) for n in image.shape[2:]))
        return {"logits": last.logits[window], "ood": score(last.agreement)[window]}

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        from scipy.ndimage import gaussian_filter

        prediction = super().finish(maps, case)
        blur = [self.smooth / step for step in case.geometry.spacing]
        strange = gaussian_filter(maps["ood"][0].float().cpu().numpy(), blur)
        inside = prediction.probability.data.argmax(0) > 0
        strange = np.where(inside, 1 / (1 + np.exp(-np.clip(strange, -80, 80))), 0).astype(np.float32)
        worst = 0.0 if not inside.any() else float(getattr(strange[inside], self.case_score)())
        picture = Image(strange[None], case.geometry, normalise=False, name="ood")
        return prediction.with_(images={"ood": picture}, table={"ood": worst})


def groups(classes: tuple[str, ...], lesions: tuple[str, ...] = ()) -> list[int]:
    """The group of queries of each class: background, organ or lesion. Raises UsageError for lesions that are no foreground class."""
    foreground = classes[1:]
    for name in lesions:
        if name not in foreground:
            raise UsageError(f"'{name}' is no class of the data set", where="lesions", fix=nearest(name, foreground))
    lesions = lesions or (foreground if len(foreground) == 1 else foreground[1:])
    return [BACKGROUND, *(LESION if name in lesions else ORGAN for name in foreground)]
