"""Components and morphology against brute force and their laws."""

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import DataError, UsageError
from vesalius.ops.components import components, largest
from vesalius.ops.morphology import clean, closed, dilate, erode, opened


def noise(shape, seed=0, share=0.6):
    return np.random.default_rng(seed).uniform(size=shape) < share


def disc(radius, dims=2, spacing=None):
    spacing = spacing or (1.0,) * dims
    reach = [int(radius // s) for s in spacing]
    at = np.meshgrid(*[np.arange(-r, r + 1) * s for r, s in zip(reach, spacing)], indexing="ij")
    return sum(a * a for a in at) <= radius**2 * (1 + 1e-9)


@pytest.mark.parametrize("shape", [(31, 40), (11, 14, 13)])
@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.0])
def test_dilation_and_erosion_are_scipys(shape, radius):
    mask, element = noise(shape, share=0.9), disc(radius, len(shape))
    np.testing.assert_array_equal(dilate(~mask, radius), ndimage.binary_dilation(~mask, element))
    np.testing.assert_array_equal(erode(mask, radius), ndimage.binary_erosion(mask, element, border_value=1))


def test_radii_are_mm_with_spacing():
    mask, spacing = noise((20, 24), share=0.05), (2.0, 0.7)
    np.testing.assert_array_equal(dilate(mask, 3.0, spacing), ndimage.binary_dilation(mask, disc(3.0, 2, spacing)))


@pytest.mark.parametrize("shape", [(40, 33), (12, 15, 14)])
def test_opening_removes_closing_adds_and_both_are_idempotent(shape):
    mask = noise(shape, 1)
    small, big = opened(mask, 1.5), closed(mask, 1.5)
    assert not (small & ~mask).any() and not (mask & ~big).any()
    np.testing.assert_array_equal(opened(small, 1.5), small)
    np.testing.assert_array_equal(closed(big, 1.5), big)


@pytest.mark.parametrize("shape", [(30, 30), (12, 12, 12)])
def test_components_are_scipys(shape):
    mask = noise(shape, 2, 0.15)
    labels, sizes = components(mask)
    wanted, n = ndimage.label(mask, np.ones((3,) * len(shape)))
    assert len(sizes) == n and sizes.sum() == mask.sum()
    pairs = {(a, b) for a, b in zip(labels.ravel(), wanted.ravel())}
    assert len(pairs) == n + 1  # one to one, background included


def test_largest_keeps_n_and_breaks_ties_by_order():
    mask = np.zeros((9, 9), bool)
    mask[0, :3] = mask[4, :3] = mask[8, :5] = True
    assert largest(mask, 1).sum() == 5 and largest(mask, 1)[8].any()
    two = largest(mask, 2)
    assert two[0].any() and not two[4].any()
    np.testing.assert_array_equal(largest(mask, 7), mask)
    with pytest.raises(UsageError):
        largest(mask, 0)
    with pytest.raises(DataError):
        components(np.zeros((2, 2, 2, 2), bool))


@pytest.mark.parametrize("shape", [(48, 48), (16, 16, 16)])
def test_component_and_hole_steps_are_idempotent(shape):
    once = clean(noise(shape, 3, 0.5), fill_holes=True, keep=2)
    np.testing.assert_array_equal(clean(once, fill_holes=True, keep=2), once)


@pytest.mark.parametrize("shape", [(20, 20), (8, 8, 8)])
def test_empty_stays_empty_and_full_stays_full(shape):
    steps = dict(opening=2, closing=3, keep=2)
    assert not clean(np.zeros(shape, bool), **steps).any()
    assert clean(np.ones(shape, bool), **steps).all()


def test_a_negative_radius_is_refused():
    with pytest.raises(UsageError, match="opening"):
        clean(np.zeros((4, 4), bool), opening=-1)


def two_lungs(n=128):
    y, x = np.mgrid[:n, :n] / n
    return (((y - 0.5) / 0.32) ** 2 + ((x - 0.3) / 0.14) ** 2 < 1) | (((y - 0.5) / 0.32) ** 2 + ((x - 0.7) / 0.14) ** 2 < 1)


def test_two_clean_lungs_change_only_near_their_border():
    lungs = two_lungs()
    changed = clean(lungs, opening=2, closing=3, keep=2) != lungs
    assert not (changed & erode(lungs, 3)).any() and not (changed & ~dilate(lungs, 3)).any()


def test_specks_holes_and_bridges_are_mended():
    lungs, rng = two_lungs(), np.random.default_rng(5)
    broken = lungs.copy()
    for r, c in rng.integers(2, 125, (25, 2)):
        broken[r : r + 2, c : c + 2] = ~lungs[r, c]
    broken[60:63, 30:100] = True  # a bridge
    broken[50:58, 34:42] = False  # a hole
    mended = clean(broken, opening=2, closing=3, keep=2)
    dsc = 2 * (mended & lungs).sum() / (mended.sum() + lungs.sum())
    assert dsc > 0.99 and len(components(mended)[1]) == 2
    assert len(components(broken)[1]) > 2
