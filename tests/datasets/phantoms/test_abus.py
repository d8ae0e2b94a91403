"""The abus phantom: known answers, deterministic, lesion darker than tissue and shadows beside it."""

import numpy as np
import pytest

from vesalius.datasets import open_dataset, read_case


@pytest.fixture(scope="module")
def cases():
    manifest = open_dataset("phantom:abus?cases=12")
    return [read_case(manifest, c.id) for c in manifest.cases]


def test_answers_are_true(cases):
    for case in cases:
        mask = case.labels["reference"].data == 1
        assert mask.sum() * case.geometry.voxel_volume == pytest.approx(case.table["lesion_mm3"], rel=0.12)
        assert case.answers == {"malignant", "lesion_mm3", "shadows"}
    assert {c.table["malignant"] for c in cases} == {0, 1}


def test_a_lesion_is_dark_and_whole(cases):
    for case in cases:
        image, mask = case.images["ABUS"].data[0].astype(float), case.labels["reference"].data == 1
        assert image.dtype and image[mask].mean() < image[~mask].mean() - 25
        border = np.ones(mask.shape, bool)
        border[1:-1, 1:-1, 1:-1] = False
        assert not (mask & border).any()


def test_shadows_are_an_option():
    with_, without = (open_dataset(f"phantom:abus?cases=4&shadows={s}") for s in ("true", "false"))
    a, b = read_case(with_, "train-000"), read_case(without, "train-000")
    assert b.table["shadows"] == 0 < a.table["shadows"]
    assert np.array_equal(a.labels["reference"].data, b.labels["reference"].data)
    assert (a.images["ABUS"].data != b.images["ABUS"].data).any()


def test_same_bits_again():
    again = [read_case(open_dataset("phantom:abus?cases=3"), "train-000").images["ABUS"].data for _ in range(2)]
    assert np.array_equal(*again)


def test_the_box_is_the_lesions_own_and_an_annotation(cases):
    for case in cases[:3]:
        box, grid = case.boxes["lesion"], case.geometry
        mask = case.labels["reference"].data == 1
        index = np.sort(grid.to_index(np.stack([box.low[0], box.high[0]])), axis=0)
        at = np.argwhere(mask)
        assert np.allclose(index, [at.min(0) - 0.5, at.max(0) + 0.5])
        assert not case.without_labels().boxes
    manifest = open_dataset("phantom:abus?cases=4&labelled=1")
    assert [bool(c.boxes) for c in manifest.cases if c.split == "train"] == [True, False]
    assert not read_case(manifest, "train-001").boxes
