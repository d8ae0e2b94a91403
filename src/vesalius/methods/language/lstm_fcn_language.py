"""Segmentation from natural language expressions: every cell of a feature map is asked whether the expression means it.

An LSTM reads the expression; its last state is laid beside the visual features of every cell of a fully convolutional VGG and the cell's
coordinates; a small classifier scores the cell, and a deconvolution brings the scores to the image's size. It is trained first to tell
which boxes an expression means, then on the cells, then on the pixels.

Hu, Rohrbach and Darrell, Segmentation from Natural Language Expressions, ECCV 2016, https://arxiv.org/abs/1603.06180. Deviations: by
default a small VGG from scratch with AdamW (theirs: ``widths=64,128,256,512,512 convs=2,2,3,3,3 fc=4096 features=1000 embedding=1000
hidden=1000 mlp=500 optimizer=sgd schedule=steps lr=0.01 size=512`` and ImageNet weights); word pieces of the training expressions for a
fixed list of words; a cell's target is the share of its pixels that are meant; expressions that mean nothing are trained on too.
[inferred]: the boxes, which are those of the objects, moved a little, and random ones; a box is right from an IoU of 0.5; first weights.

Key components: ``networks.text.LastState`` (the LSTM), ``networks.blocks.coordinates`` (eight numbers a box or cell), ``LSTMFCN.fuse``
(features, expression and coordinates, each of unit norm but the last) and ``Upsample``, which begins as bilinear interpolation.

Good to know: the answer has one mask for each expression. Its score, table['query:<id>'], is the mask's highest probability: below 0.5 the
mask is empty and a note says that the expression means nothing here. A mask is hardly finer than a cell: fewer ``widths`` make smaller
ones. Words and places meet late in training: first all objects are found, then the right one. A net that knows the objects but not yet
the words gives empty masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, normalize

from ...core.case import IGNORE, Batch, Case, Condition, Query
from ...core.errors import DataError, UsageError
from ...core.geometry import LongestSide
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Stage
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...core.prompt import Prompt, Text
from ...networks.blocks.coordinates import CHANNELS, box_coordinates, coordinate_map, cut
from ...networks.blocks.pretrained import load_backbone
from ...networks.blocks.vgg import VGG, Upsample
from ...networks.text import BagOfWords, LastState, WordPieces, words_of
from ...ops.components import bounding_box, components
from ..learned import ReferringSegmenter

READERS = {"lstm": LastState, "bag": BagOfWords}
REGIONS, RIGHT, SURE = 4, 0.5, 0.5  # boxes an image and step; IoU from which one is right; score from which a mask is not empty


class LSTMFCN(ReferringSegmenter):
    """``widths`` and ``convs``: the VGG's blocks, of which each halves the image; ``fc``, ``features``: channels of the convolutions that
    stand for its dense layers. ``text``: 'lstm', 'bag' (no word order) or 'none' (no expression, the language-blind net);
    ``coordinates``: whether a cell knows where it is. ``words``: pieces of an expression read; ``vocabulary``: pieces learnt at most.
    ``shares`` of the budget for the stages boxes, cells and pixels; 0 leaves a stage out. ``fixed``: a trained VGG rests on the cells.
    ``positive`` weighs the pixels that are meant. ``size``: side of the square the image is brought to (0: the plan's patch).
    ``pretrained``: a local safetensors file with VGG-16's convolutions.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        text: Literal["lstm", "bag", "none"] = "lstm",
        coordinates: bool = True,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        convs: tuple[int, ...] = (2, 2, 2, 2),
        fc: int = 128,
        features: int = 64,
        embedding: int = 64,
        hidden: int = 64,
        mlp: int = 128,
        words: int = 20,
        vocabulary: int = 2000,
        shares: tuple[float, ...] = (0.2, 0.3, 0.5),
        fixed: bool = True,
        positive: float = 1.0,
        size: int = 0,
        pretrained: str = "",
        optimizer: Literal["adamw", "sgd"] = "adamw",
        schedule: Literal["cosine", "steps"] = "cosine",
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
    ):
        if len(widths) != len(convs) or min((fc, features, embedding, hidden, mlp, *widths, *convs), default=0) < 1:
            found = (widths, convs, fc, features, embedding, hidden, mlp)
            raise UsageError("no such network", where="widths, convs", found=found, allowed="as many convs as widths, all 1 or more")
        if len(shares) != 3 or min(shares) < 0 or not sum(shares[1:]) or words < 3 or vocabulary < 10 or positive <= 0:
            allowed = "three shares of which the last two are not both 0, words from 3, vocabulary from 10, positive above 0"
            raise UsageError("no such training", found=(shares, words, vocabulary, positive), allowed=allowed)
        stride = 2 ** len(widths)
        side = -(-(size or max(plan.patch)) // stride) * stride
        super().__init__(plan.derive(patch=(side, side), grid=LongestSide(side), crop_to_body=False), manifest, parts=parts)
        self.stride, self.shares, self.fixed, self.positive, self.pretrained = stride, shares, fixed, positive, pretrained
        self.optimizer, self.schedule, self.rates = optimizer, schedule, (lr, weight_decay)
        self.words, self.length, self.vocabulary, self.hidden, self.coordinates = WordPieces(()), words, vocabulary, hidden, coordinates
        self.backbone = VGG(self.in_channels, widths, convs)
        self.fc = nn.Sequential(
            nn.Conv2d(widths[-1], fc, 7, padding=3), nn.ReLU(), nn.Conv2d(fc, fc, 1), nn.ReLU(), nn.Conv2d(fc, features, 1)
        )
        self.language = READERS[text](vocabulary, width=embedding, hidden=hidden) if text != "none" else None
        self.head = nn.Sequential(nn.Conv2d(features + hidden + CHANNELS * coordinates, mlp, 1), nn.ReLU(), nn.Conv2d(mlp, 1, 1))
        self.upsample = Upsample(stride)
        for layer in self.fc[::2]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.head[0].weight)  # of parts of unit norm, not of unit variance

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> LSTMFCN:
        texts = [q.text for case in train for q in run.prepared(case).queries]
        if not texts:
            fix = "write queries.csv beside cases.csv, or open labelled data as PATH?queries=templated"
            raise DataError("no training case has an expression", where=self.manifest.name, fix=fix)
        self.words = WordPieces.learn(texts, self.vocabulary)
        if self.pretrained:
            load_backbone(self.backbone, Path(self.pretrained))
        return super().fit(train, val, run)

    def condition(self, case: Case, rng: np.random.Generator) -> Condition:
        (query,) = case.queries
        if not words_of(query.text):
            raise DataError("an expression without words", where=f"case {case.id}, expression '{query.id}'", found=repr(query.text))
        return Condition({"ids": torch.from_numpy(self.words.encode(query.text, self.length))[None]})

    # the network ---------------------------------------------------------------------------------------------------------------------
    def fuse(self, visual: Tensor, ids: Tensor | None, where: Tensor) -> Tensor:
        """Features (B, F, h, w) of unit norm, the expression's state of unit norm in every cell, and ``where`` (B or 1, 8, h, w)."""
        state = visual.new_zeros(len(visual), self.hidden) if self.language is None or ids is None else self.language(ids)
        told = normalize(state.float(), dim=1)[:, :, None, None].expand(-1, -1, *visual.shape[2:])
        parts = [normalize(visual.float(), dim=1), told]
        return torch.cat([*parts, where.expand(len(visual), -1, -1, -1)] if self.coordinates else parts, 1)

    def cells(self, image: Tensor, ids: Tensor | None) -> Tensor:
        """(B, 1, H / stride, W / stride) scores. Without ``ids`` no expression is read."""
        visual = self.fc(self.backbone(image))
        return self.head(self.fuse(visual, ids, coordinate_map(*visual.shape[2:], like=visual.float())[None]))

    def boxes(self, image: Tensor, ids: Tensor, boxes: Tensor) -> Tensor:
        """(B, R) scores of boxes (B, R, 4) in -1..1: each is cut out at half the image's size and its features averaged."""
        number = boxes.shape[1]
        crops = cut(image, boxes, max(self.stride, image.shape[-1] // 2 // self.stride * self.stride))
        visual = self.fc(self.backbone(crops)).mean((2, 3), keepdim=True)
        where = box_coordinates(boxes.flatten(0, 1))[:, :, None, None]
        return self.head(self.fuse(visual, ids.repeat_interleave(number, 0), where)).view(-1, number)

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        return self.upsample(self.cells(image, None if condition is None else condition.values["ids"]).float())

    # training ------------------------------------------------------------------------------------------------------------------------
    def stages(self) -> Sequence[Stage]:
        trained = ("fc", "language", "head") if self.fixed and (self.shares[0] or self.pretrained) else ()
        stages = (Stage("boxes", self.shares[0]), Stage("cells", self.shares[1], trainable=trained), Stage("pixels", self.shares[2]))
        return tuple(s for s in stages if s.share)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if "query" not in batch.labels or batch.condition is None:
            raise UsageError("this method learns from expressions and what they mean", where=type(self).__name__)
        target, ids = batch.labels["query"], batch.condition.values["ids"]
        if self.stage.name == "boxes":
            boxes, right = regions(batch, np.random.default_rng(int(torch.randint(2**31, (1,)))))
            return {"boxes": binary_cross_entropy_with_logits(self.boxes(batch.image, ids, boxes.to(batch.image)), right.to(batch.image))}
        known = (target != IGNORE).float()[:, None]
        meant = (target > 0).float()[:, None]
        if self.stage.name == "cells":
            share = avg_pool2d(known, self.stride)
            scores, meant, known = self.cells(batch.image, ids), avg_pool2d(meant, self.stride) / share.clamp(min=1e-6), share
        else:
            scores = self(batch.image, batch.condition)
        weight = torch.tensor(self.positive, device=scores.device)
        each = binary_cross_entropy_with_logits(scores.float(), meant, pos_weight=weight, reduction="none")
        return {"segmentation": (each * known).sum() / known.sum().clamp(min=1)}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        facts = dict(zip(("lr", "weight_decay"), self.rates, strict=True))
        if self.optimizer == "sgd":
            return {"main": torch.optim.SGD(self.parameters(), momentum=0.9, **facts)}
        return {"main": torch.optim.AdamW(self.parameters(), **facts)}

    def learning_rate(self, clock: Clock) -> float:
        """Half a cosine after a short warm-up, or the paper's steps: a tenth of it after each third of a stage."""
        return 0.1 ** min(2, int(3 * clock.fraction)) if self.schedule == "steps" else super().learning_rate(clock)

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """One mask for each expression of the case and each text among the prompts (by its ``object``, or text1, ...)."""
        texts = [p for p in prompts if isinstance(p, Text)]
        asked = (*case.queries, *(Query(p.object or f"text{n}", p.text) for n, p in enumerate(texts, 1)))
        answer = super().predict(case.with_(queries=asked), rng=rng)
        scores = {q.id: float(p.max()) for q, p in zip(asked, answer.probability.data, strict=True)}
        notes = [f"'{q.text}' means nothing here (score {scores[q.id]:.2f})" for q in asked if scores[q.id] < SURE]
        if self.words.pieces and self.language is not None:
            strange = dict.fromkeys(w for q in asked for w in words_of(q.text) if w not in self.words.ids)
            notes += [f"no training expression had the word '{w}'" for w in strange]
        return answer.with_(table={f"query:{k}": v for k, v in scores.items()}, notes=(*answer.notes, *notes))

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        return tensors, {**facts, "words": list(self.words.pieces)}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.words = WordPieces(tuple(facts["words"]))


# ------------------------------------------------------------------------------------------------------------------------------- boxes
def regions(batch: Batch, rng: np.random.Generator, number: int = REGIONS) -> tuple[Tensor, Tensor]:
    """Boxes (B, number, 4) in -1..1 and whether each is the expression's, (B, number): the meant object's, other objects' of the label map,
    if there is one, all moved a little, and random ones."""
    others = next((v for k, v in batch.labels.items() if k != "query"), None)
    boxes, right = [], []
    for b, target in enumerate(batch.labels["query"].cpu().numpy()):
        meant = _box(target > 0)
        known = [] if others is None or others[b].ndim != 2 else _objects(others[b].cpu().numpy())
        rng.shuffle(known)
        own = ([] if meant is None else [_moved(meant, rng)]) + [_moved(k, rng) for k in known]
        own = (own + [_random(rng) for _ in range(number)])[:number]
        boxes.append(own)
        right.append([meant is not None and _iou(o, meant) >= RIGHT for o in own])
    return torch.tensor(np.array(boxes), dtype=torch.float32), torch.tensor(right, dtype=torch.float32)


def _box(mask: np.ndarray) -> np.ndarray | None:
    """xmin, ymin, xmax, ymax of a mask (H, W) in -1..1; None of an empty one."""
    spans = bounding_box(mask)
    if spans is None:
        return None
    (y0, y1), (x0, x1) = ((2 * s.start / n - 1, 2 * s.stop / n - 1) for s, n in zip(spans, mask.shape, strict=True))
    return np.array([x0, y0, x1, y1])


def _objects(label: np.ndarray) -> list[np.ndarray]:
    return [_box(parts == i) for k in np.unique(label[label > 0]) for parts, n in [components(label == k)] for i in range(1, len(n) + 1)]


def _moved(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each side moved by up to a tenth of the box."""
    size = np.tile(box[2:] - box[:2], 2)
    return box + rng.uniform(-0.1, 0.1, 4) * size


def _random(rng: np.random.Generator) -> np.ndarray:
    centre, half = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.1, 0.5, 2)
    return np.clip(np.concatenate([centre - half, centre + half]), -1, 1)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter))
