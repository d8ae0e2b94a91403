"""The shared example data: the same voxels and places as nibabel and SimpleITK give."""

import csv
import tomllib
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from vesalius.io import VesaliusNote, header, read_image, read_labels

from .made import SHARED

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="no shared data here")
VOLUMES = sorted(DATA.glob("3d/*/*.nii.gz")) + sorted(DATA.glob("3d/msd_hippocampus/images/*.nii.gz"))[::20]


@pytest.mark.parametrize("path", VOLUMES, ids=lambda p: p.name)
def test_nifti_equals_nibabel(path):
    image, other = read_image(path), nib.load(path)
    voxels = np.asarray(other.dataobj)
    voxels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    assert np.array_equal(image.data, voxels) or np.allclose(image.data, voxels, rtol=1e-6)
    assert np.allclose(image.geometry.affine, other.affine, atol=1e-6)
    assert header(path) == (image.data.shape, image.geometry, image.data.dtype)


@pytest.mark.parametrize("path", sorted(DATA.glob("3d/roi_radiomics/*.nrrd")) + VOLUMES[:4], ids=lambda p: p.name)
def test_equals_simpleitk(path):
    image, other = read_image(path), sitk.ReadImage(str(path))
    assert np.array_equal(image.data[0], sitk.GetArrayFromImage(other).T)
    corner = [n - 1 for n in other.GetSize()]
    lps = np.array(other.TransformIndexToPhysicalPoint(corner))
    assert np.abs(lps * [-1, -1, 1] - image.geometry.to_world(corner)).max() < 1e-3


def _sets():
    for folder in sorted(DATA.glob("*/*")):
        if (folder / "cases.csv").exists() and (folder / "dataset.toml").exists():
            yield folder


@pytest.mark.parametrize("folder", _sets(), ids=lambda f: f.name)
def test_the_first_case_of_every_dataset(folder):
    table = tomllib.loads((folder / "dataset.toml").read_text()).get("labels", {})
    pairs = {name: value for name, value in table.items() if isinstance(value, int)}
    row = next(csv.DictReader(open(folder / "cases.csv", encoding="utf-8")))
    if any(cell.endswith(".svs") for cell in row.values() if cell):
        pytest.skip("slides have a reader of their own")
    if folder.name == "us_cine_4d":
        pytest.skip("its label is a time series, which read_labels refuses")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VesaliusNote)
        for name, cell in row.items():
            if cell and name.startswith("image:"):
                image = read_image(folder / cell)
                assert header(folder / cell) == (image.data.shape, image.geometry, image.data.dtype)
            elif cell and name == "label:reference" and len(pairs) > 1:
                label = read_labels(folder / cell, values=list(pairs.values()), names=list(pairs))
                assert label.data.min() >= 0 and label.data.max() < len(pairs)
