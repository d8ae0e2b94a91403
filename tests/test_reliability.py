"""Faults of a whole run: what the user sees and what is left on disk (the readers' own faults are in tests/io)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image
from vesalius.core.errors import DataError, ResourceError, RunError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api, checkpoint
from vesalius.engine import predict as predicting
from vesalius.engine.infer import infer, infer_in_blocks
from vesalius.engine.plan import memory_gib
from vesalius.io import header
from vesalius.methods.learned import LearnedMethod
from vesalius.methods.planned import PlannedUNet

BIN = Path(sys.executable).with_name("vesalius")
SMALL = {"batch": 2, "features": (4, 8, 8), "precision": "32", "workers": 0}
CANARY = "ZZPHI^CANARY"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    small = {**SMALL, "threads": 1, "patch": (24, 24, 24)}
    return api.train("unet", "phantom:shapes-3d", tmp_path_factory.mktemp("run") / "unet", iterations=3, plan_overrides=small)


def volume(path: Path, shape, affine=None, **header) -> Path:
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.normal(0, 200, shape).astype(np.int16), np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("shape", [(70, 60, 3), (5, 6, 7), (1, 40, 33), (25, 25, 49)])
def test_thin_small_and_odd_volumes(trained, tmp_path, shape):
    """45: sides below the patch, of one voxel, not divisible: the label lies on the input's grid."""
    path = volume(tmp_path / "thin.nii.gz", shape, np.diag([0.5, 0.5, 5, 1]))
    (made,) = api.predict(trained, path, tmp_path / "out")
    label = nib.load(made)
    assert label.shape == shape and np.allclose(label.affine, nib.load(path).affine)


def test_a_constant_image_and_one_full_of_nan(trained, tmp_path):
    """19: no division by zero, NaN counted and replaced."""
    nib.save(nib.Nifti1Image(np.full((24, 24, 24), -3024, np.int16), np.eye(4)), tmp_path / "flat.nii.gz")
    data = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    data[3:5] = np.nan
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "nan.nii.gz")
    with pytest.warns(UserWarning, match="NaN|not finite"):
        made = api.predict(trained, [tmp_path / "flat.nii.gz", tmp_path / "nan.nii.gz"], tmp_path / "out")
    assert len(made) == 2


def test_what_does_not_fit_is_said_before(trained, tmp_path, monkeypatch):
    """41: the need is named and nothing is written."""
    import psutil

    path = volume(tmp_path / "big.nii.gz", (64, 64, 64))
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=2**20))
    with pytest.raises(DataError, match="does not fit into memory.*GiB needed"):
        api.predict(trained, path, tmp_path / "out", probability=True)
    assert not list((tmp_path / "out").iterdir())


def test_damaged_checkpoints_are_refused(trained, tmp_path):
    """35: cut, overwritten, or with a header of nonsense."""
    good = (trained.folder / "method.safetensors").read_bytes()
    for name, data in {"cut": good[: len(good) // 2], "noise": b"\x00" * 200, "header": b"\xff" * 8 + good[8:]}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(RunError, match="not a readable checkpoint"):
            checkpoint.read(path)


class Raises(PlannedUNet):
    """A worker that fails on one case."""

    def augment(self, sample, rng):
        raise DataError("the patch could not be read", where=f"case {sample.case}")


def test_a_failing_worker_names_the_case(tmp_path):
    """43: the worker's own message and the case, not a traceback of queues."""
    with pytest.raises(DataError, match="case train-"):
        api.train(Raises, "phantom:shapes-2d", tmp_path / "run", iterations=5, plan_overrides={**SMALL, "workers": 1})


def test_disk_full_keeps_the_last_checkpoint(trained, tmp_path):
    """40: a write that fails leaves the file before it whole."""
    tensors, record = checkpoint.read(trained.folder / "method.safetensors")
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, tensors, {"facts": {}, "n": 1})
    code = (
        "import resource, signal, sys, numpy as np; from pathlib import Path; from vesalius.engine import checkpoint;"
        "from vesalius.core.errors import ResourceError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        f"path = Path(r'{path}')\n"
        "try:\n    checkpoint.write(path, {'a': np.zeros(100000)}, {'facts': {}, 'n': 2})\n"
        "except ResourceError as e:\n    print(e); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert checkpoint.read(path)[1]["n"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_nothing_of_the_patient_leaves_the_header(trained, tmp_path):
    """59: a name in descrip, aux_file and db_name is in no output."""
    path = volume(tmp_path / "phi.nii.gz", (24, 24, 24), descrip=CANARY.encode(), aux_file=CANARY.encode(), db_name=CANARY.encode())
    made = api.predict(trained, path, tmp_path / "out")
    import gzip

    for file in [*made, *trained.folder.rglob("*")]:
        if file.is_file():
            data = file.read_bytes()
            data = gzip.decompress(data) if file.name.endswith(".gz") else data
            assert CANARY.encode() not in data, file


def test_no_foreground_at_all_is_one_sentence(tmp_path):
    """48: a data set of empty masks is refused before training."""
    from PIL import Image

    for name in ("images", "labels"):
        (tmp_path / "d" / name).mkdir(parents=True)
    (tmp_path / "d" / "dataset.toml").write_text(
        'name = "empty"\nmodality = "US"\ndims = 2\nlicence = ""\nsource = ""\n[labels]\nbackground = 0\nlesion = 255\n'
    )
    rows = ["case,patient,split,image:US,label:reference"]
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path / "d" / "images" / f"{i}.png")
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "d" / "labels" / f"{i}.png")
        rows.append(f"{i},{i},train,images/{i}.png,labels/{i}.png")
    (tmp_path / "d" / "cases.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="no training case has any foreground"):
        api.train("unet", tmp_path / "d", tmp_path / "run", iterations=2)


def test_locale_clock_and_workers_do_not_matter(trained, tmp_path):
    """50, 60: another time zone, locale and thread count in another process: the same labels."""
    code = (
        "import torch; torch.set_num_threads(1); from vesalius.engine import api;"
        f"api.predict(r'{trained.folder}', 'phantom:shapes-3d', r'{tmp_path / 'b'}', split='test')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "de_DE"})
    for path in api.predict(trained, open_dataset("phantom:shapes-3d"), tmp_path / "a", split="test"):
        assert np.array_equal(nib.load(path).dataobj, nib.load(tmp_path / "b" / path.name).dataobj)


def test_one_case_is_enough_to_say_what_is_missing(tmp_path):
    """48: one training case trains; there is nothing to test on, and compare says so."""
    manifest = open_dataset("phantom:shapes-2d").only(["train-000"])
    done = api.train("unet", manifest, tmp_path / "run", iterations=2, plan_overrides=SMALL)
    assert done.record["status"] == "finished"
    with pytest.raises(DataError, match="no case to test on"):
        api.compare(["unet"], manifest, tmp_path / "cmp", iterations=1)


def test_memory_and_time_are_recorded(trained):
    record = json.loads((trained.folder / "run.json").read_text())
    assert record["peak_memory_gib"] > 0 and record["seconds"] > 0 and record["versions"]["torch"] and record["data"]["digest"]


class Threshold(LearnedMethod):
    """Foreground where the normalised image is above 0.5: no context, so cutting must change nothing."""

    def __init__(self, plan, manifest):
        super().__init__(plan, manifest)
        self.level = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, image, condition=None):
        return torch.cat([self.level - image, image - self.level], 1)


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[:, [2, 0, 1]]])
@pytest.mark.parametrize("rule", ["zscore", "unit", "byte"])
@pytest.mark.parametrize("crop", [False, True])
def test_blocks_equal_the_whole(direction, rule, crop):
    """44: voxel for voxel, in any orientation, however small the blocks; the person is told."""
    geometry = Geometry.of((13, 11, 47), (1.0, 1.5, 2.0), (3, -4, 5), direction)
    data = np.random.default_rng(1).normal(100, 30, (1, *geometry.shape)).astype(np.float32)
    if crop:
        data[..., :5] = data.min()
    case = Case("a", images={"MR": Image(data, geometry)})
    plan = Plan(3, channels=("MR",), classes=("background", "one"), patch=(4, 4, 4), normalise={"MR": rule}, crop_to_body=crop)
    method = Threshold(plan, Manifest("m", Path(), 3, ("MR",), {"background": 0, "one": 1}, ()))
    whole = infer(method, case, plan).label
    assert set(np.unique(whole.data)) == {0, 1} if rule != "byte" else True
    for share in (0.5, 0.2):
        parts = infer_in_blocks(method, case, plan, gib=share * memory_gib(plan, geometry.shape))
        assert parts.label.geometry == geometry and "blocks" in parts.notes[0]
        np.testing.assert_array_equal(parts.label.data, whole.data)
    with pytest.raises(ResourceError, match="not even a block"):
        infer_in_blocks(method, case, plan, gib=1e-9)


def test_a_large_file_is_predicted_in_blocks(trained, tmp_path, monkeypatch):
    """44: as much memory as nearly suffices for the whole."""
    import psutil

    path = volume(tmp_path / "long.nii.gz", (20, 22, 200), np.diag([-1, -1, 2, 1]))
    free, need = psutil.virtual_memory(), predicting.need_gib(trained.plan, header(path)[1])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=int(0.95 * need * 2**30)))
    blocks, cut = [], predicting.infer_in_blocks
    monkeypatch.setattr(predicting, "infer_in_blocks", lambda *a, **k: blocks.append(cut(*a, **k)) or blocks[-1])
    (made,) = api.predict(trained, path, tmp_path / "out")
    assert nib.load(made).shape == (20, 22, 200) and np.allclose(nib.load(made).affine, nib.load(path).affine)
    assert "predicted in blocks" in blocks[0].notes[0]


QUICK = {"iterations": 40, "validations": 0, "plan_overrides": {**SMALL, "threads": 1, "patch": (32, 32)}}
STOPPED = """
import sys, time
from vesalius import cli
from vesalius.engine import api, fit
train, update, quick = api.train, fit._update, %r
quick["plan_overrides"]["workers"] = %d
api.train = lambda *a, **k: train(*a, **{**k, **quick})
def _update(*a):
    time.sleep(0.1)
    return update(*a)
fit._update = _update
sys.argv = ["vesalius", "train", "unet", "--data", "phantom:shapes-2d", "--out", %r, "--quiet"]
cli.main()
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    api.train("unet", "phantom:shapes-2d", out := tmp_path_factory.mktemp("whole") / "run", **QUICK)
    return out


def begun(out: Path, workers: int = 0) -> subprocess.Popen:
    """A training that has taken its first steps, in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = STOPPED % (QUICK, workers, str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    for _ in range(6000):
        if (out / "log.csv").exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_resumes_bitwise(uninterrupted, tmp_path, number, code):
    """39, 49: Ctrl-C, SIGTERM and SIGHUP of a closed terminal stop after a step; the weights at the end are those of an unbroken run."""
    process = begun(tmp_path / "run")
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code and "--resume" in error and "Traceback" not in error, error
    step = checkpoint.read(tmp_path / "run" / "checkpoint" / "main.safetensors")[1]["step"]
    assert 0 < step < 40 and not (tmp_path / "run" / ".lock").exists()
    api.train("unet", "phantom:shapes-2d", tmp_path / "run", resume=True, **QUICK)
    whole, parts = (checkpoint.read(run / "method.safetensors")[0] for run in (uninterrupted, tmp_path / "run"))
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[k], parts[k]) for k in whole)


def test_sigterm_to_the_whole_group(tmp_path):
    """49: a scheduler tells the workers as well; whoever is faster, the exit code is 143 and nobody is left."""
    process = begun(tmp_path / "run", workers=1)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in error and "should not have happened" not in error, error
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


TERMINATED = """
import os, signal, sys
from vesalius import cli
from vesalius.engine import answers
write, made = answers.write_labels, []
def write_labels(*a, **k):
    write(*a, **k)
    made.append(a)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
answers.write_labels = write_labels
sys.argv = ["vesalius", "predict", %r, %r, "--out", %r, "--quiet"]
cli.main()
"""


def test_a_prediction_ends_at_sigterm_with_whole_files(trained, tmp_path):
    """38, 49: 143, no half file and no temporary one; the same command goes on."""
    for i in range(4):
        volume(tmp_path / "in" / f"{i}.nii.gz", (20, 20, 20))
    code = TERMINATED % (str(trained.folder), str(tmp_path / "in"), str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 143 and "what was predicted is kept" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.nii.gz", "1.nii.gz"]
    assert nib.load(tmp_path / "out" / "1.nii.gz").get_fdata().shape == (20, 20, 20)
    assert len(api.predict(trained, tmp_path / "in", tmp_path / "out")) == 4


def test_letters_a_terminal_cannot_show():
    """49: no TTY, NO_COLOR, cp1252 or plain ASCII: every listing is printed, nothing is coloured."""
    for encoding, args in (("cp1252", ["methods"]), ("ascii", ["datasets"])):
        env = {**os.environ, "PYTHONIOENCODING": encoding, "NO_COLOR": "1"}
        done = subprocess.run([BIN, *args], capture_output=True, env=env)
        assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr and b"error:" not in done.stderr, done.stderr


def test_a_clock_that_jumps_back(tmp_path, monkeypatch):
    """50: nothing that is learnt or waited for asks the wall clock."""
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    done = api.train("unet", "phantom:shapes-2d", tmp_path / "run", iterations=3, plan_overrides=SMALL)
    assert done.record["seconds"] >= 0 and done.record["status"] == "finished"


def test_plain_mistakes_in_a_runs_files(trained, tmp_path):
    """36, 37: another version, an unknown field, JSON that is none: the file and the difference are named."""
    import shutil

    shutil.copytree(trained.folder, tmp_path / "run")
    plan, run = tmp_path / "run" / "plan.json", tmp_path / "run" / "run.json"
    good = json.loads(plan.read_text())
    for text, words in (
        ("{", "plan.json:1.*not valid JSON"),
        (json.dumps({**good, "ptach": 3}), "unknown fields.*ptach"),
        (json.dumps({**good, "version": 99}), "another version; found 99"),
    ):
        plan.write_text(text)
        with pytest.raises(RunError, match=words):
            api.open_run(tmp_path / "run")
    plan.write_text(json.dumps(good))
    run.write_text(json.dumps({**json.loads(run.read_text()), "version": 0}))
    with pytest.raises(RunError, match="another version; found 0"):
        api.open_run(tmp_path / "run")
    with pytest.raises(UsageError, match="[Dd]id you mean 'unet'"):
        api.train("unte", "phantom:shapes-2d", tmp_path / "x")
