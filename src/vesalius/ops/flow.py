"""Displacement fields of networks: in voxels of an array, differentiable (torch). Those in world mm are ``ops.displacement``'s.

A flow (B, d, *s) takes voxel i of the fixed array to i + flow(i) in the moving one, so that ``warp(moving, flow)`` lies on the fixed array.
Between voxels reading is linear; beyond the array the edge goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def warp(image: Tensor, flow: Tensor, *, mode: str = "linear") -> Tensor:
    """(B, C, *s) ``image`` read at i + flow(i); ``mode`` 'linear' or 'nearest'. A flow of 0 gives the image back."""
    at = places(flow)
    sides = torch.tensor(image.shape[2:], dtype=at.dtype, device=at.device).view(1, -1, *[1] * (at.ndim - 2))
    unit = 2 * at / (sides - 1).clamp_min(1) - 1
    grid = unit.flip(1).movedim(1, -1)  # grid_sample wants the last axis first
    bent = {"linear": "bilinear", "nearest": "nearest"}[mode]
    exact = torch.promote_types(image.dtype, grid.dtype)
    return grid_sample(image.to(exact), grid.to(exact), mode=bent, padding_mode="border", align_corners=True).to(image.dtype)


def places(flow: Tensor) -> Tensor:
    """(B, d, *s) where each voxel goes, i + flow(i); float32 at least, as half precision cannot count the voxels of a side."""
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    axes = [torch.arange(n, dtype=flow.dtype, device=flow.device) for n in flow.shape[2:]]
    return flow + torch.stack(torch.meshgrid(*axes, indexing="ij"))


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The flow of going by ``first`` and from there by ``then``: i -> i + first(i) + then(i + first(i))."""
    return first + warp(then, first)


def determinant(flow: Tensor) -> Tensor:
    """(B, *s) |J| of i + flow(i): how much of the moving array lies in each voxel of the fixed one; 0 or less where it folds.

    Differences are central between voxels and one-sided at the border, as in ``ops.jacobian``: exact for affine flows.
    """
    d = flow.shape[1]
    slopes = torch.gradient(flow, dim=tuple(range(2, 2 + d)))
    j = torch.stack([s.movedim(1, -1) for s in slopes], -1) + torch.eye(d, dtype=flow.dtype, device=flow.device)
    if d == 2:
        return j[..., 0, 0] * j[..., 1, 1] - j[..., 0, 1] * j[..., 1, 0]
    return (torch.linalg.cross(j[..., 0], j[..., 1], dim=-1) * j[..., 2]).sum(-1)
