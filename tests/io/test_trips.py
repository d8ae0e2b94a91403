"""Nothing moves: an asymmetric object keeps its world positions through every volume format, in all orientations and oblique."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from vesalius.core.geometry import Geometry
from vesalius.io import header, read_image, read_labels, write_image, write_labels

from .made import asymmetric, marks

VOLUMES = (".nii.gz", ".nii", ".mha", ".nrrd", ".npz")


def orientations():
    """The 48 signed axis permutations."""
    for perm in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            direction = np.zeros((3, 3))
            direction[list(perm), range(3)] = signs
            yield direction


def oblique(angles) -> np.ndarray:
    """A rotation, rounded to what a NIfTI-1 header (float32) can hold."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def grid(direction) -> Geometry:
    made = Geometry.of((7, 9, 11), (0.75, 1.25, 2.5), (12.5, -30.25, 7.75), direction)
    return Geometry(made.shape, made.affine.astype(np.float32).astype(float))


@pytest.mark.parametrize("extension", (".nii.gz", ".mha", ".nrrd"))
def test_48_orientations(tmp_path, extension):
    data = asymmetric()
    for direction in orientations():
        geometry = grid(direction)
        write_image(tmp_path / f"a{extension}", data[None], geometry)
        image = read_image(tmp_path / f"a{extension}")
        assert image.data.dtype == np.int16 and image.geometry.orientation == geometry.orientation
        assert np.abs(marks(image.data[0], image.geometry) - marks(data, geometry)).max() < 1e-6


@pytest.mark.parametrize("extension", VOLUMES)
@pytest.mark.parametrize("angles", [(20, -35, 50), (1, 2, 3), (89, 0.5, -120)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_oblique(tmp_path, extension, angles, mirrored):
    data, geometry = asymmetric(), grid(oblique(angles) * ([-1, 1, 1] if mirrored else 1))
    write_image(tmp_path / f"a{extension}", data[None], geometry)
    image = read_image(tmp_path / f"a{extension}")
    assert np.abs(marks(image.data[0], image.geometry) - marks(data, geometry)).max() < 1e-6
    assert np.sign(np.linalg.det(image.geometry.direction)) == (-1 if mirrored else 1)
    assert header(tmp_path / f"a{extension}") == (image.data.shape, image.geometry, image.data.dtype)


def test_chain_of_formats(tmp_path):
    """nii.gz -> mha -> nrrd -> nii.gz ends where it began."""
    data, geometry = asymmetric(), grid(oblique((33, 12, -71)))
    write_image(tmp_path / "0.nii.gz", data[None], geometry)
    for k, extension in enumerate((".mha", ".nrrd", ".nii.gz")):
        source = read_image(next(tmp_path.glob(f"{k}.*")))
        write_image(tmp_path / f"{k + 1}{extension}", source.data, source.geometry)
    image = read_image(tmp_path / "3.nii.gz")
    assert np.abs(marks(image.data[0], image.geometry) - marks(data, geometry)).max() < 1e-6


@pytest.mark.parametrize("extension", (".nii.gz", ".mha", ".nrrd"))
def test_other_libraries_agree(tmp_path, extension):
    """SimpleITK (LPS+) and nibabel (RAS+) place our voxels where we do, and we theirs."""
    data, geometry = asymmetric(), grid(oblique((20, -35, 50)))
    path = str(tmp_path / f"a{extension}")
    write_image(path, data[None], geometry)
    image = sitk.ReadImage(path)
    for index in ((0, 0, 0), (6, 8, 10), (4, 3, 8)):
        assert image[index] == data[index]
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.abs(lps * [-1, -1, 1] - geometry.to_world(index)).max() < 1e-4
    if extension == ".nii.gz":
        other = nib.load(path)
        assert np.array_equal(other.get_fdata(), data) and np.allclose(other.affine, geometry.affine, atol=1e-6)
        assert int(other.header["sform_code"]) == int(other.header["qform_code"]) == 1
        assert bytes(other.header["descrip"]).strip(b"\0") == b"" and other.header.get_xyzt_units()[0] == "mm"
    sitk.WriteImage(image, str(tmp_path / f"b{extension}"), useCompression=True)
    back = read_image(tmp_path / f"b{extension}")
    assert np.array_equal(back.data[0], data) and back.geometry.corner_distance(geometry) < 1e-4


def test_nrrd_in_ras_space(tmp_path):
    data = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    head = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(head.encode() + data.tobytes())
    image = read_image(tmp_path / "a.nrrd")
    assert np.array_equal(image.data[0], data.T)
    assert np.allclose(image.geometry.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("extension", (".nii.gz", ".mha", ".nrrd", ".npz"))
def test_channels(tmp_path, extension):
    data = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    write_image(tmp_path / f"a{extension}", data, Geometry.of((4, 5, 6), 2.0))
    assert np.array_equal(read_image(tmp_path / f"a{extension}").data, data)


@pytest.mark.parametrize("extension", (".nii.gz", ".nii", ".mha", ".nrrd", ".npz"))
def test_two_dimensions_keep_their_grid(tmp_path, extension):
    label = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, 1]], np.int16)
    affine = np.array([[0.5, 0, 3], [0, -0.25, 4], [0, 0, 1]])
    geometry = Geometry(label.shape, affine)
    write_labels(tmp_path / f"a{extension}", label, geometry)
    back = read_labels(tmp_path / f"a{extension}", values=range(4), names="abcd")
    assert np.array_equal(back.data, label) and back.geometry.close(geometry, 1e-9)
    if extension == ".nii.gz":
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))), label)  # (row, column) there too


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (300, 2, 1)])
def test_thin_volumes_stay_volumes(tmp_path, shape):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape)
    write_image(tmp_path / "a.nii.gz", data, Geometry.of(shape))
    image = read_image(tmp_path / "a.nii.gz")
    assert image.geometry.shape == shape and np.array_equal(image.data, data)


def test_a_long_side_needs_nifti_2(tmp_path):
    data = np.arange(40000, dtype=np.int32).reshape(1, 40000, 1, 1)
    write_image(tmp_path / "a.nii.gz", data, Geometry.of((40000, 1, 1), 0.1))
    assert isinstance(nib.load(tmp_path / "a.nii.gz"), nib.Nifti2Image)
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").data, data)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float32, np.float64])
def test_every_type_is_kept(tmp_path, dtype):
    data = np.array([0, 1, 100, 27], dtype).reshape(1, 2, 2, 1)
    for extension in (".nii.gz", ".mha", ".nrrd", ".npz"):
        write_image(tmp_path / f"a{extension}", data, Geometry.of((2, 2, 1)))
        back = read_image(tmp_path / f"a{extension}").data
        assert back.dtype == dtype and np.array_equal(back, data)
