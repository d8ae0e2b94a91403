"""The U-Net for thick slices: its size, what is halved when, and inputs of all kinds."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.zone_unet import ZoneUNet


def test_parameters_as_published():
    with torch.device("meta"):
        net = ZoneUNet(1, 5)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(6.1e6, rel=0.02)


@pytest.mark.parametrize("across, multiple, bottom", [(2, (8, 8, 2), (2, 2, 3)), (0, (2, 8, 8), (8, 2, 1))])
def test_the_slice_axis_is_halved_once(across, multiple, bottom):
    net, seen = ZoneUNet(2, 3, width=2, across=across).eval(), []
    net.bottleneck.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    x = torch.randn(1, 2, 16, 16, 6 if across == 2 else 8)
    logits, features = net.tapped(x)
    assert net.multiple == multiple and seen == [(1, 32, *bottom)]
    assert logits.shape == (1, 3, *x.shape[2:]) and features.shape == (1, 4, *x.shape[2:])
    torch.testing.assert_close(net.head(features), logits)


def test_every_parameter_learns():
    net = ZoneUNet(1, 3, width=2).train()
    net(torch.randn(2, 1, 8, 8, 2)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_bad_input_in_one_sentence():
    with pytest.raises(UsageError, match="takes volumes"):
        ZoneUNet(1, 2, spatial_dims=2)
    with pytest.raises(GeometryError, match="cannot divide"):
        ZoneUNet(1, 2, width=2)(torch.randn(1, 1, 8, 8, 3))
