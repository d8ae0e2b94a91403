"""The heaviest convolutions of an OpenVINO model in 8-bit integers, which processors with VNNI multiply twice as fast as bfloat16.

Weights are symmetric with one scale per output channel, activations have one range per layer, found by running torch float32 on probe
windows. Channels of unequal range are evened out first by moving half of the difference (in the logarithm) into the weights, which
changes nothing before rounding: Xiao et al., SmoothQuant, ICML 2023, eq. 4 with alpha = 1/2. The rest of the network stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

HEAVY = 0.1  # a convolution that does this share of all multiplications or more
_TAIL = 1e-4  # share of the voxels of a channel and window that is clipped at either end
_SAMPLES = 2**15  # voxels of a channel and window that its range is found from


@dataclass
class Inputs:
    """Of one convolution: multiplications of one window, calls, and the range of each input channel, clipped tails apart."""

    work: int
    calls: int
    low: np.ndarray  # (C,)
    high: np.ndarray


def heavy_convolutions(module: nn.Module, probe: Tensor) -> dict[str, Inputs]:
    """By name: the ungrouped spatial convolutions that ``probe`` (B, C, *patch) shows to be heavy, in the order of the forward.

    The first and the last spatial convolution stay out: what the first reads and the last writes are the image and the labels.
    """
    every: dict[str, Inputs] = {}
    hooks = [m.register_forward_hook(_watch(n, every)) for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    try:
        for window in probe.split(1):
            module(window)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(found.work for found in every.values())
    names = [n for n in every if max(module.get_submodule(n).kernel_size) > 1][1:-1]
    inner = {n: every[n] for n in names if module.get_submodule(n).groups == 1}
    return {n: found for n, found in inner.items() if found.calls == len(probe) and found.work >= HEAVY * total}


def _watch(name: str, every: dict[str, Inputs]):
    def hook(convolution: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0][0].flatten(1).float()
        x = x[:, :: max(1, x.shape[1] // _SAMPLES) | 1].sort(1).values  # an odd step, so that no row or column is left out
        k = round(_TAIL * (x.shape[1] - 1))
        low, high = x[:, k].numpy(), x[:, -1 - k].numpy()
        if name in every:
            found = every[name]
            found.calls += 1
            found.low, found.high = np.minimum(found.low, low), np.maximum(found.high, high)
        else:
            every[name] = Inputs(output[0].numel() * convolution.weight[0].numel(), 1, low, high)

    return hook


def quantise(model, module: nn.Module, inputs: dict[str, Inputs], prefix: str) -> int:
    """Put the convolutions of ``inputs`` into 8 bits within ``model``, an ``openvino.Model`` converted from ``module``.

    ``prefix`` is what the converter put before the module's names. Returns how many convolutions were found and changed.
    """
    done = 0
    for node in model.get_ordered_ops():
        name = node.get_friendly_name().removeprefix(prefix).split("/")[0]
        if node.get_type_name() == "Convolution" and name in inputs:
            _round(node, module.get_submodule(name).weight.detach().float().numpy(), inputs[name])
            done += 1
    return done


def _round(node, weight: np.ndarray, found: Inputs) -> None:
    """``node`` reads activations on 256 levels of which one is zero (padding is exact), and ``weight`` (O, C, *k) on 255."""
    from openvino import opset13 as ops

    ones = (1,) * (weight.ndim - 1)
    largest = np.abs(weight).max(axis=(0, *range(2, weight.ndim)))
    reach = np.maximum(np.abs(found.low), np.abs(found.high))
    even = np.sqrt(np.maximum(reach, 1e-3 * reach.max() + 1e-12) / np.maximum(largest, 1e-3 * largest.max() + 1e-12)).astype(np.float32)
    low, high = min(0.0, float((found.low / even).min())), max(1e-12, float((found.high / even).max()))
    step = (high - low) / 255
    low = -step * round(-low / step)
    high = low + 255 * step
    even = even.reshape(1, -1, *ones[1:])
    weight = weight * even
    bound = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-12).reshape(-1, *ones)

    def constant(x: np.ndarray | float):
        return ops.constant(np.asarray(x, np.float32).reshape(np.shape(x) or (1, *ones)))

    ends = [constant(low * even), constant(high * even), constant(low), constant(high)]
    node.input(0).replace_source_output(ops.fake_quantize(node.input_value(0), *ends, 256).output(0))
    ends = [constant(s * bound) for s in (-1, 1, -1, 1)]
    node.input(1).replace_source_output(ops.fake_quantize(constant(weight), *ends, 255).output(0))
