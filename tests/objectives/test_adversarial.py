"""What generator and discriminator want: known answers; and the pool, whose memory is part of the state."""

import math

import pytest
import torch

from vesalius.objectives.adversarial import Adversarial, ImagePool


def test_least_squares_by_hand():
    loss, made, real = Adversarial("least-squares"), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0])
    assert float(loss.fool(made)) == pytest.approx((1 + 0.25) / 2)
    assert float(loss.judge(real, made)) == pytest.approx(((0 + 1) / 2 + (0 + 0.25) / 2) / 2)
    assert float(loss.judge(torch.ones(3), torch.zeros(3))) == 0 == float(loss.fool(torch.ones(3)))


def test_cross_entropy_by_hand():
    loss, zero = Adversarial("cross-entropy"), torch.zeros(2, 1, 3, 3)
    assert float(loss.fool(zero)) == pytest.approx(math.log(2)) and float(loss.judge(zero, zero)) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="hinges"):
        Adversarial("hinges")


@pytest.mark.parametrize("kind", ["least-squares", "cross-entropy"])
def test_they_pull_against_each_other(kind):
    made = torch.full((4,), 0.5, requires_grad=True)
    (up,) = torch.autograd.grad(Adversarial(kind).fool(made), made)
    (down,) = torch.autograd.grad(Adversarial(kind).judge(torch.ones(4), made), made)
    assert (up < 0).all() and (down > 0).all()


def numbered(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def test_a_pool_fills_first_and_then_shows_old_images_half_of_the_time():
    torch.manual_seed(0)
    pool = ImagePool(8, (1, 2, 2))
    assert torch.equal(pool(numbered(*range(8))), numbered(*range(8)))
    shown = [float(pool(numbered(100.0 + i))[0, 0, 0, 0]) for i in range(400)]
    old = [s != 100.0 + i for i, s in enumerate(shown)]
    assert 0.4 < sum(old) / len(old) < 0.6
    assert all(s < 100 + i for i, s in enumerate(shown) if old[i]) and len(set(shown)) == 400  # each is shown once, later or at once


def test_a_pool_keeps_no_graph_and_its_state_goes_on_as_it_would_have():
    torch.manual_seed(1)
    pool, grown = ImagePool(3, (1, 2, 2)), numbered(1, 2, 3, 4).requires_grad_()
    assert not pool(grown).requires_grad and not pool.images.requires_grad
    again = ImagePool(3, (1, 2, 2))
    again.load_state_dict(pool.state_dict())
    answers = []
    for p in (pool, again):
        torch.manual_seed(5)
        answers.append(torch.cat([p(numbered(10.0 + i, 20.0 + i)) for i in range(6)]))
    assert torch.equal(*answers)


def test_no_pool_shows_what_it_is_given():
    x = numbered(1, 2).requires_grad_()
    shown = ImagePool(0, (1, 2, 2))(x)
    assert torch.equal(shown, x) and not shown.requires_grad and not ImagePool(0, (1, 2, 2)).state_dict()
