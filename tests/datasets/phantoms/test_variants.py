"""Options every phantom has: raters, partial labels, labelled fraction, corruption."""

import numpy as np
import pytest

from vesalius.core.errors import UsageError
from vesalius.datasets.phantoms import open_phantom
from vesalius.datasets.phantoms.corruption import KINDS, corrupt
from vesalius.datasets.phantoms.variants import redraw

IMAGE = (100 * np.random.default_rng(0).random((1, 24, 24, 24)) ** 3 + np.linspace(0, 80, 24)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_corruption_is_monotone_pure_and_keeps_the_type(kind, dtype):
    x = IMAGE.astype(dtype)
    before = x.copy()
    out = [corrupt(x, kind, s, np.random.default_rng(3)) for s in range(1, 6)]
    assert np.array_equal(x, before) and all(y.dtype == dtype and y.shape == x.shape for y in out)
    error = [float(np.mean((y.astype(float) - x) ** 2)) for y in out]
    assert error[0] > 0 and all(a < b for a, b in zip(error, error[1:])), error
    assert np.array_equal(out[2], corrupt(x, kind, 3, np.random.default_rng(3)))


def test_corruption_closed_forms():
    x = np.zeros((1, 32, 32), np.float32)
    x[0, 8:24, 8:24] = 200
    assert np.allclose(corrupt(x, "inversion", 5, np.random.default_rng(0)), 200 - x)
    assert corrupt(x, "blur", 3, np.random.default_rng(0)).sum() == pytest.approx(x.sum(), rel=1e-3)
    noise = corrupt(x, "noise", 4, np.random.default_rng(0)) - x
    assert noise.std() == pytest.approx(0.35 * 100, rel=0.05)
    for bad in (("rain", 3), ("noise", 0), ("noise", 6)):
        with pytest.raises(UsageError, match="severity"):
            corrupt(x, *bad, np.random.default_rng(0))


def test_only_test_images_are_corrupted():
    clean, bad = (open_phantom("shapes-2d", **o) for o in ({}, {"corruption": "blur", "severity": 5}))
    for i, same in (("train-000", True), ("val-000", True), ("test-000", False)):
        a, b = clean.built_in(clean[i]), bad.built_in(bad[i])
        assert np.array_equal(a.images["image"].data, b.images["image"].data) == same
        assert np.array_equal(a.labels["reference"].data, b.labels["reference"].data)
        assert b.table["corruption"] == ("none" if same else "blur") and b.table["severity"] == (0 if same else 5)
    everything = open_phantom("shapes-2d", corruption="blur", corrupted="all")
    assert not np.array_equal(
        everything.built_in(everything["train-000"]).images["image"].data, clean.built_in(clean["train-000"]).images["image"].data
    )
    assert clean.digest() != bad.digest()


def test_raters_disagree_at_the_border_only_and_keep_their_bias():
    manifest = open_phantom("shapes-2d", raters=3)
    sizes = []
    for ref in manifest.cases:
        case = manifest.built_in(ref)
        assert list(case.labels) == ["reference", "rater1", "rater2", "rater3"] == list(ref.labels)
        truth = case.labels["reference"].data
        for name, label in list(case.labels.items())[1:]:
            dice = 2 * ((label.data == 1) & (truth == 1)).sum() / ((label.data == 1).sum() + (truth == 1).sum())
            assert 0.6 < dice < 1, name
        sizes.append([(x.data == 1).sum() / (truth == 1).sum() for x in list(case.labels.values())[1:]])
    mean = np.mean(sizes, 0)
    assert np.ptp(mean) > 0.05 and (np.std(sizes, 0) < np.abs(mean - 1) + 0.25).all()


def test_unbiased_still_rater_draws_the_reference():
    label = np.zeros((40, 40), np.int16)
    label[5:15, 5:15], label[20:35, 18:30] = 1, 2
    assert np.array_equal(redraw(label, np.random.default_rng(0), 0.0, 0.0), label)
    grown = redraw(label, np.random.default_rng(0), 1.0, 0.0)
    assert (grown == 1).sum() == 12 * 12  # one voxel on every side


def test_partial_labels_by_source():
    manifest = open_phantom("torso-ct", annotated="liver|right kidney,left kidney", cases={"train": 2, "test": 1})
    liver, kidneys, test = (manifest.built_in(r) for r in manifest.cases)
    assert liver.labels["reference"].annotated == {"liver"} and set(np.unique(liver.labels["reference"].data)) == {0, 1}
    assert set(np.unique(kidneys.labels["reference"].data)) == {0, 2, 3} and kidneys.source == "right kidney+left kidney"
    assert test.labels["reference"].annotated is None and len(np.unique(test.labels["reference"].data)) == 6
    assert open_phantom("torso-ct", annotated=("liver|right kidney", "left kidney"), cases={"train": 2, "test": 1}) == manifest
    assert liver.source == "liver" and liver.source == manifest["train-000"].source


def test_labelled_fraction_leaves_no_answer_behind():
    manifest = open_phantom("ultrasound", labelled=2, cases={"train": 5, "val": 1, "test": 1})
    assert [bool(r.labels) for r in manifest.cases] == [True, True, False, False, False, True, True]
    assert [r.table["class"] is None for r in manifest.cases] == [False, False, True, True, True, False, False]
    assert not manifest.built_in(manifest["train-003"]).labels
    points = open_phantom("chest-radiograph", labelled=0, cases=(1, 1, 1))
    assert not points["train-000"].points and points["val-000"].points
    clips = open_phantom("tumour-bed", labelled=0, cases=(1, 1, 1))
    assert clips["train-000"].points  # clips are seen, not annotated
