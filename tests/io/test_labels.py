"""Label maps: file values become class indices by the table, and whatever the table does not hold is refused with its counts."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.io import read_labels, write_labels

NAMES = ("background", "left", "right")


def put(path, data):
    nib.save(nib.Nifti1Image(np.asarray(data), np.eye(4)), path)
    return path


def volume(*values, dtype=np.int16):
    data = np.zeros((4, 4, 4), dtype)
    data.flat[: len(values)] = values
    return data


def test_a_boolean_mask_is_written_by_the_table(tmp_path):
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2] = True
    write_labels(tmp_path / "m.nii.gz", mask, Geometry.of(mask.shape), values=(0, 255))
    stored = np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj)
    assert np.array_equal(stored == 255, mask) and set(np.unique(stored)) == {0, 255}


def test_values_become_indices(tmp_path):
    path = put(tmp_path / "a.nii.gz", volume(10, 20, 10, 4))
    label = read_labels(path, values=[0, 20, 10], names=NAMES, ignore=4)
    assert label.data.dtype == np.int16 and label.data.ravel()[:4].tolist() == [2, 1, 2, IGNORE] and label.names == NAMES
    assert read_labels(put(tmp_path / "b.nii", volume(10)), values=[0, 10], names=NAMES[:2]).data.dtype == np.uint8


def test_against_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32):
        values = rng.choice(np.arange(0 if np.dtype(dtype).kind == "u" else -50, 120), 20, replace=False)
        data = rng.choice(values, (6, 7, 8)).astype(dtype)
        got = read_labels(put(tmp_path / "a.nii.gz", data), values=values.tolist(), names=[str(v) for v in values]).data
        assert all(values[k] == v for k, v in zip(got.ravel(), data.ravel()))


def test_far_apart_values(tmp_path):
    path = put(tmp_path / "a.nii.gz", volume(2_000_000_000, 7, dtype=np.int32))
    assert read_labels(path, values=[0, 7, 2_000_000_000], names=NAMES).data.ravel()[:3].tolist() == [2, 1, 0]
    with pytest.raises(DataError, match=r"2000000000 \(1 voxels\)"):
        read_labels(path, values=[0, 7], names=NAMES[:2])


@pytest.mark.parametrize("dtype, odd", [(np.int16, -1), (np.uint8, 255), (np.uint16, 65535), (np.float32, 3.0)])
def test_unknown_values_are_listed(tmp_path, dtype, odd):
    path = put(tmp_path / "a.nii.gz", volume(1, odd, odd, dtype=dtype))
    with pytest.raises(DataError) as caught:
        read_labels(path, values=[0, 1], names=NAMES[:2])
    assert f"{int(odd)} (2 voxels)" in str(caught.value) and "allowed: 0, 1" in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("odd", [0.999, 0.4, np.nan, np.inf])
def test_fractions_are_refused(tmp_path, odd):
    with pytest.raises(DataError, match="whole numbers"):
        read_labels(put(tmp_path / "a.nii.gz", volume(1, odd, dtype=np.float32)), values=[0, 1], names=NAMES[:2])


@pytest.mark.parametrize(
    "table",
    [
        dict(values=[0, 1], names=["a"]),
        dict(values=[], names=[]),
        dict(values=[0, 0], names="ab"),
        dict(values=[0, 1], names="ab", ignore=1),
    ],
)
def test_bad_tables(tmp_path, table):
    with pytest.raises(DataError):
        read_labels(put(tmp_path / "a.nii.gz", volume(1)), **table)


def test_instances(tmp_path):
    path = put(tmp_path / "a.nii.gz", volume(1, 70000, 3, 9, dtype=np.int32))
    label = read_labels(path, values=[], names=("background", "nucleus"), instances=True, ignore=9)
    assert label.instances and label.data.dtype == np.int32 and label.data.ravel()[:5].tolist() == [1, 70000, 3, IGNORE, 0]
    with pytest.raises(DataError, match="negative"):
        read_labels(put(path, volume(-3)), values=[], names=("background", "nucleus"), instances=True)


def test_time_series_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 channels"):
        read_labels(put(tmp_path / "a.nii.gz", np.zeros((3, 3, 3, 2), np.uint8)), values=[0], names=["background"])


# --------------------------------------------------------------------------------------------------------------------------- pictures
def mask() -> np.ndarray:
    data = np.zeros((20, 30), np.uint8)
    data[5:15, 4:12] = 255
    return data


def read(path, values=(0, 255), **options):
    return read_labels(path, values=values, names=NAMES[: len(values)], **options).data


def test_lossy_files_are_refused(tmp_path):
    Picture.fromarray(mask()).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    for name in ("a.jpg", "b.png"):
        with pytest.raises(DataError, match="lossy"):
            read(tmp_path / name)


def test_soft_edges_are_refused(tmp_path):
    Picture.fromarray(mask()).resize((60, 40), Picture.Resampling.BICUBIC).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="anti-aliased"):
        read(tmp_path / "a.png")


def test_colour_masks(tmp_path):
    grey = np.repeat(mask()[..., None], 3, -1)
    Picture.fromarray(grey).save(tmp_path / "a.png")
    Picture.fromarray(np.dstack([grey, np.full((20, 30), 255, np.uint8)])).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(read(tmp_path / name), mask() // 255)
    grey[3, 3, 1] = 9
    Picture.fromarray(grey).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="colour"):
        read(tmp_path / "c.png")


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_one_bit_masks_mean_what_the_table_means(tmp_path, values):
    Picture.fromarray(mask()).convert("1").save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", values), mask() // 255)


def test_palette_masks_are_their_indices(tmp_path):
    picture = Picture.fromarray((mask() // 255 * 2).astype(np.uint8), mode="L").convert("P")
    picture = Picture.fromarray(mask() // 255 * 2)
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 10, 10])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", (0, 1, 2)), mask() // 255 * 2)


def test_sixteen_bit_ids(tmp_path):
    ids = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Picture.fromarray(ids).save(tmp_path / "a.png")
    label = read_labels(tmp_path / "a.png", values=[], names=("background", "nucleus"), instances=True)
    assert np.array_equal(label.data, ids)


# ---------------------------------------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".mha", ".nrrd", ".npz", ".npy"])
@pytest.mark.parametrize(
    "values, dtype", [(None, np.uint8), ([0, 5, 1000], np.int16), ([0, -1, 40000], np.int32), ([0, 1, 60000], np.uint16)]
)
def test_trip_of_values(tmp_path, extension, values, dtype):
    label = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    path = tmp_path / f"a{extension}"
    write_labels(path, label, Geometry.of(label.shape, (1, 2, 3)), values=values, names=NAMES)
    back = read_labels(path, values=values or range(3), names=NAMES, spacing=(1, 2, 3))
    assert np.array_equal(back.data, label) and back.geometry.spacing == pytest.approx((1, 2, 3))
    if extension == ".nii.gz":
        assert nib.load(path).get_data_dtype() == dtype


def test_what_cannot_be_written(tmp_path):
    geometry, label, path = Geometry.of((4, 5)), np.zeros((4, 5), np.int16), tmp_path / "a.png"
    path.write_bytes(b"old")
    for bad, options, word in (
        (label + IGNORE, {}, "IGNORE"),
        (label + 3, {"values": [0, 1]}, "without a file value"),
        (label - 5, {}, "without a file value"),
        (label + 1, {"values": [0, -7]}, "PNG cannot hold"),
        (label, {"values": [0, 1], "names": ["a"]}, "one length"),
        (label.astype(float), {}, "integers"),
    ):
        with pytest.raises(DataError, match=word):
            write_labels(path, bad, geometry, **options)
    with pytest.raises(GeometryError):
        write_labels(path, label[:3], geometry)
    with pytest.raises(DataError, match="extension"):
        write_labels(tmp_path / "a.jpg", label, geometry)
    with pytest.raises(DataError, match="2D images"):
        write_labels(path, np.zeros((2, 2, 2), int), Geometry.of((2, 2, 2)))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("extension", [".png", ".tif", ".npz", ".nii.gz"])
def test_two_dimensional_trip(tmp_path, extension):
    label = np.random.default_rng(0).integers(0, 3, (7, 5))
    write_labels(tmp_path / f"a{extension}", label, Geometry.of((7, 5), 0.5), values=[0, 100, 300], names=NAMES)
    back = read_labels(tmp_path / f"a{extension}", values=[0, 100, 300], names=NAMES, spacing=(0.5, 0.5))
    assert np.array_equal(back.data, label) and back.geometry.spacing == pytest.approx((0.5, 0.5))
