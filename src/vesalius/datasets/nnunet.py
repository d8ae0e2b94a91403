"""nnU-Net v2 raw folders (and v1's, whose images also end in _0000): dataset.json, imagesTr, labelsTr, imagesTs, labelsTs.

* ``channel_names`` (v1: ``modality``) name the images; ``labels`` are name -> value (v1: value -> name), 'ignore' is the ignore value.
* Region labels ("whole tumour": [1, 2, 3]) become ``Manifest.regions``; the label table then has one class a value, named after the label
  that is this value alone, else 'label_<value>': the exclusive classes are what is trained and written (``Manifest.regions_rule``), a
  region is their union. ``regions_class_order``, the order in which overlapping maps would be written over each other, is thus not needed.
* imagesTs with labels are the test split. imagesTs without labels are left out (nothing could be measured on them) and counted in ``note``.
* ``splits_final.json`` (nnU-Net keeps it among its preprocessed data; here it lies beside dataset.json) becomes ``Manifest.folds``: its
  folds are the ones of ``--folds`` and ``--fold``. Their cases and patients are checked when a fold is asked for.
Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.manifest import CaseRef, Manifest, Split
from .described import by_number, read_json
from .plain import dims_of
from .stems import ending, images_in, patients_of, stem

NUMBERED = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # the names of image files


def is_nnunet(folder: Path) -> bool:
    """Whether a folder has dataset.json and images that end in _0000 (or channel_names)."""
    if not (folder / "dataset.json").is_file():
        return False
    if any(NUMBERED.match(stem(p)) for p in images_in(folder / "imagesTr")[:20]):
        return True
    return "channel_names" in read_json(folder / "dataset.json")


def open_nnunet(folder: Path) -> Manifest:
    """The manifest of an nnU-Net folder. Raises DataError for missing channels, label files without images and odd entries."""
    path = folder / "dataset.json"
    record = read_json(path)
    names = by_number(record, "channel_names" if "channel_names" in record else "modality", path)
    labels, regions, ignore = _labels(record.get("labels"), path)
    suffix = record.get("file_ending", "")
    if not isinstance(suffix, str) or suffix and not suffix.startswith("."):
        raise DataError("'file_ending' is an ending such as '.nii.gz'", where=path, found=repr(suffix))
    train = _listed(record["dataset"], folder, names) if "dataset" in record else _found(folder, "Tr", names, suffix)
    test = _found(folder, "Ts", names, suffix) if (folder / "imagesTs").is_dir() else []
    if not train:
        raise DataError(
            "no training images",
            where=folder / "imagesTr",
            allowed=f"<case>_0000{suffix or '.nii.gz'}",
            fix=f"check 'file_ending' ({suffix!r})",
        )
    unlabelled = sum(not c.labels for c in test)
    test = [replace(c, split="test") for c in test if c.labels]
    if test:
        train = [replace(c, split="train") for c in train]
    cases = train + test
    patients = patients_of(c.id for c in cases)
    first = folder / next(iter(cases[0].images.values()))
    return Manifest(
        name=str(record.get("name") or folder.resolve().name),
        root=folder,
        dims=dims_of(first),
        channels=names,
        labels=labels,
        cases=tuple(replace(c, patient=patients[c.id]) for c in cases),
        licence=str(record.get("licence", record.get("license", ""))),
        source=str(record.get("reference", "")),
        note=f"{unlabelled} images in imagesTs have no label and are left out" if unlabelled else "",
        ignore=ignore,
        regions=regions,
        folds=_folds(folder / "splits_final.json"),
        layout="nnunet",
    )


def nnunet_splits(folder: str | Path) -> tuple[Split, ...]:
    """The folds of ``splits_final.json`` as ``Split`` records, () where there is no such file. Raises DataError for unknown cases and for
    a patient on both sides of a fold."""
    manifest = open_nnunet(Path(folder))
    return tuple(manifest.split(k) for k in range(len(manifest.declared_folds)))


def _folds(path: Path) -> tuple[Split, ...]:
    """The folds as the file has them."""
    if not path.is_file():
        return ()
    folds = read_json(path, list)
    for k, fold in enumerate(folds):
        if not isinstance(fold, Mapping) or not all(isinstance(fold.get(s), list) for s in ("train", "val")):
            raise DataError(f'fold {k} is not of the form {{"train": [...], "val": [...]}}', where=path)
    return tuple(Split(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in folds)


def _labels(record: Any, where: Path) -> tuple[dict[str, int], dict[str, tuple[int, ...]], int | None]:
    """(label table, regions, ignore value)."""
    if not isinstance(record, Mapping) or not record:
        raise DataError("'labels' is missing or empty", where=where, found=repr(record), allowed='{"background": 0, "tumour": 1}')
    if all(str(k).lstrip("-").isdigit() for k in record):  # nnU-Net v1 and Decathlon: value -> name
        record = {str(name): int(value) for value, name in record.items()}
    said: dict[str, tuple[int, ...]] = {}
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise DataError(f"label '{name}' has no whole number as its value", where=where, found=repr(value))
        said[name] = tuple(values)
    ignore = said.pop("ignore", (None,))[0]
    alone = {v[0]: n for n, v in reversed(said.items()) if len(v) == 1}
    background = alone.pop(0, "background")
    values = sorted({v for vs in said.values() for v in vs} - {0})
    if ignore in values:
        raise DataError("the ignore value is also a class", where=where, found=ignore)
    table = {background: 0, **{alone.get(v, f"label_{v}"): v for v in values}}
    regions = {n: v for n, v in said.items() if v != (0,)} if any(len(v) > 1 for v in said.values()) else {}
    single = [v[0] for v in said.values() if len(v) == 1]
    if not regions and len(set(single)) < len(single):
        raise DataError("two labels have the same value", where=where, found=record)
    return table, regions, ignore


def _found(folder: Path, part: str, names: tuple[str, ...], suffix: str) -> list[CaseRef]:
    """The cases of imagesTr or imagesTs, by file names."""
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in images_in(folder / f"images{part}"):
        hit = NUMBERED.match(stem(file))
        if hit and (not suffix or ending(file) == suffix.lower()):
            files[hit["case"]][int(hit["channel"])] = file
    labels = {stem(f): f for f in images_in(folder / f"labels{part}") if not suffix or ending(f) == suffix.lower()}
    lost = sorted(set(labels) - set(files))
    if lost:
        raise DataError(
            "labels without images", where=folder / f"labels{part}", found=", ".join(lost[:5]), fix="remove them, or add their images"
        )
    out = []
    for case, present in sorted(files.items()):
        if sorted(present) != list(range(len(names))):
            found = ", ".join(f"_{k:04d}" for k in sorted(present))
            raise DataError(
                f"case '{case}' has other channels than dataset.json",
                where=folder / f"images{part}",
                found=found,
                allowed=f"_0000 to _{len(names) - 1:04d} ({', '.join(names)})",
            )
        images = {names[k]: present[k].relative_to(folder).as_posix() for k in sorted(present)}
        out.append(
            CaseRef(case, case, images=images, labels={"reference": labels[case].relative_to(folder).as_posix()} if case in labels else {})
        )
    return out


def _listed(record: Any, folder: Path, names: tuple[str, ...]) -> list[CaseRef]:
    """The cases of dataset.json's own 'dataset' entry: {case: {"images": [...], "label": ...}}."""
    out = []
    for case, entry in record.items() if isinstance(record, Mapping) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list) or len(entry["images"]) != len(names):
            raise DataError(f"case '{case}' has no list of {len(names)} images", where=folder / "dataset.json")
        out.append(
            CaseRef(
                case,
                case,
                images=dict(zip(names, entry["images"], strict=True)),
                labels={"reference": entry["label"]} if entry.get("label") else {},
            )
        )
    return out
