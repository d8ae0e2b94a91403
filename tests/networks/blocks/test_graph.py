"""Graphs of closed contours: the published pooling, convolution by its spectrum, and that contours know nothing of each other."""

import pytest
import torch

from vesalius.core.errors import UsageError
from vesalius.networks.blocks.graph import ChebConv, contours, halved, normed, pooled, pooling, unpooling

SIZES = (44, 51, 3, 26)


def test_points_of_a_contour_have_two_neighbours_and_none_elsewhere():
    a = contours(SIZES)
    assert torch.equal(a, a.T) and (a.sum(1) == 2).all() and not a.diagonal().any()
    at = 0
    for n in SIZES:
        assert a[at, at + n - 1] == 1 and a[at, at + 1] == 1
        assert a[at : at + n].sum() == a[at : at + n, at : at + n].sum()
        at += n


def test_pooling_and_unpooling_are_averages():
    d, u = pooling(SIZES), unpooling(SIZES)
    assert d.shape == (sum(halved(SIZES)), sum(SIZES)) == (22 + 26 + 2 + 13, 124) and u.shape == d.T.shape
    for m in (d, u):
        torch.testing.assert_close(m.sum(1), torch.ones(len(m)))
    constant = torch.full((124, 2), 3.0)
    torch.testing.assert_close(u @ d @ constant, constant)


def test_pooling_and_unpooling_by_hand():
    x = torch.tensor([0.0, 2, 10, 20, 5])
    assert (pooling((5,)) @ x).tolist() == [1, 15, 5]
    assert (unpooling((5,)) @ torch.tensor([1.0, 15, 5])).tolist() == [1, 8, 15, 10, 5]
    assert (unpooling((6,)) @ torch.tensor([1.0, 15, 5])).tolist() == [1, 8, 15, 10, 5, 5]


def test_a_pooled_contour_is_a_contour():
    sizes = (44, 51, 26)
    assert torch.equal(pooled(contours(sizes), pooling(sizes)), contours(halved(sizes)))


def test_the_convolution_is_its_spectrum():
    """T_k of an eigenvalue is cos(k arccos of it)."""
    torch.manual_seed(0)
    graph = contours((7, 9)).double()
    conv = ChebConv(graph, 3, 4, 5).double()
    values, vectors = torch.linalg.eigh(conv.laplacian)
    assert values.min() >= -1 - 1e-12 and values.max() <= 1 + 1e-12
    terms = [vectors @ torch.diag(torch.cos(k * torch.arccos(values.clamp(-1, 1)))) @ vectors.T for k in range(5)]
    x = torch.randn(2, 16, 3, dtype=torch.float64)
    weights = conv.mix.weight.view(4, 5, 3)
    expected = sum(terms[k] @ x @ weights[:, k].T for k in range(5)) + conv.mix.bias
    torch.testing.assert_close(conv(x), expected)


def test_turning_a_contour_turns_the_answer():
    torch.manual_seed(0)
    conv, x = ChebConv(contours((12,)), 3, 4, 6), torch.randn(2, 12, 3)
    torch.testing.assert_close(conv(x.roll(5, 1)), conv(x).roll(5, 1), atol=1e-5, rtol=1e-5)


def test_how_far_a_point_sees():
    conv, x = ChebConv(contours((20, 10)), 1, 1, 4), torch.zeros(1, 30, 1)
    changed = x.clone()
    changed[0, 0] = 1
    felt = (conv(changed) - conv(x)).abs().flatten() > 1e-7
    assert felt.nonzero().flatten().tolist() == [0, 1, 2, 3, 17, 18, 19]
    alone = ChebConv(contours((20,)), 2, 2, 1, bias=False)
    torch.testing.assert_close(alone(torch.ones(1, 20, 2))[0, 3], alone.mix.weight.sum(1))


def test_features_are_normed_point_by_point():
    x = normed(torch.randn(2, 5, 16) * 7 + 3)
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(-1, unbiased=False), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="three points"):
        contours((5, 2))
    with pytest.raises(UsageError, match="three points"):
        pooling(())
    with pytest.raises(UsageError, match="one term"):
        ChebConv(contours((5,)), 1, 1, 0)
