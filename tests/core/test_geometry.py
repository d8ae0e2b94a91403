"""Geometry: orientations, fields of view and resampling, against brute force and scipy.ndimage, on objects without symmetry."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import GeometryError
from vesalius.core.geometry import Geometry, LongestSide, Size, Spacing, coarsest, resample, resample_labels

ORIENTATIONS = [(perm, signs) for perm in permutations(range(3)) for signs in product((1, -1), repeat=3)]
SHAPE = (5, 6, 7)


def asymmetric(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


def oriented(perm, signs, spacing=(0.7, 1.3, 2.1), shape=SHAPE) -> Geometry:
    direction = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(perm, signs, strict=True)):
        direction[world, axis] = sign
    return Geometry.of(shape, spacing, (10, -20, 30), direction)


def turned(shape=SHAPE, spacing=(0.7, 1.3, 2.1), angles=(20, -35, 10), origin=(3, -5, 2)) -> Geometry:
    turn = np.eye(3)
    for k, angle in enumerate(np.deg2rad(angles)):
        a, b = [axis for axis in range(3) if axis != k]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return Geometry.of(shape, spacing, origin, turn)


def outer_faces(g: Geometry) -> np.ndarray:
    """World position of the eight outer corners of the field of view, sorted."""
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in g.shape])))
    return g.to_world(corners)


def brute(data, src, dst, order, fill):
    """One voxel after the other, by world coordinates, edge values held to the outer face."""
    out = np.full((len(data), *dst.shape), fill, np.float64)
    for index in np.ndindex(*dst.shape):
        at = src.to_index(dst.to_world(index))
        if all(-0.5 - 1e-6 <= p <= n - 0.5 + 1e-6 for p, n in zip(at, src.shape, strict=True)):
            at = np.clip(at, 0, np.array(src.shape) - 1)
            for c in range(len(data)):
                if order == 0:
                    out[(c, *index)] = data[(c, *np.floor(at + 0.5).astype(int))]
                else:
                    low = np.floor(at).astype(int)
                    total = 0.0
                    for corner in product((0, 1), repeat=3):
                        weight = np.prod([f if b else 1 - f for b, f in zip(corner, at - low, strict=True)])
                        total += weight * data[(c, *np.minimum(low + corner, np.array(src.shape) - 1))]
                    out[(c, *index)] = total
    return out


@pytest.mark.parametrize(("perm", "signs"), ORIENTATIONS)
def test_canonical_is_an_exact_round_trip_in_all_48_orientations(perm, signs):
    g, data = oriented(perm, signs), asymmetric()
    ras = g.canonical()
    assert ras.orientation == "RAS" and np.allclose(ras.direction, np.eye(3))
    there = resample(data, g, ras)
    assert np.array_equal(resample(there, ras, g), data) and there.dtype == data.dtype
    for index in ((0, 0, 0), (1, 2, 3), (4, 5, 6)):  # the same value at the same world point
        at = np.rint(ras.to_index(g.to_world(index))).astype(int)
        assert there[(0, *at)] == data[(0, *index)]
    labels = (data[0] > 0).astype(np.int16) * 3 - 1
    assert np.array_equal(resample_labels(resample_labels(labels, g, ras), ras, g), labels)
    assert np.allclose(np.sort(outer_faces(g), 0), np.sort(outer_faces(ras), 0))


def test_orientation_codes():
    assert oriented((0, 1, 2), (1, 1, 1)).orientation == "RAS" and oriented((0, 1, 2), (-1, -1, 1)).orientation == "LPS"
    assert oriented((2, 0, 1), (-1, 1, -1)).orientation == "IRP"
    assert len({oriented(*o).orientation for o in ORIENTATIONS}) == 48


@pytest.mark.parametrize("g", [turned(), oriented((2, 0, 1), (-1, 1, -1)), Geometry.of((9, 4), (0.5, 2))])
def test_resizing_keeps_the_field_of_view(g):
    for other in (
        g.resized([n + 3 for n in g.shape]),
        g.with_spacing([2 * s for s in g.spacing]),
        Size(*[4] * g.ndim).of(g),
        LongestSide(20).of(g),
    ):
        assert np.allclose(outer_faces(other), outer_faces(g))
        assert np.isclose(other.voxel_volume * np.prod(other.shape), g.voxel_volume * np.prod(g.shape))
    assert max(LongestSide(20).of(g).shape) == 20 and Spacing(*g.spacing).of(g) == g


def test_world_and_voxels_invert_each_other():
    g, at = turned(), np.random.default_rng(0).normal(size=(4, 5, 3)) * 10
    assert np.allclose(g.to_index(g.to_world(at)), at)
    crop = g.cropped((1, -2, 3), (4, 5, 6))
    assert crop.shape == (3, 7, 3) and np.allclose(crop.to_world((0, 2, 0)), g.to_world((1, 0, 3)))
    third = g.every((1, 2, 3))
    assert third.shape == tuple(len(range(0, n, step)) for n, step in zip(g.shape, (1, 2, 3), strict=True))
    assert np.allclose(third.to_world((2, 1, 1)), g.to_world((2, 2, 3)))
    assert Geometry.from_json(g.to_json()) == g and hash(Geometry.from_json(g.to_json())) == hash(g)


@pytest.mark.parametrize(
    "g", [turned(), oriented((1, 2, 0), (1, -1, -1)), Geometry.of((5, 4), (0.5, 2.0), (1, 2), np.array([[0.6, -0.8], [0.8, 0.6]]))]
)
def test_a_box_around_a_box_holds_all_its_corners(g):
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, 6, g.ndim)) * 10
    for there, around in ((g.to_world, g.world_bounds), (g.to_index, g.index_bounds)):
        low, high = around(*ends)
        for k in range(6):
            corners = there(np.array(list(product(*ends[:, k].T))))
            assert np.allclose(low[k], corners.min(0)) and np.allclose(high[k], corners.max(0))
    low, high = g.world_bounds(*np.array([np.full(g.ndim, -0.5), np.array(g.shape) - 0.5]))
    assert np.allclose([low, high], [outer_faces(g).min(0), outer_faces(g).max(0)])


def test_close_is_in_fractions_of_a_voxel():
    g = Geometry.of(SHAPE, (0.7, 1.3, 2.1))
    near, far = Geometry.of(SHAPE, (0.7, 1.3, 2.1), (0, 0, 6e-4)), Geometry.of(SHAPE, (0.7, 1.3, 2.1), (0, 0, 8e-4))
    assert g.close(near) and not g.close(far) and not g.close(Geometry.of((5, 6, 8), (0.7, 1.3, 2.1)))


@pytest.mark.parametrize(
    "bad", [((5, 6, 7, 8), np.eye(5)), ((5, 6), np.eye(4)), ((0, 5), np.eye(3)), ((5, 6), np.diag([1, 0, 1])), ((5, 6), np.eye(3) * np.nan)]
)
def test_impossible_grids_are_refused(bad):
    with pytest.raises(GeometryError):
        Geometry(*bad)


@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("nearest", 0)])
def test_aligned_resampling_is_scipys(mode, order):
    data, src = asymmetric(), Geometry.of(SHAPE, (0.7, 1.3, 2.1), (1, 2, 3))
    dst = Geometry.of((6, 8, 5), (0.53, 0.9, 1.7), (1.21, 2.4, 3.9))  # inside the source
    scale, offset = np.array(dst.spacing) / src.spacing, (np.array(dst.origin) - src.origin) / src.spacing
    for channel, got in zip(data, resample(data, src, dst, mode), strict=True):
        expected = ndimage.affine_transform(channel.astype(float), scale, offset, dst.shape, order=order, mode="nearest")
        assert np.abs(got - expected).max() < 1e-5


@pytest.mark.parametrize("src", [turned(), oriented((1, 2, 0), (-1, 1, -1)), Geometry.of(SHAPE, (0.7, 1.3, 2.1), (1, 2, 3))])
@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("nearest", 0)])
def test_resampling_is_brute_force(src, mode, order):
    data = asymmetric()
    centre = src.to_world((np.array(src.shape) - 1) / 2)
    for dst in (
        turned((6, 5, 4), (1.1, 0.9, 2.3), (5, 40, -15), centre - 3),
        Geometry.of((7, 6, 5), (1.37, 1.11, 1.93), centre - (4.1, 3.3, 3.7)),
    ):
        got = resample(data, src, dst, mode, fill=-7)
        expected = brute(data, src, dst, order, -7)
        assert np.abs(got - expected).max() < 2e-5 and 0 < (expected != -7).mean() < 1


def test_slabs_of_any_size_give_the_same(monkeypatch):
    from vesalius.core import geometry

    data, src, dst = asymmetric(), turned(), Geometry.of((7, 6, 5), 1.4, (1, -6, 0))
    whole = geometry._resample_oblique(data, src, dst, "linear", 0.0)
    assert np.array_equal(geometry._resample_oblique(data, src, dst, "linear", 0.0, slab=1), whole)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_ramp_stays_a_ramp_and_a_constant_a_constant(mode):
    src = Geometry.of((12, 13, 14), (0.7, 1.3, 2.1))
    dst = Geometry.of((4, 4, 4), (0.55, 1.0, 1.9), (2.6, 4.1, 8.3))
    world = np.stack(np.meshgrid(*[np.arange(n) for n in src.shape], indexing="ij"), -1) * src.spacing
    ramp = world @ (1.0, -2.0, 0.5)
    target = dst.to_world(np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1)) @ (1.0, -2.0, 0.5)
    assert np.abs(resample(ramp[None], src, dst, mode)[0] - target).max() < 1e-4
    down = src.with_spacing((2.0, 3.0, 5.0))
    assert np.allclose(resample(np.full((1, *src.shape), 3.5), src, down, mode, antialias=True), 3.5, atol=1e-5)


def test_antialiasing_averages_what_reading_points_misses():
    src = Geometry.of((64, 8))
    stripes = np.tile((np.arange(64) % 2).astype(np.float32)[:, None], (1, 8))[None]
    dst = src.resized((13, 8))
    smooth, sharp = (resample(stripes, src, dst, antialias=a)[0, 1:-1] for a in (True, False))
    assert np.abs(smooth - 0.5).max() < 0.1 < np.abs(sharp - 0.5).max()


def test_integers_keep_their_values_where_nothing_is_interpolated():
    data = np.arange(210, dtype=np.int16).reshape(1, *SHAPE)
    src = oriented((2, 0, 1), (-1, 1, -1))
    crop = src.cropped((-1, 2, 1), (4, 6, 9))
    got = resample(data, src, crop, fill=-5)
    assert (
        got.dtype == np.int16
        and np.array_equal(got[0, 1:, :, :6], data[0, :4, 2:, 1:])
        and (got[0, 0] == -5).all()
        and (got[0, :, :, 6:] == -5).all()
    )
    with pytest.raises(GeometryError, match="does not lie on the source grid"):
        resample(data, crop, src)
    with pytest.raises(GeometryError, match="unknown interpolation"):
        resample(data, src, crop, "lanczos")


def test_labels_are_the_argmax_of_linear_one_hots():
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 4, SHAPE).astype(np.int16)
    src, dst = turned(), Geometry.of((7, 6, 5), (1.1, 1.3, 1.2), (2, -5, 2))
    got = resample_labels(labels, src, dst)
    values = np.unique(labels)
    share = np.stack([brute((labels == v)[None].astype(float), src, dst, 1, float(v == 0))[0] for v in values])
    clear = np.sort(share, 0)[-1] - np.sort(share, 0)[-2] > 1e-4
    assert clear.mean() > 0.9 and np.array_equal(got[clear], values[share.argmax(0)][clear]) and got.dtype == labels.dtype
    with pytest.raises(GeometryError, match="holds integers"):
        resample_labels(labels.astype(float), src, dst)


def test_labels_outside_the_field_of_view_are_the_fill():
    src = Geometry.of((4, 4, 4))
    dst = Geometry.of((9, 9, 9), 1.0, (-2.3, -2.3, -2.3))
    for labels in (np.ones((4, 4, 4), np.uint8), np.pad(np.full((2, 2, 2), 2, np.uint8), 1)):
        got = resample_labels(labels, src, dst)
        assert (got[0] == 0).all() and (got[-1] == 0).all()


def test_the_coarsest_axis_is_the_last_of_equal_ones():
    assert [coarsest(s) for s in ((1, 1, 1), (3, 1, 1), (1, 3, 3), (1, 3))] == [2, 0, 2, 1]
    assert coarsest((0.7, 0.7 * (1 - 1e-9), 0.2)) == 1  # a rounding error decides nothing
