"""prostate-zones: the answers it states, which zones touch, and which are thin."""

import numpy as np
import pytest
from scipy import ndimage

from vesalius.datasets.phantoms import open_phantom


def cases(**options):
    data = open_phantom("prostate-zones", cases={"train": 12}, **options)
    return [(ref, data.built_in(ref)) for ref in data.cases]


def test_the_gland_has_the_volume_said():
    for ref, case in cases()[:4]:
        found = (case.labels["reference"].data > 0).sum() * case.geometry.voxel_volume / 1000
        assert found == pytest.approx(ref.table["gland_ml"], rel=0.03)
        assert case.geometry.shape == (48, 48, 12) and sorted(case.geometry.spacing) == [1.25, 1.25, 3.0]


def test_the_stroma_is_missing_where_it_is_said_and_every_other_zone_is_there():
    found = cases(no_afs=0.5)
    present = [ref.table["afs_mm"] > 0 for ref, _ in found]
    assert 2 < sum(present) < 10
    for (_, case), afs in zip(found, present, strict=True):
        counts = np.bincount(case.labels["reference"].data.ravel(), minlength=5)
        assert (counts[1:4] > 0).all() and (counts[4] > 0) == afs


def test_two_zones_are_large_and_two_are_thin():
    for _, case in cases(no_afs=0.0)[:4]:
        label = case.labels["reference"].data
        pz, tz, dpu, afs = (int((label == k).sum()) for k in range(1, 5))
        assert min(pz, tz) > 600 and max(dpu, afs) < 0.25 * pz
        assert ndimage.label(label == 3)[1] == 1  # a tube in one piece
        touching = (ndimage.binary_dilation(label == 2) & (label == 1)).sum()
        assert touching > 100


def test_the_zones_differ_by_about_a_few_times_the_noise():
    _, case = cases(no_afs=0.0)[0]
    image, label = case.images["T2"].data[0], case.labels["reference"].data
    means = [image[label == k].mean() for k in range(1, 5)]
    assert means[0] > means[1] > means[3] and means[0] > means[2]
    _, quiet = cases(no_afs=0.0, noise=0.0)[0]
    assert 20 < (image.astype(float) - quiet.images["T2"].data[0]).std() < 50
