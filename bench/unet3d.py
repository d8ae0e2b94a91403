"""The network that the inference benchmark gives to every library: nnU-Net's plain 3D U-Net in torch alone, and the volume it labels.

Two 3 x 3 x 3 convolutions with instance norm and leaky ReLU per stage, strided convolutions down, transposed convolutions up,
32-64-128-256-320 features: the ``3d_fullres`` shape of nnU-Net v2. Torch and numpy only, so that both environments can use it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

FEATURES = (32, 64, 128, 256, 320)
CLASSES = 4


def stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    def block(i: int, s: int) -> list[nn.Module]:
        return [nn.Conv3d(i, outputs, 3, s, 1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01, inplace=True)]

    return nn.Sequential(*block(inputs, stride), *block(outputs, 1))


class UNet3d(nn.Module):
    """(B, 1, *s) -> logits (B, CLASSES, *s); sides are multiples of 16."""

    def __init__(self, features: tuple[int, ...] = FEATURES, classes: int = CLASSES):
        super().__init__()
        pairs = list(zip(features, features[1:], strict=False))
        self.down = nn.ModuleList([stage(1, features[0]), *(stage(a, b, 2) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(stage(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)


def torso(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body in air: soft ellipsoid trunk (1) with two lungs (2) and some round nodules (3), noise and a smooth field.

    Returns the image (*shape) float32, z-scored as a CT plan would, and the labels (*shape) uint8.
    """
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)

    def ball(centre: tuple, radii: tuple) -> np.ndarray:
        return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1

    labels = np.zeros(shape, np.uint8)
    labels[ball((0, 0, 0), (0.72, 0.62, 1.6))] = 1
    for side in (-1, 1):
        labels[ball((side * 0.33, 0.05, 0), (0.24, 0.4, 0.85))] = 2
    for _ in range(24):
        centre = rng.uniform((-0.6, -0.45, -0.8), (0.6, 0.45, 0.8))
        labels[ball(centre, tuple(rng.uniform(0.05, 0.11, 3))) & (labels > 0)] = 3
    field = sum(rng.normal(0, 0.12) * a + rng.normal(0, 0.12) * a**2 for a in axes)
    image = np.array([-1.0, 0.6, -0.5, 1.5], np.float32)[labels] + field * (labels > 0)
    return (image + rng.normal(0, 0.18, shape) * (labels > 0)).astype(np.float32), labels
