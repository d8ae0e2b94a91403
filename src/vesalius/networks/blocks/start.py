"""Where weights start."""

from __future__ import annotations

from math import prod

from torch import nn

CONVOLUTIONS = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


def truncated_linear(m: nn.Module) -> None:
    """For ``module.apply``: a linear layer starts as a transformer's do, weights from a truncated normal of 0.02, biases 0. Others stay."""
    if isinstance(m, nn.Linear):
        nn.init.trunc_normal_(m.weight, std=0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


def glorot_uniform(m: nn.Module) -> None:
    """For ``module.apply``: linear layers and convolutions start with uniform weights of variance 2 / (fan in + fan out), each group of
    channels by itself (Glorot and Bengio 2010), and biases 0. Torch's own start has a third of that where both fans are alike."""
    if isinstance(m, nn.Linear):
        fans = m.in_features + m.out_features
    elif isinstance(m, CONVOLUTIONS):
        fans = (m.in_channels + m.out_channels) // m.groups * prod(m.kernel_size)
    else:
        return
    bound = (6 / fans) ** 0.5
    nn.init.uniform_(m.weight, -bound, bound)
    if m.bias is not None:
        nn.init.zeros_(m.bias)
