"""Small dataset folders for the tests, written from plain strings and arrays."""

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

TOML = 'name = "small"\nmodality = "MR"\ndims = {dims}\n\n[labels]\n"background" = 0\n"lesion" = 1\n"cyst" = 4\n'


def volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine), path)
    return path


def picture(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path)
    return path


def written(folder: Path, csv: str, toml: str | None = None, dims: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(TOML.format(dims=dims) if toml is None else toml)
    (folder / "cases.csv").write_text(csv)
    return folder


def small_3d(folder: Path, cases: int = 4, shape=(5, 6, 7)) -> Path:
    """``cases`` volumes with a lesion (1) and a cyst (4); the last is the test case; the second has no label."""
    rows = ["case,patient,split,image:T1,label:reference,age"]
    for k in range(cases):
        rng = np.random.default_rng(k)
        label = np.zeros(shape, np.uint8)
        label[1:3, 2:4, 1:5], label[4, 5, 6] = 1, 4
        volume(folder / f"i{k}.nii.gz", rng.integers(0, 999, shape).astype(np.int16))
        volume(folder / f"l{k}.nii.gz", label)
        rows.append(f"c{k},p{k},{'test' if k == cases - 1 else 'train'},i{k}.nii.gz,{'' if k == 1 else f'l{k}.nii.gz'},{40 + k}")
    return written(folder, "\n".join(rows) + "\n")
