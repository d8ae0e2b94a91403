"""The query-distribution loss: zero where groups take their own voxels, blind to what happens inside a group."""

import math

import pytest
import torch

from vesalius.core.case import IGNORE
from vesalius.core.errors import UsageError
from vesalius.objectives.maxquery import QueryDistribution

TARGET = torch.tensor([[[0, 0, 1], [1, 2, 3]]])


def loss() -> QueryDistribution:
    return QueryDistribution((2, 1, 2), (0, 1, 2, 2))


def ideal(share: float = 0.5) -> torch.Tensor:
    """Each voxel wholly its group's, ``share`` of it the group's first query's where it has two."""
    own = torch.tensor([[share, 1 - share, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, share, 1 - share], [0, 0, 0, share, 1 - share]])
    return own[TARGET].movedim(-1, 1)


def test_zero_where_the_mass_is_the_groups():
    assert loss()(ideal(), TARGET).item() == pytest.approx(0, abs=1e-4)
    assert loss()(ideal(0.9), TARGET).item() == pytest.approx(0, abs=1e-4)
    for voxel in ((0, 0), (1, 1), (1, 2)):
        other = ideal()
        other[0, :, voxel[0], voxel[1]] = 0.2
        assert loss()(other, TARGET) > 0.02


def test_cross_entropy_and_dice_of_masses():
    torch.manual_seed(0)
    assignment = torch.randn(1, 5, 2, 3).softmax(1)
    mass = loss().mass(assignment)
    torch.testing.assert_close(mass[:, 2], assignment[:, 3] + assignment[:, 4])
    group = torch.tensor([0, 1, 2, 2])[TARGET]
    ce = -mass.gather(1, group[:, None]).log().mean().item()
    dice = [2 * mass[:, g][group == g].sum() / (mass[:, g].sum() + (group == g).sum()) for g in (1, 2)]
    assert loss()(assignment, TARGET).item() == pytest.approx(ce + 1 - float(sum(dice)) / 2, abs=1e-4)


def test_within_a_group_nothing_matters():
    torch.manual_seed(0)
    assignment = torch.randn(1, 5, 2, 3).softmax(1)
    assert torch.equal(loss()(assignment[:, [1, 0, 2, 4, 3]], TARGET), loss()(assignment, TARGET))
    assert not torch.allclose(loss()(assignment[:, [2, 1, 0, 3, 4]], TARGET), loss()(assignment, TARGET))


def test_gradients_are_finite_even_where_nothing_is_left():
    assignment = ideal().roll(1, 1).requires_grad_()
    value = loss()(assignment, TARGET)
    value.backward()
    assert math.isfinite(value.item()) and torch.isfinite(assignment.grad).all()


def test_ignored_voxels_count_nowhere():
    torch.manual_seed(0)
    assignment, other = (torch.randn(1, 5, 2, 3).softmax(1) for _ in range(2))
    silent = TARGET.clone()
    silent[0, 0] = IGNORE
    other[:, :, 1] = assignment[:, :, 1]
    assert torch.allclose(loss()(assignment, silent, ignore_index=IGNORE), loss()(other, silent, ignore_index=IGNORE))


def test_groups_and_queries_fit():
    with pytest.raises(UsageError, match="queries"):
        loss()(torch.ones(1, 4, 2, 3) / 4, TARGET)
    for sizes, groups in (((), ()), ((2, 0), (0, 1)), ((2, 1), (0, 1, 2))):
        with pytest.raises(UsageError, match="group"):
            QueryDistribution(sizes, groups)
