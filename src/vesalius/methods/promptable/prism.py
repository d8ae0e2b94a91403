"""PRISM: several masks a turn, each with the Dice that the network expects of it; the best one is corrected and starts the next turn.

A convolutional and a transformer encoder look at the volume once. At every turn the prompts and the answer before lead to three masks and
a predicted Dice for each; a small corrective network then looks at the image, the best mask and all clicks so far, and mends it. Training
unrolls whole sessions in which the clicks fall where the last answer was wrong.

Li et al., PRISM: a promptable and robust interactive segmentation model with visual prompts, MICCAI 2024,
https://arxiv.org/abs/2404.15028, code in MedICL-VU/PRISM. Where we differ or had to choose:

* The published volumes are cut out around the reference. Here the window follows the prompts: it is as large as the network's input and
  centred on the first of them, grows when later ones fall outside it, and what does not fit is shrunk into it.
* Boxes and scribbles are given in a share of the training sessions, as the released code turns each on for a whole training; an object is
  a random structure of the patch. Classes are not known to the network.
* The learning rate is for short runs, with the common schedule; the paper's is ``lr=4e-5``. Augmentation is the common one.

Key components: ``networks.prism`` (encoders, prompt tokens, scored masks), ``networks.blocks.refiner`` (the corrective network),
``methods.unrolled`` (training through sessions), ``ops.prompts`` (the simulated user).

Good to know: the prompt tokens are those of the newest turn and the newest box; earlier clicks live on in the answer they led to and in
the corrective network's click maps. The corrective network learns from detached masks, so it cannot spoil the main one. At the published
width a 128^3 volume needs a large GPU; ``features``, ``dim``, ``depth``, ``heads`` and ``interactions`` make it small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, mse_loss, pad

from ...core.case import IGNORE
from ...core.manifest import Manifest
from ...core.method import Method
from ...core.plan import Plan
from ...core.prompt import Asked, Candidates, Turn
from ...networks.blocks.refiner import Refiner, click_maps, resized
from ...networks.prism import Encoded, PrismNet
from ...objectives.dice_ce import DiceCE
from ..unrolled import SURE, UnrolledMethod, given


@dataclass(frozen=True)
class Window:
    """The voxels ``low``..``high`` (exclusive) of an image as a network of input ``size`` sees them: shrunk along an axis where they are
    more, with zeros after them where they are fewer."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def on(cls, history: Sequence[Turn], whole: Sequence[int], size: Sequence[int]) -> Window:
        """Where to look in an image of sides ``whole``, from its turns so far: all of an image that fits; else around the first prompts,
        and as far as later ones lie, with a quarter of ``size`` beside them."""
        low, high = np.zeros(len(size)), np.array(whole, float)
        if (high > size).any():
            ends = [e for e in (extent(turn.prompts) for turn in history) if e is not None]
            for n, (a, b) in enumerate(ends):
                if n == 0:
                    half = np.maximum(np.array(size), 1.25 * (b - a)) / 2
                    low, high = np.ceil((a + b + 1) / 2 - half), np.ceil((a + b + 1) / 2 + half)
                    low = np.clip(low, 0, np.maximum(0, np.array(whole) - (high - low)))
                    high = np.minimum(low + 2 * half, whole)
                elif (a < low).any() or (b > high - 1).any():
                    low, high = np.minimum(low, a - np.array(size) // 4), np.maximum(high, b + 1 + np.array(size) // 4)
        low, high = np.maximum(low, 0), np.minimum(high, whole)
        return cls(tuple(int(np.floor(v)) for v in low), tuple(int(np.ceil(v)) for v in high), tuple(size))

    @property
    def cut(self) -> tuple[slice, ...]:
        return (..., *(slice(a, b) for a, b in zip(self.low, self.high, strict=True)))

    @property
    def inner(self) -> tuple[int, ...]:
        """Sides of what is seen, without the zeros."""
        return tuple(min(b - a, n) for a, b, n in zip(self.low, self.high, self.size, strict=True))

    def seen(self, x: Tensor) -> Tensor:
        """(B, C, *whole) -> (B, C, *size)."""
        x = x[self.cut]
        x = x if tuple(x.shape[2:]) == self.inner else resized(x, self.inner)
        return pad(x, [side for n, size in zip(reversed(x.shape[2:]), reversed(self.size)) for side in (0, size - n)])

    def asked(self, asked: Asked) -> Asked:
        """Points and boxes in voxels of what is seen."""
        low, sides = (asked.points.new_tensor(v) for v in (self.low, [b - a for a, b in zip(self.low, self.high, strict=True)]))
        scale = asked.points.new_tensor(self.inner) / sides
        boxes = None if asked.boxes is None else (asked.boxes - low + 0.5) * scale - 0.5
        return Asked((asked.points - low + 0.5) * scale - 0.5, asked.signs, boxes)

    def answer(self, x: Tensor, onto: Tensor) -> Tensor:
        """(B, M, *size) back in its place in (B, M or 1, *whole)."""
        x = x[(..., *(slice(0, n) for n in self.inner))]
        sides = tuple(b - a for a, b in zip(self.low, self.high, strict=True))
        x = x if tuple(x.shape[2:]) == sides else resized(x, sides)
        if x.shape[2:] == onto.shape[2:]:
            return x
        out = onto.expand(-1, x.shape[1], *onto.shape[2:]).clone()
        out[self.cut] = x
        return out


KEPT = 2  # windows whose features are held: that of the last turn and of the one before, for who undoes


@dataclass(frozen=True)
class Looked:
    """An image (B, C, *whole), and what was made of the windows that were looked into last."""

    image: Tensor
    encoded: dict[Window, Encoded] = field(default_factory=dict)


class Prism(UnrolledMethod):
    """``features``, ``dim``, ``depth``, ``heads``, ``masks``: of the network; ``refine``: the best mask is corrected; ``edge``: weight of
    the mismatch of edges. The further options are those of ``methods.unrolled``."""

    kinds = frozenset({"point", "scribble", "box", "mask"})
    clip = 1.0

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        features: tuple[int, ...] = (32, 32, 64, 128, 384),
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        masks: int = 3,
        refine: bool = True,
        edge: float = 10.0,
        interactions: int = 11,
        clicks: int = 50,
        boxes: float = 0.5,
        jitter: float = 0.0,
        scribbles: float = 0.25,
        lr: float = 5e-4,
        weight_decay: float = 1e-2,
    ):
        asked = dict(interactions=interactions, clicks=clicks, boxes=boxes, jitter=jitter, scribbles=scribbles)
        super().__init__(plan, manifest, parts=parts, **asked, lr=lr, weight_decay=weight_decay)
        token = 2 ** (len(features) - 1)
        self.size = tuple(-(-n // token) * token for n in plan.patch)
        self.network = PrismNet(self.in_channels, size=self.size, features=features, dim=dim, depth=depth, heads=heads, masks=masks)
        self.refiner = Refiner(self.in_channels, dims=3) if refine else None
        self.edge = edge
        self.objective = DiceCE(squared=True, batch_dice=False)

    # training ------------------------------------------------------------------------------------------------------------------------
    def turn(self, embedding: Looked, history: Sequence[Turn], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        answer, final = self._turn(embedding, history)
        said, wanted = (target != IGNORE).unsqueeze(1), (target == 1).unsqueeze(1).float()
        probability, border = answer.logits.sigmoid() * said, edges(wanted)
        terms = {
            "masks": sum(self.objective(m, target, ignore_index=IGNORE) for m in answer.logits.split(1, 1)),
            "edges": self.edge * sum(mse_loss(edges(p), border) for p in probability.split(1, 1)),
            "scores": answer.quality.shape[1] * mse_loss(answer.quality, soft_dice(probability.detach(), wanted)),
        }
        if self.refiner is not None:
            terms["refined"] = self.objective(final, target, ignore_index=IGNORE)
        return terms, final

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def embed(self, image: Tensor, condition: object = None) -> Looked:
        """An image that fits is encoded at once; of a larger one the window that is asked about, when it is."""
        looked = Looked(image)
        if all(n <= size for n, size in zip(image.shape[2:], self.size, strict=True)):
            self._encoded(looked, Window.on((), image.shape[2:], self.size))
        return looked

    def decode(self, embedding: Looked, history: Sequence[Turn]) -> Candidates:
        return self._turn(embedding, history)[0]

    def reply(self, embedding: Looked, history: Sequence[Turn]) -> Tensor:
        """The mask that the network ranks first, corrected."""
        return self._turn(embedding, history)[1]

    def _turn(self, embedding: Looked, history: Sequence[Turn]) -> tuple[Candidates, Tensor]:
        image, now = embedding.image, history[-1]
        window = Window.on(history, image.shape[2:], self.size)
        boxes = next((t.prompts.boxes for t in reversed(history) if t.prompts.boxes is not None), None)
        before = given(now)
        asked = window.asked(replace(now.prompts, boxes=boxes))
        answer = self.network.decode(self._encoded(embedding, window), asked, None if before is None else window.seen(before))
        final = answer.best()
        if self.refiner is not None:
            clicks = click_maps([window.asked(t.prompts) for t in history], self.size)
            final = self.refiner(window.seen(image).expand(len(final), -1, *self.size), final, clicks)
        onto = final.new_full((len(final), 1, *image.shape[2:]), -SURE) if before is None else before
        return Candidates(window.answer(answer.logits, onto), answer.quality), window.answer(final, onto)

    def _encoded(self, embedding: Looked, window: Window) -> Encoded:
        if (found := embedding.encoded.get(window)) is None:
            found = self.network.embed(window.seen(embedding.image))
            for old in list(embedding.encoded)[: 1 - KEPT]:
                embedding.encoded.pop(old, None)
            embedding.encoded[window] = found
        return found


def extent(asked: Asked) -> tuple[np.ndarray, np.ndarray] | None:
    """(low, high), (d,) each: the least box of voxels that holds all that is pointed at; None where nothing is."""
    places = [asked.points[asked.signs >= 0]]
    if asked.boxes is not None:
        places.append(asked.boxes[~asked.boxes.isnan().any((1, 2))].flatten(0, 1))
    if asked.masks is not None:
        places.append((asked.masks[:, 0] >= 0.5).nonzero()[:, 1:].to(asked.points.dtype))
    found = torch.cat(places).cpu().numpy()
    return (found.min(0), found.max(0)) if len(found) else None


def edges(mask: Tensor) -> Tensor:
    """(B, 1, *s) -> how much each voxel differs from the mean of the 5 x 5 around it in its axial plane."""
    return (mask - avg_pool3d(mask, (5, 5, 1), 1, (2, 2, 0), count_include_pad=False)).abs()


def soft_dice(p: Tensor, wanted: Tensor, eps: float = 1e-5) -> Tensor:
    """(B, M): the Dice of each of M probability maps (B, M, *s) with a mask (B, 1, *s); 1 where both are empty."""
    axes = tuple(range(2, p.ndim))
    return (2 * (p * wanted).sum(axes) + eps) / ((p * p).sum(axes) + (wanted * wanted).sum(axes) + eps)
