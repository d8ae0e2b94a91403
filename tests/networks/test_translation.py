"""Generator and discriminator: the published sizes, any input side, and a patch of 70 voxels."""

import pytest
import torch
from torch import nn

from vesalius.core.errors import GeometryError
from vesalius.networks.translation import PatchDiscriminator, ResNetGenerator


def test_published_sizes():
    """CycleGAN's own log for RGB: 11.378 M and 2.765 M parameters."""
    count = lambda net: sum(p.numel() for p in net.parameters()) / 1e6
    assert count(ResNetGenerator(3, 3, spatial_dims=2)) == pytest.approx(11.378, abs=5e-4)
    assert count(PatchDiscriminator(3, spatial_dims=2)) == pytest.approx(2.765, abs=5e-4)


@pytest.mark.parametrize("shape", [(16, 16), (17, 10), (8, 9, 10)])
def test_the_drawn_image_is_as_large_as_the_given_one(shape):
    net = ResNetGenerator(1, 2, spatial_dims=len(shape), filters=2, blocks=1)
    assert net(torch.randn(2, 1, *shape)).shape == (2, 2, *shape)


def test_a_logit_sees_seventy_voxels():
    net = PatchDiscriminator(1, spatial_dims=2, filters=2)
    for i, layer in enumerate(net.layers):  # a norm sees everything
        if isinstance(layer, nn.InstanceNorm2d):
            net.layers[i] = nn.Identity()
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    out = net(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()[:, 0]
    assert int(rows[-1] - rows[0]) + 1 == 70


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_smallest_image_is_judged_and_a_smaller_one_refused(layers):
    net = PatchDiscriminator(1, spatial_dims=2, filters=2, layers=layers)
    n = net.smallest
    assert net(torch.randn(2, 1, n, n)).shape == (2, 1, 1, 1)
    with pytest.raises(GeometryError, match="too small"):
        net(torch.randn(2, 1, n, n - 1))


def test_one_image_of_a_batch_does_not_change_another():
    torch.manual_seed(0)
    net, x = ResNetGenerator(1, 1, spatial_dims=2, filters=2, blocks=1), torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-5, rtol=1e-4)
