"""Contours: known shapes, a start and a sense of going round that do not depend on how the image is stored, parts that are missing."""

import numpy as np
import pytest

from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.ops.contour import landmarks, outline, resampled, side_by_side, signed_area
from vesalius.ops.raster import fill


def disc(shape, centre, radius) -> np.ndarray:
    return np.hypot(*(np.indices(shape) - np.reshape(centre, (2, 1, 1)))) <= radius


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_rectangle_s_outline_is_its_pixels_border():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:9] = True
    grid = Geometry((9, 12), np.array([[2.0, 0, 10], [0, 0.5, -1], [0, 0, 1]]))
    found = outline(mask, grid)
    assert found[:, 0].min() == 10 + 2 * 1.5 and found[:, 0].max() == 10 + 2 * 4.5
    assert found[:, 1].min() == -1 + 0.5 * 2.5 and found[:, 1].max() == -1 + 0.5 * 8.5
    assert found[0].tolist() in ([13.0, 1.5], [13.0, 2.0])  # the middle of the top: pixels 5 and 6 of 3 to 8
    assert signed_area(found) == pytest.approx(18 * 1.0 - 4 * 0.125)  # each corner is cut off: half a pixel by half a pixel, over two


def test_signed_area_of_a_square():
    clockwise = np.array([[0, 0], [0, 2], [3, 2], [3, 0]])
    assert signed_area(clockwise) == 6 and signed_area(clockwise[::-1]) == -6


def test_landmarks_of_a_disc_are_even_start_at_the_top_and_go_clockwise():
    grid = Geometry.of((101, 101))
    points = landmarks(disc((101, 101), (50, 50), 40), grid, 36)
    around = points - 50
    assert np.abs(np.hypot(*around.T) - 40.2).max() < 0.5
    angle = np.unwrap(np.arctan2(around[:, 1], -around[:, 0]))  # from the top, clockwise
    assert abs(angle[0]) < 0.1 and np.abs(np.diff(angle) - 2 * np.pi / 36).max() < 0.04


@pytest.mark.parametrize("n", [12, 40, 200])
def test_filling_the_landmarks_gives_the_mask_back(n):
    mask = disc((80, 90), (40, 40), 22) | disc((80, 90), (50, 52), 20)
    grid = Geometry((80, 90), np.array([[1.5, 0, 4], [0, 0.8, 9], [0, 0, 1]]))
    assert dice(fill(landmarks(mask, grid, n), grid), mask) > (0.96 if n == 12 else 0.985)


@pytest.mark.parametrize("flip", [(0,), (1,), (0, 1)])
def test_how_the_image_is_stored_changes_nothing(flip):
    mask, grid = disc((60, 70), (25, 30), 18) | disc((60, 70), (35, 40), 9), Geometry.of((60, 70))
    affine = np.eye(3)
    for a in flip:
        affine[a, a], affine[a, 2] = -1, grid.shape[a] - 1
    np.testing.assert_allclose(landmarks(np.flip(mask, flip), Geometry(grid.shape, affine), 30), landmarks(mask, grid, 30), atol=0.6)
    moved = Geometry(grid.shape, np.array([[1.0, 0, 7], [0, 1, -3], [0, 0, 1]]))
    np.testing.assert_allclose(landmarks(mask, moved, 30), landmarks(mask, grid, 30) + [7, -3])


def test_specks_and_holes_are_left_out_and_the_border_closes_the_contour():
    mask = np.zeros((30, 30), bool)
    mask[0:20, 5:25] = True
    clean = outline(mask, Geometry.of((30, 30)))
    assert clean[:, 0].min() == -0.5
    mask[8:12, 10:14] = False
    mask[27, 27] = True
    np.testing.assert_array_equal(outline(mask, Geometry.of((30, 30))), clean)


def test_nothing_and_nonsense():
    grid = Geometry.of((8, 8))
    assert landmarks(np.zeros((8, 8), bool), grid, 10).shape == (0, 2)
    with pytest.raises(GeometryError, match="2D mask"):
        outline(np.zeros((8, 8, 8), bool), Geometry.of((8, 8, 8)))
    with pytest.raises(GeometryError, match="on its grid"):
        outline(np.ones((7, 8), bool), grid)
    with pytest.raises(UsageError, match="three points"):
        resampled(np.eye(2), 2)


LEFT, RIGHT = disc((60, 100), (30, 25), 18), disc((60, 100), (32, 74), 20)


@pytest.mark.parametrize("turned", [False, True])
def test_two_parts_come_from_left_to_right(turned):
    speck = disc((60, 100), (5, 50), 2)
    grid = Geometry((60, 100), np.diag([1.0, -1, 1])) if turned else Geometry.of((60, 100))
    parts = side_by_side(LEFT | RIGHT | speck, grid, 2)
    first, second = (RIGHT, LEFT) if turned else (LEFT, RIGHT)
    np.testing.assert_array_equal(parts[0], first)
    np.testing.assert_array_equal(parts[1], second)


@pytest.mark.parametrize("present", [0, 1])
def test_an_absent_part_leaves_its_own_place_empty(present):
    alone = (LEFT, RIGHT)[present]
    speck = disc((60, 100), (5, 90 - 80 * present), 1)
    parts = side_by_side(alone | speck, Geometry.of((60, 100)), 2)
    np.testing.assert_array_equal(parts[present], alone)
    assert not parts[1 - present].any()


def test_parts_that_touch_or_claim_one_place_are_no_parts():
    bridge = np.zeros((60, 100), bool)
    bridge[30:33, 25:74] = True
    grid = Geometry.of((60, 100))
    assert not any(p.any() for p in side_by_side(LEFT | RIGHT | bridge, grid, 2))
    both_left = disc((60, 100), (15, 20), 8) | disc((60, 100), (45, 20), 8)
    assert not any(p.any() for p in side_by_side(both_left, grid, 3))
    assert side_by_side(LEFT, grid, 1)[0].sum() == LEFT.sum()
