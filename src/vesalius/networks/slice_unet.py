"""A volume as a sequence of slices: one 2D U-Net for all of them, and a transformer along the sequence.

Nguyen et al., Joint self-supervised image-volume representation learning with intra-inter contrastive clustering, AAAI 2023,
https://arxiv.org/abs/2212.01893: a slice is described by the means of its feature maps of all levels, a volume by what a deformable
transformer makes of the sequence of slices. So the same encoder learns from pictures and from volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import DataError, UsageError
from .blocks.deformable import DeformableTransformer
from .blocks.padding import pad_to_multiple
from .blocks.slices import in_plane
from .unet import UNet

LEARNT = ("unet.down.", "embed.", "transformer.")  # what a run passes on: the encoder of slices, and of their sequence


class SliceUNet(nn.Module):
    """Logits (B, out, *s) of pictures, or of volumes cut across ``axis``, with the planned U-Net (its ``features``, ``strides`` and
    ``kernels`` in all spatial dimensions; those of ``axis`` are left out).

    In volumes, what the ``transformer`` says of a slice among the others is added to its deepest features through ``inject``, which starts
    at 0: untrained, slices know nothing of each other. ``slices``: the length that positions are laid out for; ``dim``, ``depth``,
    ``heads``, ``hidden``, ``downsample``, ``reach``, ``kernel``: of the transformer. Pictures have none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        axis: int = 2,
        features: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
        encoder: str = "plain",
        blocks: int = 1,
        slices: int = 64,
        dim: int = 640,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 720,
        downsample: int = 4,
        reach: float = 2.0,
        kernel: int = 6,
    ):
        super().__init__()
        if spatial_dims == 3 and axis not in (0, 1, 2):
            raise UsageError("no such axis to cut across", where="axis", found=axis, allowed="0, 1 or 2")
        self.dims, self.axis, self.described = spatial_dims, axis, sum(features)
        across = axis if spatial_dims == 3 else -1
        levels = dict(features=features, strides=in_plane(strides, across), kernels=in_plane(kernels, across))
        self.unet = UNet(in_channels, out_channels, spatial_dims=2, norm="group", encoder=encoder, blocks=blocks, **levels)
        self.multiple = self.unet.multiple if spatial_dims == 2 else (*self.unet.multiple[:axis], 1, *self.unet.multiple[axis:])
        if spatial_dims == 3:
            how = dict(hidden=hidden, downsample=downsample, reach=reach, kernel=kernel)
            self.embed = nn.Linear(self.described, dim)
            self.transformer = DeformableTransformer(dim, depth, heads, slices, **how)
            self.inject = nn.Linear(dim, features[-1])
            nn.init.zeros_(self.inject.weight)
            nn.init.zeros_(self.inject.bias)

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest stage (feature taps): a map a slice."""
        return self.unet.bottleneck

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, *s) -> (B, N, C, h, w); a picture is one slice."""
        return x.unsqueeze(1) if self.dims == 2 else x.movedim(2 + self.axis, 1)

    def maps(self, slices: Tensor) -> list[Tensor]:
        """Feature maps of slices (n, C, h, w), finest first; slices that do not divide are padded with zeros at the far ends."""
        return self.unet.encode(pad_to_multiple(slices, self.unet.multiple))

    def describe(self, slices: Tensor) -> Tensor:
        """(n, sum of features): the means of all levels' maps of slices (n, C, h, w)."""
        return _means(self.maps(slices))

    def sequence(self, x: Tensor) -> Tensor:
        """(B, N, dim): the embedded slices of volumes (B, C, *s), each for itself."""
        slices = self.cut(x)
        return self.embed(self.describe(slices.flatten(0, 1))).unflatten(0, slices.shape[:2])

    def embedding(self, x: Tensor) -> Tensor:
        """(B, dim) of volumes (B, C, *s); of pictures (B, sum of features)."""
        return self.transformer(self.sequence(x)).mean(1) if self.dims == 3 else self.describe(x)

    def forward(self, x: Tensor) -> Tensor:
        slices = self.cut(x)
        maps = self.maps(slices.flatten(0, 1))
        if self.dims == 3:
            context = self.transformer(self.embed(_means(maps)).unflatten(0, slices.shape[:2]))
            maps[-1] = maps[-1] + self.inject(context).flatten(0, 1)[..., None, None]
        *_, y = self.unet.decode(maps)
        y = self.unet.heads[-1](y)[..., : slices.shape[3], : slices.shape[4]].unflatten(0, slices.shape[:2])
        return y.squeeze(1) if self.dims == 2 else y.movedim(1, 2 + self.axis)


def _means(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([m.mean((2, 3)) for m in maps], 1)


def adopt(network: SliceUNet, path: str | Path) -> None:
    """Fill the encoder of slices, and the transformer where both have one, with what another run learnt: ``path`` is its folder or its
    method.safetensors. DataError: no such run, or one of other sizes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path) / "method.safetensors" if Path(path).is_dir() else Path(path)
    try:
        found = load_file(file)
    except (SafetensorError, OSError):
        fix = "name a run folder or its method.safetensors"
        raise DataError("this is no finished run", where="pretrained", found=file, fix=fix) from None
    head, own = "method/network.", network.state_dict()
    found = {k.removeprefix(head): v for k, v in found.items() if k.startswith(tuple(head + part for part in LEARNT))}
    shared = {k: v for k, v in found.items() if k in own}
    lacking = [k for k in own if k.startswith(LEARNT[0]) and k not in found]
    other = [k for k, v in shared.items() if v.shape != own[k].shape]
    if lacking or other:
        sizes = f"no {lacking[0]}" if lacking else f"{other[0]}: {tuple(shared[other[0]].shape)}"
        wanted = None if lacking else tuple(own[other[0]].shape)
        fix = "both runs need the same channels, features and options of encoder and transformer"
        raise DataError("the weights are of another network", where=file, found=sizes, allowed=wanted, fix=fix)
    network.load_state_dict(shared, strict=False)
