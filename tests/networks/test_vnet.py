"""V-Net: the published size, shapes, dropout in training only."""

import pytest
import torch

from vesalius.core.errors import GeometryError
from vesalius.networks.vnet import VNet


def test_as_large_as_the_published_one():
    """The V-Net of the semi-supervised papers is listed with 9.44 to 9.45 million parameters (2 classes, 16 base filters)."""
    assert sum(p.numel() for p in VNet(1, 2, spatial_dims=3).parameters()) / 1e6 == pytest.approx(9.445, abs=0.005)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_shapes_and_gradients(d, residual):
    torch.manual_seed(0)
    net = VNet(2, 3, spatial_dims=d, width=4, residual=residual)
    logits = net(torch.randn(2, 2, *(32, 16, 16)[:d]))
    assert logits.shape == (2, 3, *(32, 16, 16)[:d])
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_dropout_in_training_only():
    torch.manual_seed(0)
    net, x = VNet(1, 2, spatial_dims=3, width=4), torch.randn(2, 1, 16, 16, 16)
    net.train()
    net(x)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_sides_must_halve_four_times():
    with pytest.raises(GeometryError, match=r"multiples of \(16, 16, 16\)"):
        VNet(1, 2, spatial_dims=3, width=2)(torch.zeros(1, 1, 16, 24, 16))
