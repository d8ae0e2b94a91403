"""Distances between sets of masks: zero for equal sets in any order, positive else, and known answers."""

from itertools import permutations

import numpy as np
import pytest
import torch

from vesalius.objectives.set_distance import energy_distance, sinkhorn_divergence

BOTH = pytest.mark.parametrize("distance", [energy_distance, sinkhorn_divergence])


def sets(members: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(3, members, 60, generator=g), (torch.rand(3, members, 60, generator=g) > 0.5).float()


@BOTH
def test_a_set_is_zero_away_from_itself_in_any_order(distance):
    x, _ = sets()
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        assert distance(x, x[:, order]).abs().max() < 1e-9


@BOTH
def test_order_of_either_set_changes_nothing(distance):
    x, y = sets()
    assert torch.allclose(distance(x[:, [1, 0, 3, 2]], y[:, [3, 0, 2, 1]]), distance(x, y), atol=1e-9)


@BOTH
def test_identical_samples_of_diverse_raters_are_far_and_so_is_their_mean(distance):
    _, y = sets()
    same = y.mean(1, keepdim=True).expand_as(y)
    assert (distance(same, y) > 0.1).all() and (distance(y[:, :1].expand_as(y), y) > 0.1).all()


@BOTH
def test_sets_of_different_sizes(distance):
    x, _ = sets()
    assert distance(x, x.repeat(1, 2, 1)).abs().max() < 1e-6  # every member twice is the same distribution
    assert distance(x[:, :1], x[:, :1].repeat(1, 3, 1)).abs().max() < 1e-9


@BOTH
def test_gradient_is_that_of_the_value(distance):
    x, y = (t[:1] for t in sets(3))
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), x)
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        change = float((distance(x + step, y) - distance(x - step, y)).sum()) / 2
    assert change == pytest.approx(float((gradient * step).sum()), rel=0.02)


@BOTH
def test_descent_moves_samples_onto_the_raters(distance):
    y = sets(3)[1][:1]
    logits = torch.zeros_like(y).normal_(0, 0.1, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        distance(logits.sigmoid(), y).sum().backward()
        optimizer.step()
    masks = (logits > 0).float()
    assert min(float((masks[0, list(p)] - y[0]).abs().sum()) for p in permutations(range(3))) == 0


def test_energy_distance_by_hand():
    """{0} and {1} on a line: 1 - 0 - 0; {0, 2} and {1}: 1 - (0 + 2 + 2 + 0) / 4 / 2."""
    at = lambda *v: torch.tensor(v).float().view(1, -1, 1)
    assert float(energy_distance(at(0), at(1))) == 1.0
    assert float(energy_distance(at(0, 2), at(1))) == pytest.approx(0.5)


def test_sinkhorn_is_optimal_transport_where_the_blur_is_small():
    """Half the mean squared distance of the best assignment."""
    x, y = sets(4)
    found = sinkhorn_divergence(x, y)
    for b in range(len(x)):
        cost = torch.cdist(x[b].double(), y[b].double()).square() / 2
        best = min(float(sum(cost[i, p[i]] for i in range(4))) / 4 for p in permutations(range(4)))
        assert float(found[b]) == pytest.approx(best, abs=0.02)
    with pytest.raises(ValueError, match="blur"):
        sinkhorn_divergence(x, y, blur=0.0)


def test_large_masks_stay_finite():
    x = torch.zeros(1, 3, 4096)
    x[0, 1] = 1
    y = torch.ones(1, 3, 4096, requires_grad=True)
    for distance in (energy_distance, sinkhorn_divergence):
        value = distance(y, x)
        value.sum().backward()
        assert np.isfinite(value.item()) and torch.isfinite(y.grad).all()
