"""Films of volumes (three dimensions and time): each frame is a case of its own, with its image, its grid and its reference."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from ..core.case import Case, Image
from ..core.errors import DataError, VesaliusError
from ..core.manifest import CaseRef, Manifest
from ..datasets import read_case
from ..datasets.cases import file_of, header_of, spacing_of

_FILMS = (".nii", ".nii.gz", ".mha", ".nrrd")  # files that may hold one without a dataset's saying so


def framed(manifest: Manifest) -> Manifest:
    """A dataset of four dimensions as one of three: 'NAME frame 03' is the third frame of the case NAME, counted from 1, with its patient
    and split. So are unlabelled volumes that lie about and have several channels, other than colours. Another dataset is itself.

    Raises DataError where the images of a case have different numbers of frames."""
    loose = manifest.dims == 3 and manifest.layout in ("plain", "files") and not any(ref.labels for ref in manifest.cases)
    if manifest.dims != 4 and not loose:
        return manifest
    counts = {ref.id: _frames(manifest, ref, loose) for ref in manifest.cases}
    if loose and max(counts.values(), default=1) == 1:
        return manifest
    rows, where = [], {}
    for ref in manifest.cases:
        count = counts[ref.id]
        for k in range(count):
            name = ref.id if count == 1 else f"{ref.id} frame {k + 1:0{max(2, len(str(count)))}d}"
            images = ref.images if count == 1 else {n: f"{address}#{k}" for n, address in ref.images.items()}
            rows.append(replace(ref, id=name, images=images, rois={}, points={}, boxes={}))
            where[name] = ref.id, k, count
    return replace(manifest, dims=3, cases=tuple(rows), built_in=_Reader(replace(manifest, dims=4), where))


def _frames(manifest: Manifest, ref: CaseRef, loose: bool) -> int:
    """How many frames a case has, from headers; an image of one stands for all."""
    counts = {}
    for name, address in ref.images.items():
        file, channel = file_of(manifest, address)
        sides, dtype = (1,), None
        if channel is None and (not loose or file.lower().endswith(_FILMS)):
            with suppress(VesaliusError, OSError):  # whoever opens a damaged one is told
                sides, _, dtype = header_of(file, spacing_of(manifest, ref))
        counts[name] = 1 if loose and sides[0] == 3 and dtype == np.uint8 else sides[0]
    several = {n for n in counts.values() if n > 1}
    if len(several) > 1:
        found = ", ".join(f"{name}: {n}" for name, n in counts.items())
        raise DataError("the images of a film have one number of frames", where=f"case {ref.id}", found=found, fix="cut them to one length")
    return max(several, default=1)


class _Reader:
    """A frame's case; the film that was read last is kept, as the next frame is of the same one."""

    def __init__(self, films: Manifest, where: Mapping[str, tuple[str, int, int]]):
        self.where, self.film = where, lru_cache(1)(partial(read_case, films))

    def __call__(self, ref: CaseRef) -> Case:
        film, k, count = self.where[ref.id]
        case = self.film(film)
        images = {n: self._image(image, k, count) for n, image in case.images.items()}
        if count == 1:
            return case
        labels = {n.removesuffix(f"[{k}]"): label for n, label in case.labels.items() if n.endswith(f"[{k}]")}
        return replace(case, id=ref.id, images=images, labels=labels, rois={}, points={}, boxes={})

    def _image(self, image: Image, k: int, count: int) -> Image:
        data = image.data
        return replace(image, source=data[k : k + 1] if len(data) == count else data)


__all__ = ["framed"]
