"""MCADS: a decoder that restores detail by rearranging channels into space, and corrects what it restored by attention along rows.

At the two deepest steps a convolution makes four times the channels, which a pixel shuffle lays out as twice the height and width: nothing
is interpolated. Each step joins what it restored with its skip, lets every pixel look along its row, and adds the result to what it had
restored: attention corrects and cannot replace. All depths answer, and all are taught. The encoder is any that halves its maps.

Wazir and Kim, Rethinking decoder design: Improving biomarker segmentation using depth-to-space restoration and residual linear attention,
CVPR 2025, https://arxiv.org/abs/2506.18335, code https://github.com/saadwazir/MCADS-Decoder (Keras). Where we differ or had to choose:

* 'Linear attention' is, in the code, a softmax over each image row: its cost grows with the height linearly, with the width as its square.
  That is built, without the usual 1 / sqrt(C), as there.
* One map per class and a softmax, instead of a sigmoid: for one structure the same objective.
* Pixel shuffle numbers channels in torch's order (channel, row, column), Keras in (row, column, channel): weights need permuting.
* A side output's 3x3 convolution of an enlarged map is computed as nine 1x1 ones of the small map, enlarged and shifted: the same numbers.
* The rate is 1e-3, a cosine after a warm-up, for short trainings; the published one (``--set lr=1e-4 --set schedule=constant
  --set warmup=0``, 200 epochs) falls by a hundred when the training loss stalls. The published epoch is chosen on test patches.
* Attention and gates start as published (Glorot and he-normal); skip gates and skip paths, most of them before batch norm, as torch's do.
* ``encoder=res2net`` is our example of another encoder (from stride 4 on, narrowed to the decoder's widths), with local weights if wanted.

Key components: ``Decoder`` (``Restore``, ``RowAttention``, ``ResPath``), and in ``networks.nested_encoder`` the paper's own encoder and
``DualGate`` (its ca_sa).

Good to know: at the published widths three fifths of the parameters are in the two restorations and the gates of the nested encoder.
A row sees nothing of the rows above and below it except through convolutions: turned images are not treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, scaled_dot_product_attention

from ..core.errors import UsageError
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.res2net import Res2Net
from .blocks.start import glorot_uniform
from .nested_encoder import ConvBlock, DualGate, NestedEncoder, depthwise, he_uniform

RESTORE = ("depth-to-space", "resize-convolution", "bilinear", "transposed")


class MCADS(nn.Module):
    """Logits (B, out_channels, H, W); in training a list of as many as there are depths, finest first. H and W are multiples of 32.

    ``width``: channels of the finest level, from which all others follow. ``restore``: how the two deepest steps enlarge: 'depth-to-space'
    is the paper; 'resize-convolution' interpolates and convolves, at the same number of multiplications; 'bilinear' interpolates as the
    other steps do; 'transposed' convolves with stride. ``attention``: with the attention along rows (else a step ends without it).
    ``depths``: blocks of the stages of ``encoder`` 'res2net'.
    """

    multiple = (32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        encoder: Literal["nested", "res2net"] = "nested",
        width: int = 64,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        restore: Literal["depth-to-space", "resize-convolution", "bilinear", "transposed"] = "depth-to-space",
        attention: bool = True,
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("MCADS is a 2D network", where="mcads", found=f"{spatial_dims}D data")
        if width < 2 or len(depths) != 4 or min(depths) < 1:
            raise UsageError("no such MCADS", where="width, depths", found=(width, depths), allowed="width 2 or more, four depths")
        if encoder not in ("nested", "res2net"):
            raise UsageError("unknown encoder", where="encoder", found=encoder, allowed="nested, res2net")
        if encoder == "nested":
            self.backbone, widths = NestedEncoder(in_channels, width), None
        else:
            self.backbone, widths = Res2Net(in_channels, depths=depths, width=width), [n * width for n in (2, 4, 8, 8)]
        narrow = [nn.Identity() if widths is None else ConvBlock(n, w) for n, w in zip(self.backbone.features, widths or [0] * 6)]
        self.narrow = nn.ModuleList(narrow)
        self.decoder = Decoder(widths or self.backbone.features, restore=restore, attention=attention)
        self.sides = nn.ModuleList(Side(n, out_channels) for n in self.decoder.features)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest map that the decoder gets (feature taps)."""
        return self.narrow[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_multiple(x, self.multiple, "MCADS")
        check_batch(self, x, 32)
        found = self.decoder([f(level) for f, level in zip(self.narrow, self.backbone(x), strict=True)])
        if not self.training:
            return self.sides[0](found[0], x.shape[2:])
        return [side(y, x.shape[2:]) for side, y in zip(self.sides, found, strict=True)]


class Decoder(nn.Module):
    """Maps of an encoder (B, features[i], h / 2^i, w / 2^i), finest first -> as many maps with the same channels and sizes, finest first.

    The two deepest steps enlarge as ``restore`` says, the others bilinearly."""

    def __init__(self, features: Sequence[int], *, restore: str = "depth-to-space", attention: bool = True):
        super().__init__()
        if restore not in RESTORE:
            raise UsageError("no such restoration", where="restore", found=restore, allowed=", ".join(RESTORE))
        self.features, self.steps = tuple(features), nn.ModuleList()
        for i in range(len(features) - 2, -1, -1):
            how = restore if i >= len(features) - 3 else "bilinear"
            self.steps.append(Step(features[i + 1], features[i], i + 1, how, attention, looks_twice=i == 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        found = [levels[-1]]
        for step, skip in zip(self.steps, levels[-2::-1], strict=True):
            found.append(step(found[-1], skip))
        return found[::-1]


class Step(nn.Module):
    """d = ConvBlock(u + attention(ConvBlock[u, path(skip)])) with u the restored map; ``looks_twice``: the skip is attended to as well."""

    def __init__(self, inp: int, out: int, length: int, restore: str, attention: bool, *, looks_twice: bool):
        super().__init__()
        self.restore, self.path = Restore(inp, out, restore), ResPath(out, length)
        self.look = RowAttention(out) if attention and looks_twice else nn.Identity()
        self.join = ConvBlock(2 * out, out)
        self.attend = RowAttention(out) if attention else nn.Identity()
        self.refine, self.gate = ConvBlock(out, out), DualGate(out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        u = self.restore(x)
        corrected = self.attend(self.join(torch.cat([u, self.look(self.path(skip))], 1)))
        return self.gate(self.refine(u + corrected))


class Restore(nn.Sequential):
    """(B, inp, h, w) -> (B, out, 2h, 2w)."""

    def __init__(self, inp: int, out: int, how: str):
        conv = lambda out: (nn.Conv2d(inp, out, 3, padding=1), nn.ReLU())
        if how == "depth-to-space":
            enlarge = [*conv(4 * inp), nn.PixelShuffle(2), *conv(inp)]
        elif how == "transposed":
            enlarge = [nn.ConvTranspose2d(inp, inp, 2, 2), nn.ReLU()]
        else:
            enlarge = [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)]
            if how == "resize-convolution":
                enlarge += [*conv(inp), *conv(inp)]
        super().__init__(*enlarge, ConvBlock(inp, out))
        he_uniform(self)


class RowAttention(nn.Module):
    """Softmax attention among the pixels of one image row, (B, C, H, W) -> the same; not scaled. It starts as Keras's layers do: with
    torch's smaller weights it would begin as nearly the mean of the row."""

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.apply(glorot_uniform)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)
        return scaled_dot_product_attention(self.query(rows), self.key(rows), self.value(rows), scale=1.0).permute(0, 3, 1, 2)


class ResPath(nn.Sequential):
    """``length`` units between an encoder level and the decoder: a 3x3 and a 1x1 separable branch, added."""

    def __init__(self, channels: int, length: int):
        super().__init__(*[_PathUnit(channels) for _ in range(length)])


class _PathUnit(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        branch = lambda k: nn.Sequential(depthwise(n, k), nn.BatchNorm2d(n), nn.Conv2d(n, n, 1, bias=False), nn.BatchNorm2d(n))
        self.wide, self.point, self.act, self.norm = branch(3), branch(1), nn.LeakyReLU(0.3), nn.BatchNorm2d(n)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.wide(x) + self.point(x)))


class Side(nn.Module):
    """The 3x3 convolution of ``x`` enlarged to ``size``, without enlarging all of its channels: convolution and interpolation are linear:
    the weights of each of the nine places are applied first, and their answers enlarged and shifted."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv = he_uniform(nn.Conv2d(inp, out, 3, padding=1, bias=False))
        self.register_buffer("shift", torch.eye(9).view(1, 9, 3, 3).repeat(out, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if x.shape[2:] == tuple(size):
            return self.conv(x)
        taps = conv2d(x, self.conv.weight.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None])
        taps = interpolate(taps, tuple(size), mode="bilinear", align_corners=False)
        return conv2d(taps, self.shift.to(taps.dtype), padding=1, groups=len(self.shift))
