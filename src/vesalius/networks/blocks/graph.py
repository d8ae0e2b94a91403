"""Networks on the points of closed contours: adjacency, halving and doubling of a contour's points, and Chebyshev graph convolution.

Node features are (B, N, F); a graph is a dense symmetric (N, N) matrix, which for the few hundred points of contours is as fast as a sparse
one. ``ChebConv`` takes any such graph; the matrices below are of several closed contours that share no edge, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ...core.errors import UsageError


def contours(sizes: Sequence[int]) -> Tensor:
    """(N, N) adjacency of closed contours of ``sizes`` points: every point and the next are neighbours, and the last and the first."""

    def ring(n: int) -> Tensor:
        step = torch.roll(torch.eye(n), 1, 0)
        return ((step + step.T) > 0).float().fill_diagonal_(0)

    return _blocks(sizes, ring)


def halved(sizes: Sequence[int]) -> tuple[int, ...]:
    """Points of each contour after pooling: half, rounded up."""
    return tuple((n + 1) // 2 for n in sizes)


def pooling(sizes: Sequence[int]) -> Tensor:
    """(sum halved, N) matrix D: coarse point i is the mean of points 2i and 2i + 1; a last one that is alone is copied."""

    def mean(n: int) -> Tensor:
        d = torch.zeros((n + 1) // 2, n)
        d[torch.arange(n) // 2, torch.arange(n)] = 1
        return d / d.sum(1, keepdim=True)

    return _blocks(sizes, mean)


def unpooling(sizes: Sequence[int]) -> Tensor:
    """(N, sum halved) matrix U: point 2i copies coarse point i, point 2i + 1 is the mean of i and i + 1, the very last a copy."""

    def spread(n: int) -> Tensor:
        m, u = (n + 1) // 2, torch.zeros(n, (n + 1) // 2)
        for i in range(n):
            u[i, i // 2] += 0.5
            u[i, min(m - 1, (i + 1) // 2)] += 0.5
        return u

    return _blocks(sizes, spread)


def pooled(adjacency: Tensor, pool: Tensor) -> Tensor:
    """Adjacency of the graph whose points ``pool`` (M, N) makes: two are neighbours where any of theirs are."""
    return ((pool @ adjacency @ pool.T) > 0).float().fill_diagonal_(0)


def _blocks(sizes: Sequence[int], block: Callable[[int], Tensor]) -> Tensor:
    """One block a contour along the diagonal."""
    if not sizes or min(sizes) < 3:
        raise UsageError("a closed contour has three points or more", where="nodes", found=tuple(sizes))
    return torch.block_diag(*map(block, sizes))


class ChebConv(nn.Module):
    """Spectral convolution (Defferrard et al. 2016, doi:10.48550/arXiv.1606.09375, eq. 4-5): sum_k T_k(L) x W_k for k < ``order``, with the
    Chebyshev recurrence T_k = 2 L T_{k-1} - T_{k-2} and L = -D^-1/2 A D^-1/2, the normalised Laplacian scaled to [-1, 1] for a largest
    eigenvalue of 2. (B, N, inp) -> (B, N, out). ``order`` 1 looks at no neighbour. Weights and bias start at N(0, 0.1)."""

    def __init__(self, adjacency: Tensor, inp: int, out: int, order: int, *, bias: bool = True):
        super().__init__()
        if order < 1:
            raise UsageError("a graph convolution has one term or more", where="order", found=order)
        degree = adjacency.sum(1)
        scale = torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), 0.0)
        self.register_buffer("laplacian", -scale[:, None] * adjacency * scale, persistent=False)
        self.order, self.mix = order, nn.Linear(order * inp, out, bias=bias)
        for p in self.mix.parameters():
            nn.init.normal_(p, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        terms = [x]
        if self.order > 1:
            terms.append(self.laplacian @ x)
        for _ in range(2, self.order):
            terms.append(2 * (self.laplacian @ terms[-1]) - terms[-2])
        return self.mix(torch.cat(terms, -1))


def normed(x: Tensor) -> Tensor:
    """(B, N, F): every node's features to mean 0 and variance 1, each node by itself."""
    return layer_norm(x, x.shape[-1:])
