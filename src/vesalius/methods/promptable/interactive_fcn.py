"""Interactive segmentation through a fully convolutional network: clicks are channels of the input, learnt from simulated corrections.

A click is a bump in one of two channels beside the image, one for clicks on the object and one for clicks beside it, and a U-Net answers.
In training the clicks come one by one, each where the answer so far is most wrong, so that the network learns what a correction means;
what the object is nobody else tells it, and structures it never saw can be outlined.

Sakinis et al., Interactive segmentation of medical images through fully convolutional neural networks (2019),
https://arxiv.org/abs/1903.08205. Where we differ or had to choose:

* The width of a bump, the number of interactions and the network are not in the text at hand; those of MONAI's DeepGrow, which descends
  from the paper, are the defaults. The network is the planned U-Net, in two dimensions or three (the paper: axial slices).
* An object is a structure that the patch shows, chosen at random (``objects='structure'``), or one connected piece of it ('piece'), as
  data sets of many similar objects need. A patch without any is learnt from too, with a click beside nothing and an empty answer.
* AdamW and a rate for short runs; the paper's Adam at 1e-4 is ``lr=1e-4, weight_decay=0``.

Key components: ``ops.prompts`` (where the simulated user clicks, with probability in proportion to exp(distance to the border) - 1);
``bumps`` (the guidance channels); the inner answers of a step take no gradient, only the last does.

Good to know: nothing of the image is kept between clicks, so each click costs a whole forward. Boxes are not understood; scribbles are many
clicks. Training costs a forward for every simulated click: about as many as sum_j prod_i (1 - i / interactions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core.case import IGNORE, Batch
from ...core.manifest import Manifest
from ...core.method import Clock, Method
from ...core.plan import Plan
from ...core.prompt import Candidates, Turn
from ...networks.blocks.padding import pad_to_multiple
from ...networks.unet import UNet
from ...objectives.dice_ce import DiceCE
from ...ops import prompts as users
from ..prompted import PromptableMethod, clicked


class InteractiveFCN(PromptableMethod):
    """``sigma``: width of a click's bump, voxels; ``interactions``: clicks of a training step, at most; ``corrections``: after the first
    one they go where the answer is wrong (False: the first click is all there is); ``guided``: the network sees clicks (False: zeros)."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        sigma: float = 2.0,
        interactions: int = 15,
        corrections: bool = True,
        guided: bool = True,
        objects: Literal["structure", "piece"] = "structure",
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
    ):
        super().__init__(plan, manifest, parts=parts)
        self.sigma, self.interactions, self.corrections, self.guided = sigma, interactions, corrections, guided
        self.objects, self.lr, self.weight_decay = objects, lr, weight_decay
        p = plan
        self.network = UNet(
            self.in_channels + 2, 1, spatial_dims=p.dims, features=p.features, strides=p.strides, kernels=p.kernels, norm="instance"
        )
        self.objective = DiceCE(ce_weight=0.0, squared=True, batch_dice=False)

    # training ------------------------------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        rng = np.random.default_rng(torch.randint(2**31, (1,)).item())  # the loop seeds torch at every step
        truth = np.stack([users.meant(label, rng, piece=self.objects == "piece") for label in batch.label.cpu().numpy()])
        history = self.interact(batch.image, truth, rng)
        target = torch.from_numpy(truth).long().to(batch.image.device)
        target[batch.label == IGNORE] = IGNORE
        return {"dice": self.objective(self.reply(batch.image, history), target, ignore_index=IGNORE)}

    def interact(self, image: Tensor, truth: np.ndarray, rng: np.random.Generator) -> list[Turn]:
        """Turns of a simulated user with objects ``truth`` (B, *s) bool: a first click, and a further one after click j of N with
        probability 1 - j / N, where the answer at that moment is wrong. Who stops gives no more clicks."""
        history = [Turn(clicked([self._first(t, rng) for t in truth], image.device))]
        going = np.ones(len(truth), bool)
        for j in range(1, self.interactions if self.corrections else 1):
            going &= rng.random(len(truth)) < 1 - j / self.interactions
            if not going.any():
                break
            with torch.no_grad():
                logits = self.reply(image, history)
            answers = (logits[:, 0] > 0).cpu().numpy()
            places = [users.clicks(t, a, rng, policy="distance") for t, a in zip(truth, answers, strict=True)]
            none = np.zeros((0, truth.ndim - 1), int), np.zeros(0, bool)
            history.append(Turn(clicked([p if on else none for p, on in zip(places, going, strict=True)], image.device), logits))
        return history

    def _first(self, truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A click inside, mostly where the object is thick; beside nothing where there is none."""
        if truth.any():
            return users.clicks(truth, None, rng, policy="distance")
        return users.clicks(truth, ~truth, rng, policy="uniform")

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)}

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def embed(self, image: Tensor, condition: object = None) -> Tensor:
        return image

    def decode(self, embedding: Tensor, history: Sequence[Turn]) -> Candidates:
        """One mask, from all clicks so far."""
        size = embedding.shape[2:]
        points = torch.cat([t.prompts.points for t in history], 1)
        signs = torch.cat([t.prompts.signs for t in history], 1)
        if not self.guided:
            signs = torch.full_like(signs, -1)
        guidance = torch.cat([bumps(points, signs == wanted, size, self.sigma) for wanted in (1, 0)], 1)
        image = embedding.expand(len(points), *embedding.shape[1:])
        logits = self.network(pad_to_multiple(torch.cat([image, guidance], 1), self.network.multiple))
        logits = logits[(..., *(slice(0, n) for n in size))]
        return Candidates(logits, logits.new_ones(len(logits), 1))


def bumps(points: Tensor, chosen: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """(B, 1, *size): the sum of Gaussians at the chosen ones of ``points`` (B, N, d), scaled to a maximum of 1; exactly 0 farther than four
    ``sigma`` along an axis, and everywhere where no point is chosen."""
    d, out = len(size), None
    for axis, n in enumerate(size):
        off = torch.arange(n, device=points.device) - points[..., axis : axis + 1]  # (B, N, n)
        profile = torch.exp(-0.5 * (off / sigma) ** 2) * (off.abs() <= 4 * sigma)
        profile = profile.view(*profile.shape[:2], *(n if a == axis else 1 for a in range(d)))
        out = profile if out is None else out * profile
    total = (out * chosen.view(*chosen.shape, *(1,) * d)).sum(1, keepdim=True)
    return total / total.amax(tuple(range(1, d + 2)), keepdim=True).clamp_min(1e-8)
