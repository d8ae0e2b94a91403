"""Probabilistic U-Net: a U-Net whose last features are read in the light of a few random numbers, so that one image has many answers.

What the numbers may be is learnt twice: the prior sees the image alone, the posterior also one answer to it. Training lets the posterior
draw and keeps the two near; prediction draws from the prior. One draw is one whole coherent mask, not noise voxel by voxel.

Kohl et al., A probabilistic U-Net for segmentation of ambiguous images, NeurIPS 2018, https://arxiv.org/abs/1806.05034. Where we differ:
the U-Net is the planned one; the encoders of prior and posterior take its levels, without norms (an instance norm would take away what
the mean over space then looks for); features and numbers meet in one sum, which is what a 1 x 1 convolution of both side by side is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks.conv import ConvStack, conv
from .unet import UNet


class Gaussian(NamedTuple):
    """Independent normal distributions: ``mean`` and ``logsd`` (B, L)."""

    mean: Tensor
    logsd: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """(B, S, L) draws from standard normal ``noise`` (B or 1, S, L); gradients reach mean and deviation."""
        return self.mean.unsqueeze(1) + self.logsd.exp().unsqueeze(1) * noise

    def kl(self, other: Gaussian) -> Tensor:
        """(B,) Kullback-Leibler divergence from ``other``, nats: the sum over the numbers of log(t/s) + (s^2 + (m - n)^2) / 2t^2 - 1/2."""
        ratio = (2 * (self.logsd - other.logsd)).exp()
        apart = ((self.mean - other.mean) / other.logsd.exp()).square()
        return (other.logsd - self.logsd + (ratio + apart - 1) / 2).sum(1)


class ProbabilisticUNet(nn.Module):
    """``forward`` (B, C, *s) -> logits (B, K, *s) at the prior's mean; with latent ``z`` (B, S, ``latent``) -> (B, S, K, *s).

    Levels as ``networks.unet``; ``mixing``: 1 x 1 convolutions from features and latent to logits, at least two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        latent: int = 6,
        mixing: int = 3,
        features: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
    ):
        if latent < 1 or mixing < 2:
            raise ValueError(f"a latent has a number and is mixed in by two convolutions at least, not {latent} and {mixing}")
        super().__init__()
        d, width = spatial_dims, features[0]
        levels = dict(features=features, strides=strides, kernels=kernels)
        self.latent = latent
        self.unet = UNet(in_channels, width, spatial_dims=d, **levels)
        self.multiple = self.unet.multiple
        self.priors = LatentEncoder(in_channels, latent, spatial_dims=d, **levels)
        self.posteriors = LatentEncoder(in_channels + out_channels, latent, spatial_dims=d, **levels)
        self.of_latent = nn.Linear(latent, width, bias=False)
        middle = [layer for _ in range(mixing - 2) for layer in (nn.ReLU(), conv(d, width, width, 1))]
        self.mix = nn.Sequential(*middle, nn.ReLU(), conv(d, width, out_channels, 1))

    @property
    def bottleneck(self) -> nn.Module:
        """The U-Net's deepest stage (feature taps)."""
        return self.unet.bottleneck

    def prior(self, image: Tensor) -> Gaussian:
        return self.priors(image)

    def posterior(self, image: Tensor, answer: Tensor) -> Gaussian:
        """``answer`` (B, K, *s): a mask of the image, one-hot (0 in all classes where nobody spoke)."""
        return self.posteriors(torch.cat([image, answer.to(image.dtype)], 1))

    def forward(self, image: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None:
            return self.decode(self.unet(image), self.prior(image).mean.unsqueeze(1))[:, 0]
        return self.decode(self.unet(image), z)

    def decode(self, features: Tensor, z: Tensor) -> Tensor:
        """Features (B, F, *s), computed once, and z (B, S, L) -> logits (B, S, K, *s)."""
        shift = self.of_latent(z)
        shift = shift.view(*shift.shape, *(1,) * (features.ndim - 2))
        mixed = (features.unsqueeze(1) + shift).flatten(0, 1)
        return self.mix(mixed).unflatten(0, z.shape[:2])


class LatentEncoder(nn.Module):
    """(B, C, *s) of any size -> a ``Gaussian`` of ``latent`` numbers: strided convolutions, mean over space, one linear layer."""

    def __init__(
        self,
        in_channels: int,
        latent: int,
        *,
        spatial_dims: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]] = (),
        kernels: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        d, n = spatial_dims, len(features)
        strides = strides or [(1,) * d] + [(2,) * d] * (n - 1)
        kernels = kernels or [(3,) * d] * n
        inputs = (in_channels, *features[:-1])
        self.levels = nn.Sequential(
            *[ConvStack(d, i, f, k, s, 2, "none") for i, f, k, s in zip(inputs, features, kernels, strides, strict=True)]
        )
        self.numbers = nn.Linear(features[-1], 2 * latent)
        for m in self.levels.modules():
            if isinstance(m, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(m.weight, a=0.01)
                nn.init.zeros_(m.bias)
        nn.init.normal_(self.numbers.weight, 0, 0.01)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, x: Tensor) -> Gaussian:
        seen = self.levels(x).flatten(2).mean(2)
        with torch.autocast(x.device.type, enabled=False):  # a divergence wants more digits than bf16 has
            return Gaussian(*self.numbers(seen.float()).chunk(2, 1))
