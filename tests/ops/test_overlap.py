"""Two crops of one case: the same values in the overlap, whatever turn they share."""

import numpy as np
import pytest

from vesalius.core.case import Sample
from vesalius.core.errors import GeometryError
from vesalius.ops.augment import PRESETS, draw, pose_at, render
from vesalius.ops.overlap import overlap


def crops(seed: int, size=(8, 8, 6), sides=(20, 18, 16)):
    """Two crops as the sampler draws them: own centres, one turn."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, *sides)).astype(np.float32)
    first = np.array([rng.integers(6, n - 6) for n in sides])
    out = []
    for centre in (first, first + rng.integers(-5, 6, 3)):
        sample = Sample("a", image, {}, size, pose_at(centre, size), (1.0, 1.0, 1.0))
        turn = np.random.default_rng(seed)
        out.append(render(draw(sample, turn, strength=PRESETS["full"], mirror_axes=(0, 2), spatial="exact")))
    return out


def test_overlaps_index_identical_values():
    turned = 0
    for seed in range(40):
        a, b = crops(seed)
        ((in_a, in_b),) = overlap(a.pose[None], b.pose[None], a.size)
        here, there = a.patch["image"][(slice(None), *in_a)], b.patch["image"][(slice(None), *in_b)]
        assert here.size > 0 and np.array_equal(here, there)
        turned += not np.array_equal(a.pose[:3, :3], np.eye(3))
    assert turned > 10


def test_the_overlap_is_the_largest_box():
    a, b = np.eye(4), np.eye(4)
    b[:3, 3] = (3, -2, 0)  # the second crop starts 3 further and 2 earlier
    assert overlap(a[None], b[None], (8, 8, 6)) == [((slice(3, 8), slice(0, 6), slice(0, 6)), (slice(0, 5), slice(2, 8), slice(0, 6)))]


def test_crops_that_do_not_meet_share_nothing():
    far = np.eye(3)
    far[0, 2] = 50
    ((in_a, in_b),) = overlap(np.eye(3)[None], far[None], (8, 8))
    assert np.zeros((8, 8))[in_a].size == 0 and np.zeros((8, 8))[in_b].size == 0


def test_other_turns_scales_and_fractions_are_refused():
    turned, scaled, fraction = np.diag([-1.0, 1, 1]), np.diag([1.1, 1, 1]), np.eye(3)
    fraction[0, 2] = 0.5
    for other in (turned, scaled, fraction):
        with pytest.raises(GeometryError, match="whole-voxel"):
            overlap(np.eye(3)[None], other[None], (8, 8))
