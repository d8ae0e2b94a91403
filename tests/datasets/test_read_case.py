"""Reading cases: grids that must agree, ignore values, stacks, marks, and every real folder of the workshop."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.datasets import open_dataset, read_case

from .folders import TOML, picture, small_3d, volume, written

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FOLDERS = sorted(str(p.parent.relative_to(SHARED)) for p in SHARED.rglob("dataset.toml")) if SHARED.is_dir() else []


@pytest.mark.skipif(not FOLDERS, reason="the workshop's shared data are not here")
@pytest.mark.parametrize("folder", FOLDERS or ["none"])
def test_real_folders_open_and_read(folder):
    manifest = open_dataset(SHARED / folder)
    for split in ("train", "val", "test"):
        for case_id in manifest.where(split)[:1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case = read_case(manifest, case_id)
            ref = manifest[case_id]
            assert set(case.images) == set(ref.images) and set(case.rois) == set(ref.rois) and case.text == ref.text
            for label in case.labels.values():
                assert label.data.shape == label.geometry.shape and label.data.dtype.kind in "iu"
                assert manifest.instances or label.data.max() < manifest.classes
            if case.images:
                assert all(np.isfinite(image.data).all() for image in case.images.values())


@pytest.mark.skipif(not FOLDERS, reason="the workshop's shared data are not here")
def test_real_scribbles_raters_and_spacings():
    acdc = open_dataset(SHARED / "3d/acdc_scribble")
    case = read_case(acdc, "patient002_frame01")
    assert case.geometry.spacing == (10.0, 1.5, 1.5) and acdc.ignore == 4
    assert case.labels["scribble"].data.min() == -1 and case.labels["reference"].data.min() == 0
    lidc = open_dataset(SHARED / "2d/lidc_multirater")
    case = read_case(lidc, lidc.cases[0].id)
    assert list(case.labels) == [f"raters[{k}]" for k in range(4)] and case.geometry.spacing == (0.741, 0.741)
    ct = open_dataset(SHARED / "3d/ct_lesion_medsam2")
    assert read_case(ct, ct.cases[0].id).geometry.spacing == (5.0, 0.314453, 0.314453)
    cine = read_case(open_dataset(SHARED / "3d/us_cine_4d"), "img4d_11f")
    assert cine.images["cine"].data.shape[0] == 11 == len(cine.labels)
    thermal = open_dataset(SHARED / "2d/breast_thermal")
    case = read_case(thermal, thermal.cases[0].id)  # two sides are two pictures: no common grid
    assert case.images["left"].geometry.shape != case.images["right"].geometry.shape


def test_values_become_class_indices_on_the_images_grid(tmp_path):
    manifest = open_dataset(small_3d(tmp_path))
    case = read_case(manifest, "c0")
    assert np.unique(case.labels["reference"].data).tolist() == [0, 1, 2] and case.labels["reference"].names == (
        "background",
        "lesion",
        "cyst",
    )
    assert case.labels["reference"].geometry == case.images["T1"].geometry and case.table == {"age": 40}
    assert read_case(manifest, "c1").labels == {} and read_case(manifest, "c0", labels=False).labels == {}
    with pytest.raises(UsageError, match="unknown case 'c9'"):
        read_case(manifest, "c9")


def test_label_within_tolerance_takes_the_images_grid(tmp_path):
    near = np.diag([1.0, 1.5, 2.0, 1.0])
    near[0, 3] = 5e-4
    manifest = open_dataset(small_3d(tmp_path))
    volume(tmp_path / "l0.nii.gz", np.ones((5, 6, 7), np.uint8), near)
    case = read_case(manifest, "c0")
    assert case.labels["reference"].geometry == case.images["T1"].geometry


@pytest.mark.parametrize("fault", ["shape", "origin", "flip"])
def test_other_grid_names_both_files(tmp_path, fault):
    manifest = open_dataset(small_3d(tmp_path))
    affine, shape = np.diag([1.0, 1.5, 2.0, 1.0]), (5, 6, 7)
    if fault == "origin":
        affine[2, 3] = 5
    if fault == "flip":
        affine[0, 0] = -1
    volume(tmp_path / "l0.nii.gz", np.zeros((5, 6, 8) if fault == "shape" else shape, np.uint8), affine)
    with pytest.raises(GeometryError) as error:
        read_case(manifest, "c0")
    for word in ("i0.nii.gz", "l0.nii.gz", "case c0", "resample", "1 x 1.5 x 2 mm"):
        assert word in str(error.value)


def test_channels_on_different_grids(tmp_path):
    volume(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    volume(tmp_path / "b.nii.gz", np.zeros((3, 4, 6), np.int16))
    manifest = open_dataset(written(tmp_path, "case,image:T1,image:T2\nx,a.nii.gz,b.nii.gz\n"))
    with pytest.raises(GeometryError, match="images 'T1' and 'T2' lie on different grids"):
        read_case(manifest, "x")


def test_unknown_value_and_missing_file(tmp_path):
    manifest = open_dataset(small_3d(tmp_path))
    volume(tmp_path / "l0.nii.gz", np.full((5, 6, 7), 3, np.uint8))
    with pytest.raises(DataError, match="not in the label table.*3"):
        read_case(manifest, "c0")
    (tmp_path / "i2.nii.gz").unlink()
    with pytest.raises(DataError, match="i2.nii.gz"):
        read_case(manifest, "c2")


def test_pictures(tmp_path):
    """A grey 'RGB' has three channels, a coloured 'US' one; a mask in 2D needs the shape alone; an ROI is what is not 0."""
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    picture(tmp_path / "grey.png", grey)
    picture(tmp_path / "same.png", np.stack([grey] * 3, -1))
    picture(tmp_path / "mask.png", (grey > 20).astype(np.uint8))
    toml = TOML.format(dims=2) + "[targets]\n"
    csv = "case,image:RGB,label:reference,roi:fov\na,grey.png,mask.png,grey.png\n"
    case = read_case(open_dataset(written(tmp_path, csv, "spacing_mm = [0.5, 0.25]\n" + toml)), "a")
    assert case.images["RGB"].data.shape == (3, 6, 8) and case.geometry.spacing == (0.5, 0.25)
    assert case.rois["fov"].data.sum() == 47 and case.labels["reference"].data.sum() == 27
    csv = "case,image:US\na,same.png\n"
    assert np.array_equal(read_case(open_dataset(written(tmp_path, csv, toml)), "a").images["US"].data[0], grey)


def test_points_and_boxes(tmp_path):
    volume(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    (tmp_path / "p.csv").write_text("i,j,k,name\n1,2,3,apex\n")
    (tmp_path / "b.json").write_text(json.dumps({"low": [[4, 3, 2]], "high": [[0, 0, 0]], "labels": ["lesion"]}))
    csv = 'case,image:T1,points:inline,points:table,boxes:found\nx,a.nii.gz,"[[1, 2, 3], [4, 5, 6]]",p.csv,b.json\n'
    case = read_case(open_dataset(written(tmp_path, csv)), "x")
    assert case.points["inline"].xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert case.points["table"].xyz.tolist() == [[1, 3, 6]] and case.points["table"].names == ("apex",)
    assert case.boxes["found"].low.tolist() == [[0, 0, 0]] and case.boxes["found"].high.tolist() == [[4, 3, 2]]
    manifest = open_dataset(written(tmp_path, 'case,image:T1,points:p\nx,a.nii.gz,"[[1, 2]]"\n'))
    with pytest.raises(DataError, match="rows of 3"):
        read_case(manifest, "x")
