"""PraNet's partial decoder, which reads the deep levels of a backbone and leaves the finest alone; Polyp-PVT's fusion is the same.

Fan et al., PraNet, MICCAI 2020, https://arxiv.org/abs/2006.11392, section 2.2; after Wu et al., Cascaded partial decoder, CVPR 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .conv import conv_norm
from .resize import resize_like


class PartialDecoder(nn.Module):
    """The three deep levels at ``channels`` each, finest first -> logits (B, out_channels, h, w) at the finest's size: products of a level
    with everything above it, then concatenated upwards."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        c = channels
        self.top_to_middle, self.top_to_fine, self.middle_to_fine = (conv_norm(c, c) for _ in range(3))
        self.top_beside, self.join_middle = conv_norm(c, c), conv_norm(2 * c, 2 * c)
        self.middle_beside, self.join_fine = conv_norm(2 * c, 2 * c), conv_norm(3 * c, 3 * c)
        self.head = nn.Sequential(conv_norm(3 * c, 3 * c), nn.Conv2d(3 * c, out_channels, 1))

    def forward(self, fine: Tensor, middle: Tensor, top: Tensor) -> Tensor:
        up, upper = resize_like(top, middle), resize_like(resize_like(top, middle), fine)
        at_fine = self.top_to_fine(upper) * self.middle_to_fine(resize_like(middle, fine)) * fine
        at_middle = self.join_middle(torch.cat([self.top_to_middle(up) * middle, self.top_beside(up)], 1))
        return self.head(self.join_fine(torch.cat([at_fine, self.middle_beside(resize_like(at_middle, fine))], 1)))
