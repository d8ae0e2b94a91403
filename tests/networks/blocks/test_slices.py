"""Slices of a volume as a batch of images: there and back, and a network that sees one slice at a time."""

import torch
from torch import nn

from vesalius.networks.blocks.slices import SliceWise, from_slices, to_slices


def test_slices_of_a_volume_follow_each_other_and_come_back():
    x = torch.randn(2, 3, 4, 5, 6)
    flat = to_slices(x)
    assert flat.shape == (12, 3, 4, 5) and torch.equal(flat[7], x[1, ..., 1])
    assert torch.equal(from_slices(flat, 6), x)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    assert torch.equal(to_slices(labels)[11], labels[1, ..., 5]) and torch.equal(from_slices(to_slices(labels), 6), labels)


def test_a_slice_does_not_know_its_neighbours():
    net = nn.Conv2d(1, 2, 3, padding=1)
    net.multiple = (4, 4)
    wrapped, x = SliceWise(net), torch.randn(2, 1, 8, 8, 3)
    assert wrapped.multiple == (4, 4, 1)
    expected = torch.stack([net(x[..., k]) for k in range(3)], -1)
    torch.testing.assert_close(wrapped(x), expected)
