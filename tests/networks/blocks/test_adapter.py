"""Adapters: nothing at the start, the sum of two paths afterwards, on maps of any side."""

import torch
from torch import nn

from vesalius.networks.blocks.adapter import Adapted, SideAdapter
from vesalius.networks.tiny_vit import Perceptron


def test_a_still_adapter_adds_nothing_and_yet_learns():
    torch.manual_seed(0)
    adapter, x = SideAdapter(8, narrow=2), torch.randn(2, 8, 6, 6)
    assert torch.equal(adapter(x), torch.zeros_like(x))
    adapter(x).square().sum().backward()
    assert adapter.norm.weight.grad is not None
    (adapter(x) * torch.randn_like(x)).sum().backward()
    assert adapter.norm.weight.grad.abs().sum() > 0
    nn.init.ones_(adapter.norm.weight)
    (adapter(x) * torch.randn_like(x)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_the_published_start_is_a_normalised_sum_with_the_input():
    torch.manual_seed(0)
    adapter, x = SideAdapter(8, still=False), torch.randn(2, 8, 5, 7)  # odd sides: what the way up adds is cut off
    out = adapter(x)
    assert out.shape == x.shape and adapter.down.weight.shape == (8, 8, 3, 3)
    assert torch.allclose(out.mean(1), torch.zeros(2, 5, 7), atol=1e-5) and torch.allclose(
        out.var(1, correction=0), torch.ones(()), atol=1e-2
    )
    with torch.no_grad():
        adapter.up.weight.zero_()
    assert torch.allclose(adapter(x), adapter.norm(x))


def test_the_adapter_sees_the_perceptrons_own_normalised_input_as_a_map():
    torch.manual_seed(0)
    perceptron = Perceptron(8)
    both = Adapted(perceptron, SideAdapter(8, still=False))
    tokens = torch.randn(2, 16, 8)
    grid = perceptron.norm(tokens).view(2, 4, 4, 8).permute(0, 3, 1, 2)
    expected = perceptron(tokens) + both.adapter(grid).permute(0, 2, 3, 1).reshape(2, 16, 8)
    assert torch.allclose(both(tokens), expected, atol=1e-6)
