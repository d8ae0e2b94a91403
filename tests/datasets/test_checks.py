"""``check``: each fault planted in a small folder is found, once, at its level; the others go on."""

import numpy as np
import pytest

from vesalius.datasets import check, open_dataset

from .folders import picture, small_3d, volume, written


def texts(manifest, level=None, **options):
    return [f"{f.where}: {f.text}" for f in check(manifest, **options) if level in (None, f.level)]


def has(found, *words):
    return any(all(w in text for w in words) for text in found)


def test_clean_folder_has_no_errors(tmp_path):
    manifest = open_dataset(small_3d(tmp_path))
    assert texts(manifest, "error") == [] and texts(manifest, "error", quick=True) == []
    assert has(texts(manifest, "warning"), "the test set has 1 patient")
    assert has(texts(manifest, "note"), "label 'reference' is missing in 1 of 4 cases: c1")


def break_shape(folder):
    volume(folder / "l0.nii.gz", np.zeros((5, 6, 8), np.uint8))


def break_affine(folder):
    volume(folder / "l0.nii.gz", np.zeros((5, 6, 7), np.uint8), np.diag([1.0, 1.5, 3.0, 1.0]))


def break_value(folder):
    volume(folder / "l0.nii.gz", np.full((5, 6, 7), 7, np.uint8))


def break_fraction(folder):
    volume(folder / "l0.nii.gz", np.full((5, 6, 7), 0.4, np.float32))


def break_file(folder):
    (folder / "i0.nii.gz").write_bytes((folder / "i0.nii.gz").read_bytes()[:200])


def break_missing(folder):
    (folder / "i0.nii.gz").unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (break_shape, ("another grid", "5 x 6 x 8")),
        (break_affine, ("another grid", "3 mm")),
        (break_value, ("not in the label table", "7 (210 voxels)")),
        (break_fraction, ("whole numbers", "0.4")),
        (break_file, ("i0.nii.gz",)),
        (break_missing, ("i0.nii.gz", "no such file")),
    ],
)  # fmt: skip
def test_one_bad_case_is_an_error_and_the_others_go_on(tmp_path, fault, words):
    small_3d(tmp_path)
    fault(tmp_path)
    volume(tmp_path / "i2.nii.gz", np.full((5, 6, 7), 3, np.int16))
    found = check(open_dataset(tmp_path))
    errors = [f"{f.where}: {f.text}" for f in found if f.level == "error"]
    assert len(errors) == 1 and has(errors, "case c0", *words)
    assert has([f"{f.where}: {f.text}" for f in found], "case c2", "constant (3 everywhere)")


def test_duplicates_leak(tmp_path):
    small_3d(tmp_path)
    data = np.random.default_rng(9).integers(0, 99, (5, 6, 7)).astype(np.int16)
    for k in (0, 3):  # c0 trains, c3 tests
        volume(tmp_path / f"i{k}.nii.gz", data)
    assert has(texts(open_dataset(tmp_path), "error"), "more than one split (leak)", "c0 (T1)", "c3 (T1)")
    small_3d(tmp_path)
    for k in (0, 2):
        volume(tmp_path / f"i{k}.nii.gz", data)
    assert has(texts(open_dataset(tmp_path), "warning"), "two patients have the same image", "c0 (T1)", "c2 (T1)")


def test_foreground(tmp_path):
    small_3d(tmp_path)
    empty, lesion = np.zeros((5, 6, 7), np.uint8), np.zeros((5, 6, 7), np.uint8)
    lesion[2, 2, 2] = 1
    volume(tmp_path / "l0.nii.gz", empty)
    volume(tmp_path / "l2.nii.gz", lesion.astype(np.float32))
    found = texts(open_dataset(tmp_path))
    assert has(found, "labels without foreground in 1 of 3 cases: c0") and has(found, "floating point in 1 of 4 cases: c2")
    assert has(texts(open_dataset(tmp_path), "error"), "'cyst' occurs in the test set but in no training case")
    volume(tmp_path / "l3.nii.gz", lesion)
    assert has(texts(open_dataset(tmp_path), "warning"), "class 'cyst' (value 4) occurs in no label")
    for k in (0, 2, 3):
        volume(tmp_path / f"l{k}.nii.gz", empty)
    assert has(texts(open_dataset(tmp_path), "error"), "no label has any foreground")


def test_nan_spacing_orientation(tmp_path):
    small_3d(tmp_path, 6)
    data = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    data[0, 0, :3] = np.nan
    volume(tmp_path / "i0.nii.gz", data)
    for name in "il":
        volume(tmp_path / f"{name}2.nii.gz", np.ones((5, 6, 7), np.uint8), np.diag([-1.0, -1.5, 2.0, 1.0]))
        volume(tmp_path / f"{name}4.nii.gz", np.ones((5, 6, 7), np.uint8), np.diag([1.0, 1.5, 9.0, 1.0]))
    found = texts(open_dataset(tmp_path))
    assert has(found, "3 voxels are NaN") and has(found, "mixed orientations", "RAS: 5", "LPS: 1")
    assert has(found, "case c4", "4.5 times off")
    assert not has(found, "case c2", "times off")


def test_views_channels_texts_targets(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (3, 6, 8), np.uint8)
    for k in range(3):
        picture(tmp_path / f"{k}.png", grey[k] if k else np.moveaxis(grey, 0, -1))
    toml = 'dims = 2\n[targets]\nbirads = "ordinal"\n'
    csv = "case,image:photo,image:L_CC,text:report,birads,age\na,0.png,1.png,one,1,\nb,1.png,,,2,\nc,2.png,2.png,two,,5\n"
    found = texts(open_dataset(written(tmp_path, csv, toml)))
    assert has(found, "image 'photo' has 1 channel in 2 cases, 3 channels in 1 cases (3: a)")
    assert has(found, "image 'L_CC' is missing in 1 of 3 cases: b") and has(found, "text 'report' is missing in 1 of 3 cases: b")
    assert has(texts(open_dataset(tmp_path), "warning"), "column 'birads' has no value in 1 of 3 cases: c")
    assert has(texts(open_dataset(tmp_path), "note"), "column 'age'")


def test_processes_find_the_same(tmp_path):
    small_3d(tmp_path)
    break_value(tmp_path)
    manifest = open_dataset(tmp_path)
    assert check(manifest, workers=2) == check(manifest)


def test_a_phantom_has_no_errors():
    assert texts(open_dataset("phantom:shapes-2d?cases=4"), "error") == []
