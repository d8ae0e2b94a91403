"""Image-volume SSL: one encoder learns from unlabelled pictures and volumes alike, then segments from few labels.

Stage 1: two views of a picture, or of one slice of a volume, shall fall into the same cluster. Then a volume is the sequence of its
embedded slices: stage 2 hides some of them, and a deformable transformer guesses them from the others; in stage 3 two views of a volume
shall fall into the same cluster, which also moves the encoder of the slices. Stage 4 fine-tunes encoder, transformer and a U-Net's decoder
on the labelled cases.

Nguyen et al., Joint self-supervised image-volume representation learning with intra-inter contrastive clustering, AAAI 2023,
https://arxiv.org/abs/2212.01893, code https://github.com/duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive. Where we
differ or had to choose:

* The plan's U-Net encoder with group norm (a norm of each map for itself would hide its mean, which describes a slice) stands for
  ResNet-50; ``encoder='residual'`` and ``blocks`` come nearer to it.
* Published are 105, 100 and 100 epochs; here each stage of ``pretext`` has the same share of ``pretrain``, and clusters are found anew
  ``rounds`` times a stage instead of once an epoch. Budgets are short: ``optimizer='adamw'`` stands in for SGD with LARC.
* Hidden slices are replaced by a learnt token, and their squared error counts. A slice's embedding has no gradient there, or a constant
  embedding would be the perfect answer.
* The slice loss may be added while volumes are clustered (``joint``, 0 by default): on one slice of each volume and the slice of its other
  view that shows the same place.
* In fine-tuning, too, the transformer tells each slice about the others; the published segmenters use the slice encoder alone.
* The plan's augmentation stands for torchio's (no bias field); slices turn in their plane only.

Key components: ``objectives.clustering`` (k-means and Sinkhorn prototypes, memory bank), ``networks.blocks.deformable`` (attention that
chooses where it looks), ``networks.slice_unet`` (a 2D U-Net along a volume).

Good to know: pretext stages never read a label; cases with and without labels take part in them. In a 3D data set a picture is a volume
of one slice: it takes part in stage 1 (and in stage 4 if labelled), not in 2 and 3; where pictures are in the majority, say with
``slices`` how many slices of a volume are seen together. In a 2D data set there is stage 1 alone. Without any labelled case the run ends
after the pretext and its answers say so; ``pretrained=RUN`` starts another run, of either dimensionality, from its weights. ``axis`` is
what slices are cut across: 2, from foot to head, is right for axial slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ...core.case import Batch, Case, Sample
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Sampling, Stage, Stream
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.larc import larc
from ...networks.slice_unet import SliceUNet, adopt
from ...objectives.clustering import ClusterAgreement
from ...objectives.ramps import cosine_decay
from ...ops import augment
from ..learned import LearnedMethod, Segmenter

PRETEXT = ("images", "masked", "volumes")
RATES, DECAY = {"larc": 1e-2, "adamw": 1e-3}, 1e-6
OVERLAP = 0.5  # of two views, at least, along each axis
WINDOWS = 32  # that a case's embedding is the mean of, at most
UNTAUGHT = "the encoder was pretrained, but no training case had a label: this segmentation means nothing"


class ImageVolumeSSL(Segmenter):
    """``pretext``: the stages before fine-tuning, which share ``pretrain`` of the budget evenly (with none of them it is left unspent, so
    that fine-tuning stays the same); ``pretrained``: a finished run (or its method.safetensors) to start from.

    ``rule``: 'kmeans' (DeepCluster-v2) or 'sinkhorn' (SwAV); ``clusters`` and ``slice_clusters`` prototypes in each of ``sets`` sets, in a
    space of ``projection`` numbers, at ``temperature``; ``bank`` embeddings are remembered; SwAV's prototypes rest for the share ``frozen``
    of a stage. ``hide``: share of a volume's slices. ``slice_batch``: slices in a batch of stage 1; ``slices`` of a volume that are seen
    together (0: the plan's patch across ``axis``). ``encoder`` to ``kernel``: see ``networks.slice_unet``. ``optimizer`` and ``rate`` are
    the pretext's, ``lr``, ``weight_decay`` and ``ema`` those of fine-tuning.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        pretext: tuple[str, ...] = PRETEXT,
        pretrain: float = 0.5,
        pretrained: str = "",
        rule: Literal["kmeans", "sinkhorn"] = "kmeans",
        clusters: int = 4,
        slice_clusters: int = 32,
        sets: int = 3,
        projection: int = 128,
        temperature: float = 0.1,
        bank: int = 1024,
        rounds: int = 100,
        frozen: float = 0.01,
        joint: float = 0.0,
        hide: float = 0.1,
        slice_batch: int = 32,
        optimizer: Literal["larc", "adamw"] = "larc",
        rate: float | None = None,
        axis: Literal[0, 1, 2] = 2,
        slices: int = 0,
        encoder: Literal["plain", "residual"] = "plain",
        blocks: int = 1,
        dim: int = 640,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 720,
        downsample: int = 4,
        reach: float = 2.0,
        kernel: int = 6,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        odd = [s for s in pretext if s not in PRETEXT]
        if odd or len(set(pretext)) < len(pretext):
            raise UsageError("no such stages", where="pretext", found=", ".join(pretext), allowed=f"each once: {', '.join(PRETEXT)}")
        for name, value, low, high in (("pretrain", pretrain, 0, 1), ("hide", hide, 0.01, 0.9), ("frozen", frozen, 0, 1)):
            if not low <= value <= high or name == "pretrain" and value == 1:
                raise UsageError(f"'{name}' is a share", where=name, found=value, allowed=f"{low} to {high}")
        counts = dict(clusters=clusters, slice_clusters=slice_clusters, sets=sets, projection=projection, bank=bank, rounds=rounds)
        for name, value in {**counts, "slice_batch": slice_batch, "temperature": temperature}.items():
            if value <= 0:
                raise UsageError("this is positive", where=name, found=value)
        if plan.dims == 3 and slices:
            plan = plan.derive(patch=tuple(slices if a == axis else n for a, n in enumerate(plan.patch)))
        if plan.dims == 3 and plan.patch[axis] < 2 and set(pretext) - {"images"}:
            fix = "say how many slices of a volume are seen together, e.g. --set slices=32; or --set pretext=images"
            raise UsageError("the plan sees one slice at a time (the data set has more pictures than volumes?)", where="slices", fix=fix)
        self.pretext, self.pretrain, self.pretrained = tuple(pretext), pretrain, pretrained
        self.shape = dict(axis=axis, encoder=encoder, blocks=blocks, slices=plan.patch[axis] if plan.dims == 3 else 1)
        self.shape |= dict(dim=dim, depth=depth, heads=heads, hidden=hidden, downsample=downsample, reach=reach, kernel=kernel)
        super().__init__(plan, manifest, parts=parts, lr=lr, weight_decay=weight_decay, ema=ema)
        self.cluster = dict(rule=rule, heads=sets, dim=projection, temperature=temperature, bank=bank)
        self.clusters, self.slice_clusters, self.joint, self.hide, self.slice_batch = clusters, slice_clusters, joint, hide, slice_batch
        self.schedule = Schedule(optimizer, RATES[optimizer] if rate is None else rate, rounds, frozen)
        self.register_buffer("taught", torch.zeros((), dtype=torch.bool))

    def build(self, network: None = None) -> SliceUNet:
        p = self.plan
        levels = dict(features=p.features, strides=p.strides, kernels=p.kernels)
        return SliceUNet(self.in_channels, self.out_channels, spatial_dims=p.dims, **levels, **self.shape)

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> ImageVolumeSSL:
        if self.pretrained:
            adopt(self.network, self.pretrained)
        pretexts = self.pretexts() if self.pretrain else []  # made before any of them draws numbers, so that a resumed run makes the same
        stages = max(1, sum(len(p.stages()) for p in pretexts))
        for p in pretexts:
            run.train(p, train, (), name=p.name, share=self.pretrain * len(p.stages()) / stages, unfold=p.unfold)
        self.network.requires_grad_(True)
        if self.ema is not None:
            self.ema.average.load_state_dict(self.network.state_dict())
        if any(self.manifest[c].labels for c in train):
            self.taught.fill_(True)
            run.train(self, train, val, name="main", share=1 - self.pretrain)
        return self

    def pretexts(self) -> list[Pretext]:
        """What is learnt without labels, in order."""
        stages = [s for s in PRETEXT if s in self.pretext and (self.plan.dims == 3 or s == "images")]
        common = (self.plan, self.manifest, self.network, self.schedule)
        of_slices, out = ClusterAgreement(self.network.described, clusters=self.slice_clusters, **self.cluster), []
        if "images" in stages:
            out.append(SliceClustering(*common, of_slices, batch=self.slice_batch))
        deep = tuple(s for s in stages if s != "images")
        if deep:
            of_volumes = ClusterAgreement(self.network.embed.out_features, clusters=self.clusters, **self.cluster)
            out.append(VolumeClustering(*common, of_slices, of_volumes, steps=deep, hide=self.hide, joint=self.joint))
        return out

    def embedding(self, case: Case) -> np.ndarray:
        """(dim,) of a prepared volume, (sum of features,) of a picture: the mean over its windows."""
        network = self.network if self.ema is None else self.ema.average
        image = torch.from_numpy(np.ascontiguousarray(case.stack(self.channels))).to(next(self.parameters()).device)
        with torch.no_grad():
            return network.embedding(self.inferer().some(image, WINDOWS)).mean(0).cpu().numpy()

    def finish(self, maps: Tensor | Mapping[str, Tensor], case: Case) -> Prediction:
        answer = super().finish(maps, case)
        return answer if self.taught else answer.with_(notes=(*answer.notes, UNTAUGHT))


def unlabelled_volumes(case: Case) -> Iterator[Case]:
    """The case if it is more than one slice, without its labels."""
    if min(case.geometry.shape) > 1:
        yield case.without_labels()


# --------------------------------------------------------------------------------------------------------------------- the pretext stages
@dataclass(frozen=True)
class Schedule:
    """How the pretext stages are optimised."""

    optimizer: str
    rate: float
    rounds: int
    frozen: float


class Pretext(LearnedMethod):
    """What the self-supervised stages share: views without labels, the schedule, and clusters that settle after every step. ``unfold``
    chooses the cases."""

    name: str
    unfold: Callable[[Case], Iterator[Case]] | None = None

    def __init__(self, plan: Plan, manifest: Manifest, network: SliceUNet, schedule: Schedule):
        super().__init__(plan, manifest)
        self.network, self.schedule = network, schedule

    def resting(self, clock: Clock) -> bool:
        """Whether learnt prototypes still get no gradient."""
        return clock.fraction < self.schedule.frozen

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return super().augment(replace(sample, labels={}, maps={}), rng)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        weights = [p for p in self.parameters() if p.requires_grad]
        if self.schedule.optimizer == "adamw":
            return {"main": torch.optim.AdamW(weights, lr=self.schedule.rate, weight_decay=DECAY)}
        return {"main": larc(torch.optim.SGD(weights, lr=self.schedule.rate, momentum=0.9), decay=DECAY)}

    def learning_rate(self, clock: Clock) -> float:
        """A warm-up over a tenth, then half a cosine to 0."""
        warm = min(1.0, (clock.step + 1) / max(1, round(0.1 * clock.total)))
        return warm * cosine_decay(max(0.0, clock.fraction - 0.1) / 0.9)

    def after_step(self, clock: Clock) -> None:
        for part in self.modules():
            if isinstance(part, ClusterAgreement):
                part.settle((clock.step + 1) * self.schedule.rounds // clock.total)


class SliceClustering(Pretext):
    """Stage 1: two views of one slice belong to one cluster."""

    name = "images"

    def __init__(self, plan: Plan, manifest: Manifest, network: SliceUNet, schedule: Schedule, of_slices: ClusterAgreement, *, batch: int):
        super().__init__(plan, manifest, network, schedule)
        self.of_slices, self.batch = of_slices, batch

    def sampling(self, stage: Stage) -> Sampling:
        size = list(self.plan.patch)
        if self.plan.dims == 3:
            size[self.network.axis] = 1
        every = Stream("slices", self.batch, "all")
        return Sampling(streams=(every,), views=2, overlap=OVERLAP, foreground=0.0, size=tuple(size))

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A slice is as thick as it must be for turns and bends to stay in its plane."""
        mm, axis = list(sample.spacing), self.network.axis
        if len(mm) == 3:
            mm[axis] = augment.THICK * max(s for a, s in enumerate(mm) if a != axis)
        return super().augment(replace(sample, spacing=tuple(mm)), rng)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        views = [self.network.describe(self.network.cut(b.image).flatten(0, 1)) for b in (batch, *batch.views)]
        things = slice_keys(batch, places(batch, self.network.axis))
        return {"slices": self.of_slices(views, things, frozen=self.resting(clock))}


class VolumeClustering(Pretext):
    """Stages 2 and 3: hidden slices are guessed, then two views of one volume belong to one cluster."""

    name, unfold = "volumes", staticmethod(unlabelled_volumes)

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        network: SliceUNet,
        schedule: Schedule,
        of_slices: ClusterAgreement,
        of_volumes: ClusterAgreement,
        *,
        steps: tuple[str, ...],
        hide: float,
        joint: float,
    ):
        super().__init__(plan, manifest, network, schedule)
        self.of_slices, self.of_volumes = of_slices if joint else None, of_volumes
        dim = network.embed.out_features
        self.token, self.decoder = nn.Parameter(torch.zeros(dim)), nn.Linear(dim, dim)
        self.steps, self.hide, self.joint = steps, hide, joint

    def stages(self) -> tuple[Stage, ...]:
        share = 1 / len(self.steps)
        known = {
            "masked": Stage("masked", share, trainable=("network.transformer", "token", "decoder")),
            "volumes": Stage("volumes", share),
        }
        return tuple(known[s] for s in self.steps)

    def sampling(self, stage: Stage) -> Sampling:
        every = Stream("volumes", self.plan.batch, "all")
        return Sampling(streams=(every,), views=1 if stage.name == "masked" else 2, overlap=OVERLAP, foreground=0.0)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if clock.stage == "masked":
            return {"masked": self.masked(batch.image)}
        both, frozen = (batch, *batch.views), self.resting(clock)
        keys = torch.tensor([crc32(c.encode()) for c in batch.cases], device=batch.image.device)
        terms = {"volumes": self.of_volumes([self.network.embedding(b.image) for b in both], keys, frozen=frozen)}
        if self.of_slices is not None:
            terms["slices"] = self.joint * self.slice_term(batch, batch.views[0], frozen)
        return terms

    def masked(self, image: Tensor) -> Tensor:
        """Mean squared error of the guessed embeddings of the hidden slices of volumes (B, C, *s)."""
        with torch.no_grad():
            truth = self.network.sequence(image)
        b, n = truth.shape[:2]
        at = torch.rand(b, n, device=truth.device).topk(max(1, round(self.hide * n))).indices
        hidden = torch.zeros(b, n, dtype=torch.bool, device=truth.device).scatter(1, at, True)
        return (self.guess(truth, hidden) - truth)[hidden].square().mean()

    def guess(self, sequence: Tensor, hidden: Tensor) -> Tensor:
        """(B, N, dim): what the slices are, from those of ``sequence`` (B, N, dim) that are not ``hidden`` (B, N)."""
        return self.decoder(self.network.transformer(torch.where(hidden.unsqueeze(-1), self.token.to(sequence.dtype), sequence)))

    def slice_term(self, first: Batch, second: Batch, frozen: bool) -> Tensor:
        """The loss of stage 1 on one slice of each volume and the slice of its other view that shows the same place."""
        axis, n = self.network.axis, first.image.shape[2 + self.network.axis]
        mine = torch.randint(n, (len(first),), device=first.image.device)
        other = places(first, axis, mine, second.to_case).round().long().clamp(0, n - 1).to(mine.device)
        rows = torch.arange(len(first), device=mine.device)
        views = [self.network.describe(self.network.cut(b.image)[rows, i]) for b, i in ((first, mine), (second, other))]
        return self.of_slices(views, slice_keys(first, places(first, axis, mine)), frozen=frozen)


def places(batch: Batch, axis: int, number: Tensor | None = None, to: Tensor | None = None) -> Tensor:
    """(B,) where across ``axis`` the middle of each patch's slice ``number`` (B,) (default: the middle one) lies, in slices of the case, or
    of the other view that ``to`` (B, 4, 4) maps to the case. Pictures lie at 0."""
    size = torch.tensor(batch.image.shape[2:], dtype=torch.float64)
    if len(size) == 2:
        return torch.zeros(len(batch))
    middle = ((size - 1) / 2).repeat(len(batch), 1)
    if number is not None:
        middle[:, axis] = number.double().cpu()
    poses = batch.to_case.double().cpu()
    if to is not None:
        poses = torch.linalg.solve(to.double().cpu(), poses)
    return (poses[:, :3, :3] @ middle.unsqueeze(2)).squeeze(2)[:, axis] + poses[:, axis, 3]


def slice_keys(batch: Batch, at: Tensor) -> Tensor:
    """(B,) a number for each slice of each case."""
    names = [f"{c}/{round(float(z))}" for c, z in zip(batch.cases, at, strict=True)]
    return torch.tensor([crc32(n.encode()) for n in names], device=batch.image.device)
