"""The query-distribution loss: queries of a group take the voxels of that group, and no others.

Lesions resemble each other more than they resemble their background, and there are few of them: left alone, queries spend themselves on the
background. So queries are dealt to background, organ and lesions beforehand, and what all queries of a group take of a voxel together is
compared with the group the voxel is of.

Yuan et al., CVPR 2023, https://arxiv.org/abs/2304.00212; see ``networks.maxquery``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import UsageError
from .dice_ce import DiceCE

LEAST = 1e-8  # mass whose logarithm is taken


class QueryDistribution:
    """Callable ``(assignment (B, N, *s), target (B, *s) classes, *, weight=None, ignore_index=None) -> scalar``: Dice and cross-entropy of
    the groups' masses. ``sizes``: queries of each group, in order; ``groups[k]``: the group of class k."""

    def __init__(self, sizes: Sequence[int], groups: Sequence[int]):
        if min(sizes, default=0) < 1 or not groups or not all(0 <= g < len(sizes) for g in groups):
            raise UsageError("every class has a group of queries", where="sizes, groups", found=(tuple(sizes), tuple(groups)))
        self.sizes, self.groups, self.mismatch = tuple(sizes), tuple(groups), DiceCE()

    def __call__(self, assignment: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int | None = None) -> Tensor:
        of = torch.tensor(self.groups, device=target.device)[target.clamp_min(0)]
        if ignore_index is not None:
            of = torch.where(target == ignore_index, ignore_index, of)
        logarithm = self.mass(assignment).float().clamp_min(LEAST).log()  # its softmax is the mass itself, as masses sum to 1
        return self.mismatch(logarithm, of, weight=weight, ignore_index=ignore_index)

    def mass(self, assignment: Tensor) -> Tensor:
        """(B, G, *s): what the queries of each group take of each voxel together."""
        if assignment.shape[1] != sum(self.sizes):
            raise UsageError("there are other queries than the groups have", found=assignment.shape[1], allowed=sum(self.sizes))
        return torch.stack([part.sum(1) for part in assignment.split(self.sizes, 1)], 1)
