"""Convolution blocks shared by the U-shaped networks, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS = {
    "instance": {2: lambda n: nn.InstanceNorm2d(n, affine=True), 3: lambda n: nn.InstanceNorm3d(n, affine=True)},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "group": {2: lambda n: nn.GroupNorm(min(8, n), n), 3: lambda n: nn.GroupNorm(min(8, n), n)},
}


def conv(dims: int, inp: int, out: int, kernel: Sequence[int] | int = 3, stride: Sequence[int] | int = 1, bias: bool = True) -> nn.Module:
    """A convolution that keeps the size (divided by the stride)."""
    kernel = (kernel,) * dims if isinstance(kernel, int) else tuple(kernel)
    stride = (stride,) * dims if isinstance(stride, int) else tuple(stride)
    return CONV[dims](inp, out, kernel, stride, tuple(k // 2 for k in kernel), bias=bias)


def conv_norm(inp: int, out: int, kernel: int | tuple[int, int] = 3, dilation: int = 1) -> nn.Sequential:
    """A 2D convolution that keeps the size, and batch norm; no activation."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (k // 2) for k in sides)
    return nn.Sequential(nn.Conv2d(inp, out, sides, padding=padding, dilation=dilation, bias=False), nn.BatchNorm2d(out))


def conv_norm_relu(inp: int, out: int, kernel: int = 3) -> nn.Sequential:
    """A 2D convolution that keeps the size, batch norm, ReLU."""
    return nn.Sequential(*conv_norm(inp, out, kernel), nn.ReLU(inplace=True))


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, LeakyReLU(0.01)."""

    def __init__(self, dims: int, inp: int, out: int, kernel=3, stride=1, norm: str = "instance", dropout: float = 0.0):
        layers = [conv(dims, inp, out, kernel, stride, bias=norm == "none")]
        if norm != "none":
            layers.append(NORMS[norm][dims](out))
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.LeakyReLU(0.01, inplace=True))


class ConvStack(nn.Sequential):
    """``n`` ConvNormAct blocks; the first may stride."""

    def __init__(self, dims: int, inp: int, out: int, kernel=3, stride=1, n: int = 2, norm: str = "instance", dropout: float = 0.0):
        super().__init__(
            *[ConvNormAct(dims, inp if i == 0 else out, out, kernel, stride if i == 0 else 1, norm, dropout) for i in range(n)]
        )


class ResidualBlock(nn.Module):
    """conv-norm-act-conv-norm plus the (strided, projected) input, then the activation."""

    def __init__(self, dims: int, inp: int, out: int, kernel=3, stride=1, norm: str = "instance", dropout: float = 0.0):
        super().__init__()
        self.first = ConvNormAct(dims, inp, out, kernel, stride, norm, dropout)
        after = [NORMS[norm][dims](out)] if norm != "none" else []
        self.second = nn.Sequential(conv(dims, out, out, kernel, bias=norm == "none"), *after)
        moved = inp != out or (stride if isinstance(stride, int) else max(stride)) > 1
        self.skip = conv(dims, inp, out, 1, stride) if moved else nn.Identity()
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)) + self.skip(x))


class AttentionGate(nn.Module):
    """Additive gate (Oktay et al. 2018): x * sigmoid(psi(relu(W_x x + W_g g))) for a skip ``x`` and a gating ``g`` of its size. With a
    ``norm``, all three 1x1 convolutions are normalised, as their authors' code does."""

    def __init__(self, dims: int, skip: int, gate: int, inner: int | None = None, norm: str = "none"):
        super().__init__()
        inner = inner or max(4, skip // 2)
        self.of_skip = conv(dims, skip, inner, 1, bias=False)
        self.of_gate = conv(dims, gate, inner, 1)
        self.psi = conv(dims, inner, 1, 1)
        self.norms = nn.ModuleList(nn.Identity() if norm == "none" else NORMS[norm][dims](n) for n in (inner, inner, 1))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * self.weights(x, g)

    def weights(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, 1, *s): how much of each voxel passes, between 0 and 1."""
        of_skip, of_gate, psi = self.norms
        return torch.sigmoid(psi(self.psi(torch.relu(of_skip(self.of_skip(x)) + of_gate(self.of_gate(g))))))
