"""What deformable registration is trained by: how alike two images are, how smooth a flow is, and how it keeps the volume of a region.

Images and masks are (B, C, *s), flows (B, d, *s) in voxels (``ops.flow``). Every term is a mean over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d

from ..ops.flow import determinant

_EPS = 1e-6
POOL = {2: avg_pool2d, 3: avg_pool3d}


def correlation_loss(fixed: Tensor, moved: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """1 - Pearson's r over all voxels, a mean over channels; 0 for images that are linear functions of each other.

    ``weight`` (B, 1, *s) weighs the covariance and is divided by its own mean, so a constant one changes nothing; means and variances
    stay those of all voxels (Dong et al. 2023).
    """
    a, b = (x.flatten(2) - x.flatten(2).mean(-1, keepdim=True) for x in (fixed.float(), moved.float()))
    both = a * b
    if weight is not None:
        w = weight.float().flatten(2)
        both = both * w / w.mean(-1, keepdim=True).clamp_min(_EPS)
    r = both.mean(-1) / ((a.square().mean(-1) + _EPS) * (b.square().mean(-1) + _EPS)).sqrt()
    return (1 - r).mean()


def local_correlation_loss(fixed: Tensor, moved: Tensor, *, window: int = 9, weight: Tensor | None = None) -> Tensor:
    """1 - the mean squared correlation in a cube of side ``window`` about each voxel (local NCC; Avants et al. 2008,
    doi:10.1016/j.media.2007.06.004). ``weight`` (B, 1, *s) weighs the mean. Flat neighbourhoods are unlike everything."""
    x, y = fixed.float(), moved.float()
    x, y = x - x.mean(), y - y.mean()
    mx, my = box_mean(x, window), box_mean(y, window)
    cross = box_mean(x * y, window) - mx * my
    vx, vy = (box_mean(x * x, window) - mx * mx).clamp_min(0), (box_mean(y * y, window) - my * my).clamp_min(0)
    alike = (cross.square() / (vx * vy + _EPS)).clamp_max(1)
    if weight is None:
        return 1 - alike.mean()
    weight = weight.float().expand_as(alike)
    return 1 - (alike * weight).sum() / weight.sum().clamp_min(_EPS)


def roughness(flow: Tensor) -> Tensor:
    """Half the sum over axes of the mean squared forward difference: 0 for a translation."""
    return sum(flow.float().diff(dim=a).square().mean() for a in range(2, flow.ndim)) / 2


def volume_preserving(flow: Tensor, mask: Tensor, scale: Tensor | float, *, most: float = 3.0) -> Tensor:
    """Mean over ``mask`` of max(s, 1/s), s = | |J| | * scale within 1/most..most; 1 where the mask's tissue changes its size as ``scale``
    says, and 0 where the mask is empty.

    ``mask`` (B, 1, *s) lies on the fixed array; ``scale`` (B,): the size of the warped organ by that of the organ. |J| is that of the
    sampling map, the inverse of the scaling, so the two are multiplied. Dong et al. 2023 (code).
    """
    scale = torch.as_tensor(scale, dtype=torch.float32, device=flow.device).reshape(-1, *[1] * (flow.ndim - 2))
    s = (determinant(flow.float()).abs() * scale).clamp(1 / most, most)
    m = mask.float()[:, 0]
    return (m * torch.maximum(s, 1 / s)).sum() / m.sum().clamp_min(_EPS)


def box_mean(x: Tensor, side: int) -> Tensor:
    """(B, C, *s) means over a cube of odd ``side`` about each voxel, of what lies inside the array, axis by axis."""
    pool, d = POOL[x.ndim - 2], x.ndim - 2
    for axis in range(d):
        kernel, padding = [1] * d, [0] * d
        kernel[axis], padding[axis] = side, side // 2
        x = pool(x, kernel, stride=1, padding=padding, count_include_pad=False)
    return x
