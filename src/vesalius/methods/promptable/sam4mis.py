"""Zero-shot: how well does a Segment Anything model do on medical images as it comes, prompt by prompt, structure by structure?

One protocol over promptable models. A simulated user asks for every structure of a test case in one of the ways of ``MODES``; the model
learns nothing; the masks are scored on the original grid. ``vesalius compare sam4mis lite-medsam --data D --prompts box,1click,5clicks``
gives the rows (model, prompt mode, structure).

Zhang, Shen and Jiao, Segment Anything Model for Medical Image Segmentation: Current Applications and Future Directions, Computers in
Biology and Medicine 2024, https://arxiv.org/abs/2401.03495: a survey, whose finding is that this varies with the target (large, plain,
convex ones do well) and the prompt (boxes before clicks before none), and that models tuned on medical images do better. Where we had to
choose:

* The model is LiteMedSAM's (``part model=...``: any other of two dimensions). SAM itself at 1024 pixels is slow on a CPU and its weights
  are not to be had here; ``checkpoint``, a folder or a hub id, brings it, or SAM 2.
* Which of several masks counts: the one that the model itself thinks best, where a prompt is one click without a box; or, with '+pick'
  after any turn, the one that overlaps the reference most, an oracle's choice and so an upper bound, which no user can count on.
* A volume is seen slice by slice, across its coarsest axis, upright as radiologists see it (front or top up, right left). A box in three
  dimensions is its own rectangle in every slice of it, and a click speaks for its slice alone: nothing but the prompt says where the
  structure ends. The published protocol, a prompt in every slice that shows the structure and in no other, tells the model just that; it
  is 'each-box' and 'each-1click'. Scores are of the whole volume.
* Grey values as bytes: computed tomography from -160 to 240 HU, others between their 0.5 and 99.5 percentiles; photographs as they are.

Key components: ``ops.prompts.user`` (the ways of asking), ``ops.proposals`` (the 'everything' mode), ``engine.interact.simulate``.

Good to know: 'everything' costs a decoding for each of its 1024 clicks ('everything8' has 64) and its masks have no names: an oracle names
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...core.case import Case, Image
from ...core.errors import UsageError
from ...core.geometry import NATIVE, Geometry
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prompt import Asked, Candidates, Turn
from ...networks.sam import together
from ...networks.sam2_video import Sam2Video
from ..prompted import PromptableMethod, SequenceMethod
from ..sam2d import Sam2D, upright
from ..sam_checkpoint import SamCheckpoint
from ..sam_video import SamVideo

MODES = ("everything", "1click", "1random", "3clicks", "5clicks", "10clicks", "box", "box5", "box10", "box20", "box+5clicks")
SOFT_TISSUE = (-160.0, 240.0)  # HU: width 400, level 40
EDGE = 1e-3  # voxels: a box whose face lies in a slice's middle holds it
SURE = 20.0  # logit of what lies in a slice that nobody asked about


@dataclass
class Slices:
    """A volume's slices (T, C, h, w) as the model sees them, and their own ``size``; each is embedded when it is first asked about."""

    image: Tensor
    size: tuple[int, int]
    held: dict[int, Any] = field(default_factory=dict)


class ZeroShot(PromptableMethod):
    """A promptable model of two dimensions as it comes, on images and, slice by slice, on volumes. The default is LiteMedSAM, with three
    masks to choose from where one click leaves room for doubt."""

    kinds = frozenset({"point", "scribble", "box", "mask"})
    boxes_by_slice = True

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        several: bool = False,
        checkpoint: str = "",
    ):
        flat = plan.derive(dims=2)
        if (parts or {}).get("model"):
            model = parts["model"]
        elif checkpoint:
            model = SamCheckpoint(flat, manifest, checkpoint=checkpoint)
        else:
            model = (Doubtful if several else Sam2D)(flat, manifest)
        if not isinstance(model, PromptableMethod) or model.plan.dims != 2:
            raise UsageError("zero-shot asks a promptable model of two dimensions", where="--part", found=type(model).__name__)
        own = model.plan if plan.dims == 2 else plan.derive(grid=NATIVE, crop_to_body=False)
        super().__init__(own, manifest)
        self.model, self.kinds = model, model.kinds
        self.computed = manifest.modality.upper() == "CT"

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> ZeroShot:
        return self

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """A volume's grey values as numbers from 0 to 1."""
        return case if self.plan.dims == 2 else self._shown(case)

    def _shown(self, case: Case) -> Case:
        return case.with_(images={k: Image(self._window(np.asarray(v.data)), v.geometry, normalise=False) for k, v in case.images.items()})

    def _window(self, data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float32)
        low, high = SOFT_TISSUE if self.computed else np.percentile(data, (0.5, 99.5))
        return np.clip((data - low) / max(float(high) - float(low), 1e-6), 0, 1)

    @property
    def carrier(self) -> SequenceMethod | None:
        """What carries masks through a volume with the model's memory, where it has one (a SAM 2 checkpoint for videos)."""
        if self.plan.dims != 3 or not isinstance(getattr(self.model, "network", None), Sam2Video):
            return None
        return SamVideo(self.plan, self.manifest, model=self.model, shown=self._shown).eval()

    def embed(self, image: Tensor, condition: object = None) -> Any:
        if self.plan.dims == 2:
            return self.model.embed(image)
        frames = upright(image[0].movedim(self.axis + 1, 0))
        size = tuple(frames.shape[2:])
        seen = self.model.plan.grid.of(Geometry.of(size, 1.0)).shape
        return Slices(interpolate(frames, seen, mode="bilinear", align_corners=False, antialias=True), size)

    def decode(self, embedding: Any, history: Sequence[Turn]) -> Candidates:
        """Of an image what the model answers, of a volume one mask: the best one of every slice that was asked about."""
        if not isinstance(embedding, Slices):
            return self.model.decode(embedding, history)
        size, seen = embedding.size, tuple(embedding.image.shape[2:])
        about = [_spoken_of(turn.prompts, self.axis) for turn in history]
        out = embedding.image.new_full((len(embedding.image), *reversed(size)), -SURE)
        for t in sorted(set().union(*about)):
            turns: list[Turn] = []
            for turn, slices in zip(history, about, strict=True):
                if t in slices:
                    turns.append(_in_slice(turn, t, self.axis, size, seen, answered=bool(turns)))
            if t not in embedding.held:
                embedding.held[t] = self.model.embed(embedding.image[t : t + 1])
            answer = self.model.reply(embedding.held[t], turns)
            out[t] = upright(interpolate(answer, size, mode="bilinear", align_corners=False)[0, 0])
        return Candidates(out.movedim(0, self.axis)[None, None], out.new_ones(1, 1))


class Doubtful(Sam2D):
    """LiteMedSAM with the decoder's four masks for one click without a box or mask: the one, and whole, part and part of the part."""

    def candidates(self, features: Tensor, history: Sequence[Turn]) -> Candidates:
        given, one = together(history), self.network.decode(features, history)
        if given.points.shape[1] != 1 or given.boxes is not None or given.masks is not None:
            return one
        three = self.network.decode(features, history, several=True)
        return Candidates(torch.cat([one.logits, three.logits], 1), torch.cat([one.quality, three.quality], 1))


def _spoken_of(asked: Asked, axis: int) -> set[int]:
    """The slices that prompts are about: those of the points, of the boxes (one at least), and where a mask is."""
    out = set(asked.points[0, asked.signs[0] >= 0, axis].round().int().tolist())
    for low, high in asked.boxes[:, :, axis].tolist() if asked.boxes is not None else ():
        within = range(math.ceil(low - EDGE), math.floor(high + EDGE) + 1)
        out |= set(within) or {round((low + high) / 2)}
    if asked.masks is not None:
        out |= set((asked.masks[0, 0].movedim(axis, 0) >= 0.5).flatten(1).any(1).nonzero()[:, 0].tolist())
    return out


def _in_slice(turn: Turn, t: int, axis: int, size: tuple[int, int], seen: tuple[int, ...], *, answered: bool) -> Turn:
    """A turn as it speaks of slice ``t``, upright of ``size`` pixels, which the model sees as ``seen``; the slice's answer only if it has
    been given."""
    asked, (columns, rows) = turn.prompts, [a for a in range(3) if a != axis]
    sides, sees = (torch.tensor(n, dtype=torch.float32, device=asked.points.device) for n in (size, seen))

    def moved(place: Tensor) -> Tensor:
        return (sides - 0.5 - place[..., [rows, columns]]) * sees / sides - 0.5

    def flat(volume: Tensor | None) -> Tensor | None:
        return None if volume is None else interpolate(upright(volume.select(axis + 2, t)), seen, mode="bilinear", align_corners=False)

    here = (asked.points[0, :, axis].round() == t) & (asked.signs[0] >= 0)
    boxes = None
    if asked.boxes is not None:
        covering = [b for b in asked.boxes if t in _spoken_of(Asked(asked.points[:, :0], asked.signs[:, :0], b[None]), axis)]
        boxes = moved(covering[-1].flip(0))[None] if covering else None  # the high corner is the low one of the turned slice
    masks = asked.masks if asked.masks is not None and bool((asked.masks.select(axis + 2, t) >= 0.5).any()) else None
    logits = flat(turn.logits) if answered else None
    return Turn(Asked(moved(asked.points[:, here]), asked.signs[:, here], boxes, flat(masks)), logits)
