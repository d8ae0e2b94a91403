"""CURVAS' native folders: every rater a label map, the sets its splits."""

import numpy as np
import pytest

from vesalius.core.errors import DataError
from vesalius.datasets import check, open_dataset
from vesalius.datasets.cases import read_case
from vesalius.datasets.curvas import missing_curvas, open_curvas

from .folders import volume


def case(folder, raters: int = 3, image: bool = True, values=(0, 1, 2, 3)):
    rng = np.random.default_rng(list(folder.name.encode()))
    if image:
        volume(folder / "image.nii.gz", rng.integers(-100, 200, (6, 5, 4)).astype(np.int16))
    for n in range(1, raters + 1):
        volume(folder / f"annotation_{n}.nii.gz", rng.choice(values, (6, 5, 4)).astype(np.uint8))
    return folder


def test_sets_are_splits_and_raters_are_labels(tmp_path):
    for name in ("training_set/UKCHLL001", "training_set/UKCHLL002", "validation_set/UKCHLL021", "testing_set/UKCHLL026"):
        case(tmp_path / name)
    (tmp_path / "training_set" / "README.txt").write_text("x")
    assert missing_curvas(tmp_path) == ""
    manifest = open_curvas(tmp_path)
    assert manifest.where("train") == ("UKCHLL001", "UKCHLL002") and manifest.where("test") == ("UKCHLL026",)
    assert manifest.names == ("background", "pancreas", "kidney", "liver")
    read = read_case(manifest, "UKCHLL021")
    assert list(read.labels) == ["rater1", "rater2", "rater3"] and list(read.images) == ["CT"]
    assert all(m.geometry == read.geometry and m.data.max() == 3 for m in read.labels.values())
    assert not np.array_equal(read.labels["rater1"].data, read.labels["rater2"].data)


def test_one_set_alone_and_other_labels(tmp_path):
    case(tmp_path / "set" / "a", raters=5, values=(0, 1))
    manifest = open_curvas(tmp_path / "set", labels=("background", "tumour"))
    assert len(manifest["a"].labels) == 5 and manifest["a"].split == ""


def test_an_incomplete_case_is_refused(tmp_path):
    case(tmp_path / "a")
    case(tmp_path / "b", raters=2)
    with pytest.raises(DataError, match="other raters"):
        open_curvas(tmp_path)
    case(tmp_path / "b", raters=3)
    assert len(open_curvas(tmp_path)) == 2
    case(tmp_path / "c", image=False)
    with pytest.raises(DataError, match="no image"):
        open_curvas(tmp_path)


def test_other_folders_are_not_curvas(tmp_path):
    assert "annotation_1" in missing_curvas(tmp_path)
    assert missing_curvas(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no CURVAS data"):
        open_curvas(tmp_path)


def test_it_is_recognised_and_checked(tmp_path):
    for name in ("training_set/UKCHLL001", "testing_set/UKCHLL026"):
        case(tmp_path / name)
    manifest = open_dataset(tmp_path)
    assert manifest.layout == "curvas" and not [f for f in check(manifest) if f.level == "error"]
