"""Opening: our own layout, nnU-Net, Decathlon, plain folders, tables, MedMNIST; and what they refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vesalius.core.errors import DataError, UsageError
from vesalius.datasets import available, nnunet_splits, open_dataset, read_case

from .folders import picture, small_3d, volume, written

HEAD = "case,patient,split,image:T1\n"


def test_vesalius_layout(tmp_path):
    toml = (
        'name = "n"\ndims = 3\nspacing_mm = [2, 1, 1]\n[labels]\n"left kidney" = 2\n"right kidney" = 3\n"background" = 0\n'
        '"unlabelled (x)" = 9\n'
        '[targets]\ngrade = "ordinal"\nbad = {kind = "binary", levels = ["no", "yes"]}\n[mirror]\n"left kidney" = "right kidney"\n'
    )
    csv = (
        "\ufeffcase,patient,split,exam,source,image:T1,label:reference,text:report,grade,bad,code,age\n"
        'a,1,train,e1,site,a.nii,a_l.nii,"Two, words",2,no,007,3.5\nb,1,,,,,,,,yes,008,\n'
    )
    manifest = open_dataset(written(tmp_path, csv, toml))
    assert manifest.labels == {"background": 0, "left kidney": 2, "right kidney": 3} and next(iter(manifest.labels)) == "background"
    assert (manifest.ignore, manifest.instances, manifest.spacing_mm) == (9, False, (2.0, 1.0, 1.0))
    assert manifest.mirror == (("left kidney", "right kidney"),)
    assert manifest.targets == {"grade": {"kind": "ordinal", "levels": ["2"]}, "bad": {"kind": "binary", "levels": ["no", "yes"]}}
    a, b = manifest.cases
    assert (a.patient, a.exam, a.source, a.images, a.text) == ("1", "e1", "site", {"T1": "a.nii"}, {"report": "Two, words"})
    assert a.table == {"grade": 2, "bad": "no", "code": "007", "age": 3.5}
    assert b.images == {} and b.table == {"grade": None, "bad": "yes", "code": "008", "age": None}


def test_instances(tmp_path):
    toml = 'dims = 2\n[labels]\nbackground = 0\ncell = "1.."\n'
    assert open_dataset(written(tmp_path, HEAD + "a,,,x.png\n", toml)).instances


@pytest.mark.parametrize(
    ("toml", "csv", "words"),
    [
        ('dims = 3\nspacing = [1, 1, 1]\n', HEAD + "a,,,x\n", ["dataset.toml", "unknown key 'spacing'", "spacing_mm"]),
        ("dims = 3\nname = \n", HEAD + "a,,,x\n", ["dataset.toml", "line 2"]),
        ("dims = 5\n", HEAD + "a,,,x\n", ["dims"]),
        ("dims = 3\nspacing_mm = [1, 0, 1]\n", HEAD + "a,,,x\n", ["spacing_mm"]),
        ("dims = 3\n[labels]\na = 0.5\n", HEAD + "a,,,x\n", ["label 'a'"]),
        ("dims = 3\n[labels]\na = 1\nb = 1\n", HEAD + "a,,,x\n", ["label 'b'"]),
        ("dims = 3\n[targets]\ngrad = 'real'\n", "case,grade\na,1\n", ["target 'grad'", "grade"]),
        ("dims = 3\n", "case,label:reference\na,x\n", ["labels"]),
        ("dims = 3\n", HEAD + "a,,train,x\na,,train,y\n", ["line 3", "same case id", "line 2"]),
        ("dims = 3\n", HEAD + "a,p,train,x\nb,p,test,y\n", ["patient 'p'", "test, train"]),
        ("dims = 3\n", HEAD + "a,,valid,x\n", ["line 2", "unknown split 'valid'"]),
        ("dims = 3\n", HEAD + "../a,,,x\n", ["line 2", "case id"]),
        ("dims = 3\n", "case;patient;image:T1\na;;x\n", ["semicolons"]),
        ("dims = 3\n", 'case,age\na,"0,5"\n', ["line 2", "decimal comma"]),
        ("dims = 3\n", HEAD + "a,,,x,extra\n", ["line 2", "another number of cells"]),
        ("dims = 3\n", "case,image:T1,image:T1\na,x,y\n", ["'image:T1' appears twice"]),
        ("dims = 3\n", "case,images:T1\na,x\n", ["images:T1", "id you mean 'image'"]),
        ("dims = 3\n", "case,image:T1\n", ["no rows"]),
        ("dims = 3\n", "", ["empty"]),
    ],
)  # fmt: skip
def test_refusals_name_the_place(tmp_path, toml, csv, words):
    with pytest.raises(DataError) as error:
        open_dataset(written(tmp_path, csv, toml))
    for word in words:
        assert word in str(error.value)


def test_a_folder_of_no_layout_says_what_each_lacks(tmp_path):
    with pytest.raises(DataError, match="empty"):
        open_dataset(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    for word in ("vesalius: no dataset.toml", "nnunet: no dataset.json", "msd", "medmnist", "table", "plain: no folder images/"):
        assert word in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(UsageError, match="[Dd]id you mean 'plain'"):
        open_dataset(tmp_path, layout="plane")


def nnunet(folder, labels, channels=("T1", "T2"), cases=("patient01_a", "patient01_b", "patient02_a"), test=(), labelled=True):
    record = {
        "channel_names": {str(k): n for k, n in enumerate(channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(record))
    for part, names in (("Tr", cases), ("Ts", test)):
        for n, case in enumerate(names):
            for k in range(len(channels)):
                volume(folder / f"images{part}" / f"{case}_{k:04d}.nii.gz", np.full((3, 4, 5), 10 * n + k, np.int16))
            if labelled or part == "Tr":
                data = np.zeros((3, 4, 5), np.uint8)
                data[0, 0, :3] = [1, 2, 3]
                volume(folder / f"labels{part}" / f"{case}.nii.gz", data)
    return folder


def test_nnunet(tmp_path):
    folder = nnunet(tmp_path, {"background": 0, "oedema": 1, "core": 2, "ignore": 3}, test=("patient03_a",))
    manifest = open_dataset(folder)
    assert (manifest.layout, manifest.channels, manifest.ignore) == ("nnunet", ("T1", "T2"), 3)
    assert manifest.labels == {"background": 0, "oedema": 1, "core": 2}
    assert manifest["patient01_b"].patient == "patient01" and manifest.where("test") == ("patient03_a",)
    case = read_case(manifest, "patient01_b")
    assert case.images["T2"].data.max() == 11 and case.labels["reference"].data[0, 0, :4].tolist() == [1, 2, -1, 0]
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["patient01_a", "patient01_b"], "val": ["patient02_a"]}]))
    (split,) = nnunet_splits(folder)
    assert split.train == ("patient01_a", "patient01_b") and split.val == ("patient02_a",) and split.test == ("patient03_a",)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["patient01_a"], "val": ["patient01_b"]}]))
    with pytest.raises(DataError, match="patient 'patient01' is in both parts of fold 0"):
        nnunet_splits(folder)


def test_nnunet_regions(tmp_path):
    manifest = open_dataset(nnunet(tmp_path, {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}))
    assert manifest.labels == {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 3}
    assert manifest.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def test_nnunet_faults(tmp_path):
    folder = nnunet(tmp_path, {"background": 0, "a": 1, "b": 2, "c": 3}, test=("patient09",), labelled=False)
    manifest = open_dataset(folder)
    assert len(manifest) == 3 and "1 images in imagesTs" in manifest.note and not manifest.where("test")
    (folder / "imagesTr" / "patient02_a_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="patient02_a.*_0000 to _0001"):
        open_dataset(folder)
    (folder / "imagesTr" / "patient02_a_0000.nii.gz").unlink()
    with pytest.raises(DataError, match="labels without images.*patient02_a"):
        open_dataset(folder)
    (folder / "dataset.json").write_text('{\n"labels": {},,\n}')
    with pytest.raises(DataError, match="dataset.json, line 2"):
        open_dataset(folder)


def test_msd(tmp_path):
    record = {
        "name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [{"image": "./imagesTr/B_1.nii.gz", "label": "./labelsTr/B_1.nii.gz"}], "test": ["./imagesTs/B_2.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    data = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    volume(tmp_path / "imagesTr/B_1.nii.gz", data)
    volume(tmp_path / "labelsTr/B_1.nii.gz", np.eye(3, 20, dtype=np.uint8).reshape(3, 4, 5) * 2)
    manifest = open_dataset(tmp_path)
    assert (manifest.layout, manifest.channels, manifest.dims) == ("msd", ("FLAIR", "T1w"), 3)
    case = read_case(manifest, "B_1")
    assert np.array_equal(case.stack(), np.moveaxis(data, -1, 0)) and case.labels["reference"].data.max() == 2
    record["training"].append(record["training"][0])
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="'B_1' twice"):
        open_dataset(tmp_path)


def mask(top):
    data = np.zeros((6, 8), np.uint8)
    data[2:4, 3:5] = top
    return data


@pytest.mark.parametrize(("masks", "suffix"), [("labels", ""), ("masks", "_mask"), (".", "_seg")])
def test_plain_binary(tmp_path, masks, suffix):
    images = tmp_path if masks == "." else tmp_path / "images"
    for n in ("a", "b"):
        picture(images / f"{n}.png", np.full((6, 8), 7, np.uint8))
    picture(tmp_path / masks / f"a{suffix}.png", mask(255))
    manifest = open_dataset(tmp_path)
    assert manifest.labels == {"background": 0, "foreground": 255} and [c.id for c in manifest.cases] == ["a", "b"]
    assert read_case(manifest, "a").labels["reference"].data.sum() == 4 and read_case(manifest, "b").labels == {}


def test_plain_classes_patients_and_faults(tmp_path):
    for n in ("sub-01_x", "sub-01_y", "sub-02_x"):
        picture(tmp_path / f"images/{n}.png", np.full((6, 8), 7, np.uint8))
        picture(tmp_path / f"masks/{n}.png", np.where(np.arange(8) < 3, np.uint8(1), mask(3)))
    manifest = open_dataset(tmp_path)
    assert manifest.labels == {"background": 0, "class_1": 1, "class_3": 3}
    assert [c.patient for c in manifest.cases] == ["sub-01", "sub-01", "sub-02"]
    picture(tmp_path / "masks/sub-02_x.png", np.arange(48, dtype=np.uint8).reshape(6, 8) * 5 + 20)
    with pytest.raises(DataError, match="do not look like a label table"):
        open_dataset(tmp_path)
    picture(tmp_path / "masks/other.png", mask(1))
    with pytest.raises(DataError, match="without an image.*other.png"):
        open_dataset(tmp_path)


def test_table(tmp_path):
    picture(tmp_path / "x/a.png", np.full((6, 8), 7, np.uint8))
    picture(tmp_path / "y/a.png", mask(1))
    (tmp_path / "list.csv").write_text("image,label,age\nx/a.png,y/a.png,5\n")
    manifest = open_dataset(tmp_path / "list.csv")
    assert (manifest.layout, manifest.channels, manifest.dims) == ("table", ("image",), 2)
    case = read_case(manifest, "a")
    assert case.labels["reference"].data.sum() == 4 and case.table == {"age": 5}


def test_medmnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3), np.uint8)
    arrays = {
        "train_images": images,
        "train_labels": np.array([[0], [1], [2], [1]]),
        "test_images": images[:1] ^ 1,
        "test_labels": np.array([[2]]),
    }
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    manifest = open_dataset(tmp_path / "m.npz")
    assert (manifest.layout, manifest.dims, len(manifest)) == ("medmnist", 2, 5)
    assert manifest.targets == {"label": {"kind": "nominal", "levels": ["0", "1", "2"]}}
    case = read_case(manifest, "train_00002")
    assert np.array_equal(case.images["image"].data, np.moveaxis(images[2], -1, 0)) and case.table == {"label": 2}


def test_phantoms_and_available():
    listed = {one["name"]: one for one in available()}
    assert listed["tumour-bed"]["open"] == "phantom:tumour-bed" and listed["nnunet"]["kind"] == "layout"
    manifest = open_dataset("phantom:tumour-bed?cases=6&seed=1")
    assert len(manifest) == 6 and manifest.built_in is not None
    with pytest.raises(UsageError, match="[Dd]id you mean 'tumour-bed'"):
        open_dataset("phantom:tumor-bed")
    case = read_case(open_dataset("phantom:shapes-2d?cases=3"), "train-000", labels=False)
    assert case.images and not case.labels


def test_importing_and_opening_loads_no_torch(tmp_path):
    folder = small_3d(tmp_path)
    code = (
        "import sys; from vesalius.datasets import open_dataset, read_case; "
        f"read_case(open_dataset({str(folder)!r}), 'c0'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
