"""EUS-USFM: a vision transformer learns ultrasound by guessing what is hidden, then segments; and is tested at a centre it never saw.

Stage 1 sees frames without labels. Blocks of a frame are hidden, and rings of its spectrum are removed; from what is left the transformer
guesses the frame. So it learns what speckle hides and what it shows. Stage 2 gives it a head and the labelled frames.

The study: Performance of a deep learning-based segmentation model for pancreatic tumors on public endoscopic ultrasound datasets (2026),
https://arxiv.org/abs/2601.05937. Its model is USFM (Jiao et al., Medical Image Analysis 2024, doi:10.1016/j.media.2024.103202, code
https://github.com/openmedlab/USFM), whose defaults stand here; the study's own settings are not public. Where we differ or had to choose:

* The study takes weights that learnt from two million ultrasound images. They are not included; ``pretrained=FILE`` reads them once they
  are a safetensors file, and the option ``pretext`` makes a small likeness of them from the frames at hand, unlabelled ones among them.
* [inferred] which head was used: ``head='upernet'`` with cross-entropy and an auxiliary head, or 'segvit' with attention to masks.
* [inferred] the rings' number, widths, share and protected centre, the error of the removed frequencies, and the pretext's rates.
* A frame is cropped to what is not background and resized to the plan's patch (published: 512 x 512, ``size=512,512``). Text within the
  sector stays. A grey frame is one channel instead of three equal ones, which says the same.
* Published are 400 epochs of batches of 48 to 80. The warm-up is their share, 1/20, of the budget; ``lr`` is for a full training of
  pretrained weights, and a short one from nothing wants about ten times as much and ``layer_decay=1``.
* The study names no baseline. Ours is the same network from random weights: ``pretext=none``.

Key components: ``networks.blocks.beit``, ``networks.usfm`` (two heads on it), ``objectives.masked_image`` (blocks and rings),
``objectives.attention_mask``.

Good to know: splits are by patient, always. The study does not say how its folds were made, and frames of one patient on both sides raise
every score; this engine refuses such a split, so that the gap cannot be measured here. About a tenth of the study's answers had several
tumours where there was one: ``keep_largest=true`` leaves one component a class, and metric ``betti0_error`` counts the others. (Any run
may keep the largest component by itself, if validation cases gain by it.) An external test is ``vesalius evaluate RUN`` on the data of
another centre, or ``phantom:ultrasound?centre=external``. A pretext of some hundred steps on some dozen frames has little to teach: it is
for many unlabelled frames and long budgets, and ``--set pretext=none --set pretrain=0`` spends a short one on the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from ...core.case import IGNORE, Batch, Case, Image, Sample
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Sampling, Stage, Stream
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.blocks.beit import Beit, adopt
from ...objectives.attention_mask import attention_mask
from ...objectives.dice_ce import DiceCE
from ...objectives.masked_image import MaskedImage, without
from ...objectives.ramps import cosine_decay
from ...ops.components import largest
from ..learned import LearnedMethod
from ..recipe import Recipe

PRETEXTS = {"both": (True, True), "blocks": (True, False), "rings": (False, True)}
START = 1 / 6  # of the rate, where the warm-up begins: 5e-5 of 3e-4
UNTAUGHT = "the transformer was pretrained, but no training case had a label: this segmentation means nothing"


class EusUsfm(Recipe):
    """``pretext``: what stage 1 hides, with ``pretrain`` of the budget ('none' leaves that unspent, so that fine-tuning stays the same; 0
    leaves stage 1 out); ``rate``: its learning rate; ``hide`` to ``protect``: see ``objectives.masked_image``. ``pretrained``: a run, or a
    safetensors file, that the transformer starts from.

    ``lr`` of the head; each block below has ``layer_decay`` times the rate of the one above. ``auxiliary``: weight of 'upernet's second
    head. ``keep_largest``: one component a class.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] | None = None,
        objective: Callable[[], Callable] = DiceCE,
        size: tuple[int, ...] = (),
        pretext: Literal["both", "blocks", "rings", "none"] = "both",
        pretrain: float = 0.5,
        pretrained: str = "",
        rate: float = 1e-3,
        hide: float = 0.6,
        block: int = 32,
        rings: int = 8,
        drop: float = 0.4,
        protect: float = 0.05,
        lr: float = 3e-4,
        layer_decay: float = 0.65,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        clip: float = 5.0,
        auxiliary: float = 0.4,
        keep_largest: bool = False,
    ):
        if pretext not in (*PRETEXTS, "none"):
            raise UsageError("no such pretext", where="pretext", found=pretext, allowed=f"{', '.join(PRETEXTS)}, none")
        for name, value, fits, allowed in (
            ("pretrain", pretrain, 0 <= pretrain < 1, "0 to below 1"),
            ("layer_decay", layer_decay, 0 < layer_decay <= 1, "above 0, to 1"),
            ("rate", rate, rate > 0, "above 0"),
            ("auxiliary", auxiliary, auxiliary >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"'{name}' is out of range", where=name, found=value, allowed=allowed)
        self.masks = MaskedImage(hide=hide, block=block, rings=rings, drop=drop, protect=protect)
        recipe = dict(lr=lr, weight_decay=weight_decay, warmup=warmup, clip=clip, ema=0.0, whole=True, size=size)
        super().__init__(plan, manifest, parts=parts, network=network, objective=objective, pretrained=pretrained, **recipe)
        self.pretext, self.pretrain, self.rate = pretext, pretrain, rate
        self.layer_decay, self.auxiliary, self.keep_largest = layer_decay, auxiliary, keep_largest
        self.register_buffer("taught", torch.zeros((), dtype=torch.bool))

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> EusUsfm:
        if self.pretrained:
            adopt(self.network.backbone, self.pretrained)
        if self.pretrain and self.pretext != "none":
            stage = MaskedFrames(self.plan, self.manifest, self.network.backbone, self.masks, self.pretext, self.rate)
            run.train(stage, train, (), name="pretext", share=self.pretrain)
        if any(self.manifest[c].labels for c in train):
            self.taught.fill_(True)
            run.train(self, train, val, name="main", share=1 - self.pretrain)
        return self

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        answers = self.network(batch.image)
        if isinstance(answers[0], tuple):  # what queries say, and where they look
            return attention_mask(answers, batch.label, ignore_index=IGNORE)
        main, auxiliary = (self.objective(logits, batch.label, ignore_index=IGNORE) for logits in answers)
        return {"segmentation": main, "auxiliary": self.auxiliary * auxiliary}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Groups of equal depth below the head; vectors and the class token do not decay."""
        groups: dict[tuple[int, bool], list[Tensor]] = {}
        for name, p in self.network.named_parameters():
            inside = name.removeprefix("backbone.")
            depth = self.network.backbone.above(inside) if inside != name else 0
            groups.setdefault((depth, p.ndim > 1 and inside != "cls_token"), []).append(p)
        made = [
            {"params": ps, "lr": self.lr * self.layer_decay**depth, "weight_decay": self.weight_decay * decays}
            for (depth, decays), ps in groups.items()
        ]
        return {"main": torch.optim.AdamW(made, lr=self.lr, betas=self.betas)}

    def learning_rate(self, clock: Clock) -> float:
        if clock.fraction < self.warmup:
            return START + (1 - START) * min(1.0, (clock.step + 1) / (self.warmup * clock.total))
        return cosine_decay((clock.fraction - self.warmup) / (1 - self.warmup))

    def finish(self, maps: Tensor | Mapping[str, Tensor], case: Case) -> Prediction:
        answer = super().finish(maps, case)
        if self.keep_largest:
            image = answer.probability
            answer = answer.with_(probability=Image(one_component(np.asarray(image.data)), image.geometry))
        return answer if self.taught else answer.with_(notes=(*answer.notes, UNTAUGHT))


def one_component(probability: np.ndarray) -> np.ndarray:
    """(K, *s) class probabilities in which what is not of a foreground class's largest component is background."""
    label, out = probability.argmax(0), probability.copy()
    for k in range(1, len(probability)):
        mask = label == k
        stray = mask & ~largest(mask)
        out[:, stray] = 0
        out[0, stray] = 1
    return out


class MaskedFrames(LearnedMethod):
    """Stage 1: the frame is guessed from a part of its blocks and of its spectrum; labels are never read."""

    def __init__(self, plan: Plan, manifest: Manifest, backbone: Beit, masks: MaskedImage, pretext: str, rate: float):
        super().__init__(plan, manifest)
        self.backbone, self.masks, self.rate = backbone, masks, rate
        self.hides, self.removes = PRETEXTS[pretext]
        if self.hides:
            self.token = nn.Parameter(0.02 * torch.randn(backbone.dim))
        self.norm, self.pixels = nn.LayerNorm(backbone.dim), nn.Linear(backbone.dim, backbone.patch**2 * self.in_channels)

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(streams=(Stream("frames", self.plan.batch, "all"),), foreground=0.0)

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return super().augment(replace(sample, labels={}, maps={}), rng)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        hidden = self.masks.blocks(batch.image, self.backbone.patch) if self.hides else None
        removed = self.masks.bands(batch.image) if self.removes else None
        return self.masks(self.guess(batch.image, hidden, removed), batch.image, hidden, removed)

    def guess(self, image: Tensor, hidden: Tensor | None, removed: Tensor | None) -> Tensor:
        """(B, C, H, W): the image, as far as it can be told without its ``hidden`` tokens and ``removed`` frequencies."""
        seen = image if removed is None else without(image, removed)
        tokens = self.backbone(seen, hidden=hidden, token=self.token if self.hides else None)[-1]
        pixels = self.pixels(self.norm(tokens.movedim(1, -1))).movedim(-1, 1)
        return pixel_shuffle(pixels, self.backbone.patch)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.rate, betas=(0.9, 0.95), weight_decay=0.05)}

    def learning_rate(self, clock: Clock) -> float:
        """A warm-up over a tenth, then half a cosine to 0."""
        warm = min(1.0, (clock.step + 1) / max(1, round(0.1 * clock.total)))
        return warm * cosine_decay(max(0.0, clock.fraction - 0.1) / 0.9)
