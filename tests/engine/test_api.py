"""Training and predicting through the API: devices, declared folds, regions, what a folder holds, and going on where it stopped."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tests.io.made import ct_series
from vesalius.core.errors import DataError, UsageError
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import open_dataset
from vesalius.engine import api, runs
from vesalius.engine import predict as predicting
from vesalius.engine.inputs import jobs_of

SMALL = {"batch": 2, "features": (4, 8, 8), "precision": "32", "workers": 0, "threads": 1}
CUBE = {**SMALL, "patch": (24, 24, 24)}


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return api.train("unet", "phantom:shapes-2d", tmp_path_factory.mktemp("run") / "flat", iterations=2, plan_overrides=SMALL)


@pytest.fixture(scope="module")
def solid(tmp_path_factory):
    return api.train("unet", "phantom:shapes-3d", tmp_path_factory.mktemp("run") / "solid", iterations=2, plan_overrides=CUBE)


def volume(path, shape=(20, 22, 24), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).normal(0, 200, shape).astype(np.int16), np.diag([1, 1.5, 2, 1])), path)
    return path


class Says(api.Progress):
    def __init__(self):
        super().__init__(quiet=True)
        self.said = []

    def say(self, text):
        self.said.append(text)


# ------------------------------------------------------------------------------------------------------------------------------ devices
@pytest.mark.parametrize("device", ["cuda:0,1", "0,1", "cuda:0,cuda:1", "gpu", "mps", "cuda:x", "", "1"])
def test_devices_that_are_not_supported(device):
    with pytest.raises(UsageError, match="--device.*allowed: auto, cpu") as caught:
        api.device_of(device)
    assert ("one device" in str(caught.value)) == ("," in device)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU that torch can use"):
        api.device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert api.device_of("auto") == "cuda" and api.device_of("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="no such GPU.*allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        api.device_of("cuda:2")


# -------------------------------------------------------------------------------------------------------------------------------- folds
def rows(*said):
    """(case, patient, split, fold) rows -> Manifest."""
    cases = tuple(CaseRef(c, p, s, images={"MR": f"{c}.png"}, table={} if f is None else {"fold": f}) for c, p, s, f in said)
    return Manifest("m", "/", 2, ("MR",), {"background": 0, "one": 1}, cases)


def test_a_column_fold_declares_the_folds():
    m = rows(("a", "a", "", 1), ("b", "b", "", 2), ("c", "c", "", 4), ("d", "d", "", None), ("e", "e", "test", 1))
    m = Manifest(**{**m.__dict__, "cases": tuple(c if c.split else CaseRef(**{**c.__dict__, "split": "train"}) for c in m.cases)})
    splits = [m.split(k) for k in range(3)]
    assert [s.val for s in splits] == [("a",), ("b",), ("c",)] and splits[1].train == ("a", "c", "d") and splits[0].test == ("e",)
    assert splits[2].name == "fold 2 of 3, declared" and m.split(1, 3) == splits[1]
    with pytest.raises(UsageError, match="declares its own folds; found 5 folds asked for; allowed: its 3"):
        m.split(0, 5)
    with pytest.raises(UsageError, match="0 to 2, as declared"):
        m.split(3)
    assert not m.only(["a", "b", "c"]).declared_folds  # a method's own folds inside a training set are drawn
    assert m.held_out(0).test == ("a",)
    with pytest.raises(DataError, match="patient 'p' is in both parts of fold 0"):
        rows(("a", "p", "", 0), ("b", "p", "", 1)).split(0)


def test_nnunet_folds_are_trained_and_recorded(tmp_path):
    channel, cases = {"0": "MR"}, [f"c{i}" for i in range(4)]
    for i, case in enumerate(cases):
        volume(tmp_path / "d/imagesTr" / f"{case}_0000.nii.gz", seed=i)
        label = np.zeros((20, 22, 24), np.uint8)
        label[5:9, 5:12, 5:12], label[9:12, 5:12, 5:12] = 1, 2
        (tmp_path / "d/labelsTr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, np.diag([1, 1.5, 2, 1])), tmp_path / "d/labelsTr" / f"{case}.nii.gz")
    table = {"background": 0, "whole": [1, 2], "core": 2}
    record = {"channel_names": channel, "labels": table, "regions_class_order": [1, 2], "numTraining": 4, "file_ending": ".nii.gz"}
    (tmp_path / "d/dataset.json").write_text(json.dumps(record))
    folds = [{"train": cases[:3], "val": cases[3:]}, {"train": cases[1:], "val": cases[:1]}]
    (tmp_path / "d/splits_final.json").write_text(json.dumps(folds))
    said = Says()
    done = api.train("unet", tmp_path / "d", tmp_path / "run", fold=1, iterations=2, plan_overrides=SMALL, progress=said)
    kept = json.loads((tmp_path / "run/run.json").read_text())
    assert (list(done.split.val), kept["split"]["name"]) == (["c0"], "fold 1 of 2, declared") and kept["split"]["train"] == cases[1:]
    rule = open_dataset(tmp_path / "d").regions_rule
    assert rule.endswith("the exclusive classes of the label files' values (whole = label_1 + core; core = core)")
    assert rule in said.said and rule in kept["facts"]["notes"]  # 4: nnU-Net's regions are said, not dropped in silence
    with pytest.raises(UsageError, match="declares its own folds"):
        api.train("unet", tmp_path / "d", tmp_path / "no", fold=0, folds=5, iterations=2)
    assert not (tmp_path / "no").exists()
    (tmp_path / "d/splits_final.json").write_text(json.dumps([{"train": ["c9"], "val": ["c1"]}]))
    with pytest.raises(DataError, match="names the unknown case 'c9'"):
        open_dataset(tmp_path / "d").split(0)


# ------------------------------------------------------------------------------------------------------------------------------- inputs
def jobs(trained, inputs, **settings):
    return jobs_of(inputs, trained.plan, trained.manifest, api.reader, **settings)


def test_a_folder_of_mixed_kinds(solid, tmp_path):
    """Volumes of several kinds, a DICOM series as a folder, what is no image left out; one bad file does not stop the others."""
    import SimpleITK as sitk

    data = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 9)).astype(np.int16)
    volume(tmp_path / "in/a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(data), str(tmp_path / "in/b.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(data), str(tmp_path / "in/c.nrrd"))
    ct_series(tmp_path / "in" / "series", data)
    (tmp_path / "in/d.nii.gz").write_bytes(b"")
    (tmp_path / "in/readme.txt").write_text("hello")
    (tmp_path / "in/.hidden").write_text("x")
    said = Says()
    with pytest.raises(DataError, match="1 of 5 inputs could not be predicted.*d.nii.gz.*empty"):
        api.predict(solid, tmp_path / "in", tmp_path / "out", progress=said)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.mha", "c.nrrd", "series.nii.gz"]
    assert any("1 files are no images and were left out (readme.txt)" in s for s in said.said)
    (made,) = api.predict(solid, tmp_path / "in" / "series", tmp_path / "one")
    label = nib.load(made)
    assert made.name == "series.nii.gz" and label.shape == (20, 18, 9)
    assert jobs(solid, tmp_path / "in" / "series")[0].geometry.shape == (20, 18, 9)


def test_nnunet_names(flat, solid, tmp_path):
    for case in "ab":
        volume(tmp_path / "in" / f"{case}_0000.nii.gz")
    assert [j.name for j in jobs(solid, tmp_path / "in")] == ["a", "b"]
    assert [j.name for j in jobs(solid, tmp_path / "in" / "a_0000.nii.gz")] == ["a_0000"]  # a file by itself keeps its name
    two = solid.plan.derive(channels=("T1", "T2"), in_channels=2)
    for case in "ab":
        volume(tmp_path / "in" / f"{case}_0001.nii.gz", seed=1)
    found = jobs_of(tmp_path / "in", two, solid.manifest, api.reader)
    assert [j.name for j in found] == ["a", "b"] and list(found[0].read().images) == ["T1", "T2"]
    (tmp_path / "in" / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'b' has not the images.*b_0000 .T1., b_0001 .T2."):
        jobs_of(tmp_path / "in", two, solid.manifest, api.reader)
    with pytest.raises(UsageError, match="takes 2 images a case"):
        jobs_of(tmp_path / "in" / "a_0000.nii.gz", two, solid.manifest, api.reader)


def test_pictures_are_read_as_in_training(flat, tmp_path):
    """A colour PNG for a model of grey pictures; DICOM of one slice; an array in a file; a split asked of a folder."""
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Picture.fromarray(grey).save(tmp_path / "in" / "grey.png")
    np.savez(tmp_path / "in" / "arrays.npz", first=grey, second=grey[:20])
    found = jobs(flat, [tmp_path / "in" / "grey.png", f"{tmp_path / 'in' / 'arrays.npz'}:second"])
    assert [(j.name, j.geometry.shape) for j in found] == [("grey", (40, 50)), ("arrays_second", (20, 50))]
    with pytest.raises(UsageError, match="--split chooses cases of a dataset"):
        jobs(flat, tmp_path / "in", split="test")
    with pytest.raises(UsageError, match="no case is in split 'tset'"):
        jobs(flat, "phantom:shapes-2d", split="tset")
    with pytest.raises(UsageError, match="--format.*allowed: .nii.gz"):
        api.predict(flat, tmp_path / "in" / "grey.png", tmp_path / "out", format=".jpg")


# ---------------------------------------------------------------------------------------------------------------------- going on, mirrors
def test_half_a_folder_goes_on(flat, tmp_path, monkeypatch):
    """What this run wrote is kept, a file of anybody else is refused, --overwrite does all anew, no input is ever written over."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(4):
        Picture.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(tmp_path / "in" / f"{i}.png")
    count, infer = [], predicting.infer

    def dies(*args, **kwargs):
        count.append(args[1].id)
        if len(count) == 3:
            raise KeyboardInterrupt
        return infer(*args, **kwargs)

    monkeypatch.setattr(predicting, "infer", dies)
    with pytest.raises(KeyboardInterrupt):
        api.predict(flat, tmp_path / "in", tmp_path / "out")
    assert count == ["0", "1", "2"] and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    made = api.predict(flat, tmp_path / "in", tmp_path / "out")
    assert count[3:] == ["2", "3"] and [p.name for p in made] == ["0.png", "1.png", "2.png", "3.png"]
    api.predict(flat, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert len(count) == 9
    with pytest.raises(DataError, match="4 of 4.*this run did not write"):
        api.predict(flat, tmp_path / "in", tmp_path / "out", seed=1)  # other numbers
    Picture.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "other.png")
    with pytest.raises(DataError, match="would replace its own input"):
        api.predict(flat, tmp_path / "in" / "0.png", tmp_path / "in", overwrite=True)
    assert len(count) == 9


def test_mirrored_windows_on_and_off(solid, tmp_path, monkeypatch):
    seen, infer = [], predicting.infer
    monkeypatch.setattr(
        predicting, "infer", lambda m, c, p, **k: (seen.append((m.inferer().mirror_axes, p.test_mirror)), infer(m, c, p, **k))[1]
    )
    path, plan = volume(tmp_path / "a.nii.gz"), solid.plan
    assert plan.test_mirror == (0,)
    for name, tta in (("none", None), ("on", True), ("off", False)):
        api.predict(solid, path, tmp_path / name, tta=tta)
    assert seen == [((0,), (0,)), ((0,), (0,)), ((), ())]
    assert solid.plan is plan and solid.method.plan.test_mirror == (0,)  # lent, not changed
    monkeypatch.setattr(solid, "plan", plan.derive(mirror_pairs=((1, 2),), test_mirror=()))
    with pytest.raises(UsageError, match="tells left from right"):
        api.predict(solid, path, tmp_path / "x", tta=True)


# ------------------------------------------------------------------------------------------------------------------------------- memory
def test_a_dataset_larger_than_memory_goes_in_blocks(solid, tmp_path, monkeypatch):
    """44: the cases of a Manifest are measured by their headers as files are; methods that cannot be cut are refused before reading."""
    import psutil

    for i in range(2):
        volume(tmp_path / "d/images" / f"{i}.nii.gz", (20, 20, 200), seed=i)
    data = Manifest("d", tmp_path / "d", 3, solid.plan.channels, solid.manifest.labels, tuple(
        CaseRef(str(i), str(i), images={solid.plan.channels[0]: f"images/{i}.nii.gz"}) for i in range(2)
    ))  # fmt: skip
    free, need = psutil.virtual_memory(), predicting.need_gib(solid.plan, jobs(solid, data)[0].geometry)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=int(0.95 * need * 2**30)))
    said = Says()
    probes = []
    monkeypatch.setattr(
        predicting, "accelerate_if_worth_it", lambda m, p, shapes, first, backend: probes.append((shapes, first().geometry.shape))
    )
    made = api.predict(solid, data, tmp_path / "out", progress=said)
    assert probes == [([(20, 20, 200)] * 2, (20, 20, 49))]  # the network is tried on the middle only
    assert [nib.load(p).shape for p in made] == [(20, 20, 200)] * 2 and sum("predicted in blocks" in s for s in said.said) == 2
    reads = []
    monkeypatch.setattr(predicting, "accelerate_if_worth_it", lambda *a, **k: None)
    monkeypatch.setattr(runs, "read_case", lambda *a: reads.append(a))
    with pytest.raises(DataError, match="2 of 2.*does not fit into memory.*GiB needed"):
        api.predict(solid, data, tmp_path / "p", probability=True, backend="torch")
    assert not reads
    monkeypatch.undo()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=2**16))
    with pytest.raises(DataError, match="does not fit into memory|not even a block"):  # a phantom is measured once it is simulated
        api.predict(solid, "phantom:shapes-3d", tmp_path / "q", split="test", probability=True)


def test_acceleration_counts_a_datasets_windows(solid, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(predicting, "accelerate_if_worth_it", lambda m, p, shapes, first, backend: counted.append(sorted(shapes)))
    volume(tmp_path / "d" / "a.nii.gz", (20, 22, 24))
    volume(tmp_path / "d" / "b.nii.gz", (30, 22, 24))
    api.predict(solid, tmp_path / "d", tmp_path / "out")
    assert [tuple(map(len, counted[0]))] == [(3, 3)] and counted[0] == sorted(
        solid.plan.grid.of(j.geometry.canonical()).shape for j in jobs(solid, tmp_path / "d")
    )
    phantom = open_dataset("phantom:shapes-3d")
    api.predict(solid, phantom, tmp_path / "ph", split="test")
    assert len(counted[1]) == len(phantom.where("test"))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 GB")]
)
def test_running_out_of_memory_is_tried_once_in_blocks(solid, tmp_path, monkeypatch, error):
    """41, 42: smaller blocks once; then one sentence; the other inputs go on."""
    tried = []

    def fails(*args, **kwargs):
        raise error

    def blocks(method, case, plan, *, gib, seed):
        tried.append(gib)
        if case.id == "a":
            raise error
        return small(method, case, plan, gib=1.0, seed=seed)

    small = predicting.infer_in_blocks
    monkeypatch.setattr(predicting, "infer", fails)
    monkeypatch.setattr(predicting, "infer_in_blocks", blocks)
    paths = [volume(tmp_path / "a.nii.gz"), volume(tmp_path / "b.nii.gz")]
    with pytest.raises(DataError, match="1 of 2.*a.nii.gz: not enough memory"):
        api.predict(solid, paths, tmp_path / "out")
    assert len(tried) == 2 and [p.name for p in (tmp_path / "out").iterdir()] == ["b.nii.gz"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. Possibly the workers are out of shared memory", "/dev/shm"),
        ("unable to write to file </torch_77>: No space left on device; /dev/shm", "--shm-size"),
        ("DataLoader worker (pid(s) 12) exited unexpectedly", "loading worker died"),
        ("Expected more than 1 value per channel when training, got input size torch.Size([1, 8, 1, 1])", "one value to normalise"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "smaller patch"),
    ],
)  # fmt: skip
def test_torchs_own_errors_are_explained(text, words):
    """42, 43, 46: what they mean, and what to do."""
    assert words in str(api._explained(RuntimeError(text), "run"))
    assert api._explained(RuntimeError("shape mismatch"), "run") is None


def test_one_voxel_to_normalise_is_said_before_the_first_update(tmp_path):
    """46: one case a batch and a network that shrinks the patch to one voxel."""
    with warnings.catch_warnings(), pytest.raises(api.RunError, match="one value to normalise.*norm=group"):
        warnings.simplefilter("ignore")
        overrides = {**SMALL, "batch": 1, "patch": (4, 4), "strides": ((1, 1), (2, 2), (2, 2)), "kernels": ((3, 3),) * 3}
        api.train("unet", "phantom:shapes-2d", tmp_path / "run", iterations=2, plan_overrides=overrides)
    assert not (tmp_path / "run" / "checkpoint").exists()
