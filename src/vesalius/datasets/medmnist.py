"""A MedMNIST .npz: ``train_images`` (n, 28, 28[, 3 or 28]), ``train_labels`` (n, k), and the same for ``val`` and ``test``.

Every image is a case and its own patient (MedMNIST does not say whose they are); the class is the table column ``label`` (``label_0``,
``label_1``, ... where k > 1, each binary). Source: J. Yang et al., "MedMNIST v2", Scientific Data 2023, https://medmnist.com.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.manifest import CaseRef, Manifest
from .rows import SPLITS


def is_medmnist(path: Path) -> bool:
    """Whether an .npz has MedMNIST's arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return any({f"{s}_images.npy", f"{s}_labels.npy"} <= names for s in SPLITS)


def open_medmnist(path: Path) -> Manifest:
    """The manifest of a MedMNIST file; raises DataError when images and labels do not go together."""
    cases, levels, shape, columns = [], set(), None, 1
    try:
        with np.load(path, allow_pickle=False) as archive:
            present = [s for s in SPLITS if f"{s}_images" in archive.files and f"{s}_labels" in archive.files]
            for split in present:
                labels = np.atleast_2d(archive[f"{split}_labels"].T).T
                images = archive[f"{split}_images"].shape
                if len(labels) != images[0] or labels.ndim != 2 or labels.dtype.kind not in "biu" or len(images) not in (3, 4):
                    raise DataError(
                        f"the '{split}' images and labels do not go together",
                        where=path,
                        found=f"{images} images, {labels.shape} {labels.dtype} labels",
                    )
                shape, columns = images, labels.shape[1]
                levels |= set(np.unique(labels).tolist())
                for k, row in enumerate(labels.tolist()):
                    table = {"label": row[0]} if columns == 1 else {f"label_{c}": v for c, v in enumerate(row)}
                    case = f"{split}_{k:05d}"
                    cases.append(CaseRef(case, case, split, images={"image": f"{path.name}:{split}_images[{k}]"}, table=table))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError("the .npz file is damaged", where=path, found=str(error)) from error
    if not cases:
        raise DataError("no MedMNIST arrays in this file", where=path, allowed="train_images and train_labels, val_..., test_...")
    kind = "binary" if len(levels) <= 2 else "nominal"
    names = ["label"] if columns == 1 else [f"label_{c}" for c in range(columns)]
    return Manifest(
        name=path.stem,
        root=path.parent,
        dims=3 if len(shape) == 4 and shape[-1] > 4 else 2,
        channels=("image",),
        labels={},
        cases=tuple(cases),
        source="MedMNIST",
        targets={n: {"kind": kind, "levels": [str(v) for v in sorted(levels)]} for n in names},
        layout="medmnist",
    )
