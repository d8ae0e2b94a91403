"""Structure loss: its weights by brute force, its ends, and voxels that nobody spoke for."""

import itertools

import pytest
import torch

from vesalius.core.case import IGNORE
from vesalius.objectives.structure_loss import StructureLoss


def disc(side: int = 64, radius: float = 9.0) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((y - side / 2) ** 2 + (x - side / 2) ** 2 < radius**2).long()[None]


def test_weights_by_brute_force():
    torch.manual_seed(0)
    for shape in ((7, 9), (4, 5, 6)):
        g = (torch.rand(2, 1, *shape) > 0.5).float()
        w = StructureLoss(border=3.0, reach=1).weights(g)
        for at in itertools.product(*map(range, shape)):
            box = [g[1, 0][tuple(slice(max(0, i - 1), i + 2) for i in at)].sum()][0] / 3 ** len(shape)
            assert w[1, 0][at] == pytest.approx(1 + 3 * abs(float(box) - float(g[1, 0][at])), abs=1e-5)


def test_weights_are_one_in_flat_regions_and_more_at_borders():
    g = torch.zeros(1, 1, 120, 120)
    g[..., 40:, :] = 1
    w = StructureLoss().weights(g)[0, 0]
    assert torch.allclose(w[:24], torch.ones(24, 120)) and torch.allclose(w[56:104, 16:104], torch.ones(48, 88))
    assert (w[26:55] > 1).all() and w[39, 60] == pytest.approx(1 + 5 * 15 / 31, abs=1e-4)


def test_saturated_right_logits_cost_nothing_and_wrong_ones_much():
    y = disc()
    z = (y[:, None].float() * 2 - 1) * 40
    assert StructureLoss()(z, y) < 1e-5 and StructureLoss()(-z, y) > 30
    assert StructureLoss()(torch.full_like(z, -40.0), torch.zeros_like(y)) < 1e-5  # an empty mask, rightly empty


def test_a_border_pixel_costs_more_than_one_inside_a_flat_region():
    y, z = disc(), (disc()[:, None].float() * 2 - 1) * 8
    far, near = z.clone(), z.clone()
    far[0, 0, 2, 20] *= -1
    near[0, 0, 32, 42] *= -1
    assert StructureLoss()(near, y) > StructureLoss()(far, y)
    flat = StructureLoss(border=0.0)
    assert (flat.weights(y[:, None].float()) == 1).all()


def test_each_structure_is_one_against_the_rest():
    torch.manual_seed(1)
    y, z = torch.randint(0, 3, (2, 20, 20)), torch.randn(2, 2, 20, 20)
    apart = [StructureLoss()(z[:, k : k + 1], (y == k + 1).long()) for k in range(2)]
    assert StructureLoss()(z, y) == pytest.approx(float(sum(apart)) / 2, rel=1e-5)
    soft = torch.stack([(y == 1).float(), (y == 2).float()], 1)
    assert StructureLoss()(z, soft) == pytest.approx(float(StructureLoss()(z, y)), rel=1e-6)


def test_ignored_voxels_change_nothing():
    torch.manual_seed(2)
    y, z = disc(), torch.randn(1, 1, 64, 64, requires_grad=True)
    hidden = torch.zeros_like(y, dtype=torch.bool)
    hidden[:, :, 30:40] = True
    values = []
    for fill in (0, 1):  # what stands under the ignored voxels cannot matter
        logits = torch.where(hidden[:, None], 100.0 * (2 * fill - 1), z)
        values.append(StructureLoss()(logits, y.masked_fill(hidden, IGNORE), ignore_index=IGNORE))
    assert values[0] == values[1] > 0
    StructureLoss()(z, y.masked_fill(hidden, IGNORE), ignore_index=IGNORE).backward()
    assert (z.grad[hidden[:, None]] == 0).all() and (z.grad[~hidden[:, None]] != 0).all()
    w = StructureLoss().weights(torch.ones(1, 1, 64, 64), (~hidden)[:, None].float())
    assert torch.allclose(w[0, 0, 16:48, 16:30], torch.ones(32, 14))  # ignored neighbours are no border
    assert StructureLoss()(z, torch.full_like(y, IGNORE), ignore_index=IGNORE) == 0


def test_weight_multiplies_voxels():
    y, z = disc(), torch.zeros(1, 1, 64, 64)
    half = torch.ones(1, 64, 64)
    half[:, :, 32:] = 0
    kept = StructureLoss()(z, y.masked_fill(half == 0, IGNORE), weight=None, ignore_index=IGNORE)
    z[..., 32:] = 50
    assert StructureLoss(border=0)(z, y, weight=half) == pytest.approx(float(kept), rel=0.2)
    with pytest.raises(ValueError):
        StructureLoss(border=-1)
