"""UnrolledMethod: a promptable method that learns from whole sessions, turn after turn, each prompted where its answer before was wrong.

The training of PRISM and PRISM Lite (https://arxiv.org/abs/2404.15028): ``interactions`` turns make one step, the loss is the mean over
them. A subclass says with which logits a session starts (``begin``) and what one turn costs (``turn``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.case import IGNORE, Batch
from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.method import Clock, Method, Sampling, Stage
from ..core.plan import Plan
from ..core.prompt import Asked, Turn
from ..ops import prompts as users
from .prompted import AS_POINTS, PromptableMethod, clicked

SURE = 4.0  # logit of a voxel of a mask that is given as yes or no
AXIAL = 2  # the axis across the planes that scribbles are drawn in


class UnrolledMethod(PromptableMethod):
    """``interactions``: turns of a training step; ``clicks``: of one turn, at most, uniformly in the error and in number; ``boxes``: share
    of training objects with a box, whose sides are off by up to ``jitter`` of their length; ``scribbles``: share of turns with a scribble
    along the centre line of the largest error in an axial plane."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        interactions: int = 11,
        clicks: int = 50,
        boxes: float = 0.0,
        jitter: float = 0.0,
        scribbles: float = 0.0,
        lr: float = 5e-4,
        weight_decay: float = 1e-2,
    ):
        for name, number in (("interactions", interactions), ("clicks", clicks)):
            if number < 1:
                raise UsageError("a session has a turn and a turn a click", where=name, found=number, allowed="1 or more")
        for name, share in (("boxes", boxes), ("jitter", jitter), ("scribbles", scribbles)):
            if not 0 <= share <= 1:
                raise UsageError(f"'{name}' is a share", where=name, found=share, allowed="0 to 1")
        if plan.dims != 3:
            raise UsageError("PRISM looks at volumes", where=type(self).__name__, found=f"{plan.dims}D data", allowed="3D data")
        super().__init__(plan, manifest, parts=parts)
        self.interactions, self.clicks, self.boxes, self.jitter, self.scribbles = interactions, clicks, boxes, jitter, scribbles
        self.lr, self.weight_decay = lr, weight_decay

    def begin(self, batch: Batch, chosen: Sequence[int], rng: np.random.Generator) -> Tensor | None:
        """(B, 1, *s) logits that the session about class ``chosen[b]`` of each patch starts with; None: from nothing."""
        return None

    def turn(self, embedding: Any, history: Sequence[Turn], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the newest turn against ``target`` (B, *s), 1 on the object and IGNORE where nobody said; and its answer (B, 1, *s)."""
        raise NotImplementedError

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(foreground=1.0)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        rng = np.random.default_rng(torch.randint(2**31, (1,)).item())  # the loop seeds torch at every step
        label = batch.label.cpu().numpy()
        chosen = [users.structure(one, rng) or 1 for one in label]  # 1 where it shows none: an empty answer is learnt too
        truth = np.stack([one == k for one, k in zip(label, chosen, strict=True)])
        target = torch.from_numpy(np.where(label == IGNORE, IGNORE, truth).astype(np.int64)).to(batch.image.device)
        embedding, logits, history, total = self.embed(batch.image), self.begin(batch, chosen, rng), [], {}
        boxes = self._boxes(truth, rng).to(batch.image.device) if self.boxes else None
        for _ in range(self.interactions):
            shown = None if logits is None else (logits[:, 0] > 0).cpu().numpy() & (label != IGNORE)
            history.append(Turn(replace(self.simulated(truth, shown, rng, batch.image.device), boxes=boxes), logits))
            terms, logits = self.turn(embedding, history, target)
            total = {name: total.get(name, 0.0) + value / self.interactions for name, value in terms.items()}
        return total

    def simulated(self, truth: np.ndarray, shown: np.ndarray | None, rng: np.random.Generator, device: torch.device | str = "cpu") -> Asked:
        """One turn of B users who want ``truth`` (B, *s) bool and see ``shown`` (B, *s) bool (None: nothing yet)."""
        places = []
        for b, wanted in enumerate(truth):
            seen = None if shown is None else shown[b]
            wrong = int(np.count_nonzero(wanted if seen is None else wanted ^ seen))
            index, positive = users.clicks(wanted, seen, rng, count=1 + rng.integers(min(self.clicks, max(1, wrong))), policy="uniform")
            if wrong and rng.random() < self.scribbles:
                line, sign = users.scribble(wanted, seen, plane=AXIAL)
                line = line[np.linspace(0, len(line) - 1, min(len(line), AS_POINTS)).round().astype(int)]
                index, positive = np.concatenate([index, line]), np.concatenate([positive, np.full(len(line), sign)])
            places.append((index, positive))
        return clicked(places, device)

    def _boxes(self, truth: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(B, 2, d), the same in all turns; NaN where the object has none, or nobody draws one."""
        out = np.full((len(truth), 2, truth.ndim - 1), np.nan, np.float32)
        for b, wanted in enumerate(truth):
            if rng.random() < self.boxes and wanted.any():
                out[b] = users.box(wanted, rng, jitter=self.jitter)
        return torch.from_numpy(out)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)}


def given(turn: Turn) -> Tensor | None:
    """(B, 1, *s) logits that a turn's prompts were given at the sight of: the mask among them, or else the answer before."""
    masks = turn.prompts.masks
    return turn.logits if masks is None else (2 * masks - 1) * SURE
