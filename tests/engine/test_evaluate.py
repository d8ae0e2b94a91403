"""``evaluate``: folders that any tool wrote, in parallel, and every way in which they can be wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from vesalius.core.case import Case, LabelMap
from vesalius.core.errors import DataError, ResourceError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.prediction import Prediction
from vesalius.engine import evaluate as ev
from vesalius.io import write_image, write_labels

GRID = Geometry.of((12, 10, 8), (1.0, 1.0, 2.5))
NAMES = ("background", "liver", "tumour")


def mask(n: int, shift: int = 0) -> np.ndarray:
    """Class indices: a box of liver with a box of tumour in it, moved by ``shift`` voxels."""
    out = np.zeros(GRID.shape, np.int16)
    out[2 + shift : 8 + shift, 2:8, 1:7] = 1
    out[4 + shift : 6 + shift, 3 : 4 + n % 3, 2:4] = 2
    return out


@pytest.fixture
def folders(tmp_path):
    """(predictions, references): six cases of plain label files, predictions one voxel off."""
    for name, shift in (("pred", 1), ("ref", 0)):
        (tmp_path / name).mkdir()
        for n in range(6):
            write_labels(tmp_path / name / f"case{n}.nii.gz", mask(n, shift), GRID)
    return tmp_path / "pred", tmp_path / "ref"


def dataset(ref, **more) -> Manifest:
    cases = tuple(CaseRef(f"case{n}", f"p{n // 2}", labels={"reference": f"case{n}.nii.gz"}) for n in range(6))
    return Manifest("data", ref, 3, (), {"background": 0, "liver": 1, "tumour": 2}, cases, **more)


def rewrite(path, data, grid=GRID):
    path.unlink()
    write_labels(path, data, grid)


def value(done, case, metric="dsc", structure="liver"):
    return next(r.value for r in done.rows if (r.case, r.metric, r.structure) == (case, metric, structure))


def test_values_and_volumes_by_hand(folders):
    done = ev.evaluate(folders[0], dataset(folders[1]), metrics=("dsc",))
    a, b = mask(0, 1) == 1, mask(0, 0) == 1
    assert value(done, "case0") == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    row = done.rows[0].to_json()
    assert row["reference_ml"] == pytest.approx(b.sum() * 2.5 / 1000) == row["predicted_ml"]
    assert not done.failed and done.problems == [] and {r.patient for r in done.rows} == {"p0", "p1", "p2"}


def test_a_plain_folder_of_references_gives_the_same_values(folders):
    plain, known = ev.evaluate(*folders), ev.evaluate(folders[0], dataset(folders[1]))
    assert plain.manifest.names == ("background", "class_1", "class_2")
    assert [r.value for r in plain.rows] == [r.value for r in known.rows] and len(plain.rows) == 6 * 2 * len(ev.RULES)


def test_the_label_table_of_nnunet_names_the_structures(folders):
    (folders[0] / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2, "liver": 1}}))
    (folders[0] / "plans.json").write_text("{}")
    np.savez(folders[0] / "case0.npz", probabilities=np.zeros(3))
    done = ev.evaluate(*folders)
    assert done.manifest.names == NAMES and done.problems == []


def test_workers_change_nothing(folders):
    serial, parallel = (ev.evaluate(folders[0], dataset(folders[1]), workers=w) for w in (0, 2))
    assert serial.rows == parallel.rows and serial.problems == parallel.problems


# what can be wrong
def test_a_missing_and_an_extra_prediction(folders):
    (folders[0] / "case3.nii.gz").rename(folders[0] / "another.nii.gz")
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.case, p.level) for p in done.problems] == [
        ("extra prediction", "another", "note"),
        ("missing prediction", "case3", "error"),
    ]
    rows = [r for r in done.rows if r.case == "case3"]
    assert {(r.structure, r.metric) for r in rows} == {(s, m) for s in NAMES[1:] for m in ev.RULES}
    assert {r.value for r in rows} == {None} and {r.note for r in rows} == {"no prediction"} and done.failed


def test_an_extra_prediction_alone_is_no_failure(folders):
    write_labels(folders[0] / "another.nii.gz", mask(0), GRID)
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [p.what for p in done.problems] == ["extra prediction"] and not done.failed


def test_another_grid(folders):
    rewrite(folders[0] / "case1.nii.gz", mask(0)[:-1], Geometry.of((11, 10, 8), (1.0, 1.0, 2.5)))
    rewrite(folders[0] / "case2.nii.gz", mask(0), Geometry.of(GRID.shape, (1.0, 1.0, 2.0)))
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.case) for p in done.problems] == [("other grid", "case1"), ("other grid", "case2")] and done.failed
    assert value(done, "case1") is None and value(done, "case0") is not None


def test_other_labels_and_probabilities_as_labels(folders):
    rewrite(folders[0] / "case1.nii.gz", mask(0) * 3)
    (folders[0] / "case2.nii.gz").unlink()
    soft = np.where(mask(0) > 0, 0.7, np.nan).astype(np.float32)[None]
    write_image(folders[0] / "case2.nii.gz", soft, GRID)
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.case) for p in done.problems] == [("other labels", "case1"), ("other labels", "case2")]
    assert "3 (" in done.problems[0].details and "whole numbers" in done.problems[1].details


def test_a_damaged_file(folders):
    path = folders[0] / "case1.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.level) for p in done.problems] == [("unreadable file", "error")] and len(done.rows) == 6 * 2 * len(ev.RULES)


def test_a_damaged_reference(folders):
    path = folders[1] / "case1.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    done = ev.evaluate(folders[0], dataset(folders[1]), metrics=("dsc",))
    assert [p.case for p in done.problems] == ["case1"] and done.rows[2].note.startswith("reference: ")


def test_duplicate_ids(folders):
    write_labels(folders[0] / "case1.mha", mask(1), GRID)
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.level) for p in done.problems] == [("duplicate id", "error")]
    assert "case1.mha, case1.nii.gz" in done.problems[0].details and value(done, "case1") is None
    write_labels(folders[1] / "case1.mha", mask(1), GRID)
    with pytest.raises(DataError, match="same name"):
        ev.evaluate(*folders)


def test_an_empty_reference_is_told_and_its_values_follow_the_metrics(folders):
    rewrite(folders[1] / "case1.nii.gz", np.zeros(GRID.shape, np.int16))
    done = ev.evaluate(folders[0], dataset(folders[1]))
    assert [(p.what, p.level) for p in done.problems] == [("empty reference", "note")] and not done.failed
    assert value(done, "case1", "hd95") is None
    note = next(r.note for r in done.rows if r.case == "case1" and r.metric == "hd95")
    assert note == "empty reference"


def test_nan_probabilities_beside_the_labels(folders):
    good = np.stack([mask(n, 1) == k for n in (0,) for k in range(3)]).astype(np.float32)
    write_image(folders[0] / "case0_probability.nii.gz", good, GRID)
    bad = good.copy()
    bad[0, 0, 0, 0] = np.nan
    write_image(folders[0] / "case1_probability.nii.gz", bad, GRID)
    done = ev.evaluate(folders[0], dataset(folders[1]), metrics=("dsc", "brier"))
    assert [(p.what, p.case, p.level) for p in done.problems] == [("NaN probability", "case1", "error")]
    brier = {r.case: r.value for r in done.rows if r.metric == "brier"}
    assert brier["case0"] is not None and brier["case1"] is None and value(done, "case1") is not None


def test_what_concerns_all_cases_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file in this folder"):
        ev.evaluate(tmp_path / "empty", dataset(folders[1]))
    with pytest.raises(DataError, match="does not exist"):
        ev.evaluate(tmp_path / "nowhere", dataset(folders[1]))
    with pytest.raises(UsageError, match="dcs"):
        ev.evaluate(folders[0], dataset(folders[1]), metrics=("dcs",))
    with pytest.raises(UsageError, match="no case"):
        ev.evaluate(folders[0], dataset(folders[1]), split="val")
    with pytest.raises(UsageError, match="worker"):
        ev.evaluate(folders[0], dataset(folders[1]), workers=-1)
    with pytest.raises(UsageError, match="livre"):
        ev.evaluate(folders[0], dataset(folders[1]), labels={"livre": 5})


# other tools
def test_values_of_another_tool(folders):
    for n in range(6):
        data = mask(n, 1)
        rewrite(folders[0] / f"case{n}.nii.gz", np.where(data == 1, 5, np.where(data == 2, 117, 90)).astype(np.int16))
    done = ev.evaluate(folders[0], dataset(folders[1]), labels={"liver": 5, "tumour": 117})
    theirs = ev.evaluate(folders[1], dataset(folders[1]))
    assert not done.problems and value(done, "case0") == pytest.approx(5 / 6, abs=0.03) and value(theirs, "case0") == 1.0


def test_a_folder_a_case_of_one_mask_a_structure(folders, tmp_path):
    for n in range(6):
        (tmp_path / "total" / f"case{n}").mkdir(parents=True)
        for k, name in enumerate((*NAMES[1:], "spleen"), 1):
            write_labels(tmp_path / "total" / f"case{n}" / f"{name}.nii.gz", (mask(n, 1) == k).astype(np.uint8), GRID)
    total, one = ev.evaluate(tmp_path / "total", dataset(folders[1])), ev.evaluate(folders[0], dataset(folders[1]))
    assert [r.value for r in total.rows] == pytest.approx([r.value for r in one.rows]) and not total.problems
    (tmp_path / "total" / "case2" / "tumour.nii.gz").unlink()
    assert [(p.what, p.case) for p in ev.evaluate(tmp_path / "total", dataset(folders[1])).problems] == [("other labels", "case2")]


def test_suffixes_and_the_test_set(folders):
    for n in (4, 5):
        (folders[0] / f"case{n}.nii.gz").rename(folders[0] / f"case{n}_seg.nii.gz")
    for n in range(4):
        (folders[0] / f"case{n}.nii.gz").unlink()
    manifest = dataset(folders[1])
    cases = tuple(replace(c, split="test" if c.id in ("case4", "case5") else "train") for c in manifest.cases)
    done = ev.evaluate(folders[0], replace(manifest, cases=cases))
    assert {r.case for r in done.rows} == {"case4", "case5"} and not done.problems
    assert len({r.case for r in ev.evaluate(folders[0], replace(manifest, cases=cases), split="train").rows}) == 4


# the report
def test_the_report_names_every_problem(folders, tmp_path):
    (folders[0] / "case3.nii.gz").unlink()
    write_labels(folders[0] / "<b>x.nii.gz", mask(0), GRID)
    done = ev.evaluate(folders[0], dataset(folders[1]))
    page = done.write(tmp_path / "out", command="vesalius evaluate").read_text()
    assert "missing prediction" in page and "extra prediction" in page and "&lt;b&gt;x" in page and "<b>x" not in page
    assert "false negative" in page and page.count("Worst case") >= 2
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [p["what"] for p in record["problems"]] == ["extra prediction", "missing prediction"]
    with (tmp_path / "out" / "scores.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(done.rows) and sum(r["value"] == "" for r in rows) == 2 * len(ev.RULES)


def test_ignored_voxels_have_no_volume():
    reference = LabelMap(np.where(np.arange(12 * 10 * 8).reshape(GRID.shape) < 100, -1, 1), GRID)
    given = LabelMap(np.ones(GRID.shape, np.int16), GRID)
    rows = ev.score(Prediction(labels={"prediction": given}), Case("a", labels={"reference": reference}), metrics=("dsc",))
    assert rows[0].value == 1.0 and rows[0].extra["predicted_ml"] == rows[0].extra["reference_ml"] == pytest.approx(860 * 2.5 / 1000)


# workers
def _dies(case_id):
    os._exit(9)


def test_scribbles_are_not_scored_beside_a_whole_reference():
    whole, found = LabelMap(mask(0), GRID, NAMES), LabelMap(mask(0, 1), GRID, NAMES)
    part = LabelMap(np.where(np.arange(12)[:, None, None] < 3, mask(0), -1).astype(np.int16), GRID, NAMES)
    raters = lambda **labels: {
        r.rater for r in ev.score(Prediction(labels={"prediction": found}), Case("a", labels=labels), metrics=("dsc",))
    }
    assert raters(reference=whole, scribble=part) == {"reference"} and raters(a=whole, b=found) == {"a", "b"}
    assert raters(scribble=part) == {"scribble"} and raters(a=part, b=part) == {"a", "b"}, "where nobody spoke of all"


def test_a_worker_that_dies_is_one_sentence(folders, monkeypatch):
    monkeypatch.setattr(ev, "_work", _dies)
    with pytest.raises(ResourceError, match="scoring worker died"):
        ev.evaluate(folders[0], dataset(folders[1]), workers=2)


def test_ctrl_c_ends_parent_and_workers(folders):
    code = (
        "import sys, time; from vesalius.engine import evaluate as ev\n"
        "if __name__ == '__main__':\n"
        "    class P:\n"
        "        def task(self, *a):\n"
        "            from contextlib import nullcontext\n"
        "            return nullcontext(lambda n: print('scored', flush=True))\n"
        f"    ref = ev.references(r'{folders[1]}', ev.Path(r'{folders[0]}'), None)[0]\n"
        "    from dataclasses import replace\n"
        "    many = tuple(replace(ref.cases[0], id=f'case{n}') for n in range(4000))\n"
        f"    ev.find_predictions = lambda folder, ids: ({{i: folder / 'case0.nii.gz' for i in ids}}, [])\n"
        f"    ev.evaluate(r'{folders[0]}', replace(ref, cases=many), workers=2, metrics=('dsc',), progress=P())\n"
    )
    script = folders[0].parent / "run.py"
    script.write_text(code)
    child = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert child.stdout.readline() == "scored\n"
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the whole group
    out, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT and err.count("Traceback") == 1 and "KeyboardInterrupt" in err
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a worker outlived its parent")
