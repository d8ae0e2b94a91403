"""TinyViT: four stages, the first of inverted bottlenecks, the others of attention in windows with a depth-wise convolution after it.

Wu et al., TinyViT: fast pretraining distillation for small vision transformers, ECCV 2022, https://arxiv.org/abs/2207.10666; with the
neck and the strides of the encoder of LiteMedSAM (Ma et al., MedSAM, https://arxiv.org/abs/2304.12306, the 'LiteMedSAM' branch of its
code): the image is not reduced at the start and only twice afterwards, so that 256 pixels give an embedding of 64. Parameters are named as
in the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from .blocks.norm import ChannelNorm


class TinyViT(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H / 4, W / 4), H and W multiples of 4. ``dims``, ``depths``, ``heads`` and ``windows``
    (sides, in feature pixels) by stage; the first stage has no attention."""

    multiple = (4, 4)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 256,
        *,
        dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (2, 4, 5, 10),
        windows: Sequence[int] = (7, 7, 14, 7),
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.seq = nn.Sequential(ConvNorm(in_channels, dims[0] // 2), nn.GELU(), ConvNorm(dims[0] // 2, dims[0]))
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            layer = nn.Module()
            blocks = [Bottleneck(dim) if i == 0 else Block(dim, heads[i], windows[i]) for _ in range(depth)]
            layer.blocks = nn.ModuleList(blocks)
            layer.downsample = Merge(dim, dims[i + 1], stride=2 if i < 2 else 1) if i + 1 < len(dims) else None
            self.layers.append(layer)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out_channels, 1, bias=False),
            ChannelNorm(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed.seq(image)
        for layer in self.layers:
            for block in layer.blocks:
                x = block(x)
            x = x if layer.downsample is None else layer.downsample(x)
        return self.neck(x)


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.add_module("c", nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out_channels))


class Bottleneck(nn.Module):
    """Inverted bottleneck: widen four times, depth-wise 3 x 3, narrow, add, activate."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(dim, 4 * dim), ConvNorm(4 * dim, 4 * dim, 3, groups=4 * dim), ConvNorm(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x + self.conv3(gelu(self.conv2(gelu(self.conv1(x))))))


class Merge(nn.Module):
    """To the next stage: more channels, and fewer pixels where ``stride`` is 2."""

    def __init__(self, dim: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(dim, out), ConvNorm(out, out, 3, stride, groups=out), ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))


class Block(nn.Module):
    """Attention in windows, a depth-wise convolution, a multilayer perceptron; the first and the last are added to what came in."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attn, self.local_conv, self.mlp = WindowAttention(dim, heads, window), ConvNorm(dim, dim, 3, groups=dim), Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._windowed(x))
        return x + self.mlp(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)

    def _windowed(self, x: Tensor) -> Tensor:
        """Attention within windows that tile the map from its first pixel; zeros fill the last ones and take part (as in the original)."""
        (b, c, h, w), n = x.shape, self.window
        x = pad(x, (0, -w % n, 0, -h % n))
        rows, columns = x.shape[2] // n, x.shape[3] // n
        tokens = x.view(b, c, rows, n, columns, n).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, c)
        back = self.attn(tokens).view(b, rows, columns, n, n, c).permute(0, 5, 1, 3, 2, 4)
        return back.reshape(b, c, rows * n, columns * n)[..., :h, :w]


class WindowAttention(nn.Module):
    """(windows, n^2, dim): every pixel of a window attends to all of it, with a learned bias by how far apart two are, rows and columns."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))  # by |row offset| * window + |column offset|
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        off = (at[:, None] - at[None]).abs()
        self.register_buffer("offsets", off[..., 0] * window + off[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        # each head's channels hold its queries, keys and values one after the other
        q, k, v = self.qkv(self.norm(x)).view(b, n, self.heads, 3, c // self.heads).permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.offsets][None]
        return self.proj(scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).transpose(1, 2).reshape(b, n, c))


class Perceptron(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(self.norm(x))))
