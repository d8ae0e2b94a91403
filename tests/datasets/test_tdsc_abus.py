"""TDSC-ABUS' native folders: a spacing the headers do not hold, boxes in the table's own axes, and the checks of both."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from vesalius.core.case import Boxes
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.datasets import check, open_dataset
from vesalius.datasets.cases import read_case
from vesalius.datasets.tdsc_abus import (
    SPACING,
    box_axes_of,
    boxes_table,
    check_field_of_view,
    missing_tdsc_abus,
    open_tdsc_abus,
)
from vesalius.metrics.surface import hd_sitk
from vesalius.metrics.tdsc_abus import component_boxes, evidence

SHAPE = (12, 10, 8)
BOX = (slice(6, 11), slice(1, 9), slice(3, 6))  # of the lesion, in array axes


def nrrd(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(data.T.copy()), str(path))  # identity geometry


def written(root: Path, split: str = "Train", cases=((0, "M"), (1, "B")), exclusive: int = 1) -> Path:
    folder = root / split
    rows, found = ["Case_id,Label,Data_path,Mask_path"], ["id,c_x,c_y,c_z,len_x,len_y,len_z"]
    for number, label in cases:
        rng = np.random.default_rng(number)
        mask = np.zeros(SHAPE, np.uint8)
        mask[BOX] = 1
        nrrd(folder / "DATA" / f"DATA_{number:03d}.nrrd", rng.integers(0, 255, SHAPE).astype(np.uint8))
        nrrd(folder / "MASK" / f"MASK_{number:03d}.nrrd", mask)
        rows.append(f"{number},{label},DATA\\DATA_{number:03d}.nrrd,MASK\\MASK_{number:03d}.nrrd")
        low, high = (np.array([getattr(s, side) for s in reversed(BOX)], float) for side in ("start", "stop"))
        high += exclusive - 1
        found.append(f"{number}," + ",".join(map(str, [*((low + high) / 2), *(high - low)])))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "bbx_labels.csv").write_text("\n".join(found) + "\n")
    return root


def opened(root: Path, **options):
    return open_tdsc_abus(root, **{"spacing": SPACING, **options})


def test_the_true_spacing_is_injected(tmp_path):
    manifest = opened(written(tmp_path))
    case = read_case(manifest, "000")
    assert case.geometry.spacing == pytest.approx((0.2, 0.073, 0.475674))
    assert case.labels["reference"].geometry == case.geometry and case.images["ABUS"].geometry == case.geometry
    assert case.labels["reference"].data.sum() == 5 * 8 * 3
    assert case.table == {"malignant": 1} and case.answers == {"malignant"}
    assert read_case(manifest, "001").table == {"malignant": 0}
    hidden = read_case(manifest, "000", labels=False)
    assert not hidden.labels and not hidden.boxes and not hidden.table


def test_boxes_are_the_masks_own_in_mm(tmp_path):
    case = read_case(opened(written(tmp_path)), "000")
    own = component_boxes(case.labels["reference"].data > 0, case.geometry)
    given = case.boxes["lesion"]
    half = np.array(case.geometry.spacing) / 2
    assert (np.abs(given.low - own.low) <= half + 1e-6).all() and (np.abs(given.high - own.high) <= half + 1e-6).all()
    assert evidence(own, given)["found"] == [1.0]


@pytest.mark.parametrize("exclusive", [0, 1])
def test_the_axes_of_the_boxes_are_found(tmp_path, exclusive):
    manifest = opened(written(tmp_path, exclusive=exclusive))
    (best, distance), (_, next_best) = box_axes_of(manifest)[:2]
    assert best == "zyx" and distance <= 1 < next_best
    wrong = read_case(opened(tmp_path, box_axes="xyz"), "000")
    own = component_boxes(wrong.labels["reference"].data > 0, wrong.geometry)
    assert evidence(own, wrong.boxes["lesion"])["found"] == [None]
    with pytest.raises(UsageError, match="order of x, y and z"):
        opened(tmp_path, box_axes="xxz")


def test_distances_scale_with_the_injected_spacing(tmp_path):
    root = written(tmp_path)
    masks = [read_case(opened(root, spacing=s), "000").labels["reference"] for s in (SPACING, tuple(2 * x for x in SPACING))]
    other = np.zeros(SHAPE, bool)
    other[0, 0, 0] = True
    once, twice = (hd_sitk(m.data > 0, other, m.geometry.spacing) for m in masks)
    assert twice == pytest.approx(2 * once)


def test_splits_and_single_sets(tmp_path):
    written(tmp_path)
    written(tmp_path, "Validation", ((100, "B"),))
    written(tmp_path, "Test", ((130, "M"),))
    manifest = opened(tmp_path)
    assert [manifest.where(s) for s in ("train", "val", "test")] == [("000", "001"), ("100",), ("130",)]
    assert opened(tmp_path / "Validation").where("val") == ("100",)
    assert missing_tdsc_abus(tmp_path) == "" and missing_tdsc_abus(tmp_path / "Train" / "DATA")


def test_only_the_published_order_of_the_spacing_gives_a_scan():
    for shape in ((843, 546, 270), (865, 682, 354), (843, 546, 353)):
        check_field_of_view(shape, SPACING)
        for order in permutations(SPACING):
            if order != SPACING:
                with pytest.raises(GeometryError, match="field of view"):
                    check_field_of_view(shape, order)
    with pytest.raises(GeometryError, match=r"spacing=\(0.475674, 0.073, 0.2\)"):
        check_field_of_view((354, 682, 865), SPACING)


def test_a_volume_that_no_scanner_makes_is_refused_without_a_stated_spacing(tmp_path):
    with pytest.raises(GeometryError, match="no breast scanner"):
        open_tdsc_abus(written(tmp_path))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("labels.csv", "0,M", "0,X", "M or B"),
        ("labels.csv", "0,M", "7,M", "no volume"),
        ("bbx_labels.csv", "len_z", "lenz", "lacks columns"),
        ("bbx_labels.csv", "\n0,", "\nnought,", "number is expected"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, file, old, new, message):
    root = written(tmp_path)
    path = root / "Train" / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        opened(root)


def test_a_submission_holds_centres_and_extents_in_voxels(tmp_path):
    case = read_case(opened(written(tmp_path)), "000")
    truth = case.boxes["lesion"]
    (row,) = boxes_table({"000": Boxes(truth.low, truth.high, scores=np.array([0.7]))}, {"000": case.geometry})
    assert row["public_id"] == "000" and row["probability"] == 0.7
    assert [row[f"coord{a}"] for a in "XYZ"] == pytest.approx([4.5, 5.0, 8.5])
    assert [row[f"{a}_length"] for a in "xyz"] == pytest.approx([3, 8, 5])


def test_the_manifest_can_be_cached_by_what_it_says(tmp_path):
    root = written(tmp_path)
    assert repr(opened(root).built_in) == repr(opened(root).built_in) != repr(opened(root, spacing=(1, 1, 1)).built_in)


def test_it_is_recognised_and_checked(tmp_path):
    with pytest.raises(GeometryError, match="no breast scanner"):  # its own layout, and the check of a stranger's volume
        open_dataset(written(tmp_path))
    assert not [f for f in check(opened(tmp_path)) if f.level == "error"]
