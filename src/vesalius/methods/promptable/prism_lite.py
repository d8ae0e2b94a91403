"""PRISM Lite: the corrective network alone. Any segmenter gives the first mask, every click mends it, in a fraction of a second.

Image encoder, prompt encoder and mask decoder are gone. What remains of PRISM is its small network at half resolution that looks at the
image, the mask and all clicks since the session began and adds a correction to the mask; a tenth of a million parameters, run again at
every turn.

Li et al., PRISM Lite: a lightweight model for interactive 3D placenta segmentation in ultrasound, 2024,
https://arxiv.org/abs/2408.05372, code in MedICL-VU/PRISM-placenta. Where we differ or had to choose:

* The first mask comes from the part 'segmenter' (the planned U-Net unless another is given, trained first with half of the budget), from a
  mask that the person brings along, or from the last answer. Of several structures it is the one most probable under the first clicks.
* A mask of yes and no becomes logits of +-4 before anything looks at it; the released code feeds zeros and ones.
* A segmenter is better on its own training cases than it will be, so a share of the first masks of training is ``damaged``: eroded,
  dilated, shifted, or with a block taken out.

Key components: ``networks.blocks.refiner`` with ``lift``, ``methods.unrolled`` (training through sessions), ``Stage.relabel`` (the
segmenter's masks of the training cases, made once).

Good to know: a click changes the mask about ten voxels around it, and beyond only by what it does to the instance norms' means. The turns
of a session share no gradient. The segmenter's own parameters are not counted as this method's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core.case import IGNORE, Batch, Case, LabelMap
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run, Stage
from ...core.plan import Plan
from ...core.prompt import Candidates, Turn
from ...networks.blocks.refiner import Refiner, click_maps
from ...objectives.dice_ce import DiceCE
from ...ops.morphology import dilate, erode
from ..planned import PlannedUNet
from ..unrolled import SURE, UnrolledMethod, given

PART, START = "segmenter", "start"


@dataclass(frozen=True)
class Begun:
    """``image`` (B, C, *s); ``starts`` (B, K, *s) the segmenter's probabilities of K structures, K = 0 where it was not asked."""

    image: Tensor
    starts: Tensor


class PrismLite(UnrolledMethod):
    """``width``: channels; ``lift``: the mask's logits are lifted by a small network; ``guided``: clicks are seen (False: empty maps);
    ``damage``: share of training sessions whose first mask is damaged; ``share``: of the budget that the segmenter gets. The further
    options are those of ``methods.unrolled``."""

    kinds = frozenset({"point", "scribble", "mask"})
    clip = 1.0

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        width: int = 32,
        lift: bool = True,
        guided: bool = True,
        damage: float = 0.5,
        share: float = 0.5,
        interactions: int = 11,
        clicks: int = 50,
        scribbles: float = 0.25,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
    ):
        for name, value in (("damage", damage), ("share", share)):
            if not 0 <= value <= 1 or (name == "share" and value in (0, 1)):
                raise UsageError(f"'{name}' is a share", where=name, found=value, allowed="between 0 and 1")
        own = {} if parts and PART in parts else {PART: PlannedUNet(plan, manifest)}
        asked = dict(interactions=interactions, clicks=clicks, scribbles=scribbles)
        super().__init__(plan, manifest, parts={**own, **(parts or {})}, **asked, lr=lr, weight_decay=weight_decay)
        self.network = Refiner(self.in_channels, dims=3, width=width, lift=lift)
        self.guided, self.damage, self.share = guided, damage, share
        self.objective = DiceCE(squared=True, batch_dice=False)

    def train(self, mode: bool = True) -> PrismLite:
        """The segmenter is never in training here; its own training sees to that itself."""
        if isinstance(part := self.parts[PART], torch.nn.Module):
            part.eval()
        return super().train(mode)

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> PrismLite:
        run.fit(self.parts[PART], train, val, share=self.share)
        run.train(self, train, val, share=1 - self.share)
        return self

    def stages(self) -> Sequence[Stage]:
        return (Stage(relabel=self.started),)

    def started(self, case: Case, rng: np.random.Generator) -> Case:
        """The case with the segmenter's mask of it as the label map 'start'."""
        maps = self._automatic(case, rng)
        found = np.concatenate([1 - maps.sum(0, keepdims=True), maps]).argmax(0).astype(np.int16)
        return replace(case, labels={**case.labels, START: LabelMap(found, case.geometry, self.plan.classes)})

    def begin(self, batch: Batch, chosen: Sequence[int], rng: np.random.Generator) -> Tensor:
        """The segmenter's mask of each patch's object, some of them damaged; the damaged reference where it was not asked."""
        known = batch.labels.get(START)
        masks = [(batch.label if known is None else known)[b].cpu().numpy() == k for b, k in enumerate(chosen)]
        masks = [damaged(m, rng) if known is None or rng.random() < self.damage else m for m in masks]
        return _logits(torch.from_numpy(np.stack(masks))[:, None].to(batch.image))

    def turn(self, embedding: Begun, history: Sequence[Turn], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.reply(embedding, history)
        return {"refined": self.objective(logits, target, ignore_index=IGNORE)}, logits

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def tensor(self, case: Case) -> Tensor:
        """(1, C + K, *s): the image, and the segmenter's probabilities of the K structures."""
        starts = torch.from_numpy(np.ascontiguousarray(self._automatic(case, np.random.default_rng(0)), np.float32))
        image = super().tensor(case)
        return torch.cat([image, starts[None].to(image)], 1)

    def embed(self, image: Tensor, condition: object = None) -> Begun:
        return Begun(image[:, : self.in_channels], image[:, self.in_channels :])

    def decode(self, embedding: Begun, history: Sequence[Turn]) -> Candidates:
        image, logits = embedding.image, given(history[-1])
        if logits is None:
            logits = self._first(embedding, history[-1])
        clicks = click_maps([t.prompts for t in history], image.shape[2:])
        clicks = clicks if self.guided else torch.zeros_like(clicks)
        logits = self.network(image.expand(len(logits), *image.shape[1:]), logits, clicks)
        return Candidates(logits, logits.new_ones(len(logits), 1))

    def _first(self, embedding: Begun, turn: Turn) -> Tensor:
        """(B, 1, *s) logits of the automatic mask that each object's first clicks are about; an empty mask where there is none."""
        starts, asked = embedding.starts, turn.prompts
        if not starts.shape[1]:
            return _logits(starts.new_zeros(len(asked.points), 1, *starts.shape[2:]))
        starts = starts.expand(len(asked.points), *starts.shape[1:])
        under = click_maps([asked], starts.shape[2:]).sum(1, keepdim=True)
        which = (starts * under).flatten(2).sum(2).argmax(1).view(-1, 1, *(1,) * (starts.ndim - 2))
        winner = torch.cat([1 - starts.sum(1, keepdim=True), starts], 1).argmax(1, keepdim=True)
        return _logits((winner == which + 1).to(starts.dtype))

    def _automatic(self, case: Case, rng: np.random.Generator) -> np.ndarray:
        """(K, *s): the segmenter's probability of each structure on the case's prepared grid."""
        answer = self.parts[PART].predict(case.at(PART), rng=rng)
        if answer.probability is None:
            raise UsageError("the first mask needs a segmenter that gives probabilities", found=type(self.parts[PART]).__name__)
        maps = np.asarray(answer.probability.on(case.geometry).data, np.float32)
        return maps[len(maps) - len(self.plan.classes) + 1 :]


def damaged(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (*s) bool as a segmenter might get it wrong: eroded, dilated, shifted, with a block missing, or none of it found."""
    if not mask.any():
        return mask
    size = np.cbrt(mask.sum())
    how = rng.integers(5)
    if how < 2:
        return (erode, dilate)[how](mask, max(1.0, rng.uniform(0.05, 0.2) * size))
    if how == 2:
        return np.roll(mask, rng.choice((-1, 1), mask.ndim) * max(1, round(0.1 * size)), tuple(range(mask.ndim)))
    centre, half = rng.permutation(np.argwhere(mask))[0], rng.uniform(0.2, 0.6) * size
    block = np.ones(mask.shape, bool)
    for axis, c in enumerate(centre):
        near = np.abs(np.arange(mask.shape[axis]) - c) <= half
        block &= near.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
    return mask & ~block if how == 3 else np.zeros_like(mask)


def _logits(mask: Tensor) -> Tensor:
    return (2 * mask - 1) * SURE
