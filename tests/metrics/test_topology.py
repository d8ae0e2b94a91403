import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vesalius.core.errors import GeometryError, UsageError
from vesalius.metrics.topology import (
    betti0_error,
    betti_error,
    betti_error_patches,
    betti_numbers,
    branches_detected,
    cldice,
    connectivity,
    euler_characteristic,
    length_detected,
    skeleton,
    skeleton_branches,
)

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))


def _cross(arm=10, width=3):
    mask = np.zeros((2 * arm + 5,) * 2, bool)
    middle, half = arm + 2, width // 2
    mask[middle - half : middle + half + 1, 2:-2] = True
    return mask | mask.T


def _solid(shape=(9, 9, 9)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(1, -1) for _ in shape)] = True
    return mask


def _torus():
    x, y, z = np.indices((25, 25, 11)) - np.array([12, 12, 5])[:, None, None, None]
    return (np.hypot(x, y) - 8) ** 2 + z**2 <= 3**2


KNOWN = {
    "nothing": (np.zeros((4, 4, 4), bool), (0, 0, 0)),
    "a solid": (_solid(), (1, 0, 0)),
    "the whole image": (np.ones((3, 4, 5), bool), (1, 0, 0)),
    "a torus": (_torus(), (1, 1, 0)),
    "a hollow ball": (np.pad(np.pad(np.zeros((3, 3, 3), bool), 1, constant_values=True), 1), (1, 0, 1)),
    "two voxels at a corner": (np.eye(2, dtype=bool)[:, :, None] & np.eye(2, dtype=bool)[:, None, :], (1, 0, 0)),
    "a disc": (_solid((7, 7)), (1, 0)),
    "a ring": (_solid((7, 7)) & ~np.pad(np.ones((3, 3), bool), 2), (1, 1)),
    "a diagonal ring": (np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool), (1, 1)),
    "a ring at the border": (np.pad(np.zeros((2, 2), bool), 1, constant_values=True), (1, 1)),
    "two discs": (np.array([[1, 0, 1]], bool), (2, 0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_betti_numbers_of_known_shapes(name):
    mask, numbers = KNOWN[name]
    assert betti_numbers(mask) == numbers


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_betti_numbers_obey_euler_and_scikit_image(mask):
    from skimage.measure import euler_number

    numbers = betti_numbers(mask)
    assert min(numbers) >= 0
    chi = sum((-1) ** k * n for k, n in enumerate(numbers))
    assert chi == euler_characteristic(mask) == euler_number(mask, connectivity=mask.ndim)
    assert betti_numbers(np.pad(mask, 2)) == betti_numbers(mask.T)[: mask.ndim] == numbers


def test_betti_errors():
    ring, disc = KNOWN["a ring"][0], KNOWN["a disc"][0]
    assert betti_error(ring, disc) == 1 and betti0_error(ring, disc) == 0
    torus, ball = KNOWN["a torus"][0], np.zeros((25, 25, 11), bool)
    ball[3:5, 3:5, 3:5] = ball[20:22, 20:22, 3:5] = True
    assert betti_error(torus, ball) == 2  # one component and one tunnel
    assert betti_error(np.zeros_like(ring), np.zeros_like(ring)) is None


def test_errors_that_cancel_in_the_whole_show_in_patches():
    reference = np.zeros((8, 16), bool)
    reference[2:6, 2:6] = True  # a disc left
    reference[1:7, 9:15] = True
    reference[3:5, 11:13] = False  # a ring right
    prediction = reference[:, ::-1].copy()
    assert betti_error(prediction, reference) == 0
    assert betti_error_patches(prediction, reference, size=8) == 1.0
    assert betti_error_patches(prediction, reference, size=64) == 0
    with pytest.raises(UsageError):
        betti_error_patches(prediction, reference, size=0)


@settings(max_examples=80, deadline=None)
@given(MASKS, st.randoms(use_true_random=False))
def test_skeletons_lie_inside_and_are_never_lost(mask, random):
    thin = skeleton(mask)
    assert not (thin & ~mask).any() and thin.any() == mask.any()
    other = np.roll(mask, random.randint(0, 2), random.randint(0, mask.ndim - 1))
    value, swapped = cldice(mask, other), cldice(other, mask)
    assert value == swapped and (value is None or 0 <= value <= 1)
    assert cldice(mask, mask) == (1 if mask.any() else None)


def test_cldice_by_hand():
    line = np.zeros((5, 12), bool)
    line[2, 1:11] = True
    half = line.copy()
    half[2, 6:] = False
    assert cldice(half, line) == pytest.approx(2 * 1 * 0.5 / 1.5)  # all of its line is right, half of the reference's is found
    assert length_detected(half, line) == 0.5 and length_detected(line, half) == 1
    tree = np.zeros((40, 40), bool)
    tree[18:21, 2:38] = True
    gap = tree.copy()
    gap[:, 20:23] = False
    assert 0.9 < cldice(gap, tree) < 1 and connectivity(gap, tree) == pytest.approx(1 - 1 / tree.sum())


def test_branches_of_a_cross():
    cross = _cross()
    labels, lengths = skeleton_branches(cross)
    assert len(lengths) == 4 and lengths.min() >= 7
    assert branches_detected(cross, cross) == 1
    broken = cross.copy()
    broken[:, :9] = False  # most of the left arm
    assert branches_detected(broken, cross) == 0.75
    assert branches_detected(broken, cross, share=0.1) == 1
    with pytest.raises(UsageError):
        branches_detected(cross, cross, share=0)


def test_three_dimensional_tube():
    tube = np.zeros((9, 9, 30), bool)
    tube[3:6, 3:6, 2:28] = True
    broken = tube.copy()
    broken[:, :, 14:16] = False
    assert betti_error(broken, tube) == 1 and cldice(tube, tube) == 1
    assert 0.85 < length_detected(broken, tube) < 1


def test_bad_input_is_refused():
    with pytest.raises(GeometryError):
        cldice(np.zeros((2, 2), int), np.zeros((2, 2), int))
    with pytest.raises(GeometryError):
        betti_numbers(np.zeros(4, bool))
    with pytest.raises(GeometryError):
        connectivity(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
