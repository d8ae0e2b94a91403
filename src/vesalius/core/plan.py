"""Facts about a dataset (Fingerprint) and the decisions made from them (Plan); both are readable JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .errors import RunError
from .geometry import Grid

VERSION = 1


@dataclass(frozen=True)
class Fingerprint:
    """What the training images are like: sizes (voxels) and spacings (mm) by case, intensity facts by channel, class shares, and in 2D
    how small a picture may be made (``kept``)."""

    cases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    intensities: Mapping[str, Mapping[str, float]]  # channel -> min, max, mean, sd, p005, p995 (over foreground), zero_share
    class_voxels: Mapping[str, Mapping[str, int]]  # case -> class name -> voxels
    channel_sizes: Mapping[str, int]  # channel -> its components (3 for RGB)
    kept: Mapping[int, float] = field(default_factory=dict)  # longest side (px) -> DSC of labels made so small and large again

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping) -> Fingerprint:
        tuples = {k: tuple(tuple(x) if isinstance(x, list) else x for x in record[k]) for k in ("cases", "shapes", "spacings")}
        return cls(**{**record, **tuples, "kept": {int(k): v for k, v in record.get("kept", {}).items()}})


@dataclass(frozen=True)
class Plan:
    """Every decision a training and a prediction follow, the same for all methods of a comparison.

    ``patch`` and grids are in voxels of the prepared case (index order, RAS+ axes in 3D); ``normalise`` maps a channel to 'ct' (clip to the
    fingerprint's 0.5-99.5 percentiles, then z-score by its mean and sd) | 'zscore' (per case) | 'fixed' (z-score by the stated mean and
    sd) | 'unit' (0..1 by the dtype's range) | 'byte' (0..255) | 'none'. ``test_mirror``: axes over which predictions of mirrored windows
    are averaged. ``views``: images of a case share no world (the views of a breast, the two cases of a registration pair), so each is
    put on the grid by itself.
    """

    dims: int
    channels: tuple[str, ...] = ()
    in_channels: int = 1
    classes: tuple[str, ...] = ("background", "foreground")
    grid: Grid = field(default_factory=Grid)
    patch: tuple[int, ...] = ()
    batch: int = 2
    normalise: Mapping[str, str] = field(default_factory=dict)
    intensities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    crop_to_body: bool = False
    views: bool = False
    iterations: int = 1000
    features: tuple[int, ...] = (16, 32, 64, 128)
    strides: tuple[tuple[int, ...], ...] = ()
    kernels: tuple[tuple[int, ...], ...] = ()
    deep_supervision: bool = True
    foreground: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    test_mirror: tuple[int, ...] = ()
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    augmentation: Mapping[str, float] = field(default_factory=dict)
    overlap: float = 0.5
    precision: str = "32"
    workers: int = 1
    threads: int = 2
    largest_component: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    def derive(self, **changes: Any) -> Plan:
        return replace(self, **changes)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping, where: str | Path = "plan.json") -> Plan:
        if record.get("version") != VERSION:
            raise RunError("this plan was written by another version", where=where, found=record.get("version"), allowed=VERSION)
        known = {f.name: f for f in fields(cls)}
        unknown = set(record) - set(known)
        if unknown:
            raise RunError("the plan has unknown fields", where=where, found=sorted(unknown), allowed=sorted(known))
        record = {k: _tuples(v) for k, v in record.items()}
        record["grid"] = Grid(**{k: _tuples(v) for k, v in dict(record.get("grid") or {}).items()})
        return cls(**record)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1))


def _tuples(value: Any) -> Any:
    """JSON lists back to tuples, all the way down."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value
