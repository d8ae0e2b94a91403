"""breast-ml: choices inside the training patients, gaps filled and said, a state of arrays, and thermograms for the network."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vesalius import catalog
from vesalius.core.case import Case, Image
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import open_dataset
from vesalius.engine import api, checkpoint
from vesalius.engine.fit import Training
from vesalius.engine.infer import infer
from vesalius.methods.breast import CARDS
from vesalius.methods.breast.breast_ml import BreastML

from ...memory import in_memory

ROOT = Path(__file__).resolve().parents[3]
PLAN = {"workers": 0, "threads": 1, "batch": 8, "precision": "32"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda _: None)


def tables(n=60, gaps=0.1, repeated=1) -> Manifest:
    """'ill' follows marker a; each patient has ``repeated`` rows that are the same."""
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        a, b = rng.normal(size=2)
        cells = {"ill": int(a > 0), "a": float(a), "b": None if rng.random() < gaps else float(b), "site": "AB"[i % 2]}
        split = "test" if i >= 0.8 * n else "train"
        rows += [CaseRef(f"c{i}-{r}", f"p{i}", split, table=cells) for r in range(repeated)]
    return Manifest("markers", Path("."), 0, (), {}, tuple(rows))


def train(data, folder, **options):
    return api.train(BreastML, data, folder / "run", options={"target": "ill", **options}, plan_overrides=PLAN, iterations=12)


@pytest.mark.parametrize("model", ["logistic", "tree", "forest", "boosting", "mlp"])
def test_every_model_learns_and_its_state_is_arrays_and_json(model, tmp_path):
    data = tables()
    done = train(data, tmp_path, model=model, search="random", trials=2, folds=2)
    read = api.reader(data)
    answers = {i: infer(done.method, read(i), done.plan).table["ill"] for i in data.where("test")}
    assert np.mean([(p["1"] > 0.5) == data[i].table["ill"] for i, p in answers.items()]) >= 0.75
    tensors, facts = checkpoint.method_tensors(done.method)
    assert all(isinstance(v, np.ndarray) and v.dtype.kind in "fi" for v in tensors.values())
    bare = BreastML(done.plan, replace(data, cases=()), target="ill", model=model)
    checkpoint.load_method(bare, tensors, json.loads(json.dumps(facts)), Path("x"))
    assert {i: infer(bare, read(i), done.plan).table["ill"] for i in answers} == answers
    assert bare.columns == ("a", "b") and len(bare.found["curve"]) == 2


def test_choices_never_see_a_test_case_nor_a_patient_on_both_sides(tmp_path, monkeypatch):
    data, seen, pairs = tables(40, repeated=3), [], []
    given = Training.folds

    def folds(self, cases, k):
        pairs.extend(given(self, cases, k))
        seen.extend(cases)
        return pairs

    monkeypatch.setattr(Training, "folds", folds)
    train(data, tmp_path, model="tree", search="random", trials=2, folds=3)
    assert pairs and not set(seen) & set(data.where("test"))
    for inner, outer in pairs:
        assert not {data[c].patient for c in inner} & {data[c].patient for c in outer}


def test_the_scaler_is_fitted_inside_each_fold(tmp_path, monkeypatch):
    data, sizes = tables(40), []
    from vesalius.ops.tabular import Scaler

    fitted = Scaler.fit.__func__
    monkeypatch.setattr(Scaler, "fit", classmethod(lambda cls, x, **more: sizes.append(len(x)) or fitted(cls, x, **more)))
    train(data, tmp_path, model="logistic", search="random", trials=1, folds=4)
    assert sizes[-1] == 32 and sizes[:-1] == [24, 24, 24, 24]


def test_same_seed_same_search(tmp_path):
    data = tables()
    options = dict(model="tree", search="random", trials=4, folds=2)
    one, two = train(data, tmp_path / "1", **options).method, train(data, tmp_path / "2", **options).method
    assert one.options == two.options and one.found == two.found and (np.diff(one.found["curve"]) >= 0).all()


def test_gaps_are_filled_and_said(tmp_path):
    done = train(tables(), tmp_path, model="logistic", search="none", missing="indicator")
    whole = infer(done.method, Case("x", table={"a": 1.5, "b": 0.0}), done.plan)
    assert not whole.notes and whole.table["ill"]["1"] > 0.5
    gap = infer(done.method, Case("x", table={"a": 1.5}), done.plan)
    assert gap.notes == ("1 of 2 variables are missing (b): the training median stands in",)
    with pytest.raises(DataError, match="no variable that the model takes is known"):
        infer(done.method, Case("x", table={"site": "A"}), done.plan)
    with pytest.raises(DataError, match="holds a word"):
        infer(done.method, Case("x", table={"a": "high"}), done.plan)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"target": ""}, UsageError, "which column"),
        ({"target": "il"}, UsageError, "Did you mean 'ill'"),
        ({"columns": ("site",)}, DataError, "holds a word"),
        ({"columns": ("a", "ill")}, UsageError, "not a column it is answered from"),
        ({"trials": 0}, UsageError, "no such search"),
    ],
)
def test_what_cannot_be_learnt_is_said(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        train(tables(), tmp_path, **options)


def test_a_column_of_real_numbers_is_refused(tmp_path):
    with pytest.raises(UsageError, match="columns of levels"):
        train(replace(tables(), targets={"ill": {"kind": "real"}}), tmp_path)


def warm(n=16, side=16) -> Manifest:
    """Two breasts; the left one has a warm spot where 'ill' is 1. The last case lacks its right image."""
    grid, cases = Geometry.of((side, side)), []
    for i in range(n):
        rng = np.random.default_rng(i)
        left, right = rng.normal(0, 0.1, (2, 1, side, side)).astype(np.float32)
        left[0, 4:10, 4:10] += 2.0 * (i % 2)
        images = {"left": Image(left, grid), "right": Image(right, grid)}
        cases.append(Case(f"c{i}", f"c{i}", images=images if i < n - 1 else {"left": images["left"]}, table={"ill": i % 2}))
    return in_memory(cases, 2, (), split="train")


def test_thermograms_are_searched_and_learnt_and_a_missing_breast_is_an_error(tmp_path):
    data = warm()
    done = train(data, tmp_path, search="random", trials=2, side=16)
    assert done.method.parts["network"].in_channels == 2 and len(done.method.found["curve"]) == 2
    assert done.record["facts"]["logged"]["cases_without_an_image"] == 1
    read = api.reader(data)
    answers = [infer(done.method, read(i), done.plan).table["ill"] for i in ("c0", "c1")]
    assert all(sum(p.values()) == pytest.approx(1, abs=1e-5) for p in answers)
    bare = BreastML(done.plan, replace(data, cases=()), target="ill", side=16)
    tensors, facts = checkpoint.method_tensors(done.method)
    checkpoint.load_method(bare, tensors, facts, Path("x"))
    assert [infer(bare, read(i), done.plan).table["ill"] for i in ("c0", "c1")] == answers
    with pytest.raises(DataError, match="'right' is missing"):
        infer(done.method, read("c15"), done.plan)


def test_the_proof_keeps_one_number_of_every_case():
    names = runpy.run_path(str(ROOT / "proofs/breast/breast_ml.py"))
    case = Case("x", table={k: 1.0 for k in "abcdefghij"})
    gone = [names["with_gaps"](case, "abcdefghij", s).table for s in range(50)]
    assert 2 < np.mean([10 - len(t) for t in gone]) < 4 and all(gone) and gone == [
        names["with_gaps"](case, "abcdefghij", s).table for s in range(50)
    ]  # fmt: skip
    assert names["study"]().slug == "breast-ml"


def test_real_tables_open_and_answer(tmp_path):
    folder = ROOT.parent / "shared/data/2d/tabular_breast/impedance"
    if not folder.is_dir():
        pytest.skip("the shared data are not on this machine")
    data = open_dataset(folder)
    done = api.train(BreastML, data, tmp_path / "run", options={"target": "class", "search": "none"}, plan_overrides=PLAN)
    found = infer(done.method, api.reader(data)(data.where("test")[0]), done.plan)
    assert list(found.table["class"]) == ["0", "1", "2", "3", "4", "5"] and len(done.method.columns) == 9


def test_a_run_is_opened_from_its_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "cards", lambda: {c.slug: c for c in CARDS})
    data = tables(30)
    options = {"target": "ill", "model": "tree", "search": "random", "trials": "2", "folds": "2"}
    done = api.train("breast-ml", data, tmp_path / "run", options=options, plan_overrides=PLAN)
    again = api.open_run(tmp_path / "run")
    case = api.reader(data)(data.where("test")[0])
    assert infer(again.method, case, again.plan).table == infer(done.method, case, done.plan).table
