"""The command line as a user meets it: a real process, exit codes, one-sentence errors, JSON, progress on stderr only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

BIN = Path(sys.executable).with_name("vesalius")


def vesalius(*args, code: int = 0, cwd=None) -> subprocess.CompletedProcess:
    done = subprocess.run([BIN, *map(str, args)], capture_output=True, text=True, cwd=cwd, env={**os.environ, "NO_COLOR": "1"}, timeout=250)
    assert done.returncode == code, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A plain images/ + masks/ folder of eight PNGs with a bright disc."""
    root = tmp_path_factory.mktemp("plain")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:48, :64]
    for i in range(8):
        disc = (yy - rng.integers(14, 34)) ** 2 + (xx - rng.integers(14, 50)) ** 2 < 100
        Picture.fromarray((disc * 120 + rng.integers(0, 90, disc.shape)).astype(np.uint8)).save(root / "images" / f"case{i}.png")
        Picture.fromarray((disc * 255).astype(np.uint8)).save(root / "masks" / f"case{i}.png")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unet"
    done = vesalius("train", "unet", "--data", folder, "--out", out, "--iterations", 25, "--json")
    assert json.loads(done.stdout)[0]["method"] == "unet"
    return out


def test_methods_json():
    rows = json.loads(vesalius("methods", "--json").stdout)
    assert {"slug", "title", "family", "evidence"} <= set(rows[0]) and {"unet", "sdl-seg"} <= {r["slug"] for r in rows}


def test_show_lists_options():
    assert "encoder" in vesalius("methods", "show", "unet").stdout


def test_datasets_lists_phantoms():
    table = vesalius("datasets").stdout
    assert "phantom:tumour-bed" in table and "nnunet" in table and max(map(len, table.splitlines())) < 200
    shown = vesalius("datasets", "show", "tumour-bed").stdout
    assert "contrast" in shown and "36 9 12" in shown
    assert "Did you mean" in vesalius("datasets", "show", "tumor-bed", code=2).stderr


def test_check_a_good_folder(folder):
    assert "0 errors" in vesalius("check", folder).stdout


def test_check_a_bad_folder(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "bad")
    (tmp_path / "bad" / "images" / "case3.png").write_bytes(b"")
    assert "case3" in vesalius("check", tmp_path / "bad", code=3).stdout


def test_predict_evaluate(folder, run, tmp_path):
    vesalius("predict", run, folder / "images", "--out", tmp_path / "pred")
    made = sorted(p.name for p in (tmp_path / "pred").iterdir())
    assert made == [f"case{i}.png" for i in range(8)]
    label = np.asarray(Picture.open(tmp_path / "pred" / "case0.png"))
    assert label.shape == (48, 64) and set(np.unique(label)) <= {0, 255}  # the data set's own values, the input's own grid
    scores = json.loads(vesalius("evaluate", "--pred", tmp_path / "pred", "--ref", folder, "--json").stdout)
    values = [r["value"] for r in scores if r["metric"] == "dsc"]
    assert len(values) == 8 and np.mean(values) > 0.5
    again = vesalius("predict", run, folder / "images", "--out", tmp_path / "pred")
    assert "8 of 8 are there already" in again.stderr and again.stdout == f"8 label files in {tmp_path / 'pred'}\n"


def test_a_missing_prediction_is_a_row_and_an_exit_code(folder, run, tmp_path):
    vesalius("predict", run, folder / "images" / "case1.png", "--out", tmp_path / "one")
    done = vesalius("evaluate", "--pred", tmp_path / "one", "--ref", folder, code=3)
    assert "missing prediction: case 'case0'" in done.stderr


def test_one_bad_input_does_not_stop_the_others(folder, run, tmp_path):
    import shutil

    shutil.copytree(folder / "images", tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    done = vesalius("predict", run, tmp_path / "in", "--out", tmp_path / "out", code=3)
    assert "broken.png" in done.stderr and len(list((tmp_path / "out").iterdir())) == 8


def test_compare_writes_a_report(folder, tmp_path):
    done = vesalius("compare", "unet", "lung-morphology", "--data", folder, "--out", tmp_path / "cmp", "--iterations", 8, "--seeds", 2)
    assert "report.html" in done.stdout
    page = (tmp_path / "cmp" / "report.html").read_text()
    assert "unet" in page and "lung-morphology" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["train", "unett", "--data", "phantom:shapes-2d", "--out", "x"], 2, "did you mean 'unet'"),
        (["train", "unet", "--data", "phantom:shapes-2d", "--out", "x", "--set", "lrr=1"], 2, "did you mean 'lr'"),
        (["train", "unet", "--data", "phantom:shapes-2d", "--out", "x", "--set", "lr=fast"], 2, "wrong type"),
        (["train", "unet", "--data", "/nowhere", "--out", "x"], 3, "/nowhere"),
        (["train", "unet", "--data", "phantom:shape-2d", "--out", "x"], 2, "did you mean 'shapes-2d'"),
        (["predict", "/nowhere", "a.nii.gz", "--out", "x"], 4, "no such run folder"),
        (["train", "unet", "--out", "x"], 2, "--data"),
        (["train", "unet", "--data", "phantom:shapes-2d", "--out", "x", "--device", "cuda:0,1"], 2, "one device"),
        (["train", "unet", "--data", "phantom:shapes-2d", "--out", "x", "--fold", "7"], 2, "0 to 4"),
        (["train", "saliency-acm", "--data", "phantom:shapes-3d", "--out", "x"], 2, "2D"),
    ],
)
def test_mistakes_are_one_sentence(args, code, words, tmp_path):
    done = vesalius(*args, code=code, cwd=tmp_path)
    assert words.lower() in done.stderr.lower() and done.stdout == "" and len(done.stderr.strip().splitlines()) <= 2


def test_help_and_listing_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['vesalius', 'methods', '--json']\n"
        "from vesalius.cli import app\napp(standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
