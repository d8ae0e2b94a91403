"""Built-in, physically motivated data sets with known answers: no files, no downloads, the same bits every time.

``open_phantom("tumour-bed")`` gives a manifest whose cases are simulated on demand: ``manifest.built_in(ref) -> Case``.
Importing this module loads neither torch nor matplotlib.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import UsageError, nearest
from ...core.manifest import Manifest
from . import (
    abus,
    blobs,
    brain,
    lesion_types,
    mammogram,
    moving_context,
    organ_pairs,
    polyp,
    prostate,
    radiograph,
    referring,
    shapes,
    slide,
    torso,
    tumour_bed,
    ultrasound,
    vessels,
)
from .phantom import Phantom
from .report import open_reports
from .variants import OPTIONS

PHANTOMS: dict[str, Phantom] = {
    p.name: p
    for home in (
        tumour_bed,
        torso,
        radiograph,
        vessels,
        ultrasound,
        abus,
        mammogram,
        polyp,
        slide,
        brain,
        prostate,
        moving_context,
        blobs,
        lesion_types,
        organ_pairs,
        referring,
        shapes,
    )
    for p in home.PHANTOMS
}


def names() -> list[str]:
    """The phantoms' names, in order."""
    return list(PHANTOMS)


def describe() -> list[dict]:
    """One dict a phantom: name, title, dims, modality, channels, labels, cases (train, val, test), options, text."""
    return [
        {
            "name": p.name,
            "title": p.title,
            "dims": p.dims,
            "modality": p.modality,
            "channels": p.channels,
            "labels": p.labels,
            "cases": p.splits,
            "options": {n: o.text for n, o in {**OPTIONS, **p.options}.items()},
            "text": " ".join(p.text.split()),
        }
        for p in PHANTOMS.values()
    ]


def open_phantom(name: str, *, cases: Any = None, seed: int = 0, **options: Any) -> Manifest:
    """The manifest of phantom ``name``, with declared patient-wise splits and known answers in the cases' tables.

    ``cases``: a total (shared out as by default), (train, val, test), or {'train': n, ...}; a case is the same however many there are.
    ``seed``: which population. ``options``: those of ``describe()``; unknown names and values raise UsageError with the nearest name.
    """
    if name == "reports":  # texts: no phantom of the gallery, which shows images
        return open_reports(cases=cases, seed=seed, **options)
    if name not in PHANTOMS:
        raise UsageError(f"unknown phantom '{name}'", fix=nearest(name, PHANTOMS))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError("a seed is a whole number from 0", where=name, found=repr(seed))
    return PHANTOMS[name].open(cases, seed, options)
