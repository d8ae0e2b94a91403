"""Cross-modality prior: CT with known tumours is redrawn as MR, and what was drawn trains a segmenter of MR beside the few real ones.

A cycle of two generators translates between unpaired images, but nothing in it keeps a tumour where and as large as it was. Here a
segmenter must find the CT's mask in the pseudo MR, and must see in it what a segmenter of CT sees in the CT. Then a U-Net learns from
pseudo MR, under the masks of the CT as they are, and from the real MR that has labels.

Jiang et al., Cross-modality (CT-MRI) prior augmented deep learning for robust lung tumor segmentation from small MR datasets, Med. Phys.
2019, https://arxiv.org/abs/1901.11369. Only abstracts and introductions (this one's and its forerunner's, MICCAI 2018) could be read; the
group's later public code (PSIGAN) gave networks, weights and rates. Inferred, and therefore options or named here:

* the location term is the squared difference between the last features of both segmenters over the tumour, the CT's held fixed;
* the weights of the location term (1) and of the auxiliary segmenter on CT (1); that on labelled real MR weighs as the shape term does;
* one run shares its iterations, ``share`` of them for the translation; both stages take the plan's patches;
* prepared intensities from -``reach`` to ``reach`` are the -1..1 of the generators; real and pseudo MR are then drawn as they come;
* the segmenter's objective (Dice + cross-entropy) and optimiser are those of every segmenter here, so that a comparison shows the data.

Key components: ``methods.translation`` (CycleGAN), ``networks.translation`` (ResNet generator, patch discriminator),
``objectives.adversarial`` (least squares, image pool), ``networks.feature_unet`` (the segmenters that guard tumours),
``networks.blocks.slices`` (volumes are redrawn and segmented slice by slice, across the last axis), two optimisers that take turns.

Good to know: a case says by the names of its images what it is: a column for CT, one for MR, of which a row fills one (or both, of the
same subject). Cases with CT need labels, MR may have none. ``shape=0 location=0`` is CycleGAN; ``translate=false`` the same U-Net on the
real MR alone with the whole budget. For a case with a CT the answer holds the pseudo MR, in the units of the training's MR. A generator
may draw what is common in MR and not in CT, or leave out the reverse: look at pseudo MR before they are trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.case import IGNORE, Case, Image
from ...core.errors import DataError, UsageError, nearest
from ...core.manifest import CaseRef, Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...core.prompt import Prompt
from ...inferers.sliding import SlidingWindow
from ...networks.blocks.slices import SliceWise
from ...networks.feature_unet import FeatureUNet
from ...networks.unet import UNet
from ...objectives.dice_ce import DiceCE
from ..learned import Segmenter
from ..translation import Translator, slice_windows

PART = "translator"


class CrossModalityPrior(Segmenter):
    """``source`` and ``target``: names of the images (CT, MR). ``translate``: with pseudo images; ``share`` of the budget makes them.

    ``cycle``, ``identity``, ``shape``, ``location`` weigh the terms of the translation (0: none; shape and location 0: CycleGAN).
    ``filters``, ``blocks`` of the generators, ``filters``, ``layers`` of the discriminators, ``pool`` images of theirs, ``adversarial``
    their loss, ``gan_lr`` Adam's rate. ``reach``: prepared intensities drawn. ``slices`` of a volume in a patch. ``norm`` of the U-Net.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        source: str = "CT",
        target: str = "MR",
        translate: bool = True,
        share: float = 0.5,
        cycle: float = 10.0,
        identity: float = 0.0,
        shape: float = 5.0,
        location: float = 1.0,
        adversarial: Literal["least-squares", "cross-entropy"] = "least-squares",
        filters: int = 64,
        blocks: int = 9,
        layers: int = 3,
        pool: int = 50,
        reach: float = 4.0,
        gan_lr: float = 2e-4,
        slices: int = 8,
        norm: Literal["instance", "batch", "group"] = "batch",
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        if not 0 < share < 1:
            raise UsageError("both stages need a part of the budget", where="share", found=share, allowed="above 0 and below 1")
        if slices < 1 or min(shape, location) < 0:
            found = f"slices {slices}, shape {shape}, location {location}"
            raise UsageError("weights are not negative, and a patch has a slice", where="cross-modality-prior", found=found)
        self.source, self.target = _named(plan.channels, source, target)
        self.translate, self.share, self.norm = translate, share, norm
        patch = plan.patch if plan.dims == 2 else (*plan.patch[:2], min(slices, plan.patch[2]))
        plan = plan.derive(channels=(self.target,), in_channels=1, patch=patch)
        if translate:
            terms = dict(cycle=cycle, identity=identity, shape=shape, location=location, adversarial=adversarial)
            sizes = dict(filters=filters, blocks=blocks, layers=layers, pool=pool, reach=reach, lr=gan_lr)
            own = TumourAware(plan, manifest, source=self.source, target=self.target, **terms, **sizes)
            parts = {PART: own, **(parts or {})}
        super().__init__(plan, manifest, parts=parts, lr=lr, weight_decay=weight_decay, ema=ema)
        self.derived = (self.target,)

    @property
    def channels(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def in_channels(self) -> int:
        return 1

    def build(self, network: None = None) -> nn.Module:
        made = UNet(1, self.out_channels, spatial_dims=2, norm=self.norm, **_levels(self.plan))
        return SliceWise(made) if self.plan.dims == 3 else made

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> CrossModalityPrior:
        rows = {c: self.manifest[c] for c in train}
        real = [c for c, row in rows.items() if self.target in row.images and row.labels]
        two = self.translate and self.source != self.target
        prior = [c for c, row in rows.items() if two and self.source in row.images and row.labels]
        unlabelled = [c for c, row in rows.items() if two and self.target in row.images and not row.labels]
        if not real and not prior or self.translate and not (prior and (real or unlabelled)):
            raise DataError(
                "there is too little to learn from",
                where=self.manifest.name,
                found=f"{len(prior)} training cases with {self.source} and labels, {len(real) + len(unlabelled)} with {self.target}",
                allowed="at least one of each" if self.translate else f"at least one with {self.target} and labels",
                fix="give the columns image:CT and image:MR, or name yours with --set source=... --set target=...",
            )

        def with_pseudo(case: Case) -> Iterator[Case]:
            """A native case -> what the second stage learns from: the CT redrawn, and the MR as it is. Masks stay where they are."""
            if case.id in prior:
                ((prepared, answer),) = run.infer(self.parts[PART], [case])
                drawn = {self.target: answer.images[self.target]}
                yield Case(f"{case.id}/pseudo", case.patient, images=drawn, labels=prepared.labels)
            if case.id in real:
                yield replace(case, images={self.target: case.images[self.target]})

        seen = [c for c in val if self.target in self.manifest[c].images]
        if not self.translate:
            run.train(self, real, seen, name="segmentation")
            return self
        both = list(dict.fromkeys((*prior, *real)))
        run.fit(self.parts[PART], list(dict.fromkeys((*both, *unlabelled))), (), share=self.share)
        run.train(self, both, seen, name="segmentation", share=1 - self.share, unfold=with_pseudo)
        return self

    @property
    def preparation(self) -> str:
        """Prepared cases hold what the translator drew: they are cached by its weights."""
        return f"{self.source} {self.target} {self.parts[PART].digest if self.translate else ''}"

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """A case with a CT alone is segmented in its pseudo MR."""
        if not self.translate or self.target in case.images or self.source not in case.images:
            return case
        return case.with_(images={self.target: self.pseudo(case, rng)})

    def inferer(self) -> SlidingWindow:
        return slice_windows(self.plan)

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        prediction = super().predict(case, prompts, rng=rng)
        if not self.translate or self.source not in case.images:
            return prediction
        return prediction.with_(images={f"pseudo {self.target}": self.pseudo(case, rng)})

    @torch.no_grad()
    def pseudo(self, case: Case, rng: np.random.Generator) -> Image:
        """The case's CT redrawn as MR, on the prepared grid, in the units of the training's MR."""
        return self.parts[PART].predict(case.at(PART), rng=rng).images[self.target]


class TumourAware(Translator):
    """Stage one: CycleGAN, and two segmenters that hold it to the CT's tumours (``shape`` and ``location`` 0: CycleGAN alone)."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        shape: float,
        location: float,
        **cycle_gan: object,
    ):
        super().__init__(plan, manifest, parts=parts, **cycle_gan)
        self.shape, self.location, self.objective = shape, location, DiceCE()
        classes = len(plan.classes)
        self.finder = FeatureUNet(1, classes, spatial_dims=2, **_levels(plan)) if shape or location else None  # in MR, pseudo and real
        self.guide = FeatureUNet(1, classes, spatial_dims=2, **_levels(plan)) if location else None  # in CT

    def is_source(self, row: CaseRef) -> bool:
        return super().is_source(row) and bool(row.labels)

    def further(self, source: Tensor, drawn: Tensor, target: Tensor, mask: Tensor, known: Tensor) -> dict[str, Tensor]:
        if self.finder is None:
            return {}
        found, seen = self.finder.tapped(drawn)
        terms = {"shape": self.shape * self.mismatch(found, mask), "real": (self.shape or 1.0) * self.mismatch(self.finder(target), known)}
        if self.guide is not None:
            guess, guiding = self.guide.tapped(source)
            inside = (mask > 0).unsqueeze(1).to(seen.dtype)
            apart = (inside * (seen - guiding.detach()).square()).sum() / (inside.sum() * seen.shape[1]).clamp_min(1)
            terms |= {"location": self.location * apart, "guide": self.mismatch(guess, mask)}
        return terms

    def mismatch(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.objective(logits, label, ignore_index=IGNORE)


def histogram_divergence(made: np.ndarray, real: np.ndarray, *, bins: int = 64) -> float:
    """Kullback-Leibler divergence (nats, 0 or more) of the histogram of ``made`` intensities from that of ``real`` ones, any shapes, over
    their common range. Each bin is given half a voxel, so that an empty one is no infinity; equal histograms give 0."""
    made, real = np.ravel(made), np.ravel(real)
    if not made.size or not real.size:
        raise DataError("a histogram needs intensities", found=f"{made.size} and {real.size} of them")
    edges = np.linspace(min(made.min(), real.min()), max(made.max(), real.max()) + 1e-9, bins + 1)
    p, q = ((np.histogram(x, edges)[0] + 0.5) / (x.size + 0.5 * bins) for x in (made, real))
    return float((p * np.log(p / q)).sum())


def _levels(plan: Plan) -> dict[str, tuple]:
    """The planned U-Net's levels within a slice."""
    return {"features": plan.features, "strides": tuple(s[:2] for s in plan.strides), "kernels": tuple(k[:2] for k in plan.kernels)}


def _named(channels: Sequence[str], source: str, target: str) -> tuple[str, str]:
    """The two names among the plan's images; a plan of one image (a data set that is only predicted) has it as both."""
    if len(channels) == 1:
        return channels[0], channels[0]
    for option, name in (("source", source), ("target", target)):
        if name not in channels:
            raise UsageError(f"no image '{name}' in the data set", where=f"--set {option}=...", fix=nearest(name, channels))
    if source == target:
        raise UsageError("an image is redrawn in another contrast", where="source, target", found=source, allowed=", ".join(channels))
    return source, target
