"""Networks of image translation: a residual generator that redraws an image in another contrast, and a discriminator of its patches.

Generator: Johnson et al., Perceptual losses for real-time style transfer, ECCV 2016, https://arxiv.org/abs/1603.08155. Discriminator: Isola
et al., Image-to-image translation with conditional adversarial networks, CVPR 2017, https://arxiv.org/abs/1611.07004. Both with the sizes,
norms and initial weights of Zhu et al., CycleGAN, ICCV 2017, https://arxiv.org/abs/1703.10593 (appendix). The generator stops before its
tanh: whoever draws with it knows the scale of the image.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..core.errors import GeometryError
from .blocks.conv import CONV, CONV_TRANSPOSE
from .blocks.padding import pad_to_multiple

_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ResNetGenerator(nn.Module):
    """``forward`` (B, C, *s) -> (B, ``out_channels``, *s), whose tanh is the image on -1..1.

    A wide convolution, two halvings, ``blocks`` residual blocks, two doublings, a wide convolution; ``filters`` channels at full size.
    Sides that are no multiple of ``multiple`` are padded with zeros and cropped back; each must have at least 4 voxels (reflected edges).
    """

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int, filters: int = 64, blocks: int = 9):
        super().__init__()
        d = spatial_dims
        self.multiple = (4,) * d
        layers: list[nn.Module] = [*_reflected(d, in_channels, filters, 7), nn.ReLU(inplace=True)]
        for width in (filters, 2 * filters):
            layers += [CONV[d](width, 2 * width, 3, 2, 1), _NORM[d](2 * width), nn.ReLU(inplace=True)]
        layers += [_Residual(d, 4 * filters) for _ in range(blocks)]
        for width in (4 * filters, 2 * filters):
            layers += [CONV_TRANSPOSE[d](width, width // 2, 3, 2, 1, 1), _NORM[d](width // 2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, _reflected(d, filters, out_channels, 7)[0])
        self.layers.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(pad_to_multiple(x, self.multiple))[(..., *(slice(n) for n in x.shape[2:]))]


class PatchDiscriminator(nn.Module):
    """``forward`` (B, C, *s) -> (B, 1, *smaller): for overlapping patches of the image a logit, large where it looks real.

    ``layers`` halvings, then two convolutions without stride; with three of them a patch is 70 voxels wide. ``smallest``: the shortest side
    it can judge. Raises GeometryError for a smaller image.
    """

    def __init__(self, in_channels: int, *, spatial_dims: int, filters: int = 64, layers: int = 3):
        super().__init__()
        d, widths = spatial_dims, [filters * 2 ** min(i, 3) for i in range(layers + 1)]
        self.smallest = 3 * 2**layers
        made: list[nn.Module] = []
        for i, width in enumerate(widths):
            made.append(CONV[d](in_channels if i == 0 else widths[i - 1], width, 4, 2 if i < layers else 1, 1))
            made += [*([_NORM[d](width)] if i else []), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*made, CONV[d](widths[-1], 1, 4, 1, 1))
        self.layers.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest:
            allowed = f"sides of {self.smallest} or more"
            raise GeometryError("the image is too small to be judged", found=tuple(x.shape[2:]), allowed=allowed, fix="use fewer layers")
        return self.layers(x)


class _Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, dims: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(*_reflected(dims, width, width, 3), nn.ReLU(inplace=True), *_reflected(dims, width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _reflected(dims: int, inp: int, out: int, kernel: int) -> list[nn.Module]:
    """A convolution that sees the image reflected at its edges, and a norm."""
    return [CONV[dims](inp, out, kernel, padding=kernel // 2, padding_mode="reflect"), _NORM[dims](out)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
