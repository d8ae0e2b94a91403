"""Does performance survive without the transformer? Roy et al. (Primus, 2025) ask it of every network that has one.

``identity_twin`` takes the blocks out of a network, to be trained again and compared; ``unet_index`` says how much of a whole U-Net would
remain. Both work on any module: ``blocks`` are the classes that count as transformer blocks (another library's, too).
"""

from __future__ import annotations

import copy
from functools import cache

from torch import Tensor, nn

from ..core.errors import UsageError
from .blocks.transformer import EvaBlock
from .unet import UNet

Blocks = tuple[type[nn.Module], ...]


class Through(nn.Module):
    """The identity in the place of a block, whatever else the block is told."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x


def identity_twin(network: nn.Module, blocks: Blocks = (EvaBlock,)) -> nn.Module:
    """A copy of ``network`` in which every transformer block hands on what it gets. UsageError when there is none."""
    twin = copy.deepcopy(network)
    places = [(parent, name) for parent in twin.modules() for name, child in parent.named_children() if isinstance(child, blocks)]
    if not places:
        names = ", ".join(b.__name__ for b in blocks)
        raise UsageError("this network has no transformer to take out", where=type(network).__name__, allowed=f"blocks of class {names}")
    for parent, name in places:
        setattr(parent, name, Through())
    return twin


def transformer_parameters(network: nn.Module, blocks: Blocks = (EvaBlock,)) -> int:
    """Parameters inside transformer blocks."""
    return count({p for m in network.modules() if isinstance(m, blocks) for p in m.parameters()})


def unet_index(network: nn.Module, blocks: Blocks = (EvaBlock,), reference: int | None = None) -> float:
    """Parameters outside the transformer over those of a whole U-Net (``reference``: by default nnU-Net's 3D one)."""
    outside = count(set(network.parameters())) - transformer_parameters(network, blocks)
    return outside / (reference or default_unet())


@cache
def default_unet() -> int:
    """Parameters of nnU-Net's default 3D U-Net: six stages of two 3^3 convolutions, 32 to 320 features."""
    import torch

    with torch.device("meta"):
        net = UNet(1, 2, spatial_dims=3, features=(32, 64, 128, 256, 320, 320), deep_supervision=True)
    return count(set(net.parameters()))


def count(parameters: set[nn.Parameter]) -> int:
    """Numbers in them."""
    return sum(p.numel() for p in parameters)
