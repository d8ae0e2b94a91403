"""Deformable attention against brute force, and its places."""

import pytest
import torch
from torch import nn

from vesalius.core.errors import UsageError
from vesalius.networks.blocks.deformable import DeformableAttention1d, DeformableTransformer, read_at


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def still(attention: DeformableAttention1d) -> DeformableAttention1d:
    nn.init.zeros_(attention.offset[2].weight)
    return attention


def test_without_offsets_it_is_attention_over_the_middles_of_the_cells():
    layer, x = still(DeformableAttention1d(8, 2)), torch.randn(3, 16, 8)
    coarse = (x[:, 1::4] + x[:, 2::4]) / 2  # 4 j + 1.5
    q, k, v = layer.query(x), layer.key(coarse), layer.value(coarse)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = (q[..., h] @ k[..., h].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., h])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_offsets_move_the_places_by_at_most_their_reach():
    layer, x = DeformableAttention1d(8, 2, reach=0.5), torch.randn(2, 10, 8)
    middle = still(DeformableAttention1d(8, 2)).places(x)
    assert middle.tolist() == [[1.5, 5.5, 9.5]] * 2  # the last cell is cut by the end
    layer.offset[2].weight.data += 100
    moved = layer.places(layer.query(x)) - middle
    assert moved.abs().max() <= 2.0 + 1e-5 and moved.abs().max() > 1.9


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_any_length(n):
    net = DeformableTransformer(8, 2, 2, 6, hidden=8)
    y = net(torch.randn(2, n, 8))
    assert y.shape == (2, n, 8) and torch.isfinite(y).all()


def test_reading_between_members_is_linear_and_ends_repeat():
    x = torch.arange(5.0)[None, :, None]
    at = torch.tensor([[-3.0, 0.25, 2.0, 3.5, 9.0]])
    assert read_at(x, at)[0, :, 0].tolist() == [0, 0.25, 2, 3.5, 4]
    assert read_at(x[:, :1], at)[0, :, 0].tolist() == [0] * 5


def test_gradients_reach_the_offsets():
    layer = DeformableAttention1d(8, 2)
    layer(torch.randn(2, 12, 8)).square().sum().backward()
    assert layer.offset[2].weight.grad.abs().sum() > 0


def test_kernels_smaller_than_a_cell_and_odd_heads_are_refused():
    for options in ({"kernel": 3}, {"heads": 3}, {"downsample": 0}):
        with pytest.raises(UsageError):
            DeformableAttention1d(**{"dim": 8, "heads": 2, **options})
