"""Simulated users point where the answer is wrong, with the right sign; boxes and lines lie where they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, UsageError
from vesalius.ops.prompts import Ask, box, clicks, meant, scribble, slices, user

RNG = np.random.default_rng


def disc(shape, centre, radius):
    return sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from(["centre", "uniform", "distance"]), d=st.sampled_from([2, 3]))
def test_every_click_is_in_the_error_and_says_of_which_kind_it_is(seed, policy, d):
    rng = RNG(seed)
    truth, answer = rng.random((2, *(9,) * d)) < rng.random((2, *(1,) * d))
    index, positive = clicks(truth, answer, rng, count=3, policy=policy)
    at = tuple(index.T)
    assert (truth ^ answer)[at].all() and (positive == (truth & ~answer)[at]).all()
    assert len(index) <= 3 and (len(index) > 0) == (truth ^ answer).any()
    if policy == "uniform":
        assert len(np.unique(index, axis=0)) == len(index) == min(3, (truth ^ answer).sum())


def test_the_centre_is_the_deepest_voxel_of_the_largest_piece():
    truth = disc((40, 40), (12, 12), 8) | disc((40, 40), (30, 30), 5)
    index, positive = clicks(truth, None, RNG(0), count=5)
    assert index.tolist() == [[12, 12], [30, 30]] and positive.all()
    index, positive = clicks(disc((40, 40), (12, 12), 8), truth, RNG(0))
    assert index.tolist() == [[30, 30]] and not positive[0], "only a false alarm is left"


def test_depth_is_in_millimetres():
    """A wall two voxels thick along a coarse axis is deep there: what counts is the border nearest in mm."""
    truth = np.zeros((4, 41), bool)
    truth[:, 20:23] = True  # 3 wide, and as high as the image
    index, _ = clicks(truth, None, RNG(0), spacing=(10.0, 1.0))
    assert index[0, 1] == 21


def test_distance_policy_prefers_thick_places_and_the_heavier_side():
    truth = disc((40, 40), (20, 20), 10)
    draws = np.concatenate([clicks(truth, None, RNG(s), policy="distance")[0] for s in range(200)])
    away = np.hypot(*(draws - 20).T)
    assert np.median(away) < 3.0 < np.median(np.hypot(*(np.argwhere(truth) - 20).T)), "exp(depth) crowds the middle"
    missing_more = truth & ~disc((40, 40), (20, 20), 8) | disc((40, 40), (3, 3), 1)
    _, positive = clicks(truth, truth & ~missing_more | disc((40, 40), (36, 36), 1), RNG(0), policy="distance")
    assert positive.all()


def test_deep_objects_do_not_overflow():
    assert clicks(np.ones((1, 4000), bool) | np.zeros((3000, 1), bool), None, RNG(0), policy="distance")[0].shape == (1, 2)


def test_box_is_on_the_faces_and_jitter_is_bounded_by_each_side():
    truth = np.zeros((20, 30), bool)
    truth[5:9, 10:20] = True
    assert box(truth).tolist() == [[4.5, 9.5], [8.5, 19.5]]
    off = np.array([box(truth, RNG(s), jitter=0.2) - box(truth) for s in range(300)])
    assert np.abs(off[..., 0]).max() <= 0.8 and np.abs(off[..., 1]).max() <= 2.0
    assert np.abs(off[..., 0]).max() > 0.75 and np.abs(off[..., 1]).max() > 1.9 and abs(off.mean()) < 0.1
    one = np.zeros((5, 5), bool)
    one[2, 3] = True
    ends = [box(one, RNG(s), jitter=0.9) for s in range(200)]
    assert all((e[1] > e[0]).all() for e in ends)
    with pytest.raises(DataError, match="nothing to draw a box around"):
        box(np.zeros((4, 4), bool))


@pytest.mark.parametrize("plane", [None, 0, 1, 2])
def test_a_scribble_runs_along_the_error_from_end_to_end(plane):
    truth = np.zeros((12, 14, 40), bool)
    truth[4:9, 5:10, 3:37] = True
    line, positive = scribble(truth, None, plane=plane)
    assert positive and truth[tuple(line.T)].all()
    assert np.abs(np.diff(line, axis=0)).max() <= 1, "neighbours"
    if plane is None or plane != 2:
        assert np.ptp(line[:, 2]) > 20
    if plane is not None:
        assert np.ptp(line[:, plane]) == 0
    line, positive = scribble(truth & False, truth, plane=plane)
    assert len(line) and not positive
    assert len(scribble(truth, truth, plane=plane)[0]) == 0


def test_modes_are_words():
    assert user("box20+2clicks") == (Ask("box", jitter=0.2), Ask("click"), Ask("click"))
    assert user("3random") == (Ask("click", policy="uniform"),) * 3 and user("scribble") == (Ask("scribble"),)
    for wrong in ("", "boxes", "0clicks", "click", "box200"):
        with pytest.raises(UsageError, match="prompt mode"):
            user(wrong)


def test_users_who_outline_slices_choose_or_prompt_every_slice():
    kinds = [(a.kind, a.count, a.each) for a in user("2slices+pick+everything8+everything+each-box20+each-2clicks")]
    assert kinds == [
        ("slice", 2, False),
        ("pick", 1, False),
        ("everything", 8, False),
        ("everything", 32, False),
        ("box", 1, True),
        ("click", 1, True),
        ("click", 1, True),
    ]
    for wrong in ("pick", "0slices", "each-scribble", "slices"):
        with pytest.raises(UsageError, match="not understood"):
            user(wrong)


def test_slices_worth_outlining_are_spread_over_the_extent_and_show_all_structures():
    truth = np.zeros((2, 10, 6, 6), bool)
    truth[0, 1:9, :3] = truth[0, 3, :5] = True  # largest in slice 3
    truth[1, 5:9, 4:] = True
    assert slices(truth, None, axis=0, count=1) == [5] and slices(truth[:1], None, axis=0, count=1) == [3]
    assert slices(truth, None, axis=0, count=2) == [3, 5]
    assert slices(np.moveaxis(truth, 1, 3), None, axis=2, count=2) == [3, 5]
    wrong = truth.copy()
    wrong[0, 7] = False
    assert slices(truth, wrong, axis=0, count=3) == [7] and slices(truth, truth, axis=0, count=1) == []
    assert len(slices(truth, None, axis=0, count=20)) == 8


def test_what_is_meant_is_a_whole_structure_or_a_connected_piece_of_one():
    label = np.zeros((32, 32), int)
    label[2:6, 2:6] = label[20:30, 20:30] = 1
    rng = np.random.default_rng(0)
    assert {int(meant(label, rng, piece=True).sum()) for _ in range(20)} == {16, 100}
    assert {int(meant(label, rng).sum()) for _ in range(5)} == {116}
    assert not meant(np.full((4, 4), IGNORE), rng, piece=True).any()
