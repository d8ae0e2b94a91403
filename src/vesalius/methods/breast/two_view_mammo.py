"""Two-view mammography: a network that has learnt patches, then whole pictures, then looks at both views of a breast at once.

Three transfers. An EfficientNet tells patches apart (background, or the class of the lesion in them); its convolutions become the trunk of
a classifier of single views, and that trunk goes on in a classifier that runs CC and MLO through the same weights and joins the two feature
maps along the channels before its last blocks. Everything is trained in every stage.

Petrini et al., Breast cancer diagnosis in two-view mammography using end-to-end trained EfficientNet-based convolutional network, IEEE
Access 2022, https://arxiv.org/abs/2110.01606, code https://github.com/dpetrini/two-views-classifier. Where we differ or had to choose:

* One logit stands for two, one grey channel for three (published weights are made to fit); each view is normalised by its own mean and sd,
  and the house's augmentation moves both alike, instead of the numbers of CBIS-DDSM and the paper's ranges. No threshold is chosen.
* Both views are one batch for the trunk, so its batch norms see them together. A batch holds as many pictures in every stage, half as many
  pairs; where pictures are larger than the planned patch, fewer.
* [inferred]: ``shares`` of the budget (published are epochs of sets of unlike sizes) and how a patch gets its class (``patch_class``).

Key components: ``networks.efficientnet`` (EfficientNet, MBConv); three parts with a plan, a sampling unit and a head of their own ('patch',
'single', 'pair'), each started with the trunk of the one before; ``UNFOLD``, which makes their cases of breasts.

Good to know: a case is a breast with two images (CC, MLO) and, where patches are to be learnt, label maps of the same names; without any
the chain starts with single views. A breast with one view is answered by the single-view part, with a note. ``shares`` also makes the
baselines: 0.3,0.7,0 averages two single-view scores, 0,0,1 learns pairs from scratch. Each part keeps weights of its own (a single view is
answered by a trunk that pairs have not changed), so a run holds up to three trunks. The default ``size`` is the paper's and wants a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.case import IGNORE, Batch, Case, Condition
from ...core.errors import DataError, UsageError
from ...core.geometry import Grid
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Sampling, Stage
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.blocks.pretrained import load_backbone
from ...networks.efficientnet import EfficientNet, head
from ..learned import Classifier, LearnedMethod


class TwoViewMammo(Method):
    """Gives table[target]: the probability of a binary target ('malignant'), or as ``Classifier`` says for other kinds.

    ``target``: the column (empty: the data set's only one). ``size``: px of a prepared view; ``tile``: side of a patch, px. ``width``,
    ``depth``, ``stride`` and ``drop_path`` (stochastic depth) of the EfficientNet; ``blocks``: MBConv blocks between trunk and pooling, of
    single views and of pairs. ``shares`` of the budget for patches, single views and pairs; a stage of 0 is left out. ``pretrained``: a
    file of weights for the first trunk. ``shift`` px: answers are means over nine copies moved by so much (0: one, as it is).
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        target: str = "",
        size: tuple[int, ...] = (1152, 896),
        tile: int = 224,
        width: float = 1.0,
        depth: float = 1.0,
        stride: int = 32,
        drop_path: float = 0.2,
        blocks: int = 2,
        shares: tuple[float, ...] = (0.3, 0.3, 0.4),
        pretrained: str = "",
        shift: int = 0,
        lr: float = 1e-4,
    ):
        if len(plan.channels) != 2 or plan.in_channels % 2:
            fix = "make each breast a case with two images of as many channels, such as CC and MLO"
            raise UsageError("two views of a breast are looked at", where=manifest.name, found=", ".join(plan.channels), fix=fix)
        if len(size) != 2 or not 8 <= tile <= min(size) or not 0 <= shift < min(size):
            allowed = "rows and columns, 8 <= tile <= either, 0 <= shift < either"
            raise UsageError("no such pictures", where="size, tile, shift", found=(size, tile, shift), allowed=allowed)
        if len(shares) != 3 or min(shares) < 0 or not sum(shares[1:]) > 0:
            allowed = "three shares of patches, single views and pairs, the last two not both 0"
            raise UsageError("no such stages", where="shares", found=shares, allowed=allowed)
        batch = max(2, min(plan.batch, plan.batch * int(np.prod(plan.patch)) // int(np.prod(size))))
        both = plan.derive(grid=Grid(size=tuple(size)), patch=tuple(size), batch=batch, views=True, mirror_axes=(0, 1))
        rule, facts = plan.normalise.get(plan.channels[0], "none"), plan.intensities.get(plan.channels[0], {})
        view = both.derive(channels=("view",), in_channels=plan.in_channels // 2, normalise={"view": rule}, intensities={"view": facts})
        trunk = dict(width=width, depth=depth, stride=stride, drop_path=drop_path)
        make = {
            "patch": lambda: PatchClassifier(view.derive(patch=(tile, tile), batch=plan.batch), manifest, trunk=trunk, lr=lr),
            "single": lambda: ViewClassifier(view, manifest, target=target, trunk=trunk, blocks=blocks, shift=shift, lr=lr),
            "pair": lambda: PairClassifier(both, manifest, target=target, trunk=trunk, blocks=blocks, shift=shift, lr=lr),
        }
        self.shares = {name: share for name, share in zip(make, shares, strict=True) if share}
        super().__init__(both, manifest, parts={**{name: make[name]() for name in self.shares}, **(parts or {})})
        self.pretrained = pretrained

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> TwoViewMammo:
        """The chain: each part starts with the trunk of the last. A part that finds no case it could learn from leaves its share to the
        others (patches), or is an error."""
        cases = self.usable(train)
        run.log(**{f"{name}_cases": len(found) for name, found in cases.items()})
        for name, what in (("single", "a view"), ("pair", "both views")):
            if name in self.shares and not cases[name]:
                raise DataError(f"no training case has {what} and an answer", where=self.manifest.name, allowed=self.plan.channels)
        stages = {name: share for name, share in self.shares.items() if cases[name]}
        before = None
        for name, share in stages.items():
            part = self.parts[name]
            if before is not None:
                part.trunk.load_state_dict(before.trunk.state_dict())
            elif self.pretrained:
                load_backbone(part.trunk, self.pretrained)
            run.train(part, cases[name], (), name=name, share=share / sum(stages.values()), unfold=UNFOLD[name])
            before = part
        return self

    def usable(self, train: Sequence[str]) -> dict[str, list[str]]:
        """The cases each part can learn from: with a view and its label map, with a view and an answer, with both and an answer."""
        rows, views = [self.manifest[c] for c in train], set(self.plan.channels)
        target = next((p.target for p in self.parts.values() if isinstance(p, Classifier)), "")
        told = [r for r in rows if r.table.get(target) not in (None, "")]
        return {
            "patch": [r.id for r in rows if views & set(r.images) & set(r.labels)],
            "single": [r.id for r in told if views & set(r.images)],
            "pair": [r.id for r in told if views <= set(r.images)],
        }

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        there = [v for v in self.plan.channels if v in case.images]
        if not there:
            found = ", ".join(case.images) or "no image"
            raise DataError("no view of the breast is there", where=f"case {case.id}", found=found, allowed=self.plan.channels)
        if len(there) == 2 and "pair" in self.parts:
            return self.parts["pair"].predict(case, rng=rng)
        gone = ", ".join(v for v in self.plan.channels if v not in there)
        if "single" not in self.parts:
            fix = "give both views, or train with a share for single views"
            raise DataError(f"image '{gone}' is missing, and single views were not learnt", where=f"case {case.id}", found=there, fix=fix)
        answer = mean_of([self.parts["single"].predict(one, rng=rng) for one in single_views(case)])
        return answer.with_(notes=(f"{gone} is missing: answered from {there[0]} by the single-view part",) if gone else ())


def marked_views(case: Case) -> Iterator[Case]:
    """The views that have a label map, as cases of the same patient: the picture is 'view', its label map 'reference'."""
    for one, name in zip(single_views(case), case.images, strict=True):
        if name in case.labels:
            yield replace(one, labels={"reference": case.labels[name]})


def single_views(case: Case) -> Iterator[Case]:
    """Each view as a case, without label maps."""
    for name, image in case.images.items():
        yield replace(case, id=f"{case.id}/{name}", images={"view": image}, labels={})


def view_pairs(case: Case) -> Iterator[Case]:
    """The breast itself, without label maps: what is not learnt from need not be there for every case."""
    yield replace(case, labels={})


UNFOLD = {"patch": marked_views, "single": single_views, "pair": view_pairs}


def mean_of(answers: Sequence[Prediction]) -> Prediction:
    """The mean of the answers to the one column, level by level where they are probabilities of levels."""
    ((column, first),) = answers[0].table.items()
    said = [a.table[column] for a in answers]
    mean = {k: float(np.mean([s[k] for s in said])) for k in first} if isinstance(first, Mapping) else float(np.mean(said))
    return Prediction(table={column: mean})


# the three parts -------------------------------------------------------------------------------------------------------------------------
class PatchClassifier(LearnedMethod):
    """Stage 1: the class of the lesion in a patch, or background. ``forward``: {"patch": (B, classes)}."""

    def __init__(self, plan: Plan, manifest: Manifest, *, trunk: Mapping[str, float], lr: float):
        super().__init__(plan, manifest)
        self.trunk, self.lr = EfficientNet(self.in_channels, **trunk), lr
        self.head = head(self.trunk.channels, 0, len(plan.classes))

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="patch", foreground=0.5)

    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        return {"patch": self.head(self.trunk(image))}

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        answer, truth = self(batch.image)["patch"], patch_class(batch.label, len(self.plan.classes))
        known = (truth != IGNORE).sum().clamp(min=1)
        return {"patch": cross_entropy(answer, truth, ignore_index=IGNORE, reduction="sum") / known}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.Adam(self.parameters(), lr=self.lr)}


def patch_class(label: Tensor, classes: int) -> Tensor:
    """(B, h, w) label maps of patches -> (B,): the lesion class with most pixels in the middle (half of each side), background where none
    has any; IGNORE where nobody spoke for the middle."""
    h, w = label.shape[1:]
    middle = label[:, h // 4 : h - h // 4, w // 4 : w - w // 4].flatten(1)
    counts = torch.stack([(middle == k).sum(1) for k in range(classes)], 1)
    lesion = counts[:, 1:].argmax(1) + 1
    found = torch.where(counts[:, 1:].sum(1) > 0, lesion, torch.zeros_like(lesion))
    return torch.where(counts.sum(1) > 0, found, torch.full_like(found, IGNORE))


class ViewClassifier(Classifier):
    """Stage 2: one picture -> the target."""

    views = 1

    def __init__(
        self, plan: Plan, manifest: Manifest, *, target: str, trunk: Mapping[str, float], blocks: int, shift: int = 0, lr: float = 1e-4
    ):
        super().__init__(plan, manifest, target=target)
        self.trunk, self.shift, self.lr = EfficientNet(self.in_channels // self.views, **trunk), shift, lr
        self.head = head(self.views * self.trunk.channels, blocks, self.outputs)

    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        return {self.target: self.head(self.trunk(image))}

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        s = self.shift
        copies = [moved(case, (i, j)) for i in (-s, 0, s) for j in (-s, 0, s)] if s else [case]
        return mean_of([super(ViewClassifier, self).predict(copy, rng=rng) for copy in copies])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.Adam(self.parameters(), lr=self.lr)}


class PairClassifier(ViewClassifier):
    """Stage 3: CC and MLO, stacked along the channels -> the target. One trunk sees both; their maps are joined along the channels."""

    views = 2

    def sampling(self, stage: Stage) -> Sampling:
        wanted = super().sampling(stage)
        return replace(wanted, streams=tuple(replace(s, size=max(1, s.size // 2)) for s in wanted.streams))

    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        maps = self.trunk(torch.cat(image.chunk(2, 1)))
        return {self.target: self.head(torch.cat(maps.chunk(2), 1))}


def moved(case: Case, by: tuple[int, int]) -> Case:
    """The prepared case with its pictures moved by rows and columns; what comes in is 0, the mean."""
    return case.with_(images={k: replace(v, source=ndimage.shift(v.data, (0, *by), order=0)) for k, v in case.images.items()})
