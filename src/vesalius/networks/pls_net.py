"""PLS-Net: a whole volume in one pass through a network so thin that it fits, also into the memory of a plain computer.

Depthwise separable convolutions keep it small, dilated residual dense blocks let it see far, the input returns at every resolution in
small, and nothing but the last thin maps exists at full resolution. Dense blocks are computed again on the way back instead of being kept.

Bouget et al., Fast meningioma segmentation in T1-weighted MRI volumes using a lightweight 3D deep learning architecture, J. Med. Imaging
2021, https://arxiv.org/abs/2010.07002; network after Lee et al., Efficient 3D fully convolutional networks for pulmonary lobe segmentation,
2019, https://arxiv.org/abs/1909.07474, code https://github.com/andreped/PLS-Net. Where we differ or had to choose:

* Normalisation layers are declared but never applied in the code, so there is none here; ``norm=true`` applies them.
* [inferred] the learning rate, the size of the volume (``size``, empty: the plan's patch), the pointwise bias and the initialisation
  (He et al.).
* The case is cropped to what is not background and resized to one size as published. N4 bias correction, which the paper does before, and
  the threshold chosen on validation cases are not part of this card: give corrected images; the most probable class wins.

Key components: ``SeparableConv`` (depthwise, then pointwise), ``DenseBlock`` (growing dilations 1, 2, 3, 4), the re-injected input,
activation checkpointing, ``Recipe``'s ``whole`` input.

Good to know: parameters are far below a million, so the time goes into moving maps, not into multiplying. Small objects may vanish when
a large volume is squeezed into a small size: raise ``size`` first (``--set size=128,128,144`` for heads). Without checkpointing
(``checkpointing=false``) training is faster and takes more memory; the numbers are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from ..core.errors import UsageError
from .blocks.conv import CONV, NORMS
from .blocks.padding import check_multiple


class PLSNet(nn.Module):
    """Logits (B, out_channels, *s), sides multiples of ``multiple`` (8 with three levels).

    ``widths`` of the levels, each at half the resolution of the one before; ``repeats``: dense blocks of each; ``growth``: channels that a
    dense block's convolution adds; ``dilations`` of these. ``checkpointing``: recompute dense blocks in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        widths: tuple[int, ...] = (16, 64, 128),
        repeats: tuple[int, ...] = (1, 2, 4),
        growth: int = 12,
        dilations: tuple[int, ...] = (1, 2, 3, 4),
        norm: bool = False,
        checkpointing: bool = True,
    ):
        super().__init__()
        if not widths or len(widths) != len(repeats) or min(*widths, *repeats, growth, *dilations) < 1:
            raise UsageError("PLS-Net needs as many repeats as widths, all positive", where="widths, repeats", found=(widths, repeats))
        d, thin = spatial_dims, 2 * out_channels
        self.multiple = (2 ** len(widths),) * d
        self.checkpointing, self.mode = checkpointing, {2: "bilinear", 3: "trilinear"}[d]
        self.down, self.dense = nn.ModuleList(), nn.ModuleList()
        inp = in_channels
        for width, n in zip(widths, repeats, strict=True):
            self.down.append(SeparableConv(d, inp, width, stride=2, norm=norm))
            inp = width + in_channels
            self.dense.append(nn.ModuleList(DenseBlock(d, inp, growth, dilations, norm) for _ in range(n)))
        self.bridge = nn.ModuleList(SeparableConv(d, width + in_channels, thin, norm=norm) for width in widths[:-1])
        sources = [inp, *[2 * thin] * len(self.bridge)]  # from the coarsest level upwards
        self.up = nn.ModuleList(SeparableConv(d, n, thin, norm=norm) for n in sources)
        self.head = CONV[d](thin, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "PLS-Net")
        image, skips = x, []
        for level, (down, blocks) in enumerate(zip(self.down, self.dense, strict=True), start=1):
            small = interpolate(image, [n // 2**level for n in image.shape[2:]], mode=self.mode, align_corners=False)
            x = torch.cat([down(x), small], 1)
            for block in blocks:
                again = self.checkpointing and self.training and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for bridge, up in zip(list(self.bridge)[::-1], list(self.up)[1:], strict=True):
            x = up(torch.cat([self._twice(x), bridge(skips.pop())], 1))
        return self.head(self._twice(x))

    def _twice(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)


class SeparableConv(nn.Sequential):
    """3^d depthwise convolution (stride, dilation), pointwise convolution, maybe batch norm, ReLU."""

    def __init__(self, dims: int, inp: int, out: int, *, stride: int = 1, dilation: int = 1, norm: bool = False):
        depthwise = CONV[dims](inp, inp, 3, stride, padding=dilation, dilation=dilation, groups=inp, bias=False)
        pointwise = CONV[dims](inp, out, 1, bias=not norm)
        nn.init.kaiming_normal_(depthwise.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(pointwise.weight, nonlinearity="relu")
        super().__init__(depthwise, pointwise, *([NORMS["batch"][dims](out)] if norm else []), nn.ReLU(inplace=True))
        if norm:
            self[2].momentum = 0.01


class DenseBlock(nn.Module):
    """Each of the dilated convolutions sees the input and all before it; a 1x1 brings the result back to the input's channels, added to
    it."""

    def __init__(self, dims: int, channels: int, growth: int, dilations: tuple[int, ...], norm: bool = False):
        super().__init__()
        self.convs = nn.ModuleList(
            SeparableConv(dims, channels + i * growth, growth, dilation=n, norm=norm) for i, n in enumerate(dilations)
        )
        self.join = CONV[dims](channels + len(dilations) * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs:
            seen = torch.cat([seen, conv(seen)], 1)
        return x + self.join(seen)
