"""A folder's expressions and those of the command line are answered in files: a mask an expression, and their scores."""

import json

import numpy as np
import pytest

from tests.datasets.folders import picture, written
from vesalius import io
from vesalius.core.errors import UsageError
from vesalius.engine import api

TOML = 'name = "two"\nmodality = "US"\ndims = 2\n[labels]\n"background" = 0\n"nodule" = 1\n'
SMALL = {"widths": (4, 8), "convs": (1, 1), "fc": 8, "features": 8, "embedding": 8, "hidden": 8, "mlp": 8}
PLAN = {"workers": 0, "batch": 2, "precision": "32", "threads": 1}


def folder(path, cases: int = 9):
    rows, asked, rng = ["case,split,image:US,label:reference"], ["case,id,text,label"], np.random.default_rng(0)
    for i in range(cases):
        label = np.zeros((24, 32), np.uint8)
        label[6:14, 4 + i : 12 + i] = 1
        picture(path / f"i{i}.png", (60 + 120 * label + rng.integers(0, 9, label.shape)).astype(np.uint8))
        picture(path / f"l{i}.png", label)
        rows.append(f"c{i},{'test' if i == 8 else 'val' if i > 4 else 'train'},i{i}.png,l{i}.png")
        asked += [f"c{i},it,the nodule,nodule", f"c{i},none,the stone,nothing"] + ([f"c{i},open,what?,"] if i < 3 else [])
    written(path, "\n".join(rows) + "\n", TOML)
    (path / "queries.csv").write_text("\n".join(asked) + "\n")
    return path


def test_expressions_of_a_folder_and_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    data = folder(tmp_path / "data")
    run = api.train("lstm-fcn-language", data, tmp_path / "run", options=SMALL, iterations=6, plan_overrides=PLAN)
    (made,) = api.predict(run, data, tmp_path / "out", split="test", texts=("the left nodule",))
    assert made == tmp_path / "out" / "c8.json"
    table = json.loads(made.read_text())["table"]
    assert set(table) == {"query:it", "query:none", "query:text1"} and all(0 <= v <= 1 for v in table.values())
    for name in ("it", "none", "text1"):
        mask = io.read_image(str(tmp_path / "out" / "c8" / f"{name}.png")).data[0]
        assert mask.shape == (24, 32) and set(np.unique(mask)) <= {0, 255} and mask.any() == (table[f"query:{name}"] >= 0.5)
    stood = made.stat().st_mtime_ns
    api.predict(run, data, tmp_path / "out", split="test", texts=("the left nodule",))
    assert made.stat().st_mtime_ns == stood  # the same question: the answer stands
    (bare,) = api.predict(run, [data / "i8.png"], tmp_path / "file", texts=("the nodule",))
    assert set(json.loads(bare.read_text())["table"]) == {"query:text1"}
    with pytest.raises(UsageError, match="scores of expressions"):
        api.predict(run, data, tmp_path / "more", probability=True)
