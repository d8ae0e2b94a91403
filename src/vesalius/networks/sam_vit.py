"""Segment Anything's own image encoder: a plain vision transformer that looks through windows, and in a few blocks at everything.

Kirillov et al., Segment Anything, ICCV 2023, https://arxiv.org/abs/2304.02643, after Li et al., Exploring plain vision transformer
backbones for object detection, ECCV 2022, https://arxiv.org/abs/2203.16527 (windows, decomposed relative positions). Parameters are named
as in the released weights; ``from_transformers`` turns the names that the transformers library gives a SAM model (SAM, MedSAM, SlimSAM)
into these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from .blocks.norm import ChannelNorm
from .blocks.windows import through_windows
from .sam import renamed


class SamViT(nn.Module):
    """(B, 3, side, side) -> (B, out, side / patch, side / patch). ``whole``: the blocks that look at everything, the others see windows of
    ``window`` tokens a side. The defaults are SAM's ViT-B."""

    def __init__(
        self,
        *,
        side: int = 1024,
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        window: int = 14,
        whole: Sequence[int] = (2, 5, 8, 11),
        out: int = 256,
    ):
        super().__init__()
        grid = side // patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, grid if i in whole else window, i in whole) for i in range(depth))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out, 1, bias=False), ChannelNorm(out), nn.Conv2d(out, out, 3, padding=1, bias=False), ChannelNorm(out)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed.proj(image).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class Block(nn.Module):
    """Attention among (B, h, w, dim) tokens, of windows of ``size`` a side or of all, and a two-layer perceptron."""

    def __init__(self, dim: int, heads: int, hidden: int, size: int, whole: bool):
        super().__init__()
        self.size, self.whole = size, whole
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, size)
        self.mlp = nn.Module()
        self.mlp.lin1, self.mlp.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(x)
        x = x + (self.attn(inner) if self.whole else through_windows(inner, self.size, self.attn))
        return x + self.mlp.lin2(gelu(self.mlp.lin1(self.norm2(x))))


class Attention(nn.Module):
    """Over (B, h, w, dim) tokens, with a bias for how far rows and columns are apart."""

    def __init__(self, dim: int, heads: int, size: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * size - 1, dim // heads)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        asked = q.unflatten(2, (h, w))
        rows = torch.einsum("bnhwc,hkc->bnhwk", asked, _apart(self.rel_pos_h, h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", asked, _apart(self.rel_pos_w, w))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(b, self.heads, h * w, h * w)
        return self.proj(scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(b, h, w, c))


def _apart(table: Tensor, n: int) -> Tensor:
    """(n, n, channels): the table's row for how far two of ``n`` places are apart; the table is interpolated to 2 n - 1 rows."""
    if len(table) != 2 * n - 1:
        table = interpolate(table.T[None], size=2 * n - 1, mode="linear")[0].T
    place = torch.arange(n, device=table.device)
    return table[place[:, None] - place[None] + n - 1]


_NAMES = (  # a name in a transformers checkpoint -> the released one
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.)layers\.", r"\1blocks."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
)


def from_transformers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SAM model of the transformers library by the names of ``networks.sam.Sam`` around a ``SamViT``.
    Raises DataError for a checkpoint that is no SAM's."""
    return renamed(found, _NAMES, "image_encoder.pos_embed")
