"""Views: the cases of a data set read otherwise, as a data set of its own. No file is written.

``voted``       one map of how many experts said yes becomes one label map an expert (``ops.opinions.from_votes``).
``rendered``    masks that came without an image get one like a CT slice of a lung nodule, drawn from all raters' masks.
``structure``   one class is kept, the others are background.
``templated``   expressions that mean one object of a case's label map, or nothing in it (``ops.wording``).

An address names a view after a question mark: ``../data/drishti?votes=disc_votes``, ``../data/lidc?render=ct``,
``../data/acdc?structure=left ventricle`` (with ``&label=scribble`` of another label map than 'reference'),
``../data/busi_seg?queries=templated`` (with ``&number=12`` a case instead of 8, or ``&kinds=name|place`` only).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.case import IGNORE, Case, Image, LabelMap, Query
from ..core.errors import DataError, UsageError, nearest
from ..core.manifest import CaseRef, Manifest
from ..ops import wording
from ..ops.opinions import from_votes
from .cases import read_case

VERSION = 1  # raise it when a view changes what it reads: caches of prepared cases go by it
LUNG, NODULE = -850.0, 40.0  # HU


@dataclass(frozen=True, repr=False)
class View:
    """CaseRef -> Case: the case of ``base``, changed. ``said`` names the change for caches."""

    base: Manifest
    change: Callable[[Case], Case]
    said: str

    def __repr__(self) -> str:  # the same in every process
        return f"View({self.said} of {self.base.digest()}, version {VERSION})"

    def __call__(self, ref: CaseRef) -> Case:
        return self.change(read_case(self.base, ref.id))


def open_view(address: str, open_: Callable[[Path], Manifest]) -> Manifest:
    """'PATH?votes=LABEL', 'PATH?render=ct', 'PATH?structure=CLASS[&label=NAME]' or 'PATH?queries=templated[&number=N][&kinds=A|B]';
    ``open_`` opens the path. Raises UsageError."""
    path, _, query = address.partition("?")
    asked = dict(part.partition("=")[::2] for part in query.split("&"))
    base = open_(Path(path))
    if set(asked) == {"votes"}:
        return voted(base, asked["votes"])
    if asked == {"render": "ct"}:
        return rendered(base)
    if "structure" in asked and set(asked) <= {"structure", "label"}:
        return structure(base, asked["structure"], label=asked.get("label", "reference"))
    if asked.get("queries") == "templated" and set(asked) <= {"queries", "number", "kinds"} and asked.get("number", "8").isdigit():
        return templated(base, int(asked.get("number", 8)), asked.get("kinds", ""))
    allowed = "votes=LABEL, render=ct, structure=CLASS[&label=NAME], queries=templated[&number=N][&kinds=A|B]"
    raise UsageError("no such view of a data set", where=path, found=query, allowed=allowed)


def voted(base: Manifest, label: str) -> Manifest:
    """The vote map ``label`` ('disc_votes') as label maps rater1.. of one class ('disc'); raters are as many as the highest class index."""
    _check(label, {n for ref in base.cases for n in ref.labels}, base, "label map")
    raters, name = base.classes - 1, label.removesuffix("_votes")
    names = tuple(f"rater{k}" for k in range(1, raters + 1))
    refs = tuple(replace(r, labels={n: r.labels[label] for n in names}) for r in base.cases if label in r.labels)
    change = partial(_voted, label=label, raters=raters, names=("background", name))
    labels = {"background": 0, name: 1}
    return replace(base, name=f"{base.name}-{name}", labels=labels, cases=refs, built_in=View(base, change, f"votes {label}"))


def _voted(case: Case, *, label: str, raters: int, names: tuple[str, str]) -> Case:
    votes = case.labels[label]
    maps = from_votes(np.asarray(votes.data), raters)
    return replace(case, labels={f"rater{k}": LabelMap(m.astype(np.int16), votes.geometry, names) for k, m in enumerate(maps, 1)})


def rendered(base: Manifest) -> Manifest:
    """An image 'CT' for every case of a 2D data set of masks alone: textured lung, and nodule by how many raters drew it there, blurred.

    The texture depends on the case's id alone. Where raters disagree the border is as unsharp as they are. Raises DataError where there are
    images already.
    """
    if base.channels or base.dims != 2:
        raise DataError("only 2D masks without an image are rendered", where=base.root, found=f"{base.dims}D, images {base.channels}")
    refs = tuple(replace(r, images={"CT": next(iter(r.labels.values()))}) for r in base.cases if r.labels)
    return replace(base, name=f"{base.name}-rendered", channels=("CT",), cases=refs, built_in=View(base, _rendered, "render ct"))


def _rendered(case: Case) -> Case:
    from scipy.ndimage import gaussian_filter

    rng, grid = np.random.default_rng(zlib.crc32(case.id.encode())), case.geometry
    nodule = gaussian_filter(np.mean([np.asarray(m.data) > 0 for m in case.labels.values()], 0), 0.8)
    texture = gaussian_filter(rng.standard_normal(grid.shape), 2.0)
    vessels = gaussian_filter(rng.standard_normal(grid.shape), 1.2)
    lung = LUNG + 60 * texture / texture.std() + 350 * (vessels > 2.2 * vessels.std())
    image = lung * (1 - nodule) + NODULE * nodule + 25 * rng.standard_normal(grid.shape)
    return case.with_(images={"CT": Image(image[None].astype(np.float32), grid, name="CT")})


def structure(base: Manifest, name: str, *, label: str = "reference") -> Manifest:
    """Only class ``name`` of the label map ``label``, which becomes 'reference'; all other classes are background."""
    _check(name, base.names[1:], base, "class")
    _check(label, {n for ref in base.cases for n in ref.labels}, base, "label map")
    refs = tuple(replace(r, labels={"reference": r.labels[label]} if label in r.labels else {}) for r in base.cases)
    change = partial(_structure, name=name, label=label, index=base.names.index(name))
    labels = {base.names[0]: 0, name: 1}
    view = View(base, change, f"structure {name} of {label}")
    return replace(base, name=f"{base.name}-{name}", labels=labels, cases=refs, mirror=(), regions={}, built_in=view)


def _structure(case: Case, *, name: str, label: str, index: int) -> Case:
    if label not in case.labels:
        return replace(case, labels={})
    full = case.labels[label]
    data = np.asarray(full.data)
    mask = np.where(data == IGNORE, IGNORE, data == index).astype(np.int16)
    return replace(case, labels={"reference": LabelMap(mask, full.geometry, (full.names[0], name))})


def templated(base: Manifest, number: int = 8, kinds: str = "") -> Manifest:
    """About ``number`` expressions a case, of ``kinds`` ('place|contrast'; '': all), made from its label map 'reference' (or its first) and
    the image on its grid; their ids begin with the kind ('place-3'). Which ones depends on the case's id alone; a case without a label map
    has none. Raises UsageError."""
    if not base.labels or number < 1:
        found = f"{number} expressions of {base.classes} classes"
        raise UsageError("expressions are made from label maps", where=base.name, found=found, allowed="labelled data, 1 or more a case")
    chosen = tuple(kinds.split("|")) if kinds else wording.KINDS[:-1]
    for kind in chosen:
        _check(kind, wording.KINDS, base, "kind of expression")
    change = partial(_templated, names=base.names[1:], number=number, kinds=chosen)
    return replace(base, name=f"{base.name}-templated", built_in=View(base, change, f"queries templated {number} {kinds}"))


def _templated(case: Case, *, names: tuple[str, ...], number: int, kinds: tuple[str, ...]) -> Case:
    label = case.label
    if label is None:
        return case
    grid = label.geometry
    found = wording.things(label, next((i for i in case.images.values() if i.geometry.shape == grid.shape), None))
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    chosen = wording.choose(wording.expressions(found, names, grid.ndim), rng, number, kinds=kinds)
    masks = [np.zeros(grid.shape, bool) if e.of is None else found[e.of].mask for e in chosen]
    targets = [LabelMap(m.astype(np.int16), grid, ("background", "target")) for m in masks]
    return replace(case, queries=tuple(Query(f"{e.kind}-{n}", e.text, t) for n, (e, t) in enumerate(zip(chosen, targets, strict=True))))


def _check(name: str, known, base: Manifest, what: str) -> None:
    if name not in known:
        raise UsageError(f"no {what} '{name}'", where=base.name, allowed=", ".join(sorted(known)), fix=nearest(name, known))
