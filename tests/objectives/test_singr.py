"""SiNGR: the paper's invariants of the geodesic map, against a map by brute force."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr

from tests.ops.test_geodesic import dijkstra
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.plan import Plan
from vesalius.objectives.singr import SiNGR, certainty, standardised


def blob(shape, radius: float, seed: int = 0) -> np.ndarray:
    centre = np.array(shape) / 2 + np.random.default_rng(seed).uniform(-2, 2, len(shape))
    at = np.stack(np.indices(shape), -1)
    return np.linalg.norm(at - centre, axis=-1) < radius


def noise(shape, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((channels, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape, radius", [((24, 26), 6.3), ((12, 13, 14), 3.6)])
def test_the_map_is_the_specification(shape, radius):
    """Step by step, with distances by Dijkstra over the whole image."""
    mask, x, spacing = blob(shape, radius), noise(shape)[0], (1.0,) * len(shape)
    wide = np.pad(mask, 1, mode="edge")
    beside = [np.roll(wide, s, a)[(slice(1, -1),) * mask.ndim] for a in range(mask.ndim) for s in (1, -1)]
    border = mask & ~np.all(beside, 0)
    e, g = dijkstra(border, x, spacing, 0.0), dijkstra(border, x, spacing, 0.5)
    near = e <= e[mask].max()
    g = np.where(near, g, g[near & ~mask].max())
    share = np.minimum(g / g[mask].max(), 1)
    assert np.allclose(certainty(mask, x[None], spacing), np.where(mask, 0.5 + 0.5 * share, -0.5 - 0.5 * share), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_signs_are_the_mask_and_a_margin_lies_between(channels):
    mask = blob((16, 18, 17), 5.0) | blob((16, 18, 17), 2.0, 5)
    y = certainty(mask, noise(mask.shape, channels), (1, 1, 2))
    assert ((y > 0) == mask).all() and np.abs(y).min() >= 0.5 and np.abs(y).max() <= 1 + 1e-6
    assert np.isclose(y[mask].min(), 0.5)
    if channels == 1:
        assert np.isclose(y.max(), 1)


def test_a_constant_image_leaves_distances():
    mask = blob((60, 60), 17.5)
    y = certainty(mask, np.full((1, 60, 60), 3.0), (1, 1))
    assert np.allclose(y, certainty(mask, noise(mask.shape), (1, 1), geodesic=0.0), atol=1e-5)
    inside = distance_transform_edt(mask)
    assert spearmanr(y[mask], inside[mask])[0] > 0.99
    outside = distance_transform_edt(~mask)
    belt = ~mask & (outside < 12)
    assert spearmanr(y[belt], outside[belt])[0] < -0.99


def test_certainty_grows_faster_across_a_sharp_border():
    """A disc whose left border is a step and whose right border a ramp: the left one's neighbours are surer."""
    mask = blob((64, 64), 20.0)
    away = distance_transform_edt(mask) - distance_transform_edt(~mask)
    left = np.indices(mask.shape)[1] < 32
    image = np.where(left, 8.0 * mask, np.clip(4 + 0.4 * away, 0, 8)).astype(np.float32)
    y = certainty(mask, image[None], (1, 1))
    ring = ~mask & (away < -1) & (away > -4)
    assert y[ring & left].mean() < y[ring & ~left].mean() - 0.1


def test_empty_full_and_thin_masks():
    shape = (9, 10)
    assert (certainty(np.zeros(shape, bool), noise(shape), (1, 1)) == -1).all()
    assert (certainty(np.ones(shape, bool), noise(shape), (1, 1)) == 1).all()
    thin = np.zeros(shape, bool)
    thin[4] = True  # all border: nothing says how deep it is
    assert (certainty(thin, noise(shape), (1, 1)) == np.where(thin, 1, -1)).all()


def test_a_mask_cut_by_the_image_has_no_border_there():
    mask = np.zeros((20, 20), bool)
    mask[:, :8] = True
    y = certainty(mask, np.zeros((1, 20, 20)), (1, 1))
    assert np.isclose(y[0, 0], 1) and np.isclose(y[10, 7], 0.5)


def scan(level: float) -> tuple[Case, np.ndarray]:
    """A case of values about ``level`` that are 0 along one side and in one voxel beside the mask (*s)."""
    grid, mask = Geometry.of((20, 22), 1.0), blob((20, 22), 4.0)
    image = level + 0.2 * noise(mask.shape)
    image[:, :3] = image[(0, *np.argwhere(beside(mask))[0])] = 0
    return Case("a", images={"FLAIR": Image(image, grid)}, labels={"reference": LabelMap(mask.astype(int), grid)}), mask


def beside(mask: np.ndarray) -> np.ndarray:
    return ~mask & (distance_transform_edt(~mask) == 1)


def test_outside_the_body_all_is_sure():
    case, mask = scan(5.0)
    image = case.images["FLAIR"].data.copy()
    x, body = standardised(case, zeros_outside=True)
    assert (body == (image != 0)).all() and abs(x[body].mean()) < 1e-5 and np.isclose(x[body].std(), 1, atol=1e-4)
    y = SiNGR().targets(case, mask[None], Plan(2, crop_to_body=True))["certainty"].data[0]
    assert np.allclose(y[:3], y[~mask].min()) and (case.images["FLAIR"].data == image).all()


def test_a_zero_is_a_value_like_others_unless_the_plan_says_that_it_lies_outside():
    """As in CT, where water is 0: a voxel beside the structure is as little sure as its neighbours, and counts in the mean."""
    case, mask = scan(0.0)
    x, body = standardised(case, zeros_outside=False)
    assert body.all() and abs(x.mean()) < 1e-5 and np.isclose(x.std(), 1, atol=1e-4)
    speck = tuple(np.argwhere(beside(mask))[0])
    y, spoiled = (SiNGR().targets(case, mask[None], Plan(2, crop_to_body=c))["certainty"].data[0] for c in (False, True))
    assert y[speck] > -0.8 and spoiled[speck] == spoiled[~mask].min() == -1


def test_the_body_is_read_from_the_raw_image():
    """Prepared intensities have no zeros left; the native case has, on its own grid."""
    native, grid = Geometry.of((10, 10), 2.0), Geometry.of((20, 20), 1.0, origin=(-0.5, -0.5))
    raw = np.ones((1, 10, 10), np.float32)
    raw[:, 5:] = 0
    before = Case("a", images={"T1": Image(raw, native)})
    case = Case("a", images={"T1": Image(noise((20, 20)), grid)}, original=lambda: before)
    assert (standardised(case, zeros_outside=True)[1] == np.repeat(np.repeat(raw, 2, 1), 2, 2).astype(bool)).all()


def test_the_objective_is_least_at_the_target():
    mask = blob((20, 22), 5.0)
    target = {"certainty": torch.from_numpy(certainty(mask, noise(mask.shape), (1, 1)))[None, None]}
    best = torch.atanh(target["certainty"].clamp(-0.9999, 0.9999))
    for objective in (SiNGR(), SiNGR(plain=True)):
        assert objective(best, target) < 1e-3 < objective(0.5 * best, target) < objective(-best, target)
    assert torch.isclose(SiNGR(plain=True)(0 * best, target), target["certainty"].abs().mean())


def test_bad_options():
    with pytest.raises(UsageError, match="between 0 and 1"):
        SiNGR(margin=1.0)
