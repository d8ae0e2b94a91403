"""SimPLe: a tumour is outlined by its six extreme points alone; what the points leave open, likeness in feature space fills in.

Points give a first mask: sure voxels inside their box, nothing said about the rest of the box, background outside. Stage one learns from
the sure voxels and makes tumour voxels alike in feature space, unlike background. Stage two, short, calls open voxels tumour that look like
nearly all of a hundred sure ones, and goes on learning. Stage three starts afresh on the masks that stage two predicts.

Zhong and Wang, SimPLe: similarity-aware propagation learning for weakly-supervised breast cancer segmentation in DCE-MRI, MICCAI 2023,
https://arxiv.org/abs/2306.16714, code https://github.com/Abner228/SmileCode. Where we differ or had to choose:

* The first mask is made once, on the native grid, before anything else sees the case; there the published distances of 5 and 10 to 20
  voxels are ``ring_mm`` 3 and ``margin_mm`` 12.
* Every labelled object of every class has points of its own, and classes are contrasted and spread one by one. Where the boxes of two
  objects meet, what is sure for one stands; what is sure for two classes is left open.
* The planned U-Net without deep supervision stands for the paper's (five levels, flat kernels on the first).
* Published are 200 epochs, 100 iterations and 200 epochs; here shares of the budget, ``finetune`` of it for the second stage.
* ``optimizer='adamw'`` is for budgets too short for the paper's SGD; ``lr`` is 1e-2 and 2e-3 unless given, in the second stage a
  hundredth of it.

Key components: ``ops.extreme`` (paths, box, random walker), ``objectives.voxel_contrast`` (pairs and spreading), ``networks.feature_unet``.

Good to know: name the points 'extreme' (2d an object, its class as the point's name, its number as instance). ``simulate`` takes them from
the reference of training cases that have none, as the paper's own experiment does, and drops the reference there and then: no loss sees
it, and prepared cases do not hold it. Validation cases keep theirs, so the best weights are chosen by full masks where there are any. A box
is a loose hint for rings and thin curved objects: their inside looks like background. ``until`` ends after an earlier stage, which then has
the whole budget. The contrast needs a long training: cosines do not see lengths, and the quickest way to make objects unlike background
behind a LeakyReLU is to make their features far shorter than the background's, from where logits, which live by lengths, recover slowly.
That is why it costs overlap below; where time is short, ``contrast=0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.case import IGNORE, Batch, Case, LabelMap, Points
from ...core.errors import DataError, UsageError
from ...core.geometry import Geometry
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Sampling, Stage, Stream
from ...core.plan import Plan
from ...networks.feature_unet import FeatureUNet
from ...objectives.ramps import poly_decay
from ...objectives.voxel_contrast import spread, voxel_contrast
from ...ops.components import components
from ...ops.extreme import extreme_points, mask_from_extremes
from ..learned import Segmenter

POINTS = "extreme"
RATES = {"sgd": 1e-2, "adamw": 2e-3}


class SimPLe(Segmenter):
    """``until`` which stage to train; ``contrast`` and ``propagation`` weigh their terms (0: none); ``pairs`` voxels of a kind in either,
    ``temperature`` of the contrast; ``cosine`` and ``votes`` (share) that make an open voxel foreground; ``finetune``: share of the
    budget for propagation. ``beta``, ``walks``, ``margin_mm``, ``ring_mm``: the first mask (``ops.extreme``); ``simulate``: points from
    the reference where a training case has none."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        until: Literal["contrast", "propagate", "retrain"] = "retrain",
        contrast: float = 1.0,
        propagation: float = 0.1,
        pairs: int = 100,
        temperature: float = 0.1,
        cosine: float = 0.96,
        votes: float = 0.96,
        finetune: float = 0.02,
        beta: float = 130.0,
        walks: int = 7,
        margin_mm: float = 12.0,
        ring_mm: float = 3.0,
        simulate: bool = True,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float | None = None,
        weight_decay: float = 1e-4,
        ema: float = 0.0,
    ):
        for name, value in (("finetune", finetune), ("cosine", cosine), ("votes", votes)):
            if not 0 < value < 1:
                raise UsageError("this is a share or a cosine", where=name, found=value, allowed="above 0 and below 1")
        for name, value in (("pairs", pairs), ("temperature", temperature), ("walks", walks), ("beta", beta)):
            if not value > 0:
                raise UsageError("this is positive", where=name, found=value)
        if not 0 < ring_mm < margin_mm:
            raise UsageError("seeds outside the box lie within the margin", where="ring_mm", found=(ring_mm, margin_mm))
        rate = RATES[optimizer] if lr is None else lr
        super().__init__(plan, manifest, parts=parts, lr=rate, weight_decay=weight_decay, ema=ema)
        self.until, self.contrast, self.propagation, self.finetune = until, contrast, propagation, finetune
        self.pairs, self.temperature, self.cosine, self.votes = pairs, temperature, cosine, votes
        self.walk = dict(beta=beta, walks=walks, margin_mm=margin_mm, ring_mm=ring_mm)
        self.simulate, self.optimizer = simulate, optimizer

    def build(self, network: None = None) -> FeatureUNet:
        p = self.plan
        levels = dict(features=p.features, strides=p.strides, kernels=p.kernels)
        return FeatureUNet(self.in_channels, self.out_channels, spatial_dims=p.dims, **levels)

    # from points to a mask -----------------------------------------------------------------------------------------------------------
    @property
    def preparation(self) -> str:
        """What prepared cases depend on: part of the cache's key."""
        return f"{self.walk} {self.simulate} {self.plan.classes}"

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """In training the labels become one, 'reference', made of the image and the extreme points; a case without either has none."""
        if not training:
            return case
        image = case.images[self.plan.channels[0]]
        points = case.points.get(POINTS)
        if points is None and case.label is not None and self.simulate:
            points = points_of(case.label.on(image.geometry))
        labels: dict[str, LabelMap | None] = dict.fromkeys(case.labels)
        if points is not None:
            found = self.first_mask(np.asarray(image.data[0]), image.geometry, points, case.id)
            labels["reference"] = LabelMap(found, image.geometry, self.plan.classes)
            case = case.with_(points={POINTS: points})
        return case.with_(labels=labels)

    def first_mask(self, image: np.ndarray, grid: Geometry, points: Points, case: str) -> np.ndarray:
        """(*s) int16: class indices where the points and the image are sure, ``IGNORE`` in the rest of the boxes, 0 outside them."""
        names = self.class_names(points, case)
        number = np.zeros(len(names), int) if points.instance is None else np.asarray(points.instance)
        voxels, open_, sure = grid.to_index(np.asarray(points.xyz, float)), np.zeros(image.shape, bool), np.zeros(image.shape, np.int16)
        for name, which in dict.fromkeys(zip(names, number.tolist(), strict=True)):
            mine = voxels[[n == name and i == which for n, i in zip(names, number, strict=True)]]
            mask, k = mask_from_extremes(image, mine, grid.spacing, **self.walk), self.plan.classes.index(name)
            open_ |= mask == IGNORE
            clash = (mask == 1) & (sure != 0) & (sure != k)
            sure[mask == 1] = k
            sure[clash] = IGNORE
        return np.where(sure != 0, sure, np.where(open_, IGNORE, 0)).astype(np.int16)

    def class_names(self, points: Points, case: str) -> tuple[str, ...]:
        """The class of every point; unnamed ones are of the only foreground class."""
        known = self.plan.classes[1:]
        names = points.names or (known if len(known) == 1 else ("",)) * len(points.xyz)
        odd = next((n for n in names if n not in known), None)
        if odd is not None or len(names) != len(points.xyz):
            found = f"a point named '{odd}'" if odd is not None else f"{len(names)} names of {len(points.xyz)} points"
            raise DataError("an extreme point belongs to a class", where=f"case {case}", found=found, allowed=", ".join(known))
        return names

    # training ------------------------------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        if self.until == "contrast":
            return (Stage("contrast"),)
        long = 1 - self.finetune if self.until == "propagate" else (1 - self.finetune) / 2
        first = Stage("contrast", long), Stage("propagate", self.finetune)
        averaged = ("ema",) if self.ema is not None else ()
        again = Stage("retrain", long, reinit=("network", *averaged), relabel=self.own_mask)
        return first if self.until == "propagate" else (*first, again)

    def own_mask(self, case: Case, rng: np.random.Generator) -> Case:
        if not case.labels:
            return case
        answer = self.predict(case.without_labels(), rng=rng).decide(self.plan.classes)
        return case.with_(labels={"reference": answer.label})

    def sampling(self, stage: Stage) -> Sampling:
        half, objects = max(1, self.plan.batch // 2), tuple(range(1, self.out_channels))
        return Sampling(streams=(Stream("object", half, centre=objects), Stream("around", half, centre=(0,))))

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        around, classes = batch["around"], self.out_channels
        logits, features = self.network.tapped(batch.image)
        terms = {"object": known_ce(logits, batch.label), "around": known_ce(self.network(around.image), around.label)}
        if clock.stage == "propagate":
            like = dict(references=self.pairs, cosine=self.cosine, votes=self.votes)
            fresh = spread(features.detach(), batch.label, classes=classes, **like)
            terms["propagation"] = self.propagation * known_ce(logits, fresh)
        elif clock.stage != "retrain" and self.contrast:
            pairs = voxel_contrast(features, batch.label, classes=classes, pairs=self.pairs, temperature=self.temperature)
            terms["contrast"] = self.contrast * pairs
        return terms

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.lr / 100 if self.stage.name == "propagate" else self.lr
        weights = self.network.parameters()
        if self.optimizer == "sgd":
            return {"main": torch.optim.SGD(weights, lr=rate, momentum=0.99, nesterov=True, weight_decay=self.weight_decay)}
        return {"main": torch.optim.AdamW(weights, lr=rate, weight_decay=self.weight_decay)}

    def learning_rate(self, clock: Clock) -> float:
        return poly_decay(clock.fraction, 0.9)


def known_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over voxels whose label is known; 0 when none is."""
    known = (labels != IGNORE).sum().clamp_min(1)
    return cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / known


def points_of(label: LabelMap) -> Points:
    """The extreme points (world mm) of every connected object of every class of a reference, as an annotator would give them."""
    if label.overlapping:
        raise DataError("extreme points are taken from one label map of exclusive classes", found="overlapping structures")
    data, grid, voxels, names, instance = np.asarray(label.semantic.data), label.geometry, [], [], []
    for k, name in enumerate(label.names[1:], 1):
        objects, sizes = components(data == k)
        for i in range(1, len(sizes) + 1):
            found = extreme_points(objects == i)
            voxels += list(found)
            names += [name] * len(found)
            instance += [i] * len(found)
    xyz = grid.to_world(np.asarray(voxels, float).reshape(-1, grid.ndim))
    return Points(xyz, tuple(names), np.asarray(instance, int))
