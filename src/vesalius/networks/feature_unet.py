"""The planned U-Net with its last feature map beside the logits, for losses that compare voxels in feature space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .unet import UNet


class FeatureUNet(nn.Module):
    """``forward`` (B, C, *s) -> logits (B, K, *s); ``tapped`` -> (logits, the features (B, features[0], *s) they are a linear map of).

    Options as ``networks.unet``; no deep supervision.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        self.body = UNet(in_channels, out_channels, spatial_dims=spatial_dims, features=features, strides=strides, kernels=kernels)
        self.head = self.body.heads[-1]
        self.body.heads = nn.ModuleList([nn.Identity()])
        self.multiple = self.body.multiple

    @property
    def bottleneck(self) -> nn.Module:
        """The deepest stage (feature taps)."""
        return self.body.bottleneck

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features), features

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x)[0]
