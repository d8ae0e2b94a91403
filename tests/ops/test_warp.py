"""Reading posed, bent patches: exact where nothing is interpolated, equal to scipy and torch where something is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import GeometryError
from vesalius.ops.warp import bend_at, move_points, read_patch

SIZES = [(20, 23), (14, 17, 19)]


def source(d: int, seed: int = 0, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, 31, 27, 29)[: d + 1]).astype(np.float32)


def random_pose(d: int, size: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """A general affine that puts the patch centre near the corner of the case, so that some of the patch lies outside."""
    rng = np.random.default_rng(seed)
    pose = np.eye(d + 1)
    pose[:d, :d] += rng.uniform(-0.4, 0.4, (d, d))
    pose[:d, d] = 8.2 - pose[:d, :d] @ ((np.asarray(size) - 1) / 2)
    return pose


def positions(size: tuple[int, ...], pose: np.ndarray, bend: np.ndarray | None) -> np.ndarray:
    """(d, n) case voxels of all patch voxels, in float64."""
    d = len(size)
    p = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, d).astype(float)
    q = p if bend is None else p + bend_at(p, size, bend)
    return (q @ pose[:d, :d].T + pose[:d, d]).T


def random_bend(d: int, seed: int = 3, most: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-most, most, (d, 5, 6, 7)[: d + 1])


@pytest.mark.parametrize("size", SIZES)
def test_identity_is_a_copy(size):
    image = source(len(size))
    got = read_patch(image, size, np.eye(len(size) + 1))
    assert got.dtype == np.float32
    assert np.array_equal(got, image[(slice(None), *map(slice, size))])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
def test_signed_permutations_copy_and_pad_exactly(size, seed):
    """Any flip, transpose and whole shift equals looking every voxel up; outside holds the channel's fill."""
    d, rng, image, fill = len(size), np.random.default_rng(seed), source(len(size)), (7.0, -3.0)
    pose = np.eye(d + 1)
    pose[:d, :d] = np.eye(d)[rng.permutation(d)] * rng.choice([-1, 1], d)
    pose[:d, d] = rng.integers(-15, 30, d)
    got = read_patch(image, size, pose, fill=fill)
    index = np.rint(positions(size, pose, None)).astype(int)
    inside = ((index >= 0) & (index < np.array(image.shape[1:])[:, None])).all(0)
    want = np.broadcast_to(np.float32(fill)[:, None], (2, index.shape[1])).copy()
    want[:, inside] = image[(slice(None), *index[:, inside])]
    assert np.array_equal(got.reshape(2, -1), want)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("fill", [0.0, 2.5])
def test_linear_equals_scipy(size, bent, fill):
    d, image = len(size), source(len(size))
    pose, bend = random_pose(d, size), random_bend(d) if bent else None
    got = read_patch(image, size, pose, bend, fill=fill)
    at = positions(size, pose, bend)
    for c in range(2):
        want = ndimage.map_coordinates(image[c].astype(float), at, order=1, mode="grid-constant", cval=fill)
        assert np.abs(got[c].ravel() - want).max() < 1e-4
    outside = (at <= -1).any(0) | (at >= np.array(image.shape[1:])[:, None]).any(0)
    assert 0.02 < outside.mean() < 0.9  # the case's border is part of the test
    assert (got[0].ravel()[outside] == np.float32(fill)).all()


def test_linear_inside_a_large_case_far_from_its_origin():
    """Coordinates stay exact thousands of voxels from the origin."""
    image = np.random.default_rng(0).standard_normal((1, 40, 6000)).astype(np.float32)
    pose = np.array([[0.9, 0.05, 3.3], [-0.1, 1.1, 5700.37], [0, 0, 1]])
    want = ndimage.map_coordinates(image[0].astype(float), positions((20, 200), pose, None), order=1, mode="grid-constant")
    assert np.abs(read_patch(image, (20, 200), pose)[0].ravel() - want).max() < 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_linear_equals_torch_grid_sample(size):
    torch = pytest.importorskip("torch")
    d, image = len(size), source(len(size))
    pose = random_pose(d, size)
    at = positions(size, pose, None)
    sides = np.array(image.shape[1:])[:, None]
    grid = torch.as_tensor((2 * at / (sides - 1) - 1)[::-1].copy().T.reshape(1, *size, d))
    want = torch.nn.functional.grid_sample(torch.as_tensor(image, dtype=torch.float64)[None], grid, align_corners=True)[0].numpy()
    assert np.abs(read_patch(image, size, pose) - want).max() < 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_nearest_equals_scipy(size, bent, dtype):
    d = len(size)
    label = np.random.default_rng(2).integers(0, 5, source(d).shape[1:]).astype(dtype)
    pose, bend = random_pose(d, size), random_bend(d) if bent else None
    got = read_patch(label[None], size, pose, bend, order=0)[0]
    at = positions(size, pose, bend)
    want = ndimage.map_coordinates(label, at, order=0, mode="grid-constant")
    clear = (np.abs(at + 0.5 - np.rint(at + 0.5)) > 1e-3).all(0)  # not half-way between two voxels
    assert got.dtype == dtype
    assert np.array_equal(got.ravel()[clear], want[clear])


def test_fill_that_the_dtype_cannot_hold_widens_it():
    label = np.full((1, 4, 4, 4), 255, np.uint8)
    for pose in (np.eye(4), np.diag([1.5, 1, 1, 1])):
        got = read_patch(label, (6, 6, 6), pose, order=0, fill=-1)
        assert got.dtype == np.int16
        assert set(np.unique(got)) == {-1, 255}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("kind", ["memmap", "fortran", "slice", "int16", "float64", "big endian"])
def test_sources_of_any_kind(kind, order, tmp_path):
    image = np.rint(source(3) * 10).astype(np.float32)
    if kind == "memmap":
        np.save(tmp_path / "case.npy", image)
        other = np.load(tmp_path / "case.npy", mmap_mode="r")
    else:
        big = np.zeros((2, 35, 30, 30), np.float32)
        big[:, 1:32, 2:29, 1:30] = image
        other = {
            "fortran": np.asfortranarray(image),
            "slice": big[:, 1:32, 2:29, 1:30],
            "int16": image.astype(np.int16),
            "float64": image.astype(float),
            "big endian": image.astype(">f4"),
        }[kind]
    size = (14, 17, 19)
    for pose, bend in ((random_pose(3, size), None), (random_pose(3, size), random_bend(3)), (np.eye(4), None)):
        assert np.array_equal(read_patch(other, size, pose, bend, order=order), read_patch(image, size, pose, bend, order=order))


@pytest.mark.parametrize("far", [500.0, -500.0])
def test_a_patch_wholly_outside_is_fill(far):
    pose = random_pose(3, (5, 6, 7))
    pose[1, 3] = far
    for array in (source(3), np.asfortranarray(source(3))):
        assert (read_patch(array, (5, 6, 7), pose, random_bend(3), fill=4.0) == 4).all()


@pytest.mark.parametrize("size", SIZES)
def test_constant_coefficients_shift(size):
    """B-splines sum to one: equal coefficients displace every voxel equally."""
    d, image = len(size), source(len(size))
    bend = np.broadcast_to(np.array([1.0, 2.0, -1.0][:d]).reshape(d, *[1] * d), random_bend(d).shape)
    pose = np.eye(d + 1)
    pose[:d, d] = 3
    moved = pose.copy()
    moved[:d, d] += [1.0, 2.0, -1.0][:d]
    assert np.abs(read_patch(image, size, pose, bend) - read_patch(image, size, moved)).max() < 1e-4


def test_linear_coefficients_scale():
    """B-splines reproduce linear functions: coefficients at the control points' coordinates are a magnification."""
    size, n = (21, 25), 6
    h = [(s - 1) / (n - 3) for s in size]
    bend = np.stack(np.meshgrid(*[0.1 * (np.arange(n) - 1) * s for s in h], indexing="ij"))
    points = np.random.default_rng(0).uniform(0, 20, (9, 2))
    assert np.allclose(bend_at(points, size, bend), 0.1 * points)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bent", [False, True])
def test_points_go_where_the_image_goes(size, bent):
    d = len(size)
    pose, bend = random_pose(d, size), random_bend(d) if bent else None
    patch = np.random.default_rng(5).uniform(2, np.array(size) - 3, (20, d))
    q = patch if bend is None else patch + bend_at(patch, size, bend)
    case = q @ pose[:d, :d].T + pose[:d, d]
    assert np.abs(move_points(case, pose, bend, size=size) - patch).max() < 1e-3
    assert move_points(np.zeros((0, d)), pose, bend, size=size).shape == (0, d)


def test_what_cannot_be_read_is_refused():
    image, size = source(3), (8, 8, 8)
    for broken in (
        lambda: read_patch(image, (8, 8), np.eye(3)),
        lambda: read_patch(image, size, np.eye(3)),
        lambda: read_patch(image, size, np.diag([1.0, 0, 1, 1])),
        lambda: read_patch(image, size, np.full((4, 4), np.nan)),
        lambda: read_patch(image, size, np.eye(4), order=3),
        lambda: read_patch(image, size, np.eye(4), np.zeros((3, 3, 4, 4))),
        lambda: read_patch(image, (8, 0, 8), np.eye(4)),
        lambda: move_points(np.zeros((1, 3)), np.eye(4), random_bend(3)),
        lambda: move_points(np.random.default_rng(0).uniform(0, 8, (50, 2)), np.eye(3), random_bend(2, most=40.0), size=(9, 9)),
    ):
        with pytest.raises(GeometryError):
            broken()
