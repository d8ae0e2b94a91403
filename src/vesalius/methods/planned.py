"""The ``unet`` of the catalogue: the planned U-Net as a method, the baseline every paper is compared with.

Everything is inherited from ``Segmenter``; this file only gives the network's own choices a name on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from .learned import Segmenter


class PlannedUNet(Segmenter):
    """``encoder``: two plain convolutions a stage, or residual blocks."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        encoder: Literal["plain", "residual"] = "plain",
        norm: Literal["instance", "batch", "group"] = "instance",
        gates: bool = False,
        dropout: float = 0.0,
        deep_supervision: bool | None = None,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        self._network = dict(encoder=encoder, norm=norm, gates=gates, dropout=dropout)
        if deep_supervision is not None:
            self._network["deep_supervision"] = deep_supervision
        super().__init__(plan, manifest, parts=parts, lr=lr, weight_decay=weight_decay, ema=ema)

    def build(self, network=None, **options):
        return super().build(network, **{**self._network, **options})
