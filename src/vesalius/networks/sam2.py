"""Segment Anything 2 on a single image: Hiera's maps of three levels, and a mask decoder that also sees the two fine ones.

Ravi et al., SAM 2: segment anything in images and videos, https://arxiv.org/abs/2408.00714. What differs from SAM (``networks.sam``): the
fine maps are added while the decoder scales up; a token for whether the object is there goes along; the masks' quality is a probability;
where the mask for prompts that leave no doubt is not firm, the best of the other three is taken. The memory of earlier frames is not here:
an image alone gets the code for 'no memory'. ``from_transformers`` gives the tensors of a checkpoint of the transformers library
(``Sam2Model`` or ``Sam2VideoModel``) our names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..core.prompt import Asked, Candidates, Turn
from .hiera import Hiera, Neck
from .sam import MaskDecoder, Sam, renamed, together

Maps = tuple[Tensor, Tensor, Tensor]  # finest first: strides 4, 8, 16


class Sam2(Sam):
    """``side``: pixels a side of the square image; ``firm`` (margin, share): a mask is firm where the pixels above the margin are at least
    that share of those above its negative; None takes every mask for firm. The other options are ``Hiera``'s and ``Neck``'s."""

    def __init__(
        self,
        *,
        side: int = 1024,
        dim: int = 256,
        dims: Sequence[int] = (96, 192, 384, 768),
        joined: Sequence[int] = (2, 3),
        firm: tuple[float, float] | None = (0.05, 0.98),
        **hiera,
    ):
        encoder = nn.Sequential(Hiera(dims=dims, **hiera), Neck(dims, dim, joined))
        super().__init__(encoder, size=(side, side), grid=(side // 16, side // 16), dim=dim)
        self.mask_decoder = FineMaskDecoder(dim)
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.firm = firm

    def look(self, image: Tensor) -> Maps:
        """(B, 3, side, side) -> maps of dim / 8, dim / 4 and dim channels, the last without a word on memory."""
        fine, middle, coarse = self.image_encoder(image)
        return self.mask_decoder.conv_s0(fine), self.mask_decoder.conv_s1(middle), coarse

    def embed(self, image: Tensor) -> Maps:
        """``look``, of an image that nothing is remembered for."""
        fine, middle, coarse = self.look(image)
        return fine, middle, coarse + self.no_memory_embedding.view(1, -1, 1, 1)

    def decode(self, embedding: Maps, history: Sequence[Turn], *, several: bool = False) -> Candidates:
        """As SAM's."""
        asked = together(history)
        if asked.boxes is not None or not asked.points.shape[1]:  # one token that is no point, always (SAM has none beside a box)
            asked = _with_no_point(asked)
        masks, quality, _ = self.answers(embedding, asked)
        if several:
            return Candidates(masks[:, 1:], quality[:, 1:])
        first, best = torch.zeros(len(masks), dtype=torch.long, device=masks.device), quality[:, 1:].argmax(1) + 1
        chosen = first if self.firm is None or self.training else torch.where(self._firm(masks[:, 0]), first, best)
        row = torch.arange(len(masks), device=masks.device)
        return Candidates(masks[row, chosen][:, None], quality[row, chosen][:, None])

    def answers(self, maps: Maps, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """(logits (B, 4, side / 4, side / 4), quality (B, 4), tokens (B, 6, dim): whether it is there, how good, the four masks)."""
        sparse, dense = self.prompt_encoder(asked)
        fine, middle, coarse = (m if len(m) == len(sparse) else m.expand(len(sparse), *m.shape[1:]) for m in maps)
        return self.mask_decoder(coarse + dense, self.prompt_encoder.places(), sparse, (fine, middle))

    def _firm(self, mask: Tensor) -> Tensor:
        margin, share = self.firm
        inner, outer = ((mask > m).flatten(1).sum(1) for m in (margin, -margin))
        return inner >= share * outer


def _with_no_point(asked: Asked) -> Asked:
    points, signs = asked.points, asked.signs
    none = points.new_zeros(len(points), 1, points.shape[2]), signs.new_full((len(signs), 1), -1)
    return replace(asked, points=torch.cat([points, none[0]], 1), signs=torch.cat([signs, none[1]], 1))


class FineMaskDecoder(MaskDecoder):
    """SAM's, but that ``details``, maps four times and twice as fine as the image's, are added on the way up. ``conv_s0`` and ``conv_s1``
    make them of the neck's maps, once an image."""

    def __init__(self, dim: int):
        super().__init__(dim, 2)
        self.obj_score_token = nn.Embedding(1, dim)
        self.conv_s0, self.conv_s1 = nn.Conv2d(dim, dim // 8, 1), nn.Conv2d(dim, dim // 4, 1)

    def forward(self, image: Tensor, places: Tensor, prompts: Tensor, details: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight]).expand(len(prompts), -1, -1)
        tokens, seen = self.transformer(image, places, torch.cat([own, prompts], 1))
        twice, norm, _, again, _ = self.output_upscaling
        fine, middle = details
        x = gelu(norm(twice(seen.transpose(1, 2).reshape(image.shape)) + middle))
        masks = self.classified(tokens[:, 2:], gelu(again(x) + fine))
        return masks, self.iou_prediction_head(tokens[:, 1]).sigmoid(), tokens[:, : 2 + masks.shape[1]]


_NAMES = (  # a name in a transformers checkpoint -> ours
    (r"^vision_encoder\.backbone\.", "image_encoder.0."),
    (r"^vision_encoder\.neck\.", "image_encoder.1."),
    (r"patch_embed\.projection", "patch_embed"),
    (r"mlp\.proj_in", "mlp.lin1"),
    (r"mlp\.proj_out", "mlp.lin2"),
    (r"o_proj", "out_proj"),
)
_OF_VIDEOS = (
    "memory_", "mask_downsample", "object_pointer_proj", "temporal_positional", "no_memory_positional", "no_object_pointer", "occlusion_",
)  # fmt: skip


def from_transformers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SAM 2 model of the transformers library by the names of ``Sam2``; what serves the memory of videos, and the score
    for whether the object is there, are left out. Raises DataError for a checkpoint that is no SAM 2's."""
    return named({k: v for k, v in found.items() if not k.startswith(_OF_VIDEOS) and "pred_obj_score_head" not in k})


def named(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of them."""
    out = renamed(found, _NAMES, "image_encoder.0.pos_embed")
    for k, row in enumerate(out.pop("prompt_encoder.point_embeddings.weight", ())):
        out[f"prompt_encoder.point_embeddings.{k}.weight"] = row[None]
    return out
