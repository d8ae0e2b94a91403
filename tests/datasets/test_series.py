"""DICOM series as the images of a plain folder: one case a series, its label on the series' own grid."""

import numpy as np
import pytest

from vesalius import io
from vesalius.core.errors import DataError
from vesalius.datasets import open_dataset, read_case

from ..io.made import ct_slice
from ..io.test_dicom_seg import AXES


def series(folder, kind="axial", uid="1.2.5", slices=5):
    """(columns 7, rows 6) without any symmetry, one slice a file, without an ending."""
    folder.mkdir(parents=True, exist_ok=True)
    axes, step = AXES[kind]
    data = np.arange(7 * 6 * slices, dtype=np.int16).reshape(7, 6, slices)
    for k in range(slices):
        ct_slice(folder / f"{uid}-{k}", data[..., k].T.copy(), np.array([-11.0, 7.0, 30.0]) + k * np.array(step), axes, series=uid)
    return folder


@pytest.mark.parametrize("kind", ["axial", "descending", "coronal", "oblique"])
@pytest.mark.parametrize("images", ["images", ""])
def test_a_folder_of_slices_is_a_volume_with_its_label(tmp_path, kind, images):
    for name in ("left", "right"):
        image = io.read_image(series(tmp_path / images / name, kind))
        label = (np.asarray(image.data[0]) > np.median(image.data)).astype(np.uint8)
        (tmp_path / "labels").mkdir(exist_ok=True)
        io.write_labels(tmp_path / "labels" / f"{name}.nii.gz", label, image.geometry, values=(0, 1))
    manifest = open_dataset(tmp_path)
    assert (manifest.dims, [c.id for c in manifest.cases], manifest.names) == (3, ["left", "right"], ("background", "foreground"))
    case = read_case(manifest, "right")
    assert case.geometry.close(image.geometry) and np.array_equal(case.images["image"].data, image.data)
    assert np.array_equal(np.asarray(case.labels["reference"].on(case.geometry).data), label)


def test_slices_directly_in_the_folder_are_one_case(tmp_path):
    manifest = open_dataset(series(tmp_path / "patient"))
    assert (manifest.dims, [c.id for c in manifest.cases]) == (3, ["patient"])
    assert read_case(manifest, "patient").geometry.shape == io.read_image(tmp_path / "patient").geometry.shape


def test_pictures_one_a_series_stay_pictures(tmp_path):
    for k in range(3):
        made = series(tmp_path / "made", uid=f"1.2.{k}", slices=1) / f"1.2.{k}-0"
        (tmp_path / "flat").mkdir(exist_ok=True)
        made.rename(tmp_path / "flat" / f"view{k}.dcm")
    manifest = open_dataset(tmp_path / "flat")
    assert [c.id for c in manifest.cases] == ["view0", "view1", "view2"] and manifest.dims == 2


def test_mixed_series_say_what_to_do(tmp_path):
    series(tmp_path / "mixed", uid="1.2.5")
    series(tmp_path / "mixed", uid="1.2.6")
    with pytest.raises(DataError, match="several DICOM series in one folder.*2 series.*a folder of its own"):
        open_dataset(tmp_path / "mixed")


def test_a_broken_file_among_pictures_is_named(tmp_path):
    series(tmp_path / "made", uid="1.2.1", slices=1)
    (tmp_path / "flat").mkdir()
    (tmp_path / "made" / "1.2.1-0").rename(tmp_path / "flat" / "view0.dcm")
    (tmp_path / "flat" / "view1.dcm").write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"view1\.dcm"):
        read_case(open_dataset(tmp_path / "flat"), "view1")
