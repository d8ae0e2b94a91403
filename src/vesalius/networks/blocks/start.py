"""Where weights start."""

from __future__ import annotations

from torch import nn


def truncated_linear(m: nn.Module) -> None:
    """For ``module.apply``: a linear layer starts as a transformer's do, weights from a truncated normal of 0.02, biases 0. Others stay."""
    if isinstance(m, nn.Linear):
        nn.init.trunc_normal_(m.weight, std=0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)
