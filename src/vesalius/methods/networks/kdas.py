"""KDAS: a small polyp segmenter learns from a large one, by where the large one's map attends and by maps made symmetric.

A teacher, Polyp-PVT on PVT v2 b2, is trained first or is any finished run; the student is the same network on b0, a seventh of the size. In
its own training the student sees the reference, the teacher's prediction map attended to by itself, and the squared difference of both
maps' symmetric forms P + P^t.

Trinh et al., KDAS: Knowledge distillation via attention supervision framework for polyp segmentation (2023),
https://arxiv.org/abs/2312.08555, code https://github.com/huyquoctrinh/KDAS. Where we differ or had to choose:

* The published attention term hands KLDiv a softmax over the one channel, which is the constant 1: it has no gradient. Here it is the
  divergence that is meant, between distributions over the places of a row, averaged over rows; ``raw`` is the published form.
* The published symmetric term compares logits. Of a teacher that is sure its gradient is many times the segmentation's, so that a short
  training copies the teacher's scale rather than the reference. Here it compares probabilities, whose difference is bounded.
  ``symmetry=logits`` is the published form.
* The published training takes 100 epochs at 1e-4. Some hundred steps want ten times as much, the default, and it falls by a cosine.
* The published checkpoint is the best on the *test* images; ours is the last, or the best on validation cases (``--patience``).
* The published answer is stretched to 0..1 in every image; that turns frames without a polyp into frames with one and is left out.
* A map that is not square is averaged over a square grid before it is added to its transpose.
* The published teacher has seen ImageNet; give local copies with ``--set pretrained=FILE`` (b0) and ``--set teacher_pretrained=FILE`` (b2).
  ``--set whole=true --set size=352,352`` squeezes every image into the paper's 352 x 352 pixels.

Key components: ``networks.polyp_pvt`` (PVT v2, cascaded fusion, camouflage identification, similarity aggregation),
``objectives.kdas`` (the two terms), ``objectives.structure_loss``, training at three scales.

Good to know: ``share`` of the budget trains the teacher, which is not kept: a run holds, and predicts with, the student alone. With
``distil=none`` or ``alpha=0`` nobody teaches, and the student trains for its own share exactly as it otherwise would. The teacher may be
any segmenter (``--part teacher=SLUG``, trained first) or a finished run (``--set teacher=RUN``, which leaves the student the whole budget);
one with a single map teaches both of the student's. It has to see the same images: same channels, classes, grid and normalisation.
A student can be better than a teacher that had few steps: then the student alone is the better use of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.case import IGNORE, Batch
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run
from ...core.plan import Plan
from ...networks.blocks.padding import pad_to_multiple
from ...networks.blocks.pretrained import load_backbone
from ...networks.polyp_pvt import PolypPVT
from ...objectives.kdas import attention_kl, pixel_kl, symmetric_guidance
from ...objectives.structure_loss import StructureLoss
from ..learned import Segmenter
from ..recipe import Recipe


class KDAS(Recipe):
    """``network`` is the student's. ``distil``: 'attention' is the paper's; 'kl' compares pixels, 'none' leaves the student alone.
    L = (1 - alpha) (L_seg(P1) + L_seg(P2)) + alpha (tau^2 (KL1 + KL2) + L_SGM(P1)) with ``temperature`` tau; ``raw``: see
    ``objectives.kdas``; ``symmetry``: what L_SGM compares, on a grid whose side is ``pool`` (0: the map's own).
    ``teacher``: a finished run's folder; else ``share`` of the budget trains the part 'teacher', or a Polyp-PVT of ``teacher_width`` and
    ``teacher_depths`` with the student's options. The rest as in ``Recipe``."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] = PolypPVT,
        objective: Callable[[], Callable] = StructureLoss,
        teacher: str = "",
        share: float = 0.5,
        distil: Literal["attention", "kl", "none"] = "attention",
        alpha: float = 0.3,
        temperature: float = 2.0,
        raw: bool = False,
        symmetry: Literal["probabilities", "logits"] = "probabilities",
        pool: int = 0,
        teacher_width: int = 64,
        teacher_depths: tuple[int, ...] = (3, 4, 6, 3),
        teacher_pretrained: str = "",
        size: tuple[int, ...] = (),
        whole: bool = False,
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: Literal["cosine", "poly", "constant"] = "cosine",
        warmup: float = 0.05,
        clip_value: float = 0.5,
        scales: tuple[float, ...] = (0.75, 1.0, 1.25),
        pretrained: str = "",
    ):
        self.distil, self.alpha, self.temperature, self.raw = distil, alpha, temperature, raw
        self.symmetry, self.pool = symmetry, pool
        self.run_folder, self.share = teacher, share
        _check(self, parts or {})
        training = dict(optimizer=optimizer, lr=lr, weight_decay=weight_decay, schedule=schedule, warmup=warmup)
        training |= dict(clip=0.0, clip_value=clip_value, ema=0.0, scales=scales, outputs="foreground", levels="equal")
        start = dict(network=network, objective=objective, size=size, whole=whole, pretrained=pretrained)
        super().__init__(plan, manifest, **start, **training)
        larger = partial(PolypPVT, width=teacher_width, depths=teacher_depths)
        self.make_teacher = partial(Recipe, network=larger, objective=objective, pretrained=teacher_pretrained, **training)
        self.lent = dict(parts or {})  # neither a part nor a submodule: it is not saved, moved, trained or asked to predict

    @property
    def guided(self) -> bool:
        return self.distil != "none" and self.alpha > 0

    @property
    def teacher(self) -> Segmenter:
        """Frozen, in evaluation mode, of the classes and images that the student has. Raises UsageError."""
        if "teacher" not in self.lent:
            self.lent["teacher"] = self.make_teacher(self.plan, self.manifest)
        teacher = self.lent["teacher"]
        if not isinstance(teacher, Segmenter) or teacher.derived:
            raise UsageError("only a segmenter of the plan's images can teach", where="teacher", found=type(teacher).__name__)
        for name in ("dims", "channels", "in_channels", "classes", "grid", "normalise", "crop_to_body"):
            theirs, ours = getattr(teacher.plan, name), getattr(self.plan, name)
            if theirs != ours:
                raise UsageError(f"the teacher's {name} is another", where="teacher", found=theirs, allowed=ours)
        return teacher

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> KDAS:
        if self.run_folder and self.guided:
            self.lent["teacher"] = run.open(self.run_folder)
        elif self.guided:
            run.fit(self.teacher, train, val, share=self.share)
        if self.guided:
            self.teacher.requires_grad_(False).eval()
        if self.pretrained:
            load_backbone(self.network.backbone, self.pretrained)
        run.train(self, train, val, name="student", share=1.0 if self.run_folder else 1 - self.share)
        return self

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        image, label, at = batch.image, batch.label, ""
        if turn != "main":
            image, label = self.rescaled(image, label, float(turn.removeprefix("x")))
            at = f" {turn}"
        maps, alpha = self.network(image), self.alpha if self.guided else 0.0
        terms = {f"segmentation{at}": (1 - alpha) * sum(self.objective(m, label, ignore_index=IGNORE) for m in maps)}
        if not self.guided:
            return terms
        maps, taught = [m.float() for m in maps], self.taught(image)
        if self.distil == "kl":
            likeness = (pixel_kl(s, t, self.temperature) for s, t in zip(maps, taught, strict=True))
            return terms | {f"pixels{at}": alpha * sum(likeness)}
        likeness = (attention_kl(s, t, self.temperature, raw=self.raw) for s, t in zip(maps, taught, strict=True))
        terms[f"attention{at}"] = alpha * sum(likeness)
        compared = [m if self.symmetry == "logits" else m.sigmoid() for m in (maps[0], taught[0])]
        terms[f"symmetry{at}"] = alpha * symmetric_guidance(*compared, self.pool)
        return terms

    @torch.no_grad()
    def taught(self, image: Tensor) -> list[Tensor]:
        """The teacher's two maps, logits (B, structures, H, W) float32; of a teacher with one answer twice its probabilities' logits."""
        teacher = self.teacher.to(image.device).eval()
        if isinstance(teacher.network, PolypPVT):
            return [m.float() for m in teacher.network.maps(image)]
        answer = teacher(pad_to_multiple(image, teacher.network.multiple))
        logits = (answer if isinstance(answer, Tensor) else answer["logits"])[(..., *(slice(n) for n in image.shape[2:]))]
        return [teacher.probabilities(logits)[:, 1:].logit(1e-6)] * 2


def _check(me: KDAS, parts: Mapping[str, Method]) -> None:
    if set(parts) - {"teacher"}:
        raise UsageError("this method takes one part", found=", ".join(parts), allowed="teacher", fix="--part teacher=SLUG")
    if parts and me.run_folder:
        raise UsageError("two teachers", where="teacher", found=me.run_folder, fix="name a part or a run, not both")
    for name, value in (("share", me.share), ("alpha", me.alpha)):
        if not 0 <= value < 1:
            raise UsageError("this is a share", where=name, found=value, allowed="0 to below 1")
    if me.guided and not me.share and not me.run_folder:
        raise UsageError("a teacher that is not a finished run needs a share of the budget", where="share", found=0)
    if me.temperature <= 0 or me.pool < 0:
        found = (me.temperature, me.pool)
        raise UsageError("no such comparison of maps", where="temperature, pool", found=found, allowed="above 0, 0 or more")
