"""SAM-Med2D: a Segment Anything model tuned on medical images by adapters in its frozen encoder and by long corrections in training.

The encoder keeps its weights; a small adapter beside the perceptrons of its transformer blocks learns what is different about these images.
Prompt encoder and mask decoder learn whole, and they learn corrections: after a first box or click the same embedding is asked eight times
more, with clicks where the answer is wrong and with the answer itself as the mask prompt, and every answer is a step of the optimiser.

Cheng et al., SAM-Med2D (2023), https://arxiv.org/abs/2308.16184. Where we differ or had to choose:

* The start is LiteMedSAM's (medical weights, an encoder that a CPU can run), not SAM's ViT-B. Its adapters stand beside the perceptrons of
  the stages ``adapted``; those of the first stage have none. They are narrower (``narrow=1``: the paper's), have a learning rate of their
  own, and add nothing until they have learnt (``still=False``: the paper's), so that a few hundred images lose nothing that was known.
* The one mask of LiteMedSAM, which alone was tuned on medical images; ``several=True``: the best, by its own estimate, of three (paper).
* Boxes have each side off by up to ``jitter`` of its length, some boxes by less (paper: shifted by up to five pixels), as people draw
  them. Half of the corrections are the clicks of the one who clicks deepest in the largest errors (paper: any wrong pixels).
* As in a session, a correction is heard together with the box and the clicks before it, and the mask prompt is the answer's logits
  (paper: the newest clicks alone, with the answer's probabilities). The turns that show the mask alone are the paper's.
* The prompt encoder learns in all nine steps. Published, it is held in the eight, and what it makes of masks and of negative clicks, which
  occur nowhere else, is never learnt.
* One object an image (``objects=5``: paper), as nine decodings cost more than an embedding here.

Key components: ``networks.blocks.adapter``; ``ops.prompts`` (the simulated user); ``turns`` and ``losses`` (the schedule);
``objectives.focal_dice_iou``; ``methods.sam2d`` (the start).

Good to know: an image is embedded once for the nine updates of a step, and anew whenever it is drawn again (it is augmented, and the
adapters have moved on); gradients go back to the first adapted stage and no farther. With ``adapted=`` empty the decoder alone is tuned.
On a CPU that computes in bfloat16 give the plan ``precision=bf16``: it trains faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...core.case import IGNORE, Batch, Sample
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Sampling, Stage
from ...core.plan import Plan
from ...core.prompt import Asked, Candidates, Turn
from ...networks.blocks.adapter import Adapted, SideAdapter
from ...objectives.focal_dice_iou import focal_dice_iou
from ...ops import prompts as users
from ..prompted import clicked
from ..sam2d import SIDE, WIDTHS, Sam2D

COUNTS = (1, 3, 5, 9)  # clicks of a correction


@dataclass
class Dialogue:
    """n objects being asked about: ``features`` (n, C, *g), what each is (``truth`` (n, h, w)) and where that is ``known``, the turns so
    far, the last answer (n, 1, h, w), and the corrections, by number, at which the model sees nothing but that answer."""

    features: Tensor
    truth: Tensor
    known: Tensor
    rng: np.random.Generator
    alone: frozenset[int]
    history: list[Turn] = field(default_factory=list)
    logits: Tensor | None = None


class SamMed2D(Sam2D):
    """``adapted``: the encoder's stages, of 1, 2, 3, that get adapters; ``narrow``, ``still``: see ``SideAdapter``; ``several``: of three
    masks the best. ``corrections``: updates of a step after the first; ``policies``: how the user clicks in them, one at random a turn;
    ``boxes``: the share of first prompts that are boxes, ``jitter``: how far their sides are off at most; ``piece``: an object is one
    connected piece of a structure; ``images`` a step, ``objects`` an image. ``pretrained``, ``side``, ``widths``: see ``Sam2D``."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        pretrained: bool = True,
        side: int = SIDE,
        widths: tuple[int, ...] = WIDTHS,
        adapted: tuple[int, ...] = (2, 3),
        narrow: int = 4,
        still: bool = True,
        several: bool = False,
        corrections: int = 8,
        policies: tuple[users.Policy, ...] = ("uniform", "centre"),
        boxes: float = 0.5,
        jitter: float = 0.2,
        piece: bool = False,
        images: int = 2,
        objects: int = 1,
        lr: float = 1e-4,
        adapter_lr: float = 1e-3,
    ):
        if not set(adapted) <= {1, 2, 3}:
            raise UsageError("adapters stand in stages with perceptrons", where="adapted", found=tuple(adapted), allowed="1, 2, 3")
        super().__init__(plan.derive(batch=images), manifest, parts=parts, pretrained=pretrained, side=side, widths=widths)
        self.several, self.corrections, self.policies, self.boxes, self.jitter = several, corrections, tuple(policies), boxes, jitter
        self.piece, self.objects, self.lr, self.adapter_lr = piece, objects, lr, adapter_lr
        encoder = self.network.image_encoder.requires_grad_(False)
        for stage in adapted:
            for block in encoder.layers[stage].blocks:
                block.mlp = Adapted(block.mlp, SideAdapter(widths[stage], narrow=narrow, still=still))
        self.dialogue: Dialogue | None = None

    def train(self, mode: bool = True) -> SamMed2D:
        """The frozen encoder's batch statistics stay as they are."""
        super().train(mode)
        self.network.image_encoder.eval()
        return self

    # training ------------------------------------------------------------------------------------------------------------------------
    def turns(self, clock: Clock) -> Sequence[str]:
        """The first answer, whose update reaches the adapters, and the corrections, whose updates do not."""
        return ("main", *(f"correction {k + 1}" for k in range(self.corrections)))

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        k = 0 if turn == "main" else int(turn.rpartition(" ")[2])
        if k == 0:
            self.dialogue = self._begin(batch)
        d = self.dialogue
        if d is None:  # no image of this batch shows anything
            return {"focal": 0 * next(self.network.mask_decoder.parameters()).sum()}
        answer = self.candidates(d.features, self._heard(d, k))
        logits = answer.best()
        d.features, d.logits = d.features.detach(), logits.detach()
        return focal_dice_iou(logits[:, 0], answer.quality.amax(1), d.truth, d.known)

    def after_step(self, clock: Clock) -> None:
        self.dialogue = None

    def _begin(self, batch: Batch) -> Dialogue | None:
        rng = np.random.default_rng(torch.randint(2**31, (1,)).item())  # the loop seeds torch at every step
        drawn = [(b, users.meant(x, rng, piece=self.piece)) for b, x in enumerate(batch.label.cpu().numpy()) for _ in range(self.objects)]
        drawn = [(b, mask) for b, mask in drawn if mask.any()]
        if not drawn:
            return None
        of = [b for b, _ in drawn]
        truth = torch.from_numpy(np.stack([mask for _, mask in drawn])).to(batch.image.device)
        n = self.corrections
        alone = frozenset({int(rng.integers(2, n)), n}) if n > 2 else frozenset()
        return Dialogue(self.embed(batch.image)[0][of], truth, batch.label[of] != IGNORE, rng, alone)

    def _heard(self, d: Dialogue, k: int) -> list[Turn]:
        """The turns that the k-th answer is made of."""
        if k in d.alone:
            return [Turn(_boxed(None, d.truth), d.logits)]
        d.history.append(Turn(self._correction(d) if k else self._first(d), d.logits))
        return d.history

    def _first(self, d: Dialogue) -> Asked:
        """By the toss of a coin boxes, or a click each, anywhere on the object."""
        truth = d.truth.cpu().numpy()
        if d.rng.random() < self.boxes:
            last = np.array(truth.shape[1:]) - 0.5
            return _boxed([users.box(t, d.rng, jitter=self.jitter * d.rng.random() ** 0.5).clip(-0.5, last) for t in truth], d.truth)
        return clicked([users.clicks(t, None, d.rng, policy="uniform") for t in truth], d.truth.device)

    def _correction(self, d: Dialogue) -> Asked:
        """So many clicks on each object where its answer is wrong, and known to be; fewer, or none, where less is wrong."""
        policy, count = self.policies[d.rng.integers(len(self.policies))], COUNTS[d.rng.integers(len(COUNTS))]
        shown = torch.where(d.known, d.logits[:, 0] > 0, d.truth)
        pairs = zip(d.truth.cpu().numpy(), shown.cpu().numpy(), strict=True)
        return clicked([users.clicks(t, s, d.rng, count=count, policy=policy) for t, s in pairs], d.truth.device)

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case")

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Images lie in the upper left corner, as when they are answered, until their pose is varied."""
        sample.pose = np.eye(3)
        return super().augment(sample, rng)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        network = self.network
        groups = [{"params": [*network.prompt_encoder.parameters(), *network.mask_decoder.parameters()], "lr": self.lr}]
        adapters = [p for m in self.modules() if isinstance(m, SideAdapter) for p in m.parameters()]
        return {"main": torch.optim.Adam(groups + ([{"params": adapters, "lr": self.adapter_lr}] if adapters else []))}

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def candidates(self, features: Tensor, history: Sequence[Turn]) -> Candidates:
        return self.network.decode(features, history, several=self.several)


def _boxed(boxes: Sequence[np.ndarray] | None, like: Tensor) -> Asked:
    """A turn of boxes (2, 2) in voxels, one an object, or of nothing at all, for as many objects as ``like`` has."""
    none = like.new_zeros(len(like), 0, dtype=torch.long)
    given = None if boxes is None else torch.tensor(np.stack(boxes), dtype=torch.float32, device=like.device)
    return Asked(none[..., None].expand(-1, -1, 2).float(), none, given)
