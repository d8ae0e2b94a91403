"""TraCoCo: two networks teach each other on unlabelled volumes, and each must answer alike wherever a crop was cut.

A label learnt together with its surroundings fails where the surroundings differ. Two overlapping crops of one volume see the same voxels
in different contexts, so demanding equal answers on the overlap takes the context away. Each network also learns from the other's
confident answers, one of them on cut-and-mixed crops.

Liu et al., Translation consistent semi-supervised segmentation for 3D medical images (2022), https://arxiv.org/abs/2203.14523, code
https://github.com/yyliu01/TraCoCo. Where we differ or had to choose:

* The code clamps logits to [1e-6, 1], takes the softmax over a spatial axis and sums the crops' terms; here it is over the classes and the
  terms are means over the shared voxels.
* "1 - y", the class ruled out, is for more than two classes *every* class the other network gives less than ``excluded``, weighted by how
  much it gives. With two classes it is the paper's term. (The code for four classes negates integers bitwise, which cannot be meant.)
* T, 40 epochs of the labelled cases, is 320 of 9000 iterations with 16 labels: the share ``ramp`` of the training.
* The noise of +-0.2 is in units of the prepared image (mostly its sd), where the paper's images run from 0 to 1.
* Boxes of CutMix lie inside the crop; the code cuts those off that reach over the edge.
* Both networks are the plan's U-Net, so that a comparison with ``unet`` shows the training alone; ``backbone='vnet'`` is the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.case import IGNORE, Batch, Condition
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Sampling, Stage, Stream
from ...core.plan import Plan
from ...networks.vnet import VNet
from ...objectives.dice_ce import DiceCE, deep
from ...objectives.ramps import poly_decay, sigmoid_ramp
from ...ops.overlap import Box, overlap
from ..learned import Segmenter

RATES = {"sgd": 5e-2, "adamw": 2e-3}


class TraCoCo(Segmenter):
    """``translation`` and ``entropy`` weigh the two terms on the overlap (0.3 and 0.1 for the left atrium, 1.0 and 0.1 for the pancreas);
    ``translation=0`` draws no second crop and switches both off. ``agreement='mse'`` is plain co-training; ``confident`` and ``excluded``
    are the confidences of 'cbc'. ``report``: the network that answers, or the mean of both probabilities. ``optimizer='adamw'`` for
    budgets too short for the paper's SGD; ``lr`` is 5e-2 and 2e-3 unless given."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        backbone: Literal["vnet", "planned"] = "planned",
        agreement: Literal["cbc", "mse"] = "cbc",
        translation: float = 0.3,
        entropy: float = 0.1,
        cutmix: bool = True,
        confident: float = 0.65,
        excluded: float = 0.1,
        noise: float = 0.2,
        overlap: float = 0.25,
        ramp: float = 320 / 9000,
        report: Literal["first", "second", "mean"] = "first",
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float | None = None,
        weight_decay: float = 1e-4,
    ):
        network = VNet if backbone == "vnet" else None
        objective = partial(DiceCE, dice_weight=0.5, ce_weight=0.5, squared=True)  # 0.5 (CE + Dice with squares)
        lr = RATES[optimizer] if lr is None else lr
        super().__init__(plan, manifest, parts=parts, network=network, objective=objective, lr=lr, weight_decay=weight_decay, ema=0)
        self.second = self.build(network)
        if any(n % m for n, m in zip(plan.patch, self.network.multiple, strict=True)):
            sides = f"multiples of {self.network.multiple}"
            raise UsageError(f"the {backbone} network does not fit the patch", where="patch", found=plan.patch, allowed=sides)
        self.agreement, self.translation, self.entropy, self.cutmix = agreement, translation, entropy, cutmix
        self.confident, self.excluded, self.noise, self.overlap = confident, excluded, noise, overlap
        self.ramp, self.report, self.optimizer = ramp, report, optimizer

    def sampling(self, stage: Stage) -> Sampling:
        half = max(1, self.plan.batch // 2)
        streams = (Stream("labelled", half, "labelled"), Stream("unlabelled", half, "unlabelled"))
        return Sampling(streams=streams, views=2 if self.translation else 1, overlap=self.overlap, spatial="exact")

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        free, n, weight = batch["unlabelled"], len(batch), sigmoid_ramp(clock.fraction, until=self.ramp)
        pairs = list(zip((batch, *batch.views), (free, *free.views), strict=True))  # labelled crops come first, then the others
        views = [torch.cat([a.image, b.image]) for a, b in pairs]
        poses = [torch.cat([a.to_case, b.to_case]).cpu().numpy() for a, b in pairs]
        boxes = overlap(*poses, views[0].shape[2:]) if self.translation else []
        nets, terms = {"first": self.network, "second": self.second}, {}
        with torch.no_grad():  # what each network teaches the other, on the clean crops
            first, second = (_levels(net(views[0]))[0].float() for net in nets.values())
        for (name, net), teacher in zip(nets.items(), (second, first), strict=True):
            levels = _levels(net(self.noisy(torch.cat(views))))
            crops = levels[0].float().chunk(len(views))
            learner, teacher = crops[0][n:], teacher[n:]
            if self.cutmix and name == "second":
                mixed, teacher = (x[n:] for x in cutmix(views[0], first))  # partners are labelled cases, too
                learner = _levels(net(self.noisy(mixed)))[0].float()
            terms[f"{name}/supervised"] = deep(self.objective, [x[:n] for x in levels], batch.label, ignore_index=IGNORE)
            terms[f"{name}/agreement"] = weight * self.agree(learner, teacher.softmax(1))
            if self.translation:
                shift, order = translation_terms(*crops, boxes)
                terms[f"{name}/translation"] = weight * self.translation * shift
                terms[f"{name}/entropy"] = weight * self.entropy * order
        return terms

    def noisy(self, image: Tensor) -> Tensor:
        return image + torch.empty_like(image).uniform_(-self.noise, self.noise)

    def agree(self, logits: Tensor, q: Tensor) -> Tensor:
        if self.agreement == "mse":
            return F.mse_loss(logits.softmax(1), q)
        return confident_cross_entropy(logits, q, self.confident, self.excluded)

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits (B, K, *s) of the reported network; of both, the logarithm of their mean probability."""
        if self.training or self.report == "first":
            return self.network(image)
        if self.report == "second":
            return self.second(image)
        both = torch.stack([net(image).log_softmax(1) for net in (self.network, self.second)])
        return both.logsumexp(0) - math.log(2)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        both = [*self.network.parameters(), *self.second.parameters()]
        if self.optimizer == "sgd":
            return {"main": torch.optim.SGD(both, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)}
        return {"main": torch.optim.AdamW(both, lr=self.lr, weight_decay=self.weight_decay)}

    def learning_rate(self, clock: Clock) -> float:
        return poly_decay(clock.fraction, 0.9) if self.optimizer == "sgd" else super().learning_rate(clock)


# ---------------------------------------------------------------------------------------------------------------------------- the terms
def translation_terms(here: Tensor, there: Tensor, boxes: Sequence[tuple[Box, Box]]) -> tuple[Tensor, Tensor]:
    """(KL(softmax(there) || softmax(here)), sum_k p log p), both averaged over the voxels that the two crops share; the second over both
    crops. ``here``, ``there``: logits (B, K, *s); ``boxes``: per sample the shared box in each. Minimising the second keeps predictions
    from collapsing into one class."""
    kl, order, voxels = here.new_zeros(()), here.new_zeros(()), 0
    for a, b, (in_a, in_b) in zip(here, there, boxes, strict=True):
        p, q = a[(slice(None), *in_a)].log_softmax(0), b[(slice(None), *in_b)].log_softmax(0)
        kl = kl + (q.exp() * (q - p)).sum()
        order = order + ((p.exp() * p).sum() + (q.exp() * q).sum()) / 2
        voxels += p[0].numel()
    return kl / max(voxels, 1), order / max(voxels, 1)


def confident_cross_entropy(logits: Tensor, q: Tensor, confident: float, excluded: float) -> Tensor:
    """The CBC loss against the other network's probabilities ``q`` (B, K, *s): the mean of max(q) CE(p, argmax q) over voxels of max(q) >=
    ``confident``, plus the mean of -q_k log(1 - p_k) over voxels and classes of q_k < ``excluded``. An empty set gives 0."""
    logp = logits.log_softmax(1)
    best, y = q.max(1)
    sure = best >= confident
    positive = -best * logp.gather(1, y.unsqueeze(1)).squeeze(1)
    out = q < excluded
    negative = -q * (1 - logp.exp()).clamp_min(1e-6).log()
    return _mean(positive, sure) + _mean(negative, out)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the chosen values, 0 when none is. What is not chosen gets no gradient."""
    return values.masked_fill(~where, 0).sum() / where.sum().clamp_min(1)


def cutmix(*tensors: Tensor, alpha: float = 4.0) -> list[Tensor]:
    """Each of ``tensors`` (B, C, *s) with one box a sample taken from another sample: the same boxes and partners (a random permutation) in
    all. A box runs through the full depth (the last axis of three); its sides across are sqrt(1 - lambda) of the crop's, lambda ~
    Beta(alpha, alpha)."""
    ratio, across = math.sqrt(1 - torch.distributions.Beta(alpha, alpha).sample().item()), tensors[0].shape[2:4]
    mixed = [x.clone() for x in tensors]
    for b, partner in enumerate(torch.randperm(len(tensors[0])).tolist()):
        low = [int(torch.randint(n - int(n * ratio) + 1, ())) for n in across]
        box = (slice(None), *(slice(i, i + int(n * ratio)) for i, n in zip(low, across, strict=True)))
        for x, y in zip(tensors, mixed, strict=True):
            y[b][box] = x[partner][box]
    return mixed


def _levels(output: Tensor | list[Tensor]) -> list[Tensor]:
    """Logits by resolution, finest first, whether or not the network is deeply supervised."""
    return output if isinstance(output, list) else [output]
