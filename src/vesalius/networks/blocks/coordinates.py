"""Where something lies in the picture, as eight numbers: of any box, and of every cell of a feature map; and what lies in a box.

Hu, Rohrbach and Darrell, Segmentation from Natural Language Expressions, ECCV 2016, section 3.2, https://arxiv.org/abs/1603.06180.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

CHANNELS = 8  # xmin, ymin, xmax, ymax, xcentre, ycentre, half the width, half the height


def box_coordinates(boxes: Tensor) -> Tensor:
    """(..., 4) boxes xmin, ymin, xmax, ymax, -1 and 1 at the picture's borders -> (..., 8): these, centre, half width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([boxes, (low + high) / 2, (high - low) / 2], -1)


def coordinate_map(height: int, width: int, *, like: Tensor | None = None) -> Tensor:
    """(8, height, width): the coordinates of every cell as a box; half its width is 1/width of the picture's two. ``like`` gives device and
    dtype."""
    facts = {} if like is None else {"device": like.device, "dtype": like.dtype}
    y, x = (2 * torch.arange(n + 1, **facts) / n - 1 for n in (height, width))
    low, high = torch.meshgrid(y[:-1], x[:-1], indexing="ij"), torch.meshgrid(y[1:], x[1:], indexing="ij")
    return box_coordinates(torch.stack([low[1], low[0], high[1], high[0]], -1)).movedim(-1, 0)


def cut(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(B, C, H, W) and boxes (B, R, 4) -> (B * R, C, side, side): what lies in each box, linearly."""
    low, high = boxes.flatten(0, 1).split(2, -1)
    theta = torch.diag_embed((high - low) / 2)
    theta = torch.cat([theta, ((high + low) / 2)[:, :, None]], 2)
    many = image.repeat_interleave(boxes.shape[1], 0)
    grid = affine_grid(theta.to(image.dtype), [len(many), image.shape[1], side, side], align_corners=False)
    return grid_sample(many, grid, align_corners=False)
