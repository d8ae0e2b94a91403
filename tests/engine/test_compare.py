"""``compare`` over finished runs and folders of predictions: what is re-used, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from vesalius.core.case import LabelMap
from vesalius.core.errors import DataError, RunError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.prediction import Prediction
from vesalius.engine import compare as cmp
from vesalius.engine.evaluate import RULES, evaluate, find_predictions
from vesalius.io import write_image, write_labels

GRID = Geometry.of((24, 20), (1.0, 1.0))
NAMES = [f"case{n}" for n in range(6)]


def disc(n, shift=0):
    y, x = np.mgrid[:24, :20]
    return ((y - 10 - shift) ** 2 + (x - 10) ** 2 < (4 + n % 3) ** 2).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    """A data set of six pictures, two of them test cases."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for n, name in enumerate(NAMES):
        write_labels(tmp_path / "labels" / f"{name}.png", disc(n), GRID, values=(0, 255))
        write_image(tmp_path / "images" / f"{name}.png", (disc(n) * 90 + 40).astype(np.uint8)[None], GRID)
    cases = tuple(
        CaseRef(n, n, "test" if n in NAMES[4:] else "train", images={"image": f"images/{n}.png"}, labels={"reference": f"labels/{n}.png"})
        for n in NAMES
    )
    return Manifest("discs", tmp_path, 2, ("image",), {"background": 0, "disc": 255}, cases)


def run(folder, manifest, shift, **changes):
    """What compare reads of a finished run whose test cases are scored already."""
    split = {"train": NAMES[:4], "val": [], "test": NAMES[4:], "name": "declared"}
    record = {"version": 1, "method": "unet", "options": {}, "parts": {}, "seed": 0, "labelled": None, "split": split, "status": "finished"}
    record |= {
        "data": {"name": manifest.name, "digest": manifest.digest()},
        "budget": {"iterations": 5, "minutes": None},
        "seconds": 1.0,
        "facts": {},
    }
    record |= {"peak_memory_gib": 1.0, "parameters": 10, "device": "cpu", **changes}
    (folder / "predictions").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    for n in (4, 5):
        write_labels(folder / "predictions" / f"case{n}.png", disc(n, shift), GRID, values=(0, 255))
    rows = [r.to_json() for r in evaluate(folder / "predictions", manifest).rows]
    (folder / "scores.json").write_text(json.dumps({"cases": NAMES[4:], "metrics": list(RULES), "rows": rows}))
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Runs are opened without their weights: scores that are there must do."""

    def open_run(folder, *, device="auto"):
        record = json.loads((folder / "run.json").read_text())
        return cmp.Trained(None, None, None, None, folder, record)

    monkeypatch.setattr(cmp, "open_run", open_run)


def test_finished_runs_and_a_folder_of_predictions(data, tmp_path, opened):
    runs = [run(tmp_path / "runs" / m / "seed_0", data, shift) for m, shift in (("good", 0), ("bad", 3))]
    shutil.copytree(runs[1] / "predictions", tmp_path / "other tool")
    page = cmp.compare([*runs, tmp_path / "other tool"], data, tmp_path / "out").read_text()
    rows = {(r["method"], r["metric"]): r for r in json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]}
    assert rows["good", "dsc"]["mean"] == 1.0 and rows["bad", "dsc"]["mean"] == pytest.approx(rows["other tool", "dsc"]["mean"])
    assert "false negative" in page and "not trained alike" not in page
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["metrics"] == list(RULES) and len(record["splits"]) == 64


def test_folders_alone_are_compared_on_the_test_cases(data, tmp_path):
    for name, shift in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for n in range(6):
            write_labels(tmp_path / name / f"case{n}.png", disc(n, shift), GRID, values=(0, 255))
    (tmp_path / "b" / "case5.png").unlink()
    page = cmp.compare([str(tmp_path / "a"), str(tmp_path / "b")], data, tmp_path / "out").read_text()
    assert "missing prediction" in page
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {r["case"] for r in scores} == {"case4", "case5"} and {r["method"] for r in scores} == {"a", "b"}


def test_runs_trained_otherwise_are_told(data, tmp_path, opened):
    a, b = run(tmp_path / "a", data, 0), run(tmp_path / "b", data, 1, budget={"iterations": 500, "minutes": None})
    assert (
        "not trained alike; they differ in budget (a: iterations 5; b: iterations 500)"
        in cmp.compare([a, b], data, tmp_path / "out").read_text()
    )


def test_other_manifests_splits_and_unfinished_runs_are_refused(data, tmp_path, opened):
    good = run(tmp_path / "good", data, 0)
    split = {"train": NAMES[:3], "val": [NAMES[3]], "test": NAMES[4:], "name": "fold 1 of 5"}
    for changes, said in (
        ({"data": {"name": "squares", "digest": "0" * 64}}, "another manifest.*squares 000000000000"),
        ({"split": split}, r"different splits \(train, val\)"),
        ({"split": {**split, "test": []}}, "no test cases"),
        ({"status": "started"}, "not finished"),
    ):
        bad = run(tmp_path / "bad", data, 1, **changes)
        with pytest.raises(RunError, match=said):
            cmp.compare([good, bad], data, tmp_path / "out")
        shutil.rmtree(bad)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison_is_refused(data, tmp_path, opened):
    a = run(tmp_path / "a", data, 0)
    cmp.compare([a], data, tmp_path / "out")
    with pytest.raises(RunError, match="other metrics.*hd95"):
        cmp.compare([a], data, tmp_path / "out", metrics=("dsc",))
    with pytest.raises(RunError, match="other manifest"):
        cmp._same_comparison(tmp_path / "out", cmp._identity(replace(data, name="x"), RULES, [data.split()], None))
    with pytest.raises(RunError, match="other splits"):
        cmp._same_comparison(tmp_path / "out", cmp._identity(data, RULES, [data.split(0, 2)], None))


def test_what_is_no_method(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "several" / "unet" / "seed_0").mkdir(parents=True)
    (tmp_path / "several" / "unet" / "seed_0" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="did you mean 'unet'|Did you mean 'unet'"):
        cmp.compare(["unte"], data, tmp_path / "out")
    with pytest.raises(UsageError, match="several runs"):
        cmp.compare([tmp_path / "several"], data, tmp_path / "out")
    with pytest.raises(DataError, match="no file in this folder"):
        cmp.compare([tmp_path / "empty"], data, tmp_path / "out")
    with pytest.raises(UsageError, match="one seed"):
        cmp.compare([tmp_path / "empty"], data, tmp_path / "out", seeds=2)


def test_short_names_tell_folders_apart(tmp_path):
    names = [
        cmp._short_names([tmp_path / p for p in paths])
        for paths in (("x/unet/seed_0", "x/vnet/seed_0/predictions"), ("x/unet/seed_0", "x/unet/seed_1"), ("x/unet", "y/unet"))
    ]
    assert names == [["unet", "vnet"], ["unet/seed_0", "unet/seed_1"], ["x/unet", "y/unet"]]


def test_overlapping_answers_are_written_as_evaluate_reads_them(data, tmp_path):
    masks = np.stack([disc(0), disc(0, 2)]).astype(bool)
    label = LabelMap(masks, GRID, ("lung", "tumour"), overlapping=True)
    cmp._write_answer(tmp_path, "case0", Prediction(labels={"prediction": label}), data)
    assert sorted(p.name for p in (tmp_path / "case0").iterdir()) == ["lung.png", "tumour.png"]
    assert find_predictions(tmp_path, ["case0"])[0] == {"case0": tmp_path / "case0"}
