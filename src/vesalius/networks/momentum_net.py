"""MomentumNet: a U-shaped network of residual blocks that go on in the direction they were going.

The blocks have a velocity (``networks.momentum``): x moves by a running mean of what the branches say instead of by each alone, and the
way back can be computed, so that what training a stage keeps does not grow with its blocks.

Biswas et al., A novel momentum-based deep learning techniques for medical image classification and segmentation, 2024,
https://arxiv.org/abs/2408.05692; Sander et al., Momentum residual neural networks, ICML 2021, https://arxiv.org/abs/2102.07870.
Inferred, thus options: gamma, where the velocity starts, what a new stage does with it, and the network around the blocks: a ResNet-50
encoder whose stages begin with their usual strided block, and a U-shaped decoder of the same kind of blocks. Where we differ or had to
choose:

* No value of gamma was found. A branch counts 1 - gamma^k when k - 1 blocks follow it: with the library's 0.9 the two to five blocks of a
  stage are nearly closed (.10 to .41), with 0.5, ours, at least half open. It is taken as a ratio with a denominator up to 100.
* The velocity starts anew in every stage, since stages differ in size. ``--set between=project`` hands it on through the encoder by strided
  1x1 convolutions, which have parameters; the decoder joins two maps in every stage and starts anew in all of them.
* The paper's other task, classification, is not built.
* The recipe is inferred too: Adam at 1e-4 for some hundred epochs, lower when the validation stalls. Some hundred steps want ten times as
  much, the default, and it falls by a cosine. Input size and augmentation are the plan's.
* ``--set pretrained=FILE.safetensors`` fills the encoder with ResNet-50's ImageNet weights. Blocks with momentum end without its last ReLU,
  which could not be undone: they need training again.

Key components: ``Momentum`` (stored or reversible), ``EncoderStage``, ``DecoderStage``.

Good to know: ``--set memory=reversible`` keeps three integers per value of a stage, about what two of its blocks would store, however many
there are. With the few blocks of a ResNet-50 that saves little, with tens in a stage nearly everything. It evaluates every block twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..core.errors import UsageError
from .blocks.conv import conv_norm_relu
from .blocks.norm import check_batch
from .blocks.padding import check_multiple
from .blocks.resize import resize_like
from .momentum import Momentum


class MomentumNet(nn.Module):
    """Logits (B, out_channels, H, W). H and W are multiples of 32.

    ``depths`` and ``width`` of the encoder (the defaults are ResNet-50's), ``decoder_depth`` blocks in every decoder stage. ``gamma``: of
    the velocity, 0 is a plain residual network; ``start``: the velocity begins at 'zero' or at the 'first' branch's answer; ``between``:
    in a new stage of the encoder it does so again, 'restart', or goes on, 'project'; ``memory``: blocks' activations are 'stored', or
    'reversible': computed again on the way back.
    """

    multiple = (32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        decoder_depth: int = 2,
        gamma: float = 0.5,
        start: Literal["zero", "first"] = "zero",
        between: Literal["restart", "project"] = "restart",
        memory: Literal["stored", "reversible"] = "stored",
    ):
        super().__init__()
        if spatial_dims != 2:
            raise UsageError("MomentumNet is a 2D network", where="momentum-net", found=f"{spatial_dims}D data")
        if len(depths) != 4 or min(*depths, decoder_depth) < 1 or width < 2:
            raise UsageError("an encoder has four stages of one block or more", where="depths, width", found=(depths, decoder_depth, width))
        if between not in ("restart", "project") or (between == "project" and min(depths) < 2):
            allowed = "restart, or project with two blocks or more in every stage"
            raise UsageError("there is no velocity to hand on", where="between, depths", found=(between, depths), allowed=allowed)
        flow = Momentum(gamma, start=start, memory=memory, blocks=max(*depths, decoder_depth))
        self.backbone = Encoder(in_channels, depths, width, flow)
        sizes = self.backbone.features[1:] if between == "project" else ()
        self.carry = nn.ModuleList(nn.Conv2d(a, b, 1, 2, bias=False) for a, b in zip(sizes, sizes[1:], strict=False))
        inp, self.decoder = self.backbone.features[-1], nn.ModuleList()
        for skip, out in zip(self.backbone.features[-2::-1], (4 * width, 2 * width, width, max(2, width // 2)), strict=True):
            self.decoder.append(DecoderStage(inp, skip, out, decoder_depth, flow))
            inp = out
        self.head = nn.Conv2d(inp, out_channels, 1)

    @property
    def bottleneck(self) -> nn.Module:
        """What the encoder's last stage gives (feature taps)."""
        return self.backbone.end

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "MomentumNet")
        check_batch(self, x, 32)
        *skips, y = self.backbone(x, self.carry)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            y = stage(y, skip)
        return interpolate(self.head(y), x.shape[2:], mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """ResNet of bottlenecks with layers named as in its published weights: (B, C, H, W) -> five maps at strides 2 to 32."""

    def __init__(self, in_channels: int, depths: Sequence[int], width: int, flow: Momentum):
        super().__init__()
        self.features = (width, *(4 * width * 2**i for i in range(4)))
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for i, depth in enumerate(depths):
            setattr(self, f"layer{i + 1}", EncoderStage(self.features[i], self.features[i + 1], depth, 2 if i else 1, flow))
        self.end = nn.Identity()

    def forward(self, x: Tensor, carry: Sequence[nn.Module]) -> list[Tensor]:
        """``carry``: what takes the velocity from a stage to the next, if it goes on."""
        found, v = [torch.relu(self.bn1(self.conv1(x)))], None
        x = self.pool(found[0])
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x, v = stage(x, carry[i - 1](v) if carry and i else None)
            found.append(x)
        return [*found[:-1], self.end(x)]


class EncoderStage(nn.Sequential):
    """A usual strided block, then ``depth`` - 1 with momentum: position and velocity."""

    def __init__(self, inp: int, out: int, depth: int, stride: int, flow: Momentum):
        super().__init__(Bottleneck(inp, out, stride), *[Bottleneck(out, out) for _ in range(depth - 1)])
        self.flow = flow

    def forward(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        first, *blocks = self
        return self.flow(torch.relu(first.downsample(x) + first(x)), blocks, v)


class Bottleneck(nn.Module):
    """The branch f: 1x1, 3x3, 1x1 with batch norms, a quarter of ``out`` channels between. ``downsample``: the shortcut of a first."""

    def __init__(self, inp: int, out: int, stride: int = 1):
        super().__init__()
        n = out // 4
        self.conv1, self.bn1 = nn.Conv2d(inp, n, 1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n)
        self.conv3, self.bn3 = nn.Conv2d(n, out, 1, bias=False), nn.BatchNorm2d(out)
        if inp != out or stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x)))))


class DecoderStage(nn.Module):
    """The map below at the skip's size, both joined to ``out`` channels, then ``depth`` blocks of two 3x3 convolutions with momentum."""

    def __init__(self, inp: int, skip: int, out: int, depth: int, flow: Momentum):
        super().__init__()
        self.join = conv_norm_relu(inp + skip, out)
        self.blocks = nn.ModuleList(nn.Sequential(*conv_norm_relu(out, out), *conv_norm_relu(out, out)[:2]) for _ in range(depth))
        self.flow = flow

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.flow(self.join(torch.cat([resize_like(x, skip), skip], 1)), list(self.blocks))[0]
