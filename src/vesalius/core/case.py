"""The unit of the label: one volume, one breast, one frame, one report, one pair; and the batch made from several.

Arrays are channel first, ``(C, *spatial)``; label maps hold class indices ``0..K-1`` (0 is background) and ``IGNORE`` where nobody said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .errors import DataError, GeometryError
from .geometry import Geometry, resample, resample_labels
from .lazy import Lazy

IGNORE = -1  # the ignore index: voxels that no annotator spoke for


@dataclass(frozen=True)
class Image:
    """``data`` (C, *spatial) on ``geometry``. ``source`` may be a function that reads it, or ``Lazy`` where it is larger than memory;
    ``normalise`` is False for channels that are already on their final scale (a saliency, a distance)."""

    source: np.ndarray | Callable[[], np.ndarray] | Lazy
    geometry: Geometry
    normalise: bool = True
    name: str = ""

    @property
    def data(self) -> np.ndarray:
        data = self.source() if callable(self.source) else self.source
        if data.shape[1:] != self.geometry.shape:
            where = self.name or None
            raise GeometryError("the array does not lie on its grid", where=where, found=data.shape, allowed=self.geometry.shape)
        return data

    def on(self, grid: Geometry, mode: str = "linear", *, fill: float = 0.0, antialias: bool = False) -> Image:
        """This image read on another grid; a lazy one stays lazy and nothing is read."""
        if isinstance(self.source, Lazy):
            return replace(self, source=self.source.on(grid), geometry=grid)
        return replace(self, source=resample(self.data, self.geometry, grid, mode, fill=fill, antialias=antialias), geometry=grid)

    def every(self, steps: Sequence[int]) -> Image:
        """Every n-th voxel of each axis, from the first one on; a lazy one is read on that grid by its own means."""
        grid = self.geometry.every(steps)
        if isinstance(self.source, Lazy):
            return self.on(grid)
        return replace(self, source=self.data[:, *(slice(None, None, n) for n in steps)], geometry=grid)


@dataclass(frozen=True)
class LabelMap:
    """Class indices (*spatial) int, or (K, *spatial) bool maps when structures overlap.

    ``names[k]`` names class k; ``annotated``: the classes this map speaks for (None: all); ``instances``: values are object ids.
    """

    source: np.ndarray | Callable[[], np.ndarray]
    geometry: Geometry
    names: tuple[str, ...] = ("background", "foreground")
    overlapping: bool = False
    annotated: frozenset[str] | None = None
    instances: bool = False

    @property
    def data(self) -> np.ndarray:
        return self.source() if callable(self.source) else self.source

    @property
    def semantic(self) -> LabelMap:
        """Object ids as one foreground class; any other label map is itself."""
        if not self.instances:
            return self
        data = np.asarray(self.data)
        return replace(self, source=np.where(data > 0, 1, np.minimum(data, 0)).astype(np.int16), instances=False)

    def on(self, grid: Geometry) -> LabelMap:
        if self.overlapping:
            data = resample(self.data.astype(np.float32), self.geometry, grid, "linear") >= 0.5
        else:
            data = resample_labels(self.data, self.geometry, grid)
        return replace(self, source=data, geometry=grid)


@dataclass(frozen=True)
class Points:
    """``xyz`` (n, d) world mm; ``names`` per point; ``instance`` (n,) which object; ``sd`` (n,) mm when a method is unsure."""

    xyz: np.ndarray
    names: tuple[str, ...] = ()
    instance: np.ndarray | None = None
    sd: np.ndarray | None = None


@dataclass(frozen=True)
class Boxes:
    """``low``, ``high`` (n, d) world mm; ``labels`` and ``scores`` (n,)."""

    low: np.ndarray
    high: np.ndarray
    labels: tuple[str, ...] = ()
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Query:
    """One expression and what it points to; many per case."""

    id: str
    text: str
    target: LabelMap | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Case:
    """What a method takes. Any field may be empty: text and tables have no image, a registration pair has two.

    ``patients`` holds everyone a pair is made of (the split law looks at all of them); ``exam`` groups cases whose results aggregate;
    ``source`` names the label vocabulary. ``answers`` are the table columns ('malignant') and texts ('text:findings') that are targets.
    ``grids`` read this case on the other grids a method asked for and as prepared for each of its parts, by name; ``original`` reads
    the untouched case (Hounsfield units, whole field of view).
    """

    id: str
    patient: str = ""
    exam: str = ""
    source: str = ""
    images: Mapping[str, Image] = field(default_factory=dict)
    labels: Mapping[str, LabelMap] = field(default_factory=dict)
    rois: Mapping[str, LabelMap] = field(default_factory=dict)
    points: Mapping[str, Points] = field(default_factory=dict)
    boxes: Mapping[str, Boxes] = field(default_factory=dict)
    queries: tuple[Query, ...] = ()
    text: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    patients: tuple[str, ...] = ()
    answers: frozenset[str] = frozenset()
    grids: Mapping[str, Callable[[], Case]] = field(default_factory=dict, repr=False)
    original: Callable[[], Case] | None = field(default=None, repr=False)

    @property
    def geometry(self) -> Geometry:
        """The grid all images share (the first image's; of labels or ROIs where there is no image)."""
        for group in (self.images, self.labels, self.rois):
            for item in group.values():
                return item.geometry
        raise DataError("this case has no image, label or ROI and so no grid", where=self.id)

    @property
    def label(self) -> LabelMap | None:
        """The reference: the label map of that name, else the first; None without one."""
        return self.labels.get("reference", next(iter(self.labels.values()), None))

    @property
    def lazy(self) -> bool:
        """Whether an image is larger than memory: such a case is predicted on its plan's grid and outlined, not restored pixel by pixel."""
        return any(isinstance(i.source, Lazy) for i in self.images.values())

    @property
    def native(self) -> Case:
        return self.original() if self.original is not None else self

    def at(self, grid: str) -> Case:
        """This case on a grid the method named in ``grids()``, or as prepared for one of its parts; 'main' is the case itself."""
        if grid == "main":
            return self
        if grid not in self.grids:
            raise DataError(f"the case was not prepared on grid '{grid}'", where=self.id, allowed=["main", *self.grids])
        return self.grids[grid]()

    def stack(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """(C, *spatial): the named images' channels one after the other (default: all, in order)."""
        names = tuple(self.images) if names is None else names
        missing = [n for n in names if n not in self.images]
        if missing:
            raise DataError(f"image '{missing[0]}' is missing", where=f"case {self.id}", found=list(self.images), allowed=list(names))
        return np.concatenate([np.asarray(self.images[n].data, np.float32) for n in names])

    def with_(self, **fields: Any) -> Case:
        """A copy with fields replaced; mappings are merged over the present ones (a value of None removes the key)."""
        for key, value in list(fields.items()):
            old = getattr(self, key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                merged = {**old, **value}
                fields[key] = {k: v for k, v in merged.items() if v is not None}
        return replace(self, **fields)

    def without_labels(self) -> Case:
        """What prediction may see: no labels, boxes, points, answers or query targets, here, on other grids and in the original."""
        return replace(
            self,
            labels={},
            points={},
            boxes={},
            queries=tuple(replace(q, target=None, answer=None) for q in self.queries),
            text={k: v for k, v in self.text.items() if f"text:{k}" not in self.answers},
            table={k: v for k, v in self.table.items() if k not in self.answers},
            grids={k: partial(_without_labels, read) for k, read in self.grids.items()},
            original=partial(_without_labels, self.original) if self.original is not None else None,
        )

    @classmethod
    def pair(cls, fixed: Case, moving: Case) -> Case:
        """A registration pair: images and labels are prefixed 'fixed:' and 'moving:', each on its own grid."""

        def both(name: str) -> dict:
            return {f"{side}:{k}": v for side, c in (("fixed", fixed), ("moving", moving)) for k, v in getattr(c, name).items()}

        return cls(
            id=pair_id(fixed.id, moving.id),
            patient=fixed.patient,
            patients=(fixed.patient, moving.patient),
            images=both("images"),
            labels=both("labels"),
            rois=both("rois"),
            points=both("points"),
            answers=fixed.answers | moving.answers,
        )

    def sides(self) -> tuple[Case, Case] | None:
        """The fixed and the moving case a pair was made of (images, labels, ROIs and points), or None where this is no pair."""
        if len(self.patients) != 2:
            return None

        def side(name: str, patient: str) -> Case:
            head = f"{name}:"
            groups = {g: getattr(self, g) for g in ("images", "labels", "rois", "points")}
            own = {g: {k.removeprefix(head): v for k, v in items.items() if k.startswith(head)} for g, items in groups.items()}
            return Case(f"{self.id} ({name})", patient, answers=self.answers, **own)

        return side("fixed", self.patients[0]), side("moving", self.patients[1])


def pair_id(fixed: str, moving: str) -> str:
    """What the pair of two cases is called, in files too."""
    return f"{fixed}__{moving}"


def _without_labels(read: Callable[[], Case]) -> Case:
    return read().without_labels()


@dataclass(frozen=True)
class Condition:
    """What a forward pass is told beside the image: inputs (token ids, age, a latent), the same for all windows of a case.

    ``values`` have a leading batch axis, of 1 for one case; features that should learn are made from them in ``forward``.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def to(self, device: Any) -> Condition:
        return replace(self, values={k: v.to(device) for k, v in self.values.items()})

    @classmethod
    def stack(cls, conditions: Sequence[Condition]) -> Condition:
        """Those of several samples as one, along the batch axis."""
        import torch

        return cls({k: torch.cat([c.values[k] for c in conditions]) for k in conditions[0].values}, conditions[0].seed)


@dataclass
class Sample:
    """One patch on its way to a batch: where it is read from, how it is posed, and what was read.

    ``image`` (C, *source) and ``labels``/``maps`` are the whole prepared case (memory-mapped); ``pose`` (d+1, d+1) maps patch voxels to
    case voxels; ``bend`` is a coarse displacement field (d, *coarse) in patch voxels, or None. ``points`` (n, d) are case voxels.
    ``ops.augment.render`` reads the patch in one fused pass and fills ``patch``; ``moved`` are the points in patch voxels.
    """

    case: str
    image: np.ndarray
    labels: dict[str, np.ndarray]
    size: tuple[int, ...]
    pose: np.ndarray
    spacing: tuple[float, ...]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    outside: Mapping[str, float] = field(default_factory=dict)  # what maps hold outside the case, 0 where nothing is said
    points: dict[str, np.ndarray] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    query: str = ""  # id of the expression this draw is about
    condition: Condition | None = None
    channels: tuple[str, ...] = ()
    frozen: tuple[int, ...] = ()  # channels whose intensities are not augmented (Image.normalise is False)
    bend: np.ndarray | None = None
    patch: dict[str, np.ndarray] = field(default_factory=dict)
    moved: dict[str, np.ndarray] = field(default_factory=dict)
    extras: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Batch:
    """Tensors of one optimiser step; batch first.

    image (B, C, *s), None where cases have none; labels: by rater (B, *s) int64 with ``IGNORE`` ((B, K, *s) where they overlap); maps:
    derived targets (B, K, *s); table: by column (B,) float with NaN for missing, or a list where a value is text; to_case
    (B, d+1, d+1): patch voxels (augmentation included) -> voxels of the prepared case; points: by name, a list of (n, d) patch voxels;
    condition: the samples' conditions, stacked. ``streams`` are further batches drawn by other rules (unlabelled cases, another
    modality): ``batch["unlabelled"]``; ``views`` are the crops after the first of the same cases in the same order, or of pairs the
    partners.
    """

    image: Any
    labels: dict[str, Any]
    to_case: Any
    cases: list[str]
    spacing: Any = None
    maps: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    condition: Condition | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, Batch] = field(default_factory=dict)
    views: tuple[Batch, ...] = ()

    @property
    def label(self) -> Any:
        """The reference: the labels of that name, else the first; None without any."""
        return self.labels.get("reference", next(iter(self.labels.values()), None))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, stream: str) -> Batch:
        if stream not in self.streams:
            raise KeyError(f"no stream '{stream}' in this batch; there is: {', '.join(self.streams) or 'none'}")
        return self.streams[stream]

    def to(self, device: Any) -> Batch:
        """All tensors on ``device``."""

        def move(x: Any) -> Any:
            if isinstance(x, (Batch, Condition)):
                return x.to(device)
            if hasattr(x, "to"):
                return x.to(device, non_blocking=True)
            if isinstance(x, dict):
                return {k: move(v) for k, v in x.items()}
            if isinstance(x, (list, tuple)):
                return type(x)(move(v) for v in x)
            return x

        return Batch(**{name: move(getattr(self, name)) for name in self.__dataclass_fields__})
