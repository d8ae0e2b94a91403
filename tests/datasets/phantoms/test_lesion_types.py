"""lesion-types: what training never shows is in every test case, in no label, and looks unlike the known types."""

import numpy as np
import pytest

from vesalius.datasets.phantoms import open_phantom

UNSEEN = ("mottled", "calcified", "layered")


def cases(split: str, n: int = 12, **options):
    manifest = open_phantom("lesion-types", **options)
    return [manifest.built_in(manifest[i]) for i in manifest.where(split)[:n]]


def test_only_test_cases_hold_the_unseen_type():
    for split in ("train", "val"):
        assert not any(c.rois["unseen"].data.any() or c.table["unseen_mm2"] for c in cases(split))
    for c in cases("test"):
        unseen, label = c.rois["unseen"].data > 0, c.labels["reference"].data
        assert unseen.sum() == pytest.approx(c.table["unseen_mm2"], rel=0.06) and (label[unseen] == 1).all()
        assert c.labels["reference"].names == ("background", "organ", "cyst", "solid")


def test_known_answers():
    for c in cases("train") + cases("test"):
        label = c.labels["reference"].data
        for k, name in ((2, "cyst"), (3, "solid")):
            assert (label == k).sum() == pytest.approx(c.table[f"{name}_mm2"], rel=0.08, abs=4)
        assert (label > 1).any() and 2500 < (label > 0).sum() < 4600
    both = [(c.table["cyst_mm2"] > 0, c.table["solid_mm2"] > 0) for c in cases("train", 40)]
    assert all(any(b[k] for b in both) and not all(b[k] for b in both) for k in (0, 1))


def test_types_differ_and_the_anatomy_does_not():
    seen = {u: cases("test", unseen=u) for u in UNSEEN}
    means = {u: np.mean([c.images["image"].data[0][c.rois["unseen"].data > 0].mean() for c in seen[u]]) for u in UNSEEN}
    spread = {u: np.mean([c.images["image"].data[0][c.rois["unseen"].data > 0].std() for c in seen[u]]) for u in UNSEEN}
    assert means["calcified"] > 190 and 75 < means["mottled"] < 125 and 75 < means["layered"] < 125
    assert min(spread["mottled"], spread["layered"]) > 20
    for a, b in zip(seen["mottled"], seen["layered"], strict=True):
        assert np.array_equal(a.labels["reference"].data, b.labels["reference"].data) and a.table == b.table
    a, b = (cases("train", 3, unseen=u) for u in ("mottled", "calcified"))
    assert all(np.array_equal(x.images["image"].data, y.images["image"].data) for x, y in zip(a, b, strict=True))
