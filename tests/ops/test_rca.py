"""Reverse classification accuracy: the laws of the estimate, and how references are chosen and kept."""

import numpy as np
import pytest

from vesalius.core.case import IGNORE, Image, LabelMap
from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry
from vesalius.metrics.overlap import dsc
from vesalius.ops.rca import Bank, align, reverse_accuracy, signature, working

GRID = Geometry.of((64, 64), 1.5)
NAMES = ("background", "organ", "spot")


def subject(n: int, grid: Geometry = GRID) -> tuple[Image, LabelMap]:
    """A bright ellipse with a dark spot; size and place differ a little by subject."""
    rng = np.random.default_rng(n)
    at = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    centre, radii = np.array([47, 47]) + rng.uniform(-5, 5, 2), np.array([30, 20]) * rng.uniform(0.9, 1.1, 2)
    organ = (((at - centre) / radii) ** 2).sum(-1) < 1
    spot = (((at - centre - [8, 4]) / 7) ** 2).sum(-1) < 1
    image = 100 * organ - 70 * spot + rng.normal(0, 4, grid.shape)
    return Image(image[None].astype(np.float32), grid), LabelMap(np.where(spot, 2, organ).astype(np.int16), grid, NAMES)


def bank(n: int = 6) -> Bank:
    pairs = [subject(k) for k in range(1, n + 1)]
    return Bank(tuple(i for i, _ in pairs), tuple(l for _, l in pairs), np.stack([signature(i) for i, _ in pairs]))


def estimate(image, label, known, number=3, **settings):
    chosen = known.choose(signature(image), number, label.names[1:])
    return reverse_accuracy(label, known, chosen, align(image, known, chosen, **settings), dsc)


def test_a_perfect_mask_on_the_same_image_is_one():
    known = bank()
    image, label = subject(3)
    chosen = known.choose(signature(image), 1, NAMES[1:])
    assert chosen == (2,)  # an image is most similar to itself
    found = estimate(image, label, known, 1)
    assert found["organ"].best > 0.99 and found["spot"].best > 0.97


def test_it_falls_as_a_mask_is_shifted_and_max_is_at_least_the_mean():
    known = bank()
    image, label = subject(20)
    chosen = known.choose(signature(image), 3, NAMES[1:])
    pairs = align(image, known, chosen)
    values = []
    for shift in range(0, 21, 4):
        moved = LabelMap(np.roll(label.data, shift, 0), GRID, NAMES)
        found = reverse_accuracy(moved, known, chosen, pairs, dsc)
        assert all(e.best >= e.mean and e.best == max(e.values) for e in found.values())
        values.append(found["organ"].best)
    assert values[0] > 0.9 and all(a > b for a, b in zip(values, values[1:]))


def test_it_is_near_the_truth_for_degraded_masks():
    known = bank()
    errors = []
    for n in range(30, 34):
        image, label = subject(n)
        chosen = known.choose(signature(image), 3, NAMES[1:])
        pairs = align(image, known, chosen)
        for shift in (0, 5, 10, 20):
            bad = LabelMap(np.roll(label.data, shift, 1), GRID, NAMES)
            errors.append(reverse_accuracy(bad, known, chosen, pairs, dsc)["organ"].best - dsc(bad.data == 1, label.data == 1))
    assert np.abs(errors).mean() < 0.06


def test_an_empty_prediction_is_zero_and_unknown_where_the_reference_has_none_either():
    known = bank(2)
    image, label = subject(5)
    empty = LabelMap(np.zeros_like(label.data), GRID, NAMES)
    found = estimate(image, empty, known)
    assert found["organ"].best == 0.0 and found["spot"].mean == 0.0
    without = LabelMap(np.minimum(known.labels[0].data, 1), GRID, NAMES)
    bare = Bank(known.images, (without, without), known.codes)
    assert estimate(image, empty, bare)["spot"].best is None


def test_references_speak_only_for_what_was_annotated():
    known = bank(4)
    partly = tuple(
        LabelMap(l.data if n % 2 else np.minimum(l.data, 1), GRID, NAMES, annotated=None if n % 2 else frozenset({"background", "organ"}))
        for n, l in enumerate(known.labels)
    )
    image, label = subject(8)
    some = Bank(known.images, partly, known.codes)
    chosen = some.choose(signature(image), 2, NAMES[1:])
    assert {i for i in chosen if i % 2} == {1, 3}  # the two that show the spot, and the two most similar
    found = reverse_accuracy(label, some, chosen, align(image, some, chosen), dsc)
    assert found["spot"].values.count(None) == sum(i % 2 == 0 for i in chosen) and None not in found["organ"].values


def test_ignored_voxels_count_for_nothing():
    image, label = subject(3)
    half = label.data.copy()
    half[:32] = IGNORE
    known = Bank((image,), (LabelMap(half, GRID, NAMES),), signature(image)[None])
    assert estimate(image, label, known, 1)["organ"].best > 0.97


def test_the_bank_comes_back_from_its_arrays():
    known = bank(3)
    again = Bank.from_state(*known.state())
    image, label = subject(9)
    a, b = estimate(image, label, known), estimate(image, label, again)
    assert np.allclose(a["organ"].values, b["organ"].values, atol=0.01) and again.labels[0].names == NAMES
    assert again.images[1].geometry == known.images[1].geometry
    assert Bank.from_state({}, {}) is None
    with pytest.raises(DataError, match="references"):
        Bank((), (), np.zeros((0, 4)))


def test_working_images_keep_their_place():
    image, _ = subject(1)
    small = working(image, 32)
    assert small.data.shape == (1, 32, 32) and small.geometry.spacing == (3.0, 3.0)
    assert working(image, 64).geometry == image.geometry
    rgb = Image(np.repeat(image.data, 3, 0), GRID)
    np.testing.assert_allclose(working(rgb, 64).data, image.data, rtol=1e-5)
