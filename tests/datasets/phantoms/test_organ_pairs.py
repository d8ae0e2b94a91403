"""organ-pairs: the displacement between any two cases is known, and tumours have the volume that is said."""

import numpy as np
import pytest

from vesalius.datasets.phantoms import open_phantom
from vesalius.datasets.phantoms.organ_pairs import displacement, shape_of

CASES = {"train": 4, "test": 4}


@pytest.mark.parametrize("dims", [2, 3])
def test_every_pair_has_a_known_displacement(dims):
    data = open_phantom(f"organ-pairs-{dims}d", cases=CASES)
    a, b = (data.built_in(data[i]) for i in ("train-000", "train-001"))
    here, there = (c.points["landmarks"].xyz for c in (a, b))
    u = displacement(data, "train-000", "train-001", here)
    np.testing.assert_allclose(here + u, there, atol=1e-3)
    back = displacement(data, "train-001", "train-000", here + u)
    np.testing.assert_allclose(u + back, 0, atol=2e-3)
    assert np.linalg.norm(u - u.mean(0), axis=1).max() > 2  # no mere shift


def test_shapes_do_not_fold_and_the_organ_lies_where_its_shape_says():
    data = open_phantom("organ-pairs-2d", cases=CASES, bend=20.0)
    shape = shape_of(data.built_in.who("train", 0), 2)
    p = np.stack(np.meshgrid(*[np.linspace(-60, 60, 61)] * 2, indexing="ij"), -1)
    x = shape.place(p)
    rows, columns = np.gradient(x[..., 0]), np.gradient(x[..., 1])
    assert (rows[0] * columns[1] - rows[1] * columns[0] > 0).all()
    np.testing.assert_allclose(shape.anatomy(x), p, atol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_half_of_the_cases_have_a_tumour_of_the_volume_said_inside_the_organ(dims):
    data = open_phantom(f"organ-pairs-{dims}d", cases=CASES)
    for ref in data.cases[:2]:
        case = data.built_in(ref)
        label = case.labels["reference"].data
        found = (label == 2).sum() * case.geometry.voxel_volume / 1000
        assert found == pytest.approx(ref.table["tumour_ml"], rel=0.1) and bool(found) == bool(ref.id.endswith("1"))
        image = case.images["image"].data[0]
        if found:
            assert image[label == 2].mean() - image[label == 1].mean() > 200


def test_tests_are_made_of_a_case_without_and_one_with_a_tumour():
    data = open_phantom("organ-pairs-2d", cases=CASES)
    assert set(data.pairs_in(data.where("test"))) == {(f"test-00{f}", f"test-00{m}") for f in (0, 2) for m in (1, 3)}
    assert len(data.pairs_in(data.where("train"))) == 12
