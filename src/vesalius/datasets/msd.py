"""Medical Segmentation Decathlon: dataset.json lists the training pairs; files of several modalities are 4D.

With several modalities each becomes an image of its own, addressed as 'file#k' (channel k of the 4D file). The unlabelled test images
are left out (nothing could be measured on them) and counted in ``note``. Source: M. Antonelli et al., "The Medical Segmentation Decathlon",
Nature Communications 2022, http://medicaldecathlon.com.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import DataError
from ..core.manifest import CaseRef, Manifest
from .described import by_number, read_json
from .plain import dims_of
from .stems import patients_of, stem
from .vesalius_toml import label_table


def is_msd(folder: Path) -> bool:
    """Whether a folder's dataset.json lists training pairs."""
    return (folder / "dataset.json").is_file() and isinstance(read_json(folder / "dataset.json").get("training"), list)


def open_msd(folder: Path) -> Manifest:
    """The manifest of a Decathlon task. Raises DataError for entries without image or label and for odd labels."""
    path = folder / "dataset.json"
    record = read_json(path)
    names = by_number(record, "modality", path)
    by_value = dict(zip(_values(record, path), by_number(record, "labels", path), strict=True))
    labels, ignore, _ = label_table({name: value for value, name in by_value.items()}, path)
    pairs: dict[str, tuple[str, str]] = {}
    for k, entry in enumerate(record["training"]):
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(s), str) for s in ("image", "label")):
            raise DataError(f'entry {k} of \'training\' is not {{"image": ..., "label": ...}}', where=path, found=repr(entry))
        case = stem(entry["image"])
        if case in pairs:
            raise DataError(f"'training' lists case '{case}' twice", where=path)
        pairs[case] = entry["image"].removeprefix("./"), entry["label"].removeprefix("./")
    if not pairs:
        raise DataError("'training' is empty", where=path)
    patients = patients_of(pairs)
    test = record.get("test") or []
    return Manifest(
        name=str(record.get("name") or folder.resolve().name),
        root=folder,
        dims=dims_of(folder / next(iter(pairs.values()))[0]),
        channels=names,
        labels=labels,
        cases=tuple(
            CaseRef(case, patients[case], images=_images(image, names), labels={"reference": label})
            for case, (image, label) in pairs.items()
        ),
        modality=str(record.get("tensorImageSize", "")) and ", ".join(names),
        licence=str(record.get("licence", record.get("license", ""))),
        source=str(record.get("reference", "")),
        note=f"{len(test)} test images have no label and are left out" if test else "",
        ignore=ignore,
        layout="msd",
    )


def _values(record: Mapping, path: Path) -> list[int]:
    said = record.get("labels")
    if not isinstance(said, Mapping) or not said or not all(str(k).isdigit() for k in said):
        raise DataError('\'labels\' is missing or not of the form {"0": "background"}', where=path, found=repr(said))
    return sorted(int(k) for k in said)


def _images(file: str, names: tuple[str, ...]) -> dict[str, str]:
    return {names[0]: file} if len(names) == 1 else {name: f"{file}#{k}" for k, name in enumerate(names)}
