"""Round trips: open(write(open(x))) has the same ids, patients, splits, labels, voxels and grids, within what the layout can say."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from vesalius.core.case import Boxes, Case, Image, LabelMap, Points
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import nnunet_splits, open_dataset, read_case, write_dataset

from .folders import small_3d


def same(a: Case, b: Case, labels=True):
    assert np.array_equal(a.stack(), b.stack()) and a.geometry.close(b.geometry, 1e-5)
    if labels:
        assert set(a.labels) == set(b.labels)
        for name in a.labels:
            assert np.array_equal(a.labels[name].data, b.labels[name].data) and a.labels[name].names == b.labels[name].names


def rich(dims: int) -> tuple[Manifest, list[Case]]:
    """Three cases on oblique or anisotropic grids, two channels, voxels nobody spoke for, marks, texts and a table."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    cases, refs = [], []
    for k, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng(k)
        shape = (5, 6, 7)[:dims]
        flat = (0.5, 0.5 if k == 2 else 0.25)
        grid = Geometry.of(shape, (1, 2, 3), [4, 5, 6], turn) if dims == 3 else Geometry.of(shape, flat)
        images = {n: Image(rng.integers(0, 200, (c, *shape)).astype(t), grid) for n, c, t in (("A/b", 1, np.uint8), ("C", 1, np.int16))}
        label = rng.integers(-1, 3, shape).astype(np.int16)
        case = Case(
            f"patient{k}_x", f"patient{k}", "exam", "site", images, {"reference": LabelMap(label, grid, ("background", "x", "y z"))},
            {"fov": LabelMap((label > 0).astype(np.uint8), grid, ("background", "fov"))},
            {"apex": Points(rng.normal(size=(2, dims)), ("a", "b"))}, {"box": Boxes(np.zeros((1, dims)), np.ones((1, dims)), ("x",))},
            text={"report": 'Two "words",\nand a line'},
            table={"age": 40 + k, "share": 0.5 * k, "code": f"0{k}", "sex": None if k else "F"},
        )  # fmt: skip
        cases.append(case)
        refs.append(CaseRef(case.id, case.patient, split, "exam", "site", {n: "" for n in images}))
    labels = {"background": 0, "x": 1, "y z": 4}
    targets = {"age": {"kind": "real"}, "sex": {"kind": "nominal", "levels": ["F", "M"]}}
    return Manifest('r "1"', "", dims, ("A/b", "C"), labels, tuple(refs), ignore=9, targets=targets, mirror=(("x", "y z"),)), cases


def test_no_spreadsheet_runs_what_is_in_the_table(tmp_path):
    manifest, cases = rich(3)
    refs = [replace(ref, patient=name) for ref, name in zip(manifest.cases, ("=cmd|' /C calc'!A0", "@x", "p"), strict=True)]
    odd = [replace(c, patient=r.patient, table={"shift": -1.5, "said": "-- none"}) for c, r in zip(cases, refs, strict=True)]
    write_dataset(tmp_path / "out", replace(manifest, cases=tuple(refs), targets={}), odd)
    with open(tmp_path / "out" / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["patient"] for r in rows] == ["'=cmd|' /C calc'!A0", "'@x", "p"]
    assert {(r["shift"], r["said"]) for r in rows} == {("-1.5", "'-- none")}, "numbers stay numbers"
    assert [ref.patient for ref in open_dataset(tmp_path / "out").cases] == ["=cmd|' /C calc'!A0", "@x", "p"]


@pytest.mark.parametrize("dims", [2, 3])
def test_vesalius_round_trip_is_lossless(tmp_path, dims):
    manifest, cases = rich(dims)
    back = write_dataset(tmp_path / "out", manifest, cases)
    for key in ("name", "dims", "channels", "labels", "ignore", "targets", "mirror"):
        assert getattr(back, key) == getattr(manifest, key), key
    for case, ref in zip(cases, manifest.cases, strict=True):
        again = read_case(back, case.id)
        same(case, again)
        assert (back[case.id].split, again.patient, again.exam, again.source) == (ref.split, case.patient, case.exam, case.source)
        assert again.text == case.text and again.table == case.table
        assert np.array_equal(again.rois["fov"].data, case.rois["fov"].data)
        assert np.allclose(again.points["apex"].xyz, case.points["apex"].xyz) and again.points["apex"].names == ("a", "b")
        assert np.allclose(again.boxes["box"].high, 1) and again.boxes["box"].labels == ("x",)
    second = write_dataset(tmp_path / "second", back, [read_case(back, c.id) for c in back.cases])
    assert (tmp_path / "second/cases.csv").read_text() == (tmp_path / "out/cases.csv").read_text() and second.labels == back.labels


@pytest.mark.parametrize(("kind", "dims"), [("nnunet", 3), ("nnunet", 2), ("msd", 3)])
def test_nnunet_and_msd_round_trip(tmp_path, kind, dims):
    manifest, cases = rich(dims)
    for case in cases if dims == 2 else ():  # these files have no spacing
        case.images["C"].data[...] %= 100
    back = write_dataset(tmp_path / "out", manifest, cases, kind=kind)
    assert back.labels == {"background": 0, "x": 1, "y z": 2} and back.ignore == 3 and back.channels == ("A/b", "C")
    kept = cases if kind == "nnunet" else cases[:2]  # Decathlon's test images have no labels
    assert [c.id for c in back.cases] == [c.id for c in kept] and [c.patient for c in back.cases] == [c.patient for c in kept]
    for case in kept:
        again = read_case(back, case.id)
        assert np.array_equal(case.stack(), again.stack()) and np.array_equal(case.labels["reference"].data, again.labels["reference"].data)
        assert dims == 2 or case.geometry.close(again.geometry, 1e-5)
    if kind == "nnunet":
        assert back.where("test") == ("patient2_x",)
        (split,) = nnunet_splits(tmp_path / "out")
        assert (split.train, split.val) == (("patient0_x",), ("patient1_x",))
    again = write_dataset(tmp_path / "again", back, [read_case(back, c.id) for c in back.cases], kind=kind)
    assert again.labels == back.labels and again.ignore == back.ignore


def test_from_a_folder(tmp_path):
    manifest = open_dataset(small_3d(tmp_path / "in"))
    back = write_dataset(tmp_path / "out", manifest, (read_case(manifest, c.id) for c in manifest.cases))
    assert [(c.id, c.patient, c.split, c.table) for c in back.cases] == [(c.id, c.patient, c.split, c.table) for c in manifest.cases]
    for ref in manifest.cases:
        same(read_case(manifest, ref.id), read_case(back, ref.id))


def test_a_phantom_written_is_the_phantom(tmp_path):
    manifest = open_dataset("phantom:shapes-2d?cases=3")
    back = write_dataset(tmp_path / "out", manifest, (read_case(manifest, c.id) for c in manifest.cases))
    assert [(c.id, c.patient, c.split) for c in back.cases] == [(c.id, c.patient, c.split) for c in manifest.cases]
    for ref in manifest.cases:
        same(read_case(manifest, ref.id), read_case(back, ref.id))


def test_instances_and_unnamed_ignore(tmp_path):
    grid = Geometry.of((4, 5), 1.0)
    ids = np.arange(20, dtype=np.int32).reshape(4, 5) * 40
    case = Case(
        "a",
        "a",
        images={"I": Image(np.zeros((1, 4, 5), np.float32), grid)},
        labels={"r": LabelMap(ids, grid, ("background", "cell"), instances=True)},
    )
    manifest = Manifest("m", "", 2, ("I",), {"background": 0, "cell": 1}, (CaseRef("a", "a"),), instances=True)
    back = write_dataset(tmp_path / "ids", manifest, [case])
    assert back.instances and np.array_equal(read_case(back, "a").labels["r"].data, ids)
    holes = LabelMap(np.where(ids == 0, -1, 1), grid, ("background", "cell"))
    back = write_dataset(tmp_path / "holes", replace(manifest, instances=False), [case.with_(labels={"r": holes})])
    assert back.ignore == 2 and read_case(back, "a").labels["r"].data[0, 0] == -1


def test_refusals(tmp_path):
    manifest, cases = rich(3)
    with pytest.raises(UsageError, match="Did you mean 'nnunet'"):
        write_dataset(tmp_path / "out", manifest, cases, kind="nnunett")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path / "full", manifest, cases)
    with pytest.raises(DataError, match="no case"):
        write_dataset(tmp_path / "none", manifest, [])
