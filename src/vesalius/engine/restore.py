"""Predictions back on the original grid: a pure function of the two geometries.

Law: ``restore(prepare(label)) == label`` at equal spacing, whatever the orientation. Class maps are resampled one class and one slab at a
time and only the most probable class is kept, so that memory does not grow with the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..core.case import Image, LabelMap
from ..core.geometry import Geometry, resample
from ..core.prediction import Prediction
from ..ops.components import largest
from ..ops.displacement import on_grid
from ..ops.raster import label_map

_SLAB = 1 << 24  # voxels of the original grid handled at a time


def restore(
    prediction: Prediction,
    prepared: Geometry,
    original: Geometry,
    classes: tuple[str, ...],
    *,
    probability: bool = False,
    largest_component: tuple[str, ...] = (),
    others: Sequence[tuple[Geometry, Geometry]] = (),
) -> Prediction:
    """Every spatial field that lies on ``prepared`` read on ``original``; fields on other grids stay on theirs. ``others``: further
    (prepared, original) grids, of images that share no world. Outlines are filled where there is neither a label map nor a probability.

    ``probability`` keeps the resampled class probabilities too (memory: classes x voxels x 4 B). ``largest_component``: classes of which
    only the largest connected component is kept.
    """

    homes = ((prepared, original), *others)

    def back(field):
        home = next((native for grid, native in homes if field is not None and field.geometry == grid), None)
        return field.on(home) if home is not None else field

    labels = {k: back(v) for k, v in prediction.labels.items()}
    p, read = prediction.probability, None
    if p is not None and not labels and p.geometry == prepared:
        if prediction.threshold is None:
            labels = {"prediction": LabelMap(most_probable(p, original), original, prediction.names or classes)}
        else:
            read = back(p)
            labels = dict(replace(prediction, probability=read).decide(classes).labels)
    if prediction.outlines and not labels and p is None:
        labels = {"prediction": LabelMap(label_map(prediction.outlines, original, classes), original, classes)}
    kept = None
    if p is not None and probability:
        kept = _on(p, original) if prediction.threshold is None and p.geometry == prepared else read or back(p)
    first = next(iter(labels), None)
    if largest_component and first and not labels[first].overlapping:
        labels[first] = replace(labels[first], source=_largest(np.array(labels[first].data), labels[first].names, largest_component))
    return replace(
        prediction,
        labels=labels,
        probability=kept,
        images={k: back(v) for k, v in prediction.images.items()},
        uncertainty=back(prediction.uncertainty),
        samples=_samples(prediction.samples, back),
        displacement=_displacement(prediction.displacement, homes),
        instances=back(prediction.instances),
    )


def _displacement(field: Image | None, homes: Sequence[tuple[Geometry, Geometry]]) -> Image | None:
    """World mm are the same on any grid; where the prepared grid was cropped, the edge's displacement goes on."""
    home = next((native for grid, native in homes if field is not None and field.geometry == grid), None)
    return field if home is None else on_grid(field, home)


def _samples(samples: Image | None, back: Callable[[Image], Image]) -> Image | None:
    """(S, K, *spatial) maps, sent home one by one."""
    if samples is None:
        return None
    data = np.asarray(samples.source() if callable(samples.source) else samples.source)
    home = back(replace(samples, source=data.reshape(-1, *data.shape[2:])))
    return replace(home, source=home.data.reshape(*data.shape[:2], *home.geometry.shape))


def most_probable(probability: Image, original: Geometry) -> np.ndarray:
    """Class indices (*original.shape): the argmax of the linearly resampled class maps; background outside the prepared grid."""
    data, grid = np.asarray(probability.data, np.float32), probability.geometry
    kind = np.uint8 if data.shape[0] <= 256 else np.int16
    out = np.zeros(original.shape, kind)
    thick = max(1, _SLAB // max(1, int(np.prod(original.shape[1:]))))
    for start in range(0, original.shape[0], thick):
        stop = min(start + thick, original.shape[0])
        low = [start] + [0] * (original.ndim - 1)
        slab = original.cropped(low, [stop, *original.shape[1:]])
        best = resample(data[:1], grid, slab, "linear", fill=1.0)[0]
        winner = np.zeros(slab.shape, kind)
        for k in range(1, data.shape[0]):
            p = resample(data[k : k + 1], grid, slab, "linear", fill=0.0)[0]
            better = p > best
            winner[better], best[better] = k, p[better]
        out[start:stop] = winner
    return out


def _on(probability: Image, original: Geometry) -> Image:
    data = np.asarray(probability.data, np.float32)
    background = resample(data[:1], probability.geometry, original, "linear", fill=1.0)
    rest = resample(data[1:], probability.geometry, original, "linear", fill=0.0)
    return replace(probability, source=np.concatenate([background, rest]), geometry=original)


def _largest(data: np.ndarray, names: tuple[str, ...], chosen: tuple[str, ...]) -> np.ndarray:
    for name in chosen:
        k = names.index(name)
        mask = data == k
        if mask.any():
            data[mask & ~largest(mask, 1)] = 0
    return data
