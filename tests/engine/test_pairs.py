"""Pairs of cases: which there are, how they are drawn, prepared and answered, that a field moves the right way, and what is written."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap, Points
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry, Grid
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.method import Stage
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset, read_case, write_dataset
from vesalius.datasets.phantoms import open_phantom
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.infer import infer
from vesalius.engine.inputs import paired
from vesalius.engine.pairs import units
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.sample import Draws
from vesalius.io import write_image
from vesalius.methods.registered import Registration
from vesalius.ops.register import Transform

SHAPE = (16, 24, 16)  # of the canonical grid, voxels of 2 mm
TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
LAYOUTS = {"ras": np.eye(3), "lps": np.diag([-1.0, -1, 1]), "oblique": TURN, "psr": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])}
NAMES = ("background", "thing")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))


def thing(how: str, moved=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0), name="a") -> Case:
    """An object without any symmetry: a bar with a foot and a knob, ``moved`` by mm in the world, on a grid laid out in the way ``how``."""
    direction = LAYOUTS[how]
    sides = np.array(SHAPE)[np.abs(direction).argmax(0)] if how != "oblique" else np.array(SHAPE)
    middle = np.asarray(origin, float)
    affine = np.eye(4)
    affine[:3, :3] = direction * 2.0
    affine[:3, 3] = middle - affine[:3, :3] @ ((sides - 1) / 2)
    grid = Geometry(tuple(sides), affine)
    at = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) - middle - np.asarray(moved)
    at = at @ (direction if how == "oblique" else np.eye(3))  # the object lies along an oblique grid's own axes
    x, y, z = np.moveaxis(at, -1, 0)
    bar = (abs(x) < 4) & (abs(y) < 12) & (abs(z) < 4)
    foot, knob = (x > 0) & (x < 9) & (abs(y + 8) < 4) & (abs(z) < 4), (abs(x) < 3) & (abs(y - 6) < 4) & (z > 0) & (z < 9)
    on = bar | foot | knob
    mark = np.array([[0, 6.0, 6.0]]) @ (direction.T if how == "oblique" else np.eye(3)) + middle + np.asarray(moved)
    image, label = Image(100 * on[None].astype(np.float32), grid), LabelMap(on.astype(np.int16), grid, NAMES)
    return Case(name, name, images={"T1": image}, labels={"reference": label}, points={"knob": Points(mark)})


def manifest(*cases: Case, splits=(), pairs=None) -> Manifest:
    held = {c.id: c for c in cases}
    split = dict(zip(held, splits, strict=False))
    rows = tuple(
        CaseRef(k, k, split.get(k, ""), images={"T1": ""}, labels={"reference": ""}, points={"knob": ""}) for k in held
    )  # fmt: skip
    return Manifest("things", Path("."), 3, ("T1",), {n: k for k, n in enumerate(NAMES)}, rows, pairs=pairs, built_in=lambda r: held[r.id])


PLAN = Plan(3, ("T1",), 1, NAMES, patch=SHAPE, batch=2, workers=0, threads=1, normalise={"T1": "zscore"}, precision="32")


class Centres(Registration):
    """Knows one thing: how far the bright voxels' centre of the moving image lies from that of the fixed one."""

    def __init__(self, plan, manifest, *, parts=None, start="frame"):
        super().__init__(plan, manifest, parts=parts, start=start)

    def forward(self, image, condition=None):
        fixed, moving = image[:, :1], image[:, 1:]
        axes = [torch.arange(float(n)) for n in image.shape[2:]]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        centre = lambda x: ((x > 0) * index).flatten(2).sum(-1) / (x > 0).sum()
        step = (centre(moving) - centre(fixed)).view(1, -1, 1, 1, 1)
        return {"flow": step.expand(1, -1, *image.shape[2:])}


# ------------------------------------------------------------------------------------------------------------------------ which pairs
def test_undeclared_pairs_are_every_case_with_every_other_of_its_split():
    cases = [thing("ras", name=n) for n in "abcd"]
    data = manifest(*cases, splits=("train", "train", "test", "test"))
    assert data.pairs_in(("a", "b", "c", "d")) == (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))
    assert len(units(Centres(PLAN, data), data, "ab", api.reader(data))) == 2
    assert [c.id for c in units(Centres(PLAN, data), data, "cd", api.reader(data))] == ["c__d", "d__c"]


def test_declared_pairs_count_by_both_patients():
    cases = [thing("ras", name=n) for n in "abcd"]
    data = manifest(*cases, pairs=(("a", "b"), ("c", "a")))
    assert data.pairs_in(("a", "b", "c", "d")) == (("a", "b"), ("c", "a"))
    assert data.pairs_in(("a", "b", "d")) == (("a", "b"),)  # c is elsewhere, and so is its pair
    assert data.only("ab").pairs == (("a", "b"),)
    assert data.digest() != replace(data, pairs=None).digest()
    with pytest.raises(DataError, match="no pair has both"):
        units(Centres(PLAN, data), data, "bd", api.reader(data))
    with pytest.raises(DataError, match="different splits.*train and test"):
        manifest(*cases, splits=("train", "test", "train", "train"), pairs=(("a", "b"),))
    with pytest.raises(DataError, match="unknown case 'z'"):
        manifest(*cases, pairs=(("a", "z"),))
    with pytest.raises(DataError, match="with itself"):
        manifest(*cases, pairs=(("a", "a"),))


def test_pairs_csv_is_read_and_written(tmp_path):
    phantom = open_phantom("organ-pairs-2d", cases={"train": 2, "test": 2})
    data = write_dataset(tmp_path / "d", phantom, (read_case(phantom, c.id) for c in phantom.cases))
    assert data.pairs == phantom.pairs and ("test-000", "test-001") in data.pairs and ("test-001", "test-000") not in data.pairs
    table = tmp_path / "d" / "pairs.csv"
    table.write_text("fixed,moving\ntest-000,test-009\n")
    with pytest.raises(DataError, match="unknown case 'test-009'"):
        open_dataset(tmp_path / "d")
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="two columns.*fixed, moving"):
        open_dataset(tmp_path / "d")
    table.write_text("fixed,moving\ntest-000,\n")
    with pytest.raises(DataError, match="line 2: the pair has no moving case"):
        open_dataset(tmp_path / "d")


def test_training_draws_declared_pairs_alone():
    data = manifest(*[thing("ras", name=n) for n in "abcd"], pairs=(("a", "b"), ("a", "c"), ("d", "a")))
    method = Centres(PLAN, data)
    cache = Cache(data, method.plan, method, api.reader(data))
    draws = Draws([cache[i] for i in "abcd"], method, data, Stage(), seed=0, number=0)
    seen = {pair for k in range(20) for pair in zip(draws[k].cases, draws[k].views[0].cases, strict=True)}
    assert seen == set(data.pairs)
    with pytest.raises(DataError, match="no declared pair"):
        Draws([cache[i] for i in "bc"], method, data, Stage(), seed=0, number=0)


def test_a_pair_in_the_world_is_read_where_it_lies():
    cases = (thing("ras", name="a"), thing("lps", name="b", origin=(4, -6, 2)))
    data = manifest(*cases, pairs=(("a", "b"),))
    method = Centres(PLAN, data, start="world")
    assert method.sampling(Stage()).world and not Centres(PLAN, data).sampling(Stage()).world
    cache = Cache(data, method.plan, method, api.reader(data))
    batch = Draws([cache[i] for i in "ab"], method, data, Stage(), seed=0, number=0)[0]
    where = lambda x: np.argwhere(np.asarray(x[0, 0] > 0)).mean(0)
    voxel = 2.0 * np.array(SHAPE) / method.plan.patch  # mm, of the window
    np.testing.assert_allclose(where(batch.views[0].image) - where(batch.image), [4, -6, 2] / voxel, atol=0.3)
    far = manifest(cases[0], thing("ras", name="b", origin=(500, 0, 0)))
    cache = Cache(far, method.plan, method, api.reader(far))
    with pytest.raises(GeometryError, match="do not overlap"):
        Draws([cache[i] for i in "ab"], method, far, Stage(), seed=0, number=0)[0]


# ------------------------------------------------------------------------------------------------------------------- the right way
@pytest.mark.parametrize("moving", LAYOUTS)
@pytest.mark.parametrize("fixed", LAYOUTS)
def test_the_field_moves_the_right_way_whatever_the_grids(fixed, moving):
    """x + u(x) is the moving image's point: labels and points of an object without symmetry meet, on the fixed grid."""
    if (fixed == "oblique") != (moving == "oblique"):
        pytest.skip("the object is turned with an oblique grid, and a step cannot turn it back")
    a, b = thing(fixed, name="a"), thing(moving, moved=(4.0, -6.0, 2.0), origin=(40.0, 7.0, -12.0), name="b")
    pair = Case.pair(a, b)
    method = Centres(PLAN, manifest(a, b))
    answer = infer(method, pair, method.plan)
    u = answer.displacement
    assert u.geometry == a.geometry == answer.label.geometry
    np.testing.assert_allclose(u.data.reshape(3, -1).T, np.broadcast_to([44.0, 1.0, -10.0], (u.data[0].size, 3)), atol=0.5)
    rows = {r.metric: r.value for r in score(answer, pair, metrics=("dsc", "tre", "folding", "volume_change"))}
    assert rows["dsc"] > 0.95 and rows["tre"] < 0.8 and rows["folding"] == 0 and abs(rows["volume_change"]) < 1e-3
    by_ops = Transform(u.geometry, np.eye(4), u).apply(b.labels["reference"])
    np.testing.assert_array_equal(by_ops.data, answer.label.data)
    wrong = replace(u, source=-u.data)
    assert Transform(u.geometry, np.eye(4), wrong).apply(b.labels["reference"]).data.sum() == 0  # the sham


def test_in_the_world_nothing_moves_what_lies_there_already():
    a, b = thing("ras", name="a"), thing("lps", name="b")
    method = Centres(PLAN, manifest(a, b), start="world")
    answer = infer(method, Case.pair(a, b), method.plan)
    np.testing.assert_allclose(answer.displacement.data, 0, atol=1e-3)
    far = Case.pair(a, thing("lps", name="b", origin=(900, 0, 0)))
    with pytest.raises(GeometryError, match="do not overlap in the world.*start=frame"):
        infer(method, far, method.plan)


def test_a_cropped_grid_s_field_goes_on_beyond_it():
    a, b = thing("ras", name="a"), thing("ras", name="b", origin=(30, 0, 0))
    method = Centres(PLAN.derive(crop_to_body=True), manifest(a, b))
    answer = infer(method, Case.pair(a, b), method.plan)
    np.testing.assert_allclose(answer.displacement.data[0], 30, atol=0.5)  # 0 outside the crop would tear the image


def test_sides_are_prepared_each_by_itself_and_labels_stay_hidden():
    a, b = thing("ras", name="a"), thing("psr", name="b", origin=(50, 0, 0))
    pair = Case.pair(a, b)
    assert pair.id == "a__b" and pair.patients == ("a", "b") and a.sides() is None
    ready = prepare(pair, PLAN.derive(grid=Grid(size=SHAPE)))
    assert set(ready.images) == {"fixed:T1", "moving:T1"} and all(i.data.shape == (1, *SHAPE) for i in ready.images.values())
    assert ready.native is pair and not ready.without_labels().labels
    method = Centres(PLAN, manifest(a, b))
    blank = {k: LabelMap(np.zeros_like(v.data), v.geometry, v.names) for k, v in pair.labels.items()}
    one, two = infer(method, pair, method.plan), infer(method, pair.with_(labels=blank), method.plan)
    np.testing.assert_array_equal(one.displacement.data, two.displacement.data)
    assert one.label.data.any() and not two.label.data.any()  # the labels are laid over by the engine


def test_a_constant_image_cannot_be_matched():
    a, b = thing("ras", name="a"), thing("ras", name="b")
    flat = b.with_(images={"T1": replace(b.images["T1"], source=np.full((1, *b.geometry.shape), 7.0, np.float32))})
    method = Centres(PLAN, manifest(a, b))
    with pytest.raises(DataError, match="moving image is constant"):
        infer(method, Case.pair(a, flat), method.plan)
    with pytest.raises(DataError, match="image 'fixed:T1' is missing"):
        infer(method, a, method.plan)


# ---------------------------------------------------------------------------------------------------------------------- input, output
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the card's small configuration on the phantom in 3D, and three of its images as files."""
    folder = tmp_path_factory.mktemp("pairs")
    phantom = open_phantom("organ-pairs-3d", cases={"train": 3, "test": 2})
    plan = {"patch": (8, 8, 8), "batch": 1, "workers": 0, "threads": 1, "precision": "32"}
    small = {"features": (2, 4), "refine": (2,)}
    api.train("tumor-preserving-registration", phantom, folder / "run", options=small, iterations=2, plan_overrides=plan)
    for k, ref in enumerate(phantom.cases[:3]):
        image = read_case(phantom, ref.id).images["image"]
        write_image(folder / f"scan{k}.nii.gz", image.data, image.geometry)
    return folder, phantom


def test_two_files_are_fixed_and_moving_and_itk_goes_where_we_go(run, tmp_path):
    import SimpleITK as sitk

    folder, phantom = run
    (made,) = api.predict(folder / "run", [folder / "scan0.nii.gz", folder / "scan1.nii.gz"], tmp_path)
    assert made.name == "scan0__scan1.nii.gz" and (tmp_path / "scan0__scan1_warped.nii.gz").exists()
    assert not list(tmp_path.glob("*labels*"))  # files have none
    file, fixed = nib.load(made), read_case(phantom, phantom.cases[0].id)
    assert file.shape == (*fixed.geometry.shape, 1, 3) and int(file.header["intent_code"]) == 1006
    np.testing.assert_allclose(file.affine, fixed.geometry.affine, atol=1e-3)
    trained = api.open_run(folder / "run")
    answer = infer(trained.method, Case.pair(fixed, read_case(phantom, phantom.cases[1].id)), trained.plan)
    np.testing.assert_allclose(file.get_fdata()[:, :, :, 0].transpose(3, 0, 1, 2), answer.displacement.data, atol=1e-3)
    field = sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(made)), sitk.sitkVectorFloat64))
    index, lps = np.array([5, 9, 7]), np.array([-1.0, -1, 1])
    x = fixed.geometry.to_world(index)
    there = np.array(field.TransformPoint((x * lps).tolist())) * lps
    np.testing.assert_allclose(there, x + answer.displacement.data[(slice(None), *index)], atol=1e-2)


def test_a_table_names_pairs_of_inputs_or_files_beside_it(run, tmp_path):
    folder, _ = run
    files = [folder / f"scan{k}.nii.gz" for k in range(3)]
    assert len(api.predict(folder / "run", files, tmp_path / "all")) == 6  # three files: every one with every other
    table = folder / "some.csv"
    table.write_text("fixed,moving\nscan2,scan0\n")
    assert [p.name for p in api.predict(folder / "run", files, tmp_path / "some", pairs=table)] == ["scan2__scan0.nii.gz"]
    table.write_text("fixed,moving\nscan2.nii.gz,scan0.nii.gz\n")
    assert [p.name for p in api.predict(folder / "run", [], tmp_path / "own", pairs=table)] == ["scan2__scan0.nii.gz"]
    table.write_text("fixed,moving\nscan2,scan9\n")
    with pytest.raises(DataError, match="unknown input 'scan9'"):
        api.predict(folder / "run", files, tmp_path / "none", pairs=table)
    with pytest.raises(UsageError, match="pairs of images"):
        api.predict(folder / "run", files[0], tmp_path / "one")
    with pytest.raises(UsageError, match="fields are not written"):
        api.predict(folder / "run", files, tmp_path / "mha", format=".mha")
    with pytest.raises(UsageError, match="no class probabilities"):
        api.predict(folder / "run", files, tmp_path / "p", probability=True)


def test_a_dataset_s_pairs_are_answered_with_their_labels(run, tmp_path):
    folder, phantom = run
    made = api.predict(folder / "run", phantom, tmp_path, split="test")
    assert [p.name for p in made] == ["test-000__test-001.nii.gz"]
    labels = nib.load(tmp_path / "test-000__test-001_labels.nii.gz")
    assert labels.shape == read_case(phantom, "test-000").geometry.shape and set(np.unique(labels.get_fdata())) <= {0, 1, 2}
    assert api.predict(folder / "run", phantom, tmp_path, split="test") == made  # there already


def test_the_command_line_registers(run, tmp_path):
    folder, _ = run
    done = subprocess.run(
        ["vesalius", "predict", folder / "run", folder / "scan0.nii.gz", folder / "scan1.nii.gz", "--out", tmp_path / "o", "--quiet"],
        capture_output=True, text=True, executable=Path(__import__("sys").executable).with_name("vesalius"),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == f"1 displacement fields in {tmp_path / 'o'}\n", done.stderr


def test_2d_fields_are_written_with_the_file_s_order_of_axes(tmp_path):
    from vesalius.io import write_displacement

    grid = Geometry.of((4, 6), (2.0, 3.0), origin=(5.0, 7.0))
    field = np.stack([np.full((4, 6), 1.0), np.full((4, 6), -2.0)])  # one down, two to the left
    field[0, 3, 1] = 9
    write_displacement(tmp_path / "f.nii.gz", field, grid)
    file = nib.load(tmp_path / "f.nii.gz")
    assert file.shape == (6, 4, 1, 1, 2)
    assert file.get_fdata()[1, 3, 0, 0].tolist() == [-2, 9]  # x is our column
    with pytest.raises(GeometryError, match="one component an axis"):
        write_displacement(tmp_path / "g.nii.gz", field[:1], grid)
    with pytest.raises(DataError, match="NIfTI"):
        write_displacement(tmp_path / "g.mha", field, grid)


def test_pairs_are_for_registration(tmp_path):
    phantom = open_phantom("shapes-2d")
    trained = api.train("saliency-acm", phantom, tmp_path / "run", plan_overrides={"workers": 0})
    with pytest.raises(UsageError, match="pairs are for registration"):
        api.predict(trained, phantom, tmp_path / "out", pairs=tmp_path / "p.csv")


def test_two_inputs_of_one_name_cannot_be_told_apart(tmp_path):
    data = manifest(thing("ras", name="a"), thing("ras", name="b"))
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        image = thing("ras").images["T1"]
        write_image(tmp_path / str(k) / "x.nii.gz", image.data, image.geometry)
    with pytest.raises(DataError, match="same name"):
        paired([tmp_path / "0" / "x.nii.gz", tmp_path / "1" / "x.nii.gz"], None, PLAN, data, api.reader)


def test_a_run_records_what_it_was_trained_on(run):
    record = json.loads((run[0] / "run" / "run.json").read_text())
    assert record["status"] == "finished" and record["data"]["digest"] == run[1].digest()
