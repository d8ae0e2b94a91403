"""From the native case to the plan's grid, and the cache of prepared cases (uncompressed arrays, memory-mapped).

prepare: ``method.derive`` on native intensities -> canonical orientation -> optional body crop -> the plan's grid -> normalise. Every step
is in the result's affine, so that ``restore`` needs nothing but the two geometries.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..core.case import Case, Image, Query
from ..core.errors import DataError
from ..core.geometry import Geometry, Grid, LongestSide
from ..core.lazy import Lazy
from ..core.machine import cache_root
from ..core.manifest import CaseRef, Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..io.atomic import atomic_write_text
from ..ops.components import bounding_box

_VERSION = 3
_OVERVIEW = 1024  # longest side (px) of what tells the intensities of an image larger than memory
_LOCATIONS = 4000  # foreground voxels kept per class for oversampling


def prepare(case: Case, plan: Plan, method: Method | None = None, *, training: bool = False, seed: int = 0) -> Case:
    """The case on the plan's grid, normalised; labels, ROIs and points come along. ``native`` of the result is the untouched case.
    The two sides of a pair are prepared each by itself."""
    if (sides := case.sides()) is not None:
        fixed, moving = (prepare(side, plan, method, training=training, seed=seed) for side in sides)
        return replace(Case.pair(fixed, moving), id=case.id, original=lambda: case)
    missing = [c for c in plan.channels if c not in case.images and c not in getattr(method, "derived", ())]
    if missing and case.images and not (plan.views and set(plan.channels) & set(case.images)):
        raise DataError(f"image '{missing[0]}' is missing", where=f"case {case.id}", found=list(case.images), allowed=list(plan.channels))
    source = case
    if method is not None:
        case = replace(case, grids=_other_grids(source, plan, method, seed))
        case = method.derive(case, np.random.default_rng([seed, 11]), training=training)
    if not case.images:
        return replace(case, original=lambda: source)
    place = _placing(case, plan)
    images = {}
    for name, image in case.images.items():
        if isinstance(image.source, Lazy):
            rule = plan.normalise.get(name, "none") if image.normalise else "none"
            images[name] = _lazily(image.on(place(image.geometry)), rule, plan.intensities.get(name, {}))
            continue
        smooth = "cubic" if image.normalise else "linear"
        moved = image.on(place(image.geometry), smooth, fill=float(np.min(image.data)) if image.normalise else 0.0, antialias=True)
        data = np.asarray(moved.data, np.float32)
        if image.normalise and name in plan.normalise:
            data = normalise(data, plan.normalise[name], plan.intensities.get(name, {}), np.asarray(image.data))
        images[name] = replace(moved, source=data)
    return replace(
        case,
        images=images,
        labels={k: v.semantic.on(place(v.geometry)) for k, v in case.labels.items()},
        rois={k: v.on(place(v.geometry)) for k, v in case.rois.items()},
        queries=tuple(replace(q, target=q.target.on(place(q.target.geometry)) if q.target else None) for q in case.queries),
        original=lambda: source,
    )


def _placing(case: Case, plan: Plan) -> Callable[[Geometry], Geometry]:
    """Native grid -> prepared grid: one for the whole case, or of each image by itself where a plan says that they share no world."""
    if not plan.views:
        grid = target_geometry(case, plan.grid, plan.crop_to_body)
        return lambda _: grid
    if plan.grid.size is None:
        raise DataError("images without a common world need a grid of one size", where=f"case {case.id}", fix="plan a Grid(size=...)")
    return lambda native: plan.grid.of(native.canonical())


def _other_grids(case: Case, plan: Plan, method: Method, seed: int) -> dict[str, Callable[[], Case]]:
    """How to read the case on the further grids a method asks for, and as prepared for each of its parts."""
    grids = {name: partial(prepare, case, plan.derive(grid=grid), None, seed=seed) for name, grid in method.grids().items()}
    return grids | {name: partial(prepare, case, part.plan, part, seed=seed) for name, part in method.parts.items()}


def target_geometry(case: Case, grid: Grid, crop: bool) -> Geometry:
    """Canonical orientation, cropped to the voxels that are not the background value when asked, then the asked grid."""
    geometry = case.geometry.canonical()
    if grid.inside:
        if grid.inside not in case.rois:
            raise DataError(f"ROI '{grid.inside}' is missing", where=f"case {case.id}", found=list(case.rois) or "none")
        inside = case.rois[grid.inside].on(geometry).data > 0
        wide = [int(np.ceil(grid.margin / s)) for s in geometry.spacing]
        geometry = _bounding(geometry, inside, wide)
    elif crop and not case.lazy:
        first = next(iter(case.images.values()))
        data = first.on(geometry, "nearest").data
        geometry = _bounding(geometry, (data != data.min()).any(0), [0] * geometry.ndim)
    return grid.of(geometry)


def _bounding(geometry: Geometry, inside: np.ndarray, wide: list[int]) -> Geometry:
    """The sub-grid of the mask's bounding box widened by ``wide`` voxels within the grid; the grid itself when the mask is empty."""
    box = bounding_box(inside, wide)
    return geometry if box is None else geometry.cropped([s.start for s in box], [s.stop for s in box])


def normalise(data: np.ndarray, rule: str, facts: Mapping[str, float], native: np.ndarray | None = None) -> np.ndarray:
    """(C, *spatial) float32 -> normalised copy. Rules: see ``core.plan.Plan``. A constant image becomes zeros, not NaN."""
    data = np.asarray(data, np.float32)
    if rule == "none":
        return data
    if rule == "fixed":
        return (data - facts["mean"]) / max(facts["sd"], 1e-8)
    if rule == "ct":
        return (np.clip(data, facts["p005"], facts["p995"]) - facts["mean"]) / max(facts["sd"], 1e-8)
    if rule in ("unit", "byte"):
        reference = data if native is None else native
        if reference.dtype == np.uint8:
            low, high = 0.0, 255.0
        else:
            low, high = float(reference.min()), float(reference.max())
        out = (data - low) / max(high - low, 1e-8)
        return np.clip(out, 0, 1) * (255.0 if rule == "byte" else 1.0)
    if rule == "zscore":
        axes = tuple(range(1, data.ndim))
        mean, sd = data.mean(axes, keepdims=True, dtype=np.float64), data.std(axes, keepdims=True, dtype=np.float64)
        return ((data - mean) / np.maximum(sd, 1e-8)).astype(np.float32) if (sd > 1e-8).any() else np.zeros_like(data)
    raise DataError("unknown normalisation", found=rule, allowed="ct, zscore, fixed, unit, byte, none")


def _lazily(image: Image, rule: str, facts: Mapping[str, float]) -> Image:
    """A lazy image normalised part by part, where need be by the numbers of an overview of the whole."""
    source, grid = image.source, image.geometry
    native = np.zeros((1,), source.dtype)
    if rule == "zscore" or rule in ("unit", "byte") and source.dtype != np.uint8:
        native = source.read(LongestSide(min(_OVERVIEW, max(grid.shape))).of(grid))
    if rule == "zscore":
        rule, facts = "fixed", {"mean": float(native.mean()), "sd": float(native.std())}
    return replace(image, source=source.then(partial(normalise, rule=rule, facts=facts, native=native)))


# -------------------------------------------------------------------------------------------------------------------------------- cache
@dataclass(frozen=True)
class Prepared:
    """A prepared case in the cache. Arrays are memory maps; opening one costs a page table."""

    folder: Path

    @cached_property
    def facts(self) -> dict:
        return json.loads((self.folder / "facts.json").read_text())

    @property
    def id(self) -> str:
        return self.facts["id"]

    @property
    def geometry(self) -> Geometry | None:
        """None where the case has no image."""
        return Geometry.from_json(self.facts["geometry"]) if self.facts["geometry"] else None

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @property
    def image(self) -> np.ndarray:
        """(C, *spatial) float32, all channels the method stacks."""
        return self.array("image")

    @property
    def labels(self) -> dict[str, np.ndarray]:
        return {k: self.array(f"label.{i}") for i, k in enumerate(self.facts["labels"])}

    @property
    def maps(self) -> dict[str, np.ndarray]:
        return {k: self.array(f"map.{i}") for i, k in enumerate(self.facts["maps"])}

    @cached_property
    def locations(self) -> dict[int, np.ndarray]:
        """Class (0 too) -> (n, d) voxels, at most a few thousand."""
        flat = self.array("locations")
        return {int(c): flat[flat[:, 0] == c, 1:] for c in np.unique(flat[:, 0])}

    def points(self) -> dict[str, np.ndarray]:
        """(n, d) in prepared voxels."""
        grid = self.geometry
        return {k: grid.to_index(np.asarray(v, float).reshape(-1, grid.ndim)) for k, v in self.facts["points"].items()} if grid else {}

    def case(self, query: str = "") -> Case:
        """What ``condition`` may look at: images, table, texts and expressions (only the one named, if any), without their answers."""
        grid, images, start = self.geometry, {}, 0
        for name, size, normal in self.facts["channels"]:
            images[name] = Image(self.image[start : start + size], grid, normalise=normal, name=name)
            start += size
        queries = tuple(Query(i, text) for i, text in self.facts["queries"] if query in ("", i))
        return Case(self.id, self.facts["patient"], images=images, table=self.facts["table"], text=self.facts["text"], queries=queries)


@dataclass(frozen=True)
class Relabelled(Prepared):
    """A prepared case whose labels are others' (``Stage.relabel``), in a folder of their own."""

    own: Path = Path()

    @cached_property
    def facts(self) -> dict:
        return super().facts | json.loads((self.own / "facts.json").read_text())

    def array(self, name: str) -> np.ndarray:
        folder = self.own if name.startswith(("label.", "locations")) else self.folder
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @classmethod
    def make(cls, of: Prepared, case: Case, plan: Plan, own: Path) -> Relabelled:
        """Writes the labels of ``case``; what is there already is kept."""
        if not (own / "facts.json").exists():
            with _whole_folder(own) as scratch:
                (scratch / "facts.json").write_text(json.dumps({"labels": _store_labels(case, plan, scratch)}))
        return cls(of.folder, own)


class Cache:
    """Prepared cases of one manifest, plan and way of preparing (a method's ``derive`` and ``targets``), made on first use.

    ``unfold``: one native case becomes several, each prepared by itself.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        method: Method | None,
        read: Callable[[str], Case],
        unfold: Callable[[Case], Iterable[Case]] | None = None,
    ):
        self.manifest, self.plan, self.method, self.read, self.unfold = manifest, plan, method, read, unfold
        rules = [_VERSION, manifest.digest(), repr(manifest.built_in), str(manifest.root), plan.grid, plan.crop_to_body, plan.channels]
        rules += [dict(plan.normalise), {k: dict(v) for k, v in plan.intensities.items()}, way_of(method)]
        rules += [plan.views, unfold and f"{unfold.__module__}:{unfold.__qualname__}"]
        self.root = cache_root() / "prepared" / hashlib.sha256(json.dumps(rules, default=repr, sort_keys=True).encode()).hexdigest()[:24]

    def __getitem__(self, case: str) -> Prepared:
        folder = self._folder(case)
        if not (folder / "facts.json").exists():
            self._make(self.read(case), case, folder)
        return Prepared(folder)

    def all(self, case: str) -> list[Prepared]:
        """The prepared cases that one case unfolds to (by default itself)."""
        if self.unfold is None:
            return [self[case]]
        index = self._folder(case).with_suffix(".json")
        if not index.exists():
            parts = []
            for part in self.unfold(self.read(case)):
                parts.append(part.id)
                folder = self._folder(case, part.id)
                if not (folder / "facts.json").exists():
                    self._make(part, case, folder)
            self.root.mkdir(parents=True, exist_ok=True)
            atomic_write_text(index, json.dumps(parts))
        return [Prepared(self._folder(case, part)) for part in json.loads(index.read_text())]

    def _folder(self, case: str, part: str = "") -> Path:
        key = [case, _stamp(self.manifest, self.manifest[case]), *([part] if part else [])]
        return self.root / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]

    def _make(self, native: Case, of: str, folder: Path) -> None:
        prepared = prepare(native, self.plan, self.method, training=True)
        with _whole_folder(folder) as scratch:
            _store(prepared, of, self.method, self.plan, scratch)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``folder`` when all is written; ``facts.json`` in it says that it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        yield scratch
        try:
            os.replace(scratch, folder)
        except OSError:  # somebody else made it meanwhile
            if not (folder / "facts.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def way_of(method: Method | None) -> str:
    """What distinguishes this method's prepared cases: nothing for most, so that they share one cache."""
    if method is None:
        return ""
    cls = type(method)
    own = [name for name in ("derive", "targets") if getattr(cls, name, None) is not _default(name)]
    return f"{cls.__module__}:{cls.__qualname__} {method.preparation}" if own else ""


def _default(name: str) -> object:
    from ..methods.learned import LearnedMethod

    return getattr(LearnedMethod, name)


def _stamp(manifest: Manifest, ref: CaseRef) -> list:
    """Size and time of a case's files: a changed file is prepared anew."""
    out = []
    for group in (ref.images, ref.labels, ref.rois, ref.points, ref.boxes, ref.text):
        for name, where in sorted(group.items()):
            text = str(manifest.root / where)
            for candidate in (text, text.rpartition(":")[0]):
                if os.path.exists(candidate):
                    s = os.stat(candidate)
                    out.append([name, s.st_size, s.st_mtime_ns])
                    break
    return out


def _store(case: Case, of: str, method: Method | None, plan: Plan, folder: Path) -> None:
    channels = (getattr(method, "channels", None) or plan.channels) if case.images else ()
    np.save(folder / "image.npy", case.stack(tuple(channels)) if channels else np.zeros((0,), np.float32))
    labels = _store_labels(case, plan, folder)
    maps = dict(method.targets(case)) if hasattr(method, "targets") and case.labels else {}
    for i, derived in enumerate(maps.values()):
        np.save(folder / f"map.{i}.npy", np.asarray(derived.data, np.float32))
    facts = {
        "id": case.id,
        "of": of,
        "patient": case.patient,
        "geometry": case.geometry.to_json() if case.images else None,
        "channels": [[c, int(np.asarray(case.images[c].data).shape[0]), case.images[c].normalise] for c in channels],
        "names": list(plan.classes),
        "labels": labels,
        "maps": {k: v.fill for k, v in maps.items()},
        "points": {k: np.asarray(p.xyz).tolist() for k, p in case.points.items()},
        "table": {k: v for k, v in case.table.items() if isinstance(v, (int, float, str, bool, type(None)))},
        "text": dict(case.text),
        "queries": [[q.id, q.text] for q in case.queries],
    }
    (folder / "facts.json").write_text(json.dumps(facts))  # the folder is renamed whole: no fsync of its own


def _store_labels(case: Case, plan: Plan, folder: Path) -> list[str]:
    """Label maps, the targets of expressions as 'query:<id>', and where each class of the first map lies; returns the names."""
    maps = dict(case.labels) | {f"query:{q.id}": q.target for q in case.queries if q.target is not None}
    located: list[np.ndarray] = []
    for i, label in enumerate(maps.values()):
        data = np.asarray(label.data)
        if label.overlapping:
            data = data.astype(np.uint8)
        else:
            data = data.astype(np.int8 if len(plan.classes) < 127 else np.int16)
        np.save(folder / f"label.{i}.npy", data)
        if i == 0:
            located = _locations(data, len(plan.classes) - len(data) if label.overlapping else None)
    np.save(folder / "locations.npy", np.concatenate(located) if located else np.zeros((0, plan.dims + 1), np.int32))
    return list(maps)


def _locations(label: np.ndarray, first: int | None) -> list[np.ndarray]:
    """Per class (class, index...) rows, thinned evenly; of overlapping maps (K, *spatial) ``first`` is the class of the first."""
    out = []
    classes = [int(c) for c in np.unique(label) if c >= 0] if first is None else range(first, first + len(label))
    for c in classes:
        at = np.argwhere(label == c if first is None else label[c - first])
        if not len(at):
            continue
        at = at[np.linspace(0, len(at) - 1, min(len(at), _LOCATIONS)).astype(int)]
        out.append(np.concatenate([np.full((len(at), 1), c), at], 1).astype(np.int32))
    return out
