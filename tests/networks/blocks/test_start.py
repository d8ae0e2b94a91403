"""Where weights start: the variance of each kind of layer, and biases of nothing."""

import pytest
import torch
from torch import nn

from vesalius.networks.blocks.start import glorot_uniform, truncated_linear


@pytest.mark.parametrize(
    "layer, fans",
    [
        (nn.Linear(300, 100), 400),
        (nn.Conv2d(30, 60, 3), 90 * 9),
        (nn.Conv3d(30, 20, (1, 3, 3)), 50 * 9),
        (nn.ConvTranspose2d(40, 20, 2, 2), 60 * 4),
        (nn.Conv2d(400, 400, 5, groups=400), 2 * 25),  # a filter a channel: one in, one out
    ],
)
def test_glorot_counts_what_comes_in_and_what_goes_out(layer, fans):
    torch.manual_seed(0)
    layer.apply(glorot_uniform)
    bound = (6 / fans) ** 0.5
    assert layer.weight.var().item() == pytest.approx(2 / fans, rel=0.05)
    assert 0.98 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()


def test_glorot_is_what_torch_calls_xavier():
    """Where channels are not in groups."""
    for layer in (nn.Linear(7, 5), nn.Conv2d(6, 4, 3), nn.ConvTranspose3d(3, 5, 2)):
        torch.manual_seed(0)
        expected = nn.init.xavier_uniform_(torch.empty_like(layer.weight))
        torch.manual_seed(0)
        layer.apply(glorot_uniform)
        torch.testing.assert_close(layer.weight, expected)


def test_other_layers_stay():
    for start in (glorot_uniform, truncated_linear):
        norm, bare = nn.LayerNorm(4), nn.Linear(4, 4, bias=False)
        nn.init.constant_(norm.bias, 3.0)
        nn.Sequential(norm, bare).apply(start)
        assert norm.weight.eq(1).all() and norm.bias.eq(3).all() and bare.weight.std() > 0


def test_a_transformers_linear_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 200), nn.Conv2d(3, 3, 1))
    before = net[1].weight.clone()
    net.apply(truncated_linear)
    assert net[0].weight.std().item() == pytest.approx(0.02, rel=0.05) and not net[0].bias.any() and torch.equal(net[1].weight, before)
