"""Facts of the training cases: sizes, spacings, intensities, class shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.case import Case, Image, LabelMap
from ..core.errors import DataError
from ..core.geometry import LongestSide
from ..core.manifest import Manifest
from ..core.plan import Fingerprint

_SAMPLES = 20000  # voxels a case gives to the intensity facts
_SIDES = (64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)  # px, at which labels are tried
_TRIED = 12  # cases whose labels are


def fingerprint(manifest: Manifest, ids: Sequence[str], read: Callable[[str], Case]) -> Fingerprint:
    """Read the cases ``ids`` (training cases only) once. ``read`` gives the native case. Data of texts and tables (0 dims) has no facts."""
    if not manifest.dims:
        return Fingerprint(tuple(ids), (), (), {}, {}, {})
    shapes, spacings, classes, sizes, kept = [], [], {}, {}, []
    values: dict[str, list[np.ndarray]] = {c: [] for c in manifest.channels}  # of the foreground
    others: dict[str, list[np.ndarray]] = {c: [] for c in manifest.channels}  # of cases without any: used where no case has one
    zeros: dict[str, list[float]] = {c: [] for c in manifest.channels}
    for i in ids:
        case = read(i)
        if not case.images:
            continue
        grid = case.geometry.canonical()
        shapes.append(grid.shape)
        spacings.append(grid.spacing)
        label = case.label
        inside = None
        if label is not None and not label.overlapping:
            data = np.asarray(label.semantic.data)
            counts = np.bincount(np.clip(data, 0, None).ravel(), minlength=manifest.classes)
            counts[0] -= int((data < 0).sum())
            classes[i] = {n: int(c) for n, c in zip(manifest.names, counts, strict=False)}
            inside = data > 0
            if len(grid.shape) == 2 and len(kept) < _TRIED and inside.any():
                kept.append([_kept(label, side) for side in _SIDES])
        rng = np.random.default_rng(len(shapes))
        for name, image in case.images.items():
            if name not in values:
                continue
            data = np.asarray(image.data)
            sizes[name] = data.shape[0]
            marked = inside is not None and inside.shape == data.shape[1:] and inside.any()  # views of one case have grids of their own
            chosen = data[:, inside] if marked else data.reshape(data.shape[0], -1)
            flat = chosen.ravel()
            (values if marked else others)[name].append(rng.choice(flat, min(_SAMPLES, flat.size), replace=False).astype(np.float32))
            zeros[name].append(float((data == data.min()).mean()))
    if not shapes:
        raise DataError("no training case has an image", where=manifest.name, fix="a 2D or 3D data set needs an image column")
    if classes and not any(c for counts in classes.values() for n, c in counts.items() if n != manifest.names[0]):
        raise DataError(
            "no training case has any foreground",
            where=manifest.name,
            found=f"{len(classes)} labels of background only",
            fix="check the label values in dataset.toml: 'vesalius check' lists them",
        )
    deep = [k for k, shape in enumerate(shapes) if min(shape) > 1]
    if deep and len(deep) < len(shapes):  # pictures among volumes do not decide the volumes' patch and spacing
        shapes, spacings = ([rows[k] for k in deep] for rows in (shapes, spacings))
    intensities = {}
    for name, parts in ((name, values[name] or others[name]) for name in values):
        if not parts:
            continue
        v = np.concatenate(parts)
        v = v[np.isfinite(v)]
        p005, p995 = np.percentile(v, [0.5, 99.5])
        intensities[name] = {
            "min": float(v.min()),
            "max": float(v.max()),
            "mean": float(v.mean()),
            "sd": float(max(v.std(), 1e-8)),
            "p005": float(p005),
            "p995": float(p995),
            "zero_share": float(np.mean(zeros[name])),
        }
    small = {side: float(value) for side, value in zip(_SIDES, np.mean(kept, axis=0), strict=True)} if kept else {}
    return Fingerprint(tuple(ids), tuple(shapes), tuple(spacings), intensities, classes, sizes, small)


def _kept(label: LabelMap, side: int) -> float:
    """DSC of the foreground with itself after a training's way: prepared with this longest side (px), and restored."""
    grid = label.geometry
    if side >= max(grid.shape):
        return 1.0
    small, whole = LongestSide(side).of(grid), np.asarray(label.semantic.data) > 0
    fore = (np.asarray(label.semantic.on(small).data) > 0).astype(np.float32)
    back = Image(fore[None], small).on(grid).data[0] >= 0.5
    return float(2 * (back & whole).sum() / (back.sum() + whole.sum()))
