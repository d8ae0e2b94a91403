"""Registration: known transforms are found, in world coordinates, whatever the grid; and a transform is its own bookkeeping."""

import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vesalius.core.case import Image, LabelMap, Points
from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.ops.register import Transform, register


def scene(grid: Geometry, warp=lambda xyz: xyz) -> Image:
    """A smooth asymmetric scene, defined in the world (mm, about 100 wide), read at warped points."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    at = warp(grid.to_world(index))
    blobs = [((0, 0), 30, 1.0), ((15, -10), 9, -0.8), ((-18, 12), 7, 0.7), ((8, 20), 6, 0.9), ((-5, -25), 8, 0.6)]
    out = np.zeros(grid.shape)
    for centre, size, height in blobs:
        c = np.zeros(grid.ndim)
        c[:2] = centre
        if grid.ndim == 3:
            c[2] = centre[0] * 0.7 + 3
        out += height * np.exp(-((at - c) ** 2).sum(-1) / (2 * size**2))
    return Image(out[None].astype(np.float32), grid)


def centred(shape, spacing=1.0, direction=None) -> Geometry:
    grid = Geometry.of(shape, spacing, direction=direction)
    return Geometry.of(shape, spacing, origin=-grid.to_world((np.array(shape) - 1) / 2), direction=direction)


def turned(degrees: float, scale: float, shift, d: int = 2) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    m = np.eye(d + 1)
    m[:2, :2] = scale * np.array([[c, -s], [s, c]])
    m[:d, d] = shift
    return m


def linear(m):
    return lambda xyz: xyz @ m[:-1, :-1].T + m[:-1, -1]


def error(found: Transform, truth, radius: float = 30) -> float:
    """Largest distance (mm) of where points of the scene's middle go."""
    d = found.fixed.ndim
    at = np.random.default_rng(0).uniform(-radius, radius, (200, d))
    return float(np.linalg.norm(found(at) - truth(at), axis=1).max())


@pytest.mark.parametrize(
    "kind,m", [("translation", turned(0, 1, (6, -4))), ("rigid", turned(12, 1, (5, 3))), ("affine", turned(-8, 1.12, (-4, 6)))]
)
@pytest.mark.parametrize("similarity", ["mutual-information", "correlation"])
def test_a_known_linear_transform_is_found(kind, m, similarity):
    moving = scene(centred((96, 96), 1.2))
    fixed = scene(centred((100, 90), 1.1), linear(m))  # fixed(x) = moving(m x): the transform is m
    found = register(fixed, moving, kind=kind, similarity=similarity)
    assert error(found, linear(m)) < 0.6
    assert found.facts[kind]["stopped"] and found.displacement is None


def test_three_dimensions_oblique_and_anisotropic():
    m = turned(7, 1.05, (4, -3, 2), 3)
    c, s = np.cos(0.5), np.sin(0.5)
    oblique = np.array([[c, 0, s], [0, -1, 0], [-s, 0, c]])
    moving = scene(centred((40, 36, 24), (2, 2, 4), oblique))
    found = register(scene(centred((44, 40, 30), (2, 2, 3)), linear(m)), moving, kind="affine")
    assert error(found, linear(m), 20) < 1.5


def test_the_unit_of_length_does_not_matter():
    m = turned(9, 1.05, (5, 3))
    fixed, moving = scene(centred((64, 64), 1.5), linear(m)), scene(centred((64, 64), 1.5))
    small = [Image(i.data, centred((64, 64), 1.5e-3)) for i in (fixed, moving)]
    a, b = register(fixed, moving), register(*small)
    np.testing.assert_allclose(b.matrix[:2, :2], a.matrix[:2, :2], atol=1e-3)
    np.testing.assert_allclose(b.matrix[:2, 2] * 1000, a.matrix[:2, 2], atol=0.05)


def test_same_images_same_transform_and_an_image_on_itself_stays():
    image = scene(centred((64, 64), 1.5))
    other = scene(centred((64, 64), 1.5), linear(turned(6, 1, (3, 1))))
    assert np.array_equal(register(image, other).matrix, register(image, other).matrix)
    assert error(register(image, image), lambda x: x) < 0.2


def test_a_deformation_is_found_and_points_go_with_it():
    def bend(xyz):
        return xyz + 3 * np.sin(xyz[..., ::-1] / 12)

    grid = centred((96, 96), 1.1)
    moving, fixed = scene(grid), scene(grid, bend)
    found = register(fixed, moving, kind="deformable", demons=(60, 40))
    straight = register(fixed, moving, kind="affine")
    assert error(found, bend, 22) < 0.75 * error(straight, bend, 22)
    before, after = (float(np.square(t.apply(moving).data - fixed.data).mean()) for t in (straight, found))
    assert after < 0.3 * before
    at = np.random.default_rng(1).uniform(-20, 20, (30, 2))
    np.testing.assert_allclose(found.back(found(at)), at, atol=0.01)
    np.testing.assert_allclose(found.apply(Points(found(at))).xyz, at, atol=0.01)


def test_apply_moves_labels_by_nearest_and_keeps_their_kind():
    grid = Geometry.of((20, 20), 2.0)
    label = np.zeros((20, 20), np.int16)
    label[5:9, 5:9] = 3
    shift = Transform(grid, turned(0, 1, (4, -2)))  # fixed x reads moving x + (4, -2)
    moved = shift.apply(LabelMap(label, grid, ("background", "a", "b", "c")))
    assert moved.data.dtype == np.int16 and np.array_equal(moved.data, np.roll(label, (-2, 1), (0, 1)))
    masks = shift.apply(LabelMap(np.stack([label > 0, label == 0]), grid, ("a", "b"), overlapping=True))
    assert masks.data.shape == (2, 20, 20) and masks.data.dtype == bool and np.array_equal(masks.data[0], moved.data > 0)
    assert not masks.data[:, -1, 5].any()  # outside the moving field of view nothing is present
    elsewhere = shift.apply(LabelMap(label, grid), Geometry.of((10, 10), 4.0))
    assert elsewhere.data.shape == (10, 10)


def test_a_constant_image_keeps_the_start_and_says_so():
    grid = centred((32, 32))
    flat = Image(np.ones((1, 32, 32), np.float32), Geometry.of((32, 32), 1.0, origin=(5, 5)))
    found = register(scene(grid), flat)
    assert "failed" in found.facts and np.allclose(found.matrix[:2, :2], np.eye(2))
    assert register(scene(grid), flat, kind="deformable").displacement is None


def test_bad_input():
    with pytest.raises(GeometryError, match="dimensions"):
        register(scene(centred((16, 16))), scene(centred((16, 16, 16))))
    with pytest.raises(UsageError, match="kind"):
        register(scene(centred((16, 16))), scene(centred((16, 16))), kind="elastic")


def test_a_2d_affine_is_fast():
    """256 x 256: the processor's time, so that a busy machine does not matter."""
    rng = np.random.default_rng(0)
    grid = centred((256, 256), 0.4)
    texture = gaussian_filter(rng.normal(size=grid.shape), 3) * 3
    fixed, moving = (
        Image(i.data + texture[None].astype(np.float32), grid) for i in (scene(grid, linear(turned(6, 1, (3, 1)))), scene(grid))
    )
    tick = time.process_time()
    register(fixed, moving)
    assert time.process_time() - tick < 1.0
