"""The prompt encoder and mask decoder of Segment Anything, in two and three dimensions, and the whole model around any image encoder.

Kirillov et al., Segment Anything, ICCV 2023, https://arxiv.org/abs/2304.02643. Points and box corners become tokens (random Fourier
features of their place, plus what they are), a mask becomes a map that is added to the image's; a transformer lets tokens and image look at
each other; each mask token then makes the weights of a pixel classifier, and one more token says how good each mask is. In 2D parameters
are named as in the released weights, so that any SAM checkpoint of this decoder loads. Voxel coordinates are in index order (row, column),
as everywhere here; the released order (x, y) is turned at the position encoding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, scaled_dot_product_attention

from ..core.errors import DataError
from ..core.prompt import Asked, Candidates, Turn
from .blocks.conv import CONV, CONV_TRANSPOSE
from .blocks.norm import ChannelNorm


class Sam(nn.Module):
    """``image_encoder``: (B, C, *size) -> (B, dim, *grid). ``embed`` once an image, ``decode`` at every turn. ``size``: sides of what the
    encoder takes, voxels; ``grid``: of what it gives."""

    def __init__(self, image_encoder: nn.Module, *, size: Sequence[int], grid: Sequence[int], dim: int = 256):
        super().__init__()
        self.size = tuple(size)
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder(dim, size, grid)
        self.mask_decoder = MaskDecoder(dim, len(self.size))

    def embed(self, image: Tensor) -> Tensor:
        return self.image_encoder(image)

    def decode(self, embedding: Tensor, history: Sequence[Turn], *, several: bool = False) -> Candidates:
        """Masks on a grid four times as fine as the embedding's. All points and the newest box so far are heard; the last answer, where
        there is one, is the mask prompt, unless a mask is given. ``several``: the three masks for ambiguous prompts, else the one."""
        sparse, dense = self.prompt_encoder(together(history))
        if len(embedding) != len(sparse):
            embedding = embedding.expand(len(sparse), *embedding.shape[1:])
        masks, quality = self.mask_decoder(embedding + dense, self.prompt_encoder.places(), sparse)
        return Candidates(masks[:, 1:], quality[:, 1:]) if several else Candidates(masks[:, :1], quality[:, :1])


def together(history: Sequence[Turn]) -> Asked:
    """What was asked in all turns as one: every point, the newest box, and as mask the newest given one or else the logits of the last
    answer."""
    points = torch.cat([t.prompts.points for t in history], 1)
    signs = torch.cat([t.prompts.signs for t in history], 1)
    boxes = next((t.prompts.boxes for t in reversed(history) if t.prompts.boxes is not None), None)
    given = next((t.prompts.masks for t in reversed(history) if t.prompts.masks is not None), None)
    if given is not None:
        given = (given - 0.5) * 20  # as logits: surely outside, surely inside
    return Asked(points, signs, boxes, history[-1].logits if given is None else given)


class PromptEncoder(nn.Module):
    """``Asked`` in voxels of ``size`` -> (tokens (B, N, dim), map (B, dim, *grid))."""

    def __init__(self, dim: int, size: Sequence[int], grid: Sequence[int], hidden: int = 16):
        super().__init__()
        d = len(size)
        self.size, self.grid = tuple(size), tuple(grid)
        self.pe_layer = nn.Module()
        self.pe_layer.register_buffer("positional_encoding_gaussian_matrix", torch.randn(d, dim // 2))
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))  # beside, on, low corner, high corner
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, dim), nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            CONV[d](1, hidden // 4, 2, 2),
            ChannelNorm(hidden // 4),
            nn.GELU(),
            CONV[d](hidden // 4, hidden, 2, 2),
            ChannelNorm(hidden),
            nn.GELU(),
            CONV[d](hidden, dim, 1),
        )

    def forward(self, asked: Asked) -> tuple[Tensor, Tensor]:
        tokens = [self._points(asked.points, asked.signs, last=asked.boxes is None)] if asked.points.shape[1] else []
        if asked.boxes is not None:
            corners = self.at(asked.boxes + 0.5)
            tokens.append(corners + torch.stack([e.weight[0] for e in self.point_embeddings[2:]]))
        dense = self.no_mask_embed.weight.view(1, -1, *(1,) * len(self.grid))
        if asked.masks is not None:
            mode = {2: "bilinear", 3: "trilinear"}[len(self.grid)]
            dense = self.mask_downscaling(interpolate(asked.masks, [4 * n for n in self.grid], mode=mode, align_corners=False))
        count = len(asked.points)
        none = self.no_mask_embed.weight.new_zeros(count, 0, self.no_mask_embed.embedding_dim)
        sparse = torch.cat(tokens, 1) if tokens else none
        return sparse, dense.expand(count, -1, *self.grid)

    def _points(self, points: Tensor, signs: Tensor, *, last: bool) -> Tensor:
        """Tokens of clicks; ``last``: one that is no point is added, as the original does where no box follows."""
        if last:
            points = torch.cat([points, points.new_zeros(len(points), 1, points.shape[2])], 1)
            signs = torch.cat([signs, signs.new_full((len(signs), 1), -1)], 1)
        beside, on = (e.weight[0] for e in self.point_embeddings[:2])
        sign = signs[..., None]
        what = torch.where(sign == 1, on, torch.where(sign == 0, beside, self.not_a_point_embed.weight[0]))
        return torch.where(sign >= 0, self.at(points + 0.5), 0) + what

    def places(self) -> Tensor:
        """(1, dim, *grid): the position code of every voxel of the embedding."""
        axes = [
            (torch.arange(n, device=self.no_mask_embed.weight.device) + 0.5) * (s / n) for n, s in zip(self.grid, self.size, strict=True)
        ]
        return self.at(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)).movedim(-1, 0)[None]

    def at(self, place: Tensor) -> Tensor:
        """(..., d) places in voxels from the image's corner -> (..., dim) sines and cosines of random frequencies."""
        unit = 2 * place / torch.tensor(self.size, dtype=place.dtype, device=place.device) - 1
        phase = 2 * math.pi * unit.flip(-1) @ self.pe_layer.positional_encoding_gaussian_matrix
        return torch.cat([phase.sin(), phase.cos()], -1)


class MaskDecoder(nn.Module):
    """(image (B, dim, *g), places (1, dim, *g), tokens (B, N, dim)) -> (mask logits (B, 4, *4g), their quality (B, 4)); the first mask
    is for prompts that leave no doubt, the other three for whole, part and part of the part."""

    def __init__(self, dim: int, dims: int, *, masks: int = 4):
        super().__init__()
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(masks, dim)
        self.transformer = TwoWayTransformer(dim)
        self.output_upscaling = nn.Sequential(
            CONV_TRANSPOSE[dims](dim, dim // 4, 2, 2),
            ChannelNorm(dim // 4),
            nn.GELU(),
            CONV_TRANSPOSE[dims](dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(dim, dim, dim // 8) for _ in range(masks))
        self.iou_prediction_head = Perceptron(dim, dim, masks)

    def forward(self, image: Tensor, places: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(prompts), -1, -1)
        tokens, seen = self.transformer(image, places, torch.cat([own, prompts], 1))
        fine = self.output_upscaling(seen.transpose(1, 2).reshape(image.shape))
        return self.classified(tokens[:, 1:], fine), self.iou_prediction_head(tokens[:, 0])

    def classified(self, tokens: Tensor, fine: Tensor) -> Tensor:
        """(B, masks or more, dim) tokens, (B, dim / 8, *4g) -> (B, masks, *4g): each mask token's own pixel classifier."""
        classifiers = torch.stack([net(tokens[:, k]) for k, net in enumerate(self.output_hypernetworks_mlps)], 1)
        return torch.einsum("bkc,bc...->bk...", classifiers, fine)


class TwoWayTransformer(nn.Module):
    """Tokens look at each other and at the image, the image looks at the tokens, ``depth`` times; then the tokens look once more."""

    def __init__(self, dim: int, *, depth: int = 2, heads: int = 8, hidden: int = 2048):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, hidden, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, heads, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, places: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        keys, where = (x.flatten(2).transpose(1, 2).contiguous() for x in (image, places))  # a voxel's channels together: read many times
        tokens = prompts
        for layer in self.layers:
            tokens, keys = layer(tokens, keys, prompts, where)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompts, keys + where, keys)
        return self.norm_final_attn(tokens), keys


class TwoWayBlock(nn.Module):
    """``first``: the tokens are their own position codes yet, and replace themselves."""

    def __init__(self, dim: int, heads: int, hidden: int, *, first: bool):
        super().__init__()
        self.first = first
        self.self_attn, self.cross_attn_token_to_image = Attention(dim, heads, dim), Attention(dim, heads, dim // 2)
        self.cross_attn_image_to_token = Attention(dim, heads, dim // 2)
        self.mlp = nn.Module()
        self.mlp.lin1, self.mlp.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens: Tensor, keys: Tensor, code: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            tokens = tokens + self.self_attn(tokens + code, tokens + code, tokens)
        tokens, placed = self.norm1(tokens), keys + where
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + code, placed, keys))
        tokens = self.norm3(tokens + self.mlp.lin2(relu(self.mlp.lin1(tokens))))
        return tokens, self.norm4(keys + self.cross_attn_image_to_token(placed, tokens + code, tokens))


class Attention(nn.Module):
    """Multi-head attention between (B, N, dim) and (B, M, dim) in ``inner`` channels."""

    def __init__(self, dim: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        apart = [p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))]
        return self.out_proj(scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Three layers, ReLU between."""

    def __init__(self, dim: int, hidden: int, out: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(relu(second(relu(first(x)))))


_DECODER = (  # a name in a transformers checkpoint of any Segment Anything -> the released one
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"\.point_embed\.", ".point_embeddings."),
    (  # one tensor, saved under one of two names or both
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"((?:hypernetworks_mlps\.\d+|prediction_head|obj_score_head|object_pointer_proj)\.)layers\.0", r"\1layers.1"),
    (r"((?:hypernetworks_mlps\.\d+|prediction_head|obj_score_head|object_pointer_proj)\.)proj_in", r"\1layers.0"),
    (r"((?:hypernetworks_mlps\.\d+|prediction_head|obj_score_head|object_pointer_proj)\.)proj_out", r"\1layers.2"),
    (r"layer_norm", "norm"),
)


def renamed(found: Mapping[str, Tensor], encoder: Sequence[tuple[str, str]], must: str) -> dict[str, Tensor]:
    """The tensors of a Segment Anything model of the transformers library by our names: the patterns of its image ``encoder`` first, then
    those of what follows it. Raises DataError where ``must`` or the decoder is not among them."""
    out = {}
    for name, tensor in found.items():
        for pattern, released in (*encoder, *_DECODER):
            name = re.sub(pattern, released, name)
        out[name] = tensor
    if not {must, "mask_decoder.iou_token.weight"} <= set(out):
        raise DataError("these are not the weights of a Segment Anything model", found=", ".join(sorted(found)[:3]))
    return out
