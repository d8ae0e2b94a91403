"""Focal L1 and focal Tversky by hand."""

import pytest
import torch

from vesalius.objectives.focal_l1 import focal_l1
from vesalius.objectives.focal_tversky import focal_tversky

P = torch.tensor([0.9, 0.2, -0.1, -0.7, 0.1, -0.9]).view(1, 1, 6)
Y = torch.tensor([0.5, 0.9, 0.5, -0.9, -0.1, 0.9]).view(1, 1, 6)
ERROR = torch.tensor([0.4, 0.7, 0.6, 0.2, 0.2, 1.8])


def test_both_published_weights_by_hand():
    one = torch.tensor([0.8, 1.4, 1.0, 0.4, 1.0, 1.0])
    at_least = torch.tensor([0.8, 1.4, 1.2, 0.4, 1.0, 3.6])
    assert torch.isclose(focal_l1(P, Y), (one * ERROR).mean())
    assert torch.isclose(focal_l1(P, Y, wrong="at least one"), (at_least * ERROR).mean())


def test_it_is_zero_only_where_both_are_equal():
    assert focal_l1(Y, Y) == 0
    for i in range(6):
        p = Y.clone()
        p[0, 0, i] += 1e-3
        assert focal_l1(p, Y) > 0


@pytest.mark.parametrize("value", [-0.9, -0.3, -0.01, 0.01, 0.3, 0.8])
def test_a_wrong_sign_pulls_at_least_as_hard_as_plain_l1(value):
    y = torch.full((1, 1, 1), 0.6 if value < 0 else -0.6)
    p = torch.full((1, 1, 1), value, requires_grad=True)
    focal_l1(p, y, wrong="at least one", detach=True).backward()
    assert p.grad.abs() >= 1 - 1e-6 and p.grad.sign() == (p - y).sign()


def test_a_detached_weight_carries_no_gradient():
    """d(w e) with w = 2 e: 2 e of a constant weight, 4 e of one that is differentiated through."""
    y = torch.full((1, 1, 1), 0.8)
    for detach, slope in ((True, 2), (False, 4)):
        p = torch.full((1, 1, 1), 0.5, requires_grad=True)
        focal_l1(p, y, detach=detach).backward()
        assert torch.isclose(p.grad, torch.tensor(-slope * 0.3)).all()


def test_weights_choose_voxels():
    weight = torch.tensor([1.0, 0, 0, 1, 0, 0]).view(1, 1, 6)
    assert torch.isclose(focal_l1(P, Y, weight=weight), torch.tensor((0.8 * 0.4 + 0.4 * 0.2) / 2))
    assert focal_l1(P, Y, weight=torch.zeros(1, 1, 6)) == 0


def test_focal_tversky_by_hand():
    p = torch.tensor([1.0, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)
    y = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
    index = (1.5 + 1) / (1.5 + 0.7 * 0.5 + 0.3 * 0.5 + 1)
    assert torch.isclose(focal_tversky(p, y), torch.tensor((1 - index) ** 0.75))
    assert torch.isclose(focal_tversky(p, y, weight=(p != 0.5).float()), torch.tensor(1e-6**0.75))


def test_focal_tversky_with_equal_weights_is_soft_dice():
    p, y = torch.rand(2, 3, 5, 6), (torch.rand(2, 3, 5, 6) > 0.6).float()
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) + 2) / ((p + y).sum((0, 2, 3)) + 2)
    assert torch.isclose(focal_tversky(p, y, alpha=0.5, gamma=1.0), dice.mean())


def test_a_perfect_answer_has_a_finite_gradient():
    y = (torch.rand(1, 1, 4, 4) > 0.5).float()
    p = y.clone().requires_grad_()
    focal_tversky(p, y).backward()
    assert torch.isfinite(p.grad).all()
