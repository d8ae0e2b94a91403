"""ResUNet: its units, its size, and what it cannot divide."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.res_unet import ResUNet, Unit


def tiny(inp: int = 3, out: int = 1, **options) -> ResUNet:
    torch.manual_seed(0)
    return ResUNet(inp, out, **{"spatial_dims": 2, "width": 4, **options})


def test_as_published_it_has_its_parameters():
    """By hand: a unit a -> b has 9ab + 9bb + 3b weights and biases of 3x3s and what norms need, and ab + b of its 1x1."""
    unit = lambda a, b, raw=False: (0 if raw else 2 * a) + (9 * a * b + b) + 2 * b + (9 * b * b + b) + (a * b + b)
    by_hand = unit(3, 64, raw=True) + unit(64, 128) + unit(128, 256) + unit(256, 512)
    by_hand += unit(768, 256) + unit(384, 128) + unit(192, 64) + 65
    with torch.device("meta"):
        net = ResUNet(3, 1, spatial_dims=2)
    assert sum(p.numel() for p in net.parameters()) == by_hand == 8_220_993


def test_a_unit_is_normalised_before_it_convolves():
    torch.manual_seed(0)
    unit, x = Unit(2, 3, 5, stride=2).eval(), torch.randn(2, 3, 8, 8)
    kinds = [type(m).__name__ for m in unit.body]
    assert kinds == ["BatchNorm2d", "ReLU", "Conv2d"] * 2 and unit(x).shape == (2, 5, 4, 4)
    torch.nn.init.zeros_(unit.body[-1].weight)
    torch.nn.init.zeros_(unit.body[-1].bias)
    torch.testing.assert_close(unit(x), unit.skip(x))  # the way around is a plain 1x1 convolution
    assert [type(m).__name__ for m in Unit(2, 3, 5, raw=True).body][0] == "Conv2d"


def test_the_input_is_left_as_it_was():
    x = torch.randn(1, 3, 16, 16)
    before = x.clone()
    tiny().train()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dims, inp, out", [(2, 1, 1), (2, 3, 6), (3, 2, 2)])
def test_shapes_and_gradients(dims, inp, out):
    net = tiny(inp, out, spatial_dims=dims)
    x = torch.randn(2, inp, *(16,) * dims)
    logits = net(x)
    logits.sum().backward()
    assert logits.shape == (2, out, *(16,) * dims) and all(p.grad is not None for p in net.parameters())
    assert net.multiple == (8,) * dims and net.bottleneck is net.down[-1]


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="ResUNet"):
        tiny()(torch.randn(1, 3, 20, 16))
    with pytest.raises(UsageError, match="batch norm"):
        tiny().train()(torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError, match="levels and feature maps"):
        tiny(width=0)
