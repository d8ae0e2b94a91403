import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.ops import jacobian as jac
from vesalius.ops.jacobian import displacement_at, jacobian


def oblique(seed, d, shape=None):
    """A grid of uneven spacing in a random frame, left- or right-handed."""
    rng = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return Geometry.of(shape or (7, 6, 5)[:d], rng.uniform(0.5, 3, d), rng.normal(0, 50, d), frame)


def world(g):
    """(d, *shape) world mm of every voxel."""
    return np.moveaxis(g.to_world(np.moveaxis(np.indices(g.shape), 0, -1)), -1, 0)


def affine_field(g, matrix, shift):
    x = world(g)
    return np.tensordot(matrix - np.eye(g.ndim), x, 1) + np.reshape(shift, (-1, *[1] * g.ndim))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 5000), st.sampled_from([2, 3]))
def test_affine_maps_are_exact_on_oblique_grids(seed, d):
    rng = np.random.default_rng(seed)
    g, m = oblique(seed, d), np.eye(d) + rng.normal(0, 0.4, (d, d))
    u = affine_field(g, m, rng.normal(0, 5, d))
    assert jacobian(u, g) == pytest.approx(np.full(g.shape, np.linalg.det(m)), abs=1e-9)


@pytest.mark.parametrize("d", [2, 3])
def test_the_frame_does_not_matter(d):
    """One displacement of world space, seen on grids with flipped and permuted axes, has one Jacobian."""
    g = oblique(3, d)
    u = np.sin(world(g) / 5) * 2
    j = jacobian(u, g)
    affine = g.affine.copy()
    affine[:-1, -1] = g.to_world([g.shape[0] - 1, *[0] * (d - 1)])
    affine[:-1, 0] *= -1
    assert jacobian(u[:, ::-1], Geometry(g.shape, affine)) == pytest.approx(j[::-1])
    swapped = g.affine[:, [1, 0, *range(2, d + 1)]]
    assert jacobian(np.swapaxes(u, 1, 2), Geometry((g.shape[1], g.shape[0], *g.shape[2:]), swapped)) == pytest.approx(np.swapaxes(j, 0, 1))


@pytest.mark.parametrize("d", [2, 3])
def test_against_simpleitk_away_from_the_border(d):
    rng = np.random.default_rng(0)
    spacing = (0.7, 1.3, 2.1)[:d]
    g = Geometry.of((9, 8, 7)[:d], spacing)
    u = rng.normal(0, 0.5, (d, *g.shape))
    image = sitk.GetImageFromArray(np.moveaxis(u, 0, -1)[..., ::-1].transpose(*range(d), d), isVector=True)  # ITK: x is the last index
    image.SetSpacing(spacing[::-1])
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
    inner = (slice(1, -1),) * d
    assert jacobian(u, g)[inner] == pytest.approx(theirs[inner], abs=1e-6)


def test_slabs_are_seamless(monkeypatch):
    g = oblique(1, 3, (11, 6, 5))
    u = np.random.default_rng(0).normal(0, 1, (3, *g.shape))
    whole = jacobian(u, g)
    for voxels in (1, 60, 100):
        monkeypatch.setattr(jac, "_SLAB", voxels)
        assert (jacobian(u, g) == whole).all()


def test_a_smooth_field_converges():
    errors = []
    for n in (20, 40):
        g = Geometry.of((n, n), 40 / n)
        x, y = world(g)
        u = np.stack([2 * np.sin(x / 6) * np.cos(y / 7), np.cos(x / 5)])
        xx, xy = np.cos(x / 6) * np.cos(y / 7) / 3, -2 * np.sin(x / 6) * np.sin(y / 7) / 7
        exact = (1 + xx) * 1 - xy * (-np.sin(x / 5) / 5)
        errors.append(np.abs(jacobian(u, g) - exact)[1:-1, 1:-1].max())
    assert errors[1] < errors[0] / 3  # second order


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 5000), st.sampled_from([2, 3]))
def test_reading_a_field(seed, d):
    rng = np.random.default_rng(seed)
    g, m, shift = oblique(seed, d), np.eye(d) + rng.normal(0, 0.4, (d, d)), rng.normal(0, 5, d)
    u = affine_field(g, m, shift)
    index = rng.uniform(0, 1, (6, d)) * (np.array(g.shape) - 1)
    points = g.to_world(index)
    assert displacement_at(u, g, points) == pytest.approx(points @ (m - np.eye(d)).T + shift, abs=1e-8)
    outside = g.to_world(np.array([[-0.1] + [0] * (d - 1), [g.shape[0] - 0.9] + [0] * (d - 1)]))
    assert np.isnan(displacement_at(u, g, np.concatenate([outside, [[np.nan] * d]]))).all()


def test_bad_fields():
    g = Geometry.of((4, 5), 1)
    with pytest.raises(GeometryError, match="component"):
        jacobian(np.zeros((3, 4, 5)), g)
    with pytest.raises(DataError, match="1 of 40"):
        jacobian(np.where(np.arange(40).reshape(2, 4, 5) == 3, np.nan, 0), g)
    with pytest.raises(GeometryError, match="two voxels"):
        jacobian(np.zeros((2, 1, 5)), Geometry.of((1, 5), 1))
    with pytest.raises(GeometryError, match="points"):
        displacement_at(np.zeros((2, 4, 5)), g, np.zeros((3, 3)))
