"""Distances to masks and points in mm, and the channels made from them."""

import numpy as np
import pytest

from vesalius.core.errors import GeometryError, UsageError
from vesalius.ops.guidance import distance_to_mask, distance_to_points, guidance


def brute(points, shape, spacing):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)[..., None, :]
    return np.sqrt((((voxels - points) * spacing) ** 2).sum(-1)).min(-1)


@pytest.mark.parametrize(("shape", "spacing"), [((9, 7, 11), (0.7, 1.3, 3.0)), ((13, 8), (0.5, 2.0))])
def test_points_against_brute_force(shape, spacing):
    rng = np.random.default_rng(0)
    points = rng.uniform(-10, 20, (15, len(shape)))  # fractional, some outside
    assert np.allclose(distance_to_points(points, shape, spacing), brute(points, shape, spacing), atol=1e-4)


def test_a_mask_is_the_set_of_its_voxels():
    mask = np.random.default_rng(1).random((8, 9, 10)) > 0.97
    spacing = (1.0, 0.8, 2.5)
    assert np.allclose(distance_to_mask(mask, spacing), distance_to_points(np.argwhere(mask), mask.shape, spacing), atol=1e-4)


def test_thick_slices_are_farther():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    thin, thick = distance_to_mask(mask, (1, 1, 1)), distance_to_mask(mask, (1, 1, 2))
    assert thin[2, 2, 4] == 2 and thick[2, 2, 4] == 4 and thin[0, 2, 2] == thick[0, 2, 2] == 2


@pytest.mark.parametrize("mode", ["kernel", "filter"])
def test_nothing_to_be_near_to_is_exactly_zero(mode):
    for distance in (distance_to_mask(np.zeros((4, 5, 6), bool), (1, 1, 1)), distance_to_points(np.zeros((0, 3)), (4, 5, 6), (1, 1, 1))):
        assert np.isinf(distance).all()
        channel = guidance(distance, (1, 1, 1), sigma_mm=5.0, mode=mode)
        assert channel.dtype == np.float32 and (channel == 0).all()


def test_the_kernel_is_one_on_the_mask_and_falls_with_distance():
    mask = np.random.default_rng(2).random((12, 12, 12)) > 0.99
    distance = distance_to_mask(mask, (1, 2, 3))
    channel = guidance(distance, (1, 2, 3), sigma_mm=6.0)
    assert (channel[mask] == 1).all()
    order = np.argsort(distance.ravel(), kind="stable")
    assert (np.diff(channel.ravel()[order]) <= 0).all()
    far, near = distance.ravel()[order[1:]] > distance.ravel()[order[:-1]] + 1e-3, np.diff(channel.ravel()[order])
    assert (near[far] < 0).all()
    assert np.isclose(guidance(np.array([6.0], np.float32), (1,), sigma_mm=6.0)[0], np.exp(-0.5))


def test_the_filter_peaks_at_the_mark_and_knows_the_spacing():
    mask = np.zeros((21, 21, 21), bool)
    mask[10, 10, 10] = True
    channel = guidance(distance_to_mask(mask, (1, 1, 2)), (1, 1, 2), sigma_mm=3.0, mode="filter")
    assert np.unravel_index(channel.argmax(), channel.shape) == (10, 10, 10) and 0 < channel.min() and channel.max() < 1
    assert np.isclose(channel[14, 10, 10], channel[10, 14, 10]) and channel[10, 10, 12] == pytest.approx(channel[14, 10, 10], rel=0.02)


def test_refusals():
    with pytest.raises(UsageError, match="width"):
        guidance(np.zeros((2, 2)), (1, 1), sigma_mm=0.0)
    with pytest.raises(UsageError, match="kernel, filter"):
        guidance(np.zeros((2, 2)), (1, 1), sigma_mm=1.0, mode="box")
    with pytest.raises(GeometryError):
        distance_to_mask(np.zeros((2, 2, 2), bool), (1, 1))
    with pytest.raises(GeometryError):
        distance_to_points(np.zeros((1, 3)), (2, 2, 2), (1, 1))
