"""Phantom: a built-in dataset as data. A ``sketch`` draws a case's known answers, a ``render`` draws its images and labels.

The two are apart so that a manifest can list every answer (volume, number of clips, class) without simulating a single image. All random
numbers of a case come from ``Who.rng``: they depend on (seed, case index, stage) and, for the anatomy that the exams of a patient share,
on (seed, index of the patient's first case, stage). The index of a case does not depend on how many cases were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.case import Case, Image, LabelMap, Points
from ...core.errors import UsageError, nearest
from ...core.manifest import CaseRef, Manifest
from . import variants
from .scene import SPLIT_STEP, Drawing, Option, Scene, Who

SPLITS = ("train", "val", "test")
VERSION = 1  # raise it when a sketch or render changes what it draws: caches of prepared cases go by it


@dataclass(frozen=True)
class Phantom:
    """A built-in dataset. ``labels``: class names, background first; ``splits``: default train, val and test cases; ``exams``: numbers of
    cases of successive patients, repeated; ``given``: table columns known before any answer (the others are hidden from prediction);
    ``targets``: table columns to predict; ``marks``: points that are annotations (absent in
    unlabelled cases); ``pairs``: which (fixed, moving) cases of a split are registered; ``adapt`` changes this record for options (more
    classes, other channels)."""

    name: str
    title: str
    dims: int
    modality: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[int, int, int]
    text: str
    sketch: Callable[[Who], Scene]
    render: Callable[[Who, Scene], Drawing]
    options: Mapping[str, Option] = field(default_factory=dict)
    exams: tuple[int, ...] = (1,)
    rois: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    targets: Mapping[str, Mapping] = field(default_factory=dict)
    mirror: tuple[tuple[str, str], ...] = ()
    pairs: Callable[[CaseRef, CaseRef], bool] | None = None
    adapt: Callable[[Phantom, Mapping[str, Any]], Phantom] | None = None

    def settle(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options at their defaults or as given; unknown names and values are refused."""
        known = {**variants.OPTIONS, **self.options}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"phantom '{self.name}' has no option '{name}'", allowed=", ".join(sorted(known)), fix=nearest(name, known)
                )
        given = variants.plain(given)
        return {n: o.check(n, given[n], self.name) if n in given else o.default for n, o in known.items()}

    def open(self, cases: Any, seed: int, given: Mapping[str, Any]) -> Manifest:
        """The manifest; see ``open_phantom``."""
        options = self.settle(given)
        me = self.adapt(self, options) if self.adapt else self
        variants.check(me.labels, options)
        counts = _counts(cases, me.splits, self.name)
        known = {**variants.OPTIONS, **self.options}
        changed = {"seed": seed, **{n: options[n] for n in sorted(given) if options[n] != known[n].default}}
        uri = f"phantom:{self.name}?" + "&".join(f"{n}={v}" for n, v in changed.items())
        renderer = Renderer(me, seed, tuple(options.items()), uri)
        refs = tuple(renderer.ref(split, place) for split, n in zip(SPLITS, counts, strict=True) for place in range(n))
        return Manifest(
            name=self.name,
            root=Path(f"built-in-{self.name}"),
            dims=self.dims,
            channels=me.channels,
            labels={name: k for k, name in enumerate(me.labels)},
            cases=refs,
            modality=me.modality,
            licence="built in",
            source="simulated by vesalius.datasets.phantoms",
            note=" ".join(me.text.split()),
            targets=dict(me.targets),
            mirror=me.mirror,
            pairs=me.pairs and _pairs(refs, me.pairs),
            built_in=renderer,
        )


@dataclass(frozen=True, repr=False)
class Renderer:
    """CaseRef -> Case, the same bits in any order and any process. It gives what the row names and nothing else."""

    phantom: Phantom
    seed: int
    options: tuple[tuple[str, Any], ...]
    uri: str

    def __repr__(self) -> str:  # the same in every process: caches go by it
        return f"Renderer({self.uri}, version {VERSION})"

    def who(self, split: str, place: int) -> Who:
        base, exams, first, turn = SPLIT_STEP * SPLITS.index(split), self.phantom.exams, 0, 0
        while first + exams[turn % len(exams)] <= place:
            first, turn = first + exams[turn % len(exams)], turn + 1
        return Who(self.seed, base + place, base + first, split, dict(self.options))

    def ref(self, split: str, place: int) -> CaseRef:
        """The row of one case, with its known answers."""
        who, p = self.who(split, place), self.phantom
        scene = p.sketch(who)
        groups = {"images": p.channels, "rois": p.rois, "points": p.points}
        address = {kind: {n: f"{self.uri}#{n}" for n in names} for kind, names in groups.items()}
        row = CaseRef(
            id=f"{split}-{place:03d}",
            patient=f"{split}-patient-{who.patient % SPLIT_STEP:03d}",
            split=split,
            exam=f"{split}-{place:03d}" if p.exams != (1,) else "",
            source=scene.source,
            labels={"reference": f"{self.uri}#reference"},
            table=dict(scene.table),
            **address,
        )
        return variants.vary_row(row, who, p.labels, tuple(p.targets), p.marks)

    def __call__(self, ref: CaseRef) -> Case:
        split, _, place = ref.id.rpartition("-")
        if split not in SPLITS or not place.isdigit():
            raise UsageError(f"phantom '{self.phantom.name}' has no case '{ref.id}'", allowed="train-000, val-000, test-000 and so on")
        who = self.who(split, int(place))
        drawing = self.phantom.render(who, self.phantom.sketch(who))
        drawing = variants.vary_drawing(drawing, who, self.phantom.labels)
        grid, names, speaks = drawing.geometry, self.phantom.labels, variants.annotated(who)
        label = lambda x: np.ascontiguousarray(x).astype(np.int16)
        return Case(
            id=ref.id,
            patient=ref.patient,
            exam=ref.exam,
            source=ref.source,
            images={n: Image(np.ascontiguousarray(drawing.images[n]), grid, name=n) for n in ref.images},
            labels={n: LabelMap(label(drawing.labels[n]), grid, names, annotated=speaks) for n in ref.labels},
            rois={n: LabelMap(label(drawing.rois[n]), grid, ("background", n)) for n in ref.rois},
            points={n: Points(np.asarray(drawing.points[n], float).reshape(-1, grid.ndim)) for n in ref.points},
            table=dict(ref.table),
            answers=frozenset(ref.table) - {*self.phantom.given, *variants.GIVEN},
        )


def _pairs(refs: tuple[CaseRef, ...], paired: Callable[[CaseRef, CaseRef], bool]) -> tuple[tuple[str, str], ...]:
    return tuple((f.id, m.id) for f in refs for m in refs if f is not m and f.split == m.split and paired(f, m))


def _counts(cases: Any, default: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    """Train, val and test cases: None (default), a total shared out as by default, three numbers, or a mapping by split."""
    if cases is None:
        return default
    if isinstance(cases, Mapping):
        unknown = set(cases) - set(SPLITS)
        cases = tuple(cases.get(s, 0) for s in SPLITS) if not unknown else cases
    whole = lambda n: isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n < SPLIT_STEP
    if whole(cases) and cases >= 1:
        held = [max(1, round(cases * n / sum(default))) if cases >= 3 and n else 0 for n in default[1:]]
        return (int(cases) - sum(held), *held)
    if isinstance(cases, tuple | list) and len(cases) == 3 and all(map(whole, cases)) and sum(cases):
        return tuple(int(n) for n in cases)
    allowed = "a total, (train, val, test), or {'train': n, 'val': n, 'test': n}"
    raise UsageError("cannot tell how many cases", where=where, found=repr(cases), allowed=allowed)
