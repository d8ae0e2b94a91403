"""Extreme points and the mask made of them: boxes are kept, nothing outside is claimed, and bright blobs are found."""

import numpy as np
import pytest

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, GeometryError
from vesalius.ops.extreme import extreme_points, inner_paths, mask_from_extremes, random_walk, tight_box


def blob(shape=(20, 26, 22), noise: float = 0.4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask) of a bright ellipsoid."""
    index = np.indices(shape).astype(float)
    centre, radii = np.array(shape) / 2, np.array(shape) / np.linspace(5, 3.5, len(shape))
    mask = sum(((x - c) / r) ** 2 for x, c, r in zip(index, centre, radii)) < 1
    return mask + noise * np.random.default_rng(seed).standard_normal(shape), mask


@pytest.mark.parametrize("shape", [(20, 26, 22), (40, 30)])
def test_points_lie_in_the_mask_on_its_outermost_planes(shape):
    _, mask = blob(shape)
    points, voxels = extreme_points(mask), np.argwhere(mask)
    assert points.shape == (2 * len(shape), len(shape)) and all(mask[tuple(p)] for p in points)
    for axis in range(len(shape)):
        assert points[2 * axis, axis] == voxels[:, axis].min() and points[2 * axis + 1, axis] == voxels[:, axis].max()
    one = np.zeros((5, 5), bool)
    one[2, 3] = True
    assert extreme_points(one).tolist() == [[2, 3]] * 4
    with pytest.raises(DataError, match="empty"):
        extreme_points(~one & one)


def test_the_cheapest_way_goes_round_a_wall():
    image = np.zeros((9, 9))
    image[4, :7] = 5.0
    way = inner_paths(image, np.array([[0, 0], [8, 0], [4, 8], [4, 8]]))
    assert way[0, 0] and way[8, 0] and not way[4, :5].any() and way[4, 6:].any()


def test_a_walker_in_an_even_image_is_a_straight_line():
    seeds = np.full((3, 11), IGNORE)
    seeds[:, 0], seeds[:, 10] = 1, 0
    p = random_walk(np.zeros((3, 11)), seeds, (1.0, 1.0), walks=1)
    assert np.allclose(p, np.linspace(1, 0, 11)[None], atol=0.01)
    with pytest.raises(DataError, match="seeds"):
        random_walk(np.zeros((3, 11)), np.ones((3, 11), int), (1.0, 1.0))


def test_further_walks_leave_seeds_as_they_are():
    image, mask = blob()
    seeds = np.full(mask.shape, IGNORE)
    seeds[:2], seeds[10, 13, 11] = 0, 1
    p = random_walk(image, seeds, (1.0, 1.0, 1.0), walks=3)
    assert (p[seeds == 0] == 0).all() and p[10, 13, 11] == 1 and 0 <= p.min() and p.max() <= 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
def test_mask_from_six_points(spacing):
    image, mask = blob()
    points = extreme_points(mask)
    found, box = mask_from_extremes(image, points, spacing), tight_box(points)
    assert set(np.unique(found)) <= {0, 1, IGNORE} and found.shape == mask.shape
    assert tight_box(np.argwhere(found == 1)) == box  # the points are in it, and nothing is outside their box
    inside = np.zeros(mask.shape, bool)
    inside[box] = True
    assert (found[~inside] == 0).all() and (found[inside] != 0).all()
    both = ((found == 1) & mask).sum()
    assert 2 * both / ((found == 1).sum() + mask.sum()) > 0.85


def test_an_object_that_fills_the_image_keeps_its_paths():
    image = np.zeros((6, 6))
    points = np.array([[0, 3], [5, 3], [3, 0], [3, 5]])
    found = mask_from_extremes(image, points, (1.0, 1.0))
    assert all(found[tuple(p)] == 1 for p in points) and (found != 0).all() and (found == IGNORE).any()


@pytest.mark.parametrize("points", [[[0, 0], [7, 2]], [[-1, 0], [3, 2]], [[1, 2, 3]], np.zeros((0, 2))])
def test_points_that_are_not_in_the_image_are_refused(points):
    with pytest.raises(GeometryError, match="point"):
        mask_from_extremes(np.zeros((6, 6)), np.asarray(points), (1.0, 1.0))
