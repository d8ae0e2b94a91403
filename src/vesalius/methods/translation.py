"""Translator: unpaired images of two contrasts learn to be redrawn in each other's (CycleGAN), as the base of methods that add terms.

Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial networks, ICCV 2017, https://arxiv.org/abs/1703.10593:
two generators, a discriminator of each contrast, and the demand that an image drawn there and back again is the image. Images are redrawn
in two dimensions, volumes slice by slice across their last axis. As published a batch is one patch of either contrast; a volume's has
several slices. Patches are turned, scaled and mirrored as the plan says, their intensities left alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ..core.case import IGNORE, Batch, Case, Condition, Image, LabelMap
from ..core.errors import UsageError
from ..core.manifest import CaseRef, Manifest
from ..core.method import Clock, Method, Run, Sampling, Stage, Stream
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..inferers.sliding import SlidingWindow
from ..networks.blocks.slices import from_slices, to_slices
from ..networks.translation import PatchDiscriminator, ResNetGenerator
from ..objectives.adversarial import Adversarial, ImagePool
from .learned import LearnedMethod

_THICK = 16  # slices of a volume answered at a time
_GREY = ("blur_p", "lowres_p", "brightness_p", "contrast_p", "gamma_p", "noise_p")  # how a contrast looks is what is learnt


class Translator(LearnedMethod):
    """``source`` is redrawn as ``target``: names of images, of which a case may lack one (it is zeros then). The batch is of ``source``
    cases, its stream ``target`` of the others.

    ``cycle`` and ``identity`` weigh terms beside the ``adversarial`` one; ``filters``, ``blocks`` of the generators, ``filters``,
    ``layers`` of the discriminators, ``pool``: images these remember. Prepared intensities from -``reach`` to ``reach`` are drawn. ``lr``:
    Adam's. Subclasses add terms in ``further`` and own parameters, which the generators' optimiser moves.
    """

    readout = "tanh"
    clip = math.inf

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        source: str,
        target: str,
        cycle: float = 10.0,
        identity: float = 0.0,
        adversarial: Literal["least-squares", "cross-entropy"] = "least-squares",
        filters: int = 64,
        blocks: int = 9,
        layers: int = 3,
        pool: int = 50,
        reach: float = 4.0,
        lr: float = 2e-4,
    ):
        for name, value in (("reach", reach), ("filters", filters), ("gan_lr", lr)):
            if not value > 0:
                raise UsageError("this is positive", where=name, found=value)
        for name, value in (("cycle", cycle), ("identity", identity), ("pool", pool), ("blocks", blocks), ("layers", layers)):
            if value < 0:
                raise UsageError("this is not negative", where=name, found=value)
        still = {key: 0.0 for key in _GREY}
        plan = plan.derive(channels=(), in_channels=0, test_mirror=(), augmentation={**plan.augmentation, **still})
        super().__init__(plan, manifest, parts=parts)
        self.source, self.target, self.derived = source, target, (source, target)
        self.cycle, self.identity, self.reach, self.lr, self.adversarial = cycle, identity, reach, lr, Adversarial(adversarial)
        self.to_target, self.to_source = (ResNetGenerator(1, 1, spatial_dims=2, filters=filters, blocks=blocks) for _ in range(2))
        self.judge_target, self.judge_source = (PatchDiscriminator(1, spatial_dims=2, filters=filters, layers=layers) for _ in range(2))
        if min(plan.patch[:2]) < self.judge_target.smallest:
            found, allowed = plan.patch[:2], f"{self.judge_target.smallest} or more"
            raise UsageError("the patch is too small for the discriminators", where="layers", found=found, allowed=allowed)
        self.pools = nn.ModuleDict({name: ImagePool(pool, (1, *plan.patch[:2])) for name in ("target", "source")})

    @property
    def digest(self) -> str:
        """Of all that decides what is drawn, for caches."""
        found = hashlib.sha256(repr((self.reach, self.plan.patch, self.plan.overlap)).encode())
        for name, value in self.to_target.state_dict().items():
            found.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return found.hexdigest()[:20]

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> Translator:
        run.train(self, train, val, name="translation")
        return self

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """The contrast that a case lacks is zeros; in training labels become one map 'reference', that says nothing where there is none."""
        if not case.images:
            return case
        grid = case.geometry
        nothing = Image(np.zeros((1, *grid.shape), np.float32), grid, normalise=False)
        case = case.with_(images={name: nothing for name in self.derived if name not in case.images})
        if not training:
            return case
        silent = LabelMap(np.full(grid.shape, IGNORE, np.int16), grid, self.plan.classes)
        label = case.labels.get("reference") or next(iter(case.labels.values()), silent)
        return case.with_(labels={**dict.fromkeys(case.labels), "reference": label})

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(streams=(Stream(self.source, 1, self.is_source), Stream(self.target, 1, self.is_target)))

    def is_source(self, row: CaseRef) -> bool:
        return self.source in row.images

    def is_target(self, row: CaseRef) -> bool:
        return self.target in row.images

    def turns(self, clock: Clock) -> Sequence[str]:
        return ("generators", "judges")

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        judges = [*self.judge_target.parameters(), *self.judge_source.parameters()]
        theirs = {id(p) for p in judges}
        others = [p for p in self.parameters() if id(p) not in theirs]
        adam = dict(lr=self.lr, betas=(0.5, 0.999), amsgrad=True)
        return {"generators": torch.optim.Adam(others, **adam), "judges": torch.optim.Adam(judges, **adam)}

    def learning_rate(self, clock: Clock) -> float:
        """Constant for half of the training, then falling to nothing."""
        return min(1.0, 2 * (1 - clock.fraction))

    def losses(self, batch: Batch, clock: Clock, turn: str = "generators") -> dict[str, Tensor]:
        theirs = batch[self.target]
        source, target = self.scaled(batch.image[:, :1]), self.scaled(theirs.image[:, 1:])
        mask, known = batch.label, theirs.label
        if self.plan.dims == 3:
            source, target, mask, known = map(to_slices, (source, target, mask, known))
        with torch.set_grad_enabled(turn == "generators" and torch.is_grad_enabled()):
            drawn, drawn_back = self.to_target(source).tanh(), self.to_source(target).tanh()
        if turn == "judges":
            pairs = ((self.judge_target, target, drawn, "target"), (self.judge_source, source, drawn_back, "source"))
            return {f"judge {name}": self.adversarial.judge(j(real), j(self.pools[name](made))) for j, real, made, name in pairs}
        fooled = self.adversarial.fool(self.judge_target(drawn)) + self.adversarial.fool(self.judge_source(drawn_back))
        home = l1_loss(self.to_source(drawn).tanh(), source) + l1_loss(self.to_target(drawn_back).tanh(), target)
        terms = {"adversarial": fooled, "cycle": self.cycle * home}
        if self.identity:
            same = l1_loss(self.to_target(target).tanh(), target) + l1_loss(self.to_source(source).tanh(), source)
            terms["identity"] = self.identity * same
        return terms | self.further(source, drawn, target, mask, known)

    def further(self, source: Tensor, drawn: Tensor, target: Tensor, mask: Tensor, known: Tensor) -> dict[str, Tensor]:
        """More terms for the generators. ``source``, ``drawn`` of it and ``target`` (B, 1, h, w) on -1..1; ``mask`` (B, h, w) labels of
        ``source``, ``known`` those of ``target``, ``IGNORE`` where there are none."""
        return {}

    def scaled(self, prepared: Tensor) -> Tensor:
        """Prepared intensities -> -1..1."""
        return (prepared / self.reach).clamp(-1, 1)

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, 2, *s) prepared -> (B, 1, *s), whose tanh is the first channel in the contrast of the second."""
        source = self.scaled(image[:, :1])
        return self.to_target(source) if image.ndim == 4 else from_slices(self.to_target(to_slices(source)), image.shape[-1])

    def inferer(self) -> SlidingWindow:
        return slice_windows(self.plan)

    def finish(self, maps: Tensor, case: Case) -> Prediction:
        facts = self.plan.intensities.get(self.target, {"mean": 0.0, "sd": 1.0})
        grey = maps.float().tanh().cpu().numpy() * (self.reach * facts["sd"]) + facts["mean"]
        return Prediction(images={self.target: Image(grey.astype(np.float32), case.geometry, name=f"pseudo {self.target}")})


def slice_windows(plan: Plan) -> SlidingWindow:
    """Windows for networks that answer slice by slice: thicker than a training patch, which changes nothing but their number."""
    patch = plan.patch if plan.dims == 2 else (*plan.patch[:2], max(plan.patch[2], _THICK))
    return SlidingWindow(patch, overlap=plan.overlap, batch=2 if plan.dims == 2 else 1, mirror_axes=plan.test_mirror)
