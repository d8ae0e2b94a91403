"""DICOM series: sorted by position, refused with the slices named when they are no volume, equal to SimpleITK where both read."""

import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from vesalius.core.errors import DataError, GeometryError
from vesalius.io import VesaliusNote, header, read_image, read_labels, sniff
from vesalius.io.dicom import series

from .made import SHARED, ct_series, ct_slice

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (9, 7, 5)).astype(np.int16)


def refused(path, *words, error=GeometryError):
    with pytest.raises(error) as caught:
        read_image(path)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"
    assert "CANARY" not in str(caught.value)


def change(path: Path, **attributes):
    ds = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(path)


def test_sorted_by_position_not_by_name_or_number(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME, names=["e", "b", "d", "a", "c"], InstanceNumber=7)
    image = read_image(folder)
    assert image.data.dtype == np.int16 and np.array_equal(image.data[0], VOLUME)
    assert np.allclose(image.geometry.affine, [[-0.6, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])
    assert header(folder) == (image.data.shape, image.geometry, image.data.dtype)


@pytest.mark.parametrize(
    "axes", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0.6, 0.8, 0, -0.48, 0.36, 0.8), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0)]
)
def test_orientations_match_simpleitk(tmp_path, axes):
    normal = np.cross(axes[:3], axes[3:])
    for k in range(4):
        ct_slice(tmp_path / f"{9 - k}.dcm", VOLUME[:, :, k].T.copy(), np.array([5, -7, 11]) + 3 * k * normal, axes)
    image = read_image(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    other = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(other).T, image.data[0])
    for index in ((0, 0, 0), (8, 6, 3), (2, 5, 1)):
        lps = np.array(other.TransformIndexToPhysicalPoint(index))
        assert np.abs(lps * [-1, -1, 1] - image.geometry.to_world(index)).max() < 1e-5


def test_rescale_a_slice(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME, RescaleSlope=1, RescaleIntercept=-1024)
    change(folder / "s002.dcm", RescaleSlope=2.5)
    truth = VOLUME.astype(np.float32) * np.array([1, 1, 2.5, 1, 1], np.float32) - 1024
    assert np.allclose(read_image(folder).data[0], truth) and header(folder)[2] == np.float32


def test_missing_slice(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    (folder / "s002.dcm").unlink()
    refused(folder, "missing", "1 between s001.dcm (32.00 mm) and s003.dcm (36.00 mm)")


def test_double_slice(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    shutil.copy(folder / "s001.dcm", folder / "copy.dcm")
    refused(folder, "1 slices lie where another one lies", "32.00 mm")


def test_uneven_slices(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    change(folder / "s002.dcm", ImagePositionPatient=[-10, -20, 34.7])
    refused(folder, "not evenly spaced", "s002.dcm is 0.7 mm off")
    change(folder / "s002.dcm", ImagePositionPatient=[-10, -19, 34])
    refused(folder, "not evenly spaced", "s002.dcm is 1 mm off")
    change(folder / "s002.dcm", ImagePositionPatient=[-10, -20, 34.05])
    with pytest.warns(VesaliusNote, match="off an even row"):
        assert np.array_equal(read_image(folder).data[0], VOLUME)


def test_localizer_in_the_series(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    ct_slice(folder / "scout.dcm", VOLUME[:, :, 0].T.copy(), (0, 0, 0), (1, 0, 0, 0, 0, -1))
    refused(folder, "different orientations", "scout.dcm")
    ct_slice(folder / "scout.dcm", VOLUME[:5, :, 0].T.copy(), (0, 0, 0))
    refused(folder, "different sizes", "7 x 9 (5 slices)", error=DataError)


def test_several_series(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    for k in range(2):
        ct_slice(folder / f"other{k}.dcm", VOLUME[:, :, k].T.copy(), (0, 0, k), series="9.8.7")
    refused(folder, "2 series in one folder", "1.2.3 (5 files)", "9.8.7 (2 files)", error=DataError)
    assert read_image(f"{folder}#9.8.7").data.shape == (1, 9, 7, 2) and series(folder) == {"1.2.3": 5, "9.8.7": 2}
    with pytest.raises(DataError, match="no such series"):
        read_image(f"{folder}#../../1.2.3")


@pytest.mark.parametrize("degrees", [12.0, 0.2])
def test_gantry_tilt(tmp_path, degrees):
    """Slices that are shifted within their plane: their row of origins is not along their normal."""
    shift = np.tan(np.radians(degrees)) * 2.0
    for k in range(4):
        ct_slice(tmp_path / f"{k}.dcm", VOLUME[:, :, k].T.copy(), (0, shift * k, 2.0 * k))
    refused(tmp_path, "gantry tilt", f"{degrees:.2f} degrees")


def test_other_files_in_the_folder(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME)
    (folder / "notes.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert np.array_equal(read_image(folder).data[0], VOLUME)
    change(folder / "s000.dcm", Modality="SR")
    with pytest.warns(VesaliusNote, match="1 DICOM files that are no images"):
        assert read_image(folder).data.shape[-1] == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "no DICOM image", error=DataError)


def test_pictures_without_a_place(tmp_path):
    pixels = VOLUME[:, :, 0].T.astype(np.uint16)
    path = ct_slice(tmp_path / "a.dcm", pixels, None, None, PixelSpacing=None, Modality="MG", ImagerPixelSpacing=[0.1, 0.07])
    with pytest.warns(VesaliusNote, match="detector"):
        image = read_image(path)
    assert image.data.shape == (1, 7, 9) and image.geometry.spacing == pytest.approx((0.1, 0.07)) and np.array_equal(image.data[0], pixels)
    path = ct_slice(tmp_path / "b.dcm", pixels, None, None, PixelSpacing=None)
    assert read_image(path, spacing=(2, 3)).geometry.spacing == (2, 3)
    refused(tmp_path, "no volume")


def test_pixel_spacing_wins_over_the_detector(tmp_path):
    path = ct_slice(tmp_path / "a.dcm", VOLUME[:, :, 0].T.copy(), (0, 0, 0), ImagerPixelSpacing=[9, 9])
    assert read_image(path).geometry.spacing == pytest.approx((0.6, 0.8, 2.0))


@pytest.mark.parametrize("stored", [12, 16])
def test_monochrome1_is_inverted(tmp_path, stored):
    pixels = np.arange(63, dtype=np.uint16).reshape(7, 9)
    options = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": stored, "HighBit": stored - 1}
    path = ct_slice(tmp_path / "a.dcm", pixels, (0, 0, 0), **options)
    data = read_image(path).data[0, :, :, 0].T
    assert np.array_equal(data, 2**stored - 1 - pixels) and np.array_equal(data, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])


@pytest.mark.parametrize("field, value", [("Rows", 4096), ("NumberOfFrames", 2_000_000_000), ("Columns", 60000)])
def test_promises_beyond_the_file(tmp_path, field, value):
    path = ct_slice(tmp_path / "a.dcm", VOLUME[:, :, 0].T.copy(), (0, 0, 0), **{field: value})
    refused(path, "do not fit the file", "promised", error=DataError)
    with pytest.raises(DataError, match="do not fit"):
        header(path)


@pytest.mark.parametrize(
    "field, value", [("Rows", 0), ("BitsAllocated", 17), ("PixelSpacing", [0, 0]), ("PixelSpacing", [-1, 1]), ("PixelSpacing", None)]
)
def test_impossible_fields(tmp_path, field, value):
    refused(ct_slice(tmp_path / "a.dcm", VOLUME[:, :, 0].T.copy(), (0, 0, 0), **{field: value}), "", error=DataError)


def test_bad_direction_cosines(tmp_path):
    refused(ct_slice(tmp_path / "a.dcm", VOLUME[:, :, 0].T.copy(), (0, 0, 0), (1, 0, 0, 1, 0, 0)), "right angles")


def test_hostile_uids_never_become_paths(tmp_path):
    folder = ct_series(tmp_path / "s", VOLUME, series="../../evil", SOPInstanceUID="../../evil")
    before = sorted(p for p in tmp_path.rglob("*"))
    assert np.array_equal(read_image(folder, cache=tmp_path / "cache").data[0], VOLUME)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def _part10(syntax: bytes, body: bytes) -> bytes:
    """A DICOM file by hand: preamble, meta header with one element, data set."""
    meta = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    return b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta + body


@pytest.mark.parametrize("depth", [500, 3000, 50000])
def test_deep_sequences(tmp_path, depth):
    level = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (tmp_path / "a.dcm").write_bytes(_part10(b"1.2.840.10008.1.2.1\0", level * depth))
    refused(tmp_path / "a.dcm", "nested too deeply", error=DataError)


def test_deflated_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("vesalius.io.dicom._MOST_UNPACKED", 1 << 24)
    engine = zlib.compressobj(9, wbits=-15)
    body = engine.compress(b"\0" * (1 << 25)) + engine.flush()
    (tmp_path / "a.dcm").write_bytes(_part10(b"1.2.840.10008.1.2.1.99", body))
    refused(tmp_path / "a.dcm", "implausibly large", error=DataError)


def test_enhanced_multiframe(tmp_path):
    """Positions from per-frame groups, in any order; spacing and rescale shared."""
    order = [3, 0, 4, 1, 2]
    frames = np.stack([VOLUME[:, :, k].T for k in order])
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], 2
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept = 2, 1
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([values])
    groups = []
    for k in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, 30 + 2 * k]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    path = ct_slice(
        tmp_path / "a.dcm",
        frames,
        None,
        None,
        PixelSpacing=None,
        NumberOfFrames=5,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
    )
    image = read_image(path)
    assert np.array_equal(image.data[0], VOLUME * 2.0 + 1) and image.geometry.orientation == "LPS"
    assert image.geometry.origin == pytest.approx((10, 20, 30)) and image.geometry.spacing == pytest.approx((0.6, 0.8, 2))
    change(path, PerFrameFunctionalGroupsSequence=Sequence(groups[:4]))
    refused(path, "contradict", error=DataError)


def test_a_mask_series_is_a_label_map(tmp_path):
    folder = ct_series(tmp_path / "s", (VOLUME > 0).astype(np.uint16))
    assert np.array_equal(read_labels(folder, values=[0, 1], names="ab").data, VOLUME > 0)


PACKAGED = [
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_implicit.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm", "examples_overlay.dcm", "image_dfl.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_small_odd_big_endian.dcm", "examples_palette.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_equal_simpleitk(name):
    path = get_testdata_file(name)
    image = read_image(path)
    other = sitk.ReadImage(path)
    data = image.data.transpose(3, 2, 1, 0) if image.data.ndim == 4 else image.data.transpose(1, 2, 0)[None]
    assert sniff(path) == "dicom" and np.array_equal(data.squeeze(), sitk.GetArrayFromImage(other).squeeze())
    assert header(path) == (image.data.shape, image.geometry, image.data.dtype)
    if image.data.ndim == 4:
        lps = np.array(other.TransformIndexToPhysicalPoint((1, 2, 0)))
        assert np.abs(lps * [-1, -1, 1] - image.geometry.to_world([1, 2, 0])).max() < 1e-6


@pytest.mark.parametrize(
    "name", ["MR_truncated.dcm", "rtstruct.dcm", "liver_1frame.dcm", "test-SR.dcm", "badVR.dcm", "no_meta.dcm", "rtplan_truncated.dcm"]
)
def test_packaged_files_that_are_refused(name):
    refused(get_testdata_file(name), "", error=DataError)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_a_real_series_equals_simpleitk():
    folder = SHARED / "data/3d/dicom_samples/qin_prostate/ADC"
    image = read_image(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(other).T, image.data[0])
    for index in ((0, 0, 0), (255, 255, 19), (100, 50, 10)):  # ITK takes the mean step along the normal, we the row of origins
        lps = np.array(other.TransformIndexToPhysicalPoint(index))
        assert np.abs(lps * [-1, -1, 1] - image.geometry.to_world(index)).max() < 0.01
