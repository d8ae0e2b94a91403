"""CURVAS in its native layout: a folder a case with ``image.nii.gz`` and ``annotation_1.nii.gz`` .. one a rater.

The challenge's Zenodo records unpack into ``training_set``, ``validation_set`` and ``testing_set``; one of them, or the folder above them,
is opened. Every rater is a label map of the case (``rater1``, ``rater2``, ...); there is no reference. Patients: one a case (the records
name no other). Source: Riera-Marin et al., CURVAS dataset, https://doi.org/10.5281/zenodo.11147560.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DataError
from ..core.manifest import CaseRef, Manifest

LABELS = ("background", "pancreas", "kidney", "liver")  # values 0..3 of the annotations
SPLITS = {"training_set": "train", "validation_set": "val", "testing_set": "test"}
_ENDINGS = (".nii.gz", ".nii")
_ANNOTATION = re.compile(r"annotation_(\d+)\.nii(\.gz)?$")


def missing_curvas(path: Path) -> str:
    """What a path lacks to be CURVAS data; '' when nothing."""
    return "" if path.is_dir() and any(_cases(path)) else "no folder with image.nii.gz and annotation_1.nii.gz"


def open_curvas(path: Path, *, labels: Sequence[str] = LABELS) -> Manifest:
    """The manifest of CURVAS data; ``labels`` name the annotations' values 0, 1, ... (the second edition has one: the tumour).

    Raises DataError for a case without image, or with other raters than the others of its set.
    """
    path = Path(path)
    found = list(_cases(path))
    if not found:
        raise DataError("this is no CURVAS data", where=path, found=missing_curvas(path))
    refs = []
    for split, folder in found:
        image = next((folder / f"image{e}" for e in _ENDINGS if (folder / f"image{e}").is_file()), None)
        if image is None:
            raise DataError("the case has annotations but no image", where=folder, allowed=" or ".join(f"image{e}" for e in _ENDINGS))
        raters = {f"rater{n}": f.relative_to(path).as_posix() for n, f in sorted(_annotations(folder).items())}
        refs.append(CaseRef(folder.name, folder.name, split, images={"CT": image.relative_to(path).as_posix()}, labels=raters))
    raters = max((tuple(r.labels) for r in refs), key=len)
    odd = next((r for r in refs if tuple(r.labels) != raters), None)
    if odd is not None:
        fix = "a missing opinion is no agreement: complete the case or move it away"
        raise DataError(f"case '{odd.id}' has other raters than the rest", where=path, found=tuple(odd.labels), allowed=raters, fix=fix)
    return Manifest(
        name="curvas",
        root=path,
        dims=3,
        channels=("CT",),
        labels={name: value for value, name in enumerate(labels)},
        cases=tuple(refs),
        modality="CT",
        licence="as the Zenodo record says",
        source="CURVAS, https://doi.org/10.5281/zenodo.11147560",
        note=f"{len(raters)} raters a case, none of them a reference",
        layout="curvas",
    )


def _cases(path: Path) -> list[tuple[str, Path]]:
    """(split, folder) of every case, in order."""
    sets = [(SPLITS.get(p.name, ""), p) for p in sorted(path.iterdir()) if p.is_dir() and p.name in SPLITS]
    sets = sets or [("", path)]
    return [(split, p) for split, folder in sets for p in sorted(folder.iterdir()) if p.is_dir() and 1 in _annotations(p)]


def _annotations(folder: Path) -> dict[int, Path]:
    """Rater number -> file."""
    hits = ((_ANNOTATION.match(f.name), f) for f in folder.iterdir())
    return {int(hit[1]): f for hit, f in hits if hit}
