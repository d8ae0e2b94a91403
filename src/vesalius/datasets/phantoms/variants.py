"""Options that every phantom has: several raters, partly annotated classes, unlabelled cases and corrupted images.

raters=n           adds label maps 'rater1'.. 'raterN' beside 'reference': each rater draws every class larger or smaller by a personal bias
                   (sd 0.8 voxel) and moves the border by a smooth random displacement (sd 0.8 voxel, correlated over 4 voxels).
annotated='A|B,C'  sources take turns: source 1 annotates class A, source 2 classes B and C; other classes read as background and are not
                   in ``LabelMap.annotated``. Test cases keep all classes.
labelled=n         only the first n training cases keep label maps, annotated points and target columns.
corruption=kind    images of the test cases (``corrupted='test'``) or of all are damaged, see ``corruption.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.errors import UsageError, nearest
from ...core.manifest import CaseRef
from .corruption import KINDS, corrupt
from .forms import field
from .scene import Drawing, Option, Who

RATER_STAGE, CORRUPTION_STAGE = 901, 902

OPTIONS: Mapping[str, Option] = {
    "raters": Option(0, (0, 2, 3, 4, 5, 6), "label maps by biased raters beside the reference"),
    "annotated": Option("", str, "classes by source, e.g. 'liver|spleen,left kidney'"),
    "labelled": Option(None, int, "training cases that keep their labels"),
    "corruption": Option("", ("", *KINDS), "damage to the images"),
    "severity": Option(3, (1, 2, 3, 4, 5), "of the corruption"),
    "corrupted": Option("test", ("test", "all"), "which cases are corrupted"),
}

GIVEN = ("corruption", "severity")  # table columns that are no answers


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """``annotated`` as one text: on the command line 'a|b,c' arrives as ('a|b', 'c')."""
    given = dict(given)
    if isinstance(given.get("annotated"), tuple) and all(isinstance(part, str) for part in given["annotated"]):
        given["annotated"] = ",".join(given["annotated"])
    return given


def check(labels: tuple[str, ...], options: Mapping[str, Any]) -> None:
    """Refuse classes that the phantom does not have and a negative number of labelled cases."""
    for name in (n for source in _sources(options) for n in source):
        if name not in labels[1:]:
            allowed = ", ".join(labels[1:])
            raise UsageError(f"no class '{name}' to annotate", where="option 'annotated'", allowed=allowed, fix=nearest(name, labels[1:]))
    if options["labelled"] is not None and options["labelled"] < 0:
        raise UsageError("option 'labelled' cannot have this value", found=options["labelled"], allowed="0 or more")


def _sources(options: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(n.strip() for n in part.split(",")) for part in options["annotated"].split("|")] if options["annotated"] else []


def annotated(who: Who) -> frozenset[str] | None:
    """The classes this case's label maps speak for; None: all."""
    sources = _sources(who.options)
    return frozenset(sources[who.place % len(sources)]) if sources and who.split != "test" else None


def corrupted(who: Who) -> bool:
    return bool(who.options["corruption"]) and (who.options["corrupted"] == "all" or who.split == "test")


def vary_row(row: CaseRef, who: Who, classes: tuple[str, ...], targets: tuple[str, ...], marks: tuple[str, ...]) -> CaseRef:
    """The row under the options: raters named, labels withheld, what was done to it in the table."""
    uri = row.labels["reference"].rpartition("#")[0]
    labels = {**row.labels, **{f"rater{r}": f"{uri}#rater{r}" for r in range(1, who.options["raters"] + 1)}}
    table, points, source = dict(row.table), dict(row.points), row.source
    if (speaks := annotated(who)) is not None:
        source = "+".join(c for c in classes if c in speaks)
    if who.options["labelled"] is not None and who.split == "train" and who.place >= who.options["labelled"]:
        labels = {}
        points = {n: p for n, p in points.items() if n not in marks}
        table.update({t: None for t in targets})
    if who.options["corruption"]:
        table |= {n: who.options[n] if corrupted(who) else none for n, none in (("corruption", "none"), ("severity", 0))}
    return replace(row, labels=labels, points=points, table=table, source=source)


def vary_drawing(drawing: Drawing, who: Who, classes: tuple[str, ...]) -> Drawing:
    """The arrays under the options."""
    labels, images = dict(drawing.labels), dict(drawing.images)
    for r in range(1, who.options["raters"] + 1):
        bias = float(np.random.default_rng([who.seed, RATER_STAGE, r]).normal(0, 0.8))
        labels[f"rater{r}"] = redraw(labels["reference"], who.rng(RATER_STAGE + 10 * r), bias, 0.8)
    if (speaks := annotated(who)) is not None:
        silent = [k for k, c in enumerate(classes) if c not in speaks]
        labels = {n: np.where(np.isin(x, silent), 0, x) for n, x in labels.items()}
    if corrupted(who):
        kind, severity = who.options["corruption"], who.options["severity"]
        images = {n: corrupt(x, kind, severity, who.rng(CORRUPTION_STAGE)) for n, x in images.items()}
    return replace(drawing, labels=labels, images=images)


def redraw(labels: np.ndarray, rng: np.random.Generator, bias: float, wobble: float) -> np.ndarray:
    """A rater's version of a label map (*s): every class's border moved outwards by ``bias`` + smooth noise of sd ``wobble`` (voxels).

    A voxel takes the class whose shifted signed distance is largest, background where all are negative.
    """
    offset = (bias + wobble * field(rng, labels.shape, 4.0)).astype(np.float32)
    best, out = np.zeros(labels.shape, np.float32), np.zeros_like(labels)
    for k in np.unique(labels[labels > 0]):
        inside = labels == k
        signed = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        depth = signed - np.sign(signed) * 0.5 + offset
        win = depth > best
        best[win], out[win] = depth[win], k
    return out
