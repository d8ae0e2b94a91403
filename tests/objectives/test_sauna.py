"""SAUNA: the paper's invariants of the transform and of the Jaccard loss."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.geometry import Geometry
from vesalius.core.plan import Plan
from vesalius.objectives.sauna import SAUNA, certainty, jaccard


def vessels(seed: int, shape=(40, 50)) -> np.ndarray:
    """Random lines of random widths."""
    rng, mask = np.random.default_rng(seed), np.zeros(shape, bool)
    rows, columns = np.indices(shape)
    for _ in range(4):
        angle, width = rng.uniform(0, np.pi), rng.uniform(0.5, 5)
        away = (rows - rng.uniform(0, shape[0])) * np.cos(angle) + (columns - rng.uniform(0, shape[1])) * np.sin(angle)
        mask |= np.abs(away) < width
    return mask


def brute(mask: np.ndarray) -> np.ndarray:
    """The four lines of the specification, pixel by pixel."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    t_max = inside.max()
    outside = np.minimum(outside, t_max)
    k = int(np.ceil(t_max))
    r = (k + (k % 2 == 0)) // 2
    y = np.zeros(mask.shape)
    for i, j in np.ndindex(mask.shape):
        window = np.s_[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1]
        b = (inside[i, j] - outside[i, j]) / (t_max + 1e-6)
        t = np.clip((inside if mask[i, j] else outside)[window].max() / t_max, 0, 1)
        y[i, j] = np.clip(b + (1 - t) if mask[i, j] else b - (1 - t), -1, 1)
    return y


@pytest.mark.parametrize("seed", range(4))
def test_the_transform_is_the_specification(seed):
    mask = vessels(seed)
    y = certainty(mask, (1.0, 1.0))
    assert y.dtype == np.float32 and np.allclose(y, brute(mask), atol=1e-5)
    assert ((y > 0) == mask).all() and (y != 0).all()  # invariant (a)


def test_the_ridge_of_a_thin_vessel_is_as_sure_as_that_of_a_thick_one():
    mask = np.zeros((60, 40), bool)
    mask[8:10], mask[30:42] = True, True
    y, b = certainty(mask, (1, 1)), certainty(mask, (1, 1), thickness=False)
    assert abs(y[8:10, 20].max() - y[30:42, 20].max()) < 0.1 and y[30, 20] < 0.6
    assert b[30:42, 20].max() > 5 * b[8:10, 20].max()


def test_without_thickness_it_is_the_signed_distance():
    mask = vessels(9)
    t_max = distance_transform_edt(mask).max()
    signed = distance_transform_edt(mask) - np.minimum(distance_transform_edt(~mask), t_max)
    assert np.allclose(certainty(mask, (1, 1), thickness=False), signed / t_max, atol=1e-5)


def test_empty_and_full_masks_and_pixels_that_are_not_square():
    assert (certainty(np.zeros((5, 6), bool), (1, 1)) == -1).all() and (certainty(np.ones((5, 6), bool), (1, 1)) == 1).all()
    mask = vessels(3, (30, 30))
    assert np.allclose(certainty(mask, (0.1, 0.1)), certainty(mask, (1, 1)), atol=1e-5)
    assert np.allclose(certainty(np.repeat(mask, 2, 0), (0.5, 1.0))[::2].mean(), certainty(mask, (1, 1)).mean(), atol=0.1)


def test_the_jaccard_loss_on_hard_maps_is_jaccards():
    generator = torch.Generator().manual_seed(0)
    p, y = (2 * (torch.rand(3, 2, 8, 9, generator=generator) > 0.6).float() - 1 for _ in range(2))
    both = [(((p == s) & (y == s)).sum((0, 2, 3)), ((p == s) | (y == s)).sum((0, 2, 3))) for s in (1, -1)]
    joint = 1 - sum(i for i, _ in both) / sum(u for _, u in both)
    split = sum(1 - i / u for i, u in both)
    assert torch.isclose(jaccard(p, y), joint.mean()) and torch.isclose(jaccard(p, y, form="split"), split.mean())


@pytest.mark.parametrize("form", ["joint", "split"])
def test_the_jaccard_loss_is_zero_for_equal_soft_maps_only(form):
    y = torch.rand(2, 1, 6, 6) * 2 - 1
    assert jaccard(y, y, form=form) == 0 and jaccard(0.9 * y, y, form=form) > 0
    assert jaccard(-torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4), form=form) == 0  # no vessel asked for, none given


def test_the_objective_is_least_at_the_target_and_ignores_what_nobody_drew():
    grid = Geometry.of((40, 50), 1.0)
    mask = vessels(1)
    case = Case("a", images={"RGB": Image(np.zeros((3, 40, 50), np.float32), grid)}, labels={"rater1": LabelMap(mask.astype(int), grid)})
    objective = SAUNA()
    derived = objective.targets(case, mask[None], Plan(2))["certainty"]
    stored = derived.data
    assert np.allclose(stored[0], certainty(mask, (1, 1))) and stored.min() >= derived.fill == -1  # the fill is sure background
    target = {"certainty": torch.from_numpy(stored)[None]}
    best = torch.atanh(target["certainty"].clamp(-0.9999, 0.9999))
    assert objective(best, target) < 0.01 < objective(0.5 * best, target) < objective(-best, target)
    weight = (torch.arange(50) < 25).float().expand(1, 40, 50)
    spoiled = torch.where(weight.unsqueeze(1) > 0, best, -best)
    assert torch.isclose(objective(spoiled, target, weight=weight), objective(best, target, weight=weight))
