"""Predictions back on the original grid: a pure function of the two geometries.

Law: ``restore(prepare(label)) == label`` at equal spacing, whatever the orientation. Class maps are resampled one class and one slab at a
time and only the most probable class is kept, so that memory does not grow with the number of classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.case import Image, LabelMap
from ..core.geometry import Geometry, resample
from ..core.prediction import Prediction
from ..ops.components import largest

_SLAB = 1 << 24  # voxels of the original grid handled at a time


def restore(
    prediction: Prediction,
    original: Geometry,
    names: tuple[str, ...],
    *,
    probability: bool = False,
    largest_component: tuple[str, ...] = (),
) -> Prediction:
    """Every spatial field on ``original``. ``probability`` keeps the resampled class probabilities too (memory: classes x voxels x 4 B).

    ``largest_component``: classes of which only the largest connected component is kept.
    """
    labels = {k: v.on(original) for k, v in prediction.labels.items()}
    kept = None
    if prediction.probability is not None:
        if not labels:
            labels = {"prediction": LabelMap(most_probable(prediction.probability, original), original, names)}
        if probability:
            kept = _on(prediction.probability, original)
    if largest_component and labels:
        first = next(iter(labels))
        labels[first] = replace(labels[first], source=_largest(np.array(labels[first].data), names, largest_component))
    return replace(
        prediction,
        labels=labels,
        probability=kept,
        images={k: v.on(original) for k, v in prediction.images.items()},
        uncertainty=prediction.uncertainty and prediction.uncertainty.on(original),
        samples=prediction.samples and prediction.samples.on(original),
        displacement=prediction.displacement and prediction.displacement.on(original),
        instances=prediction.instances and prediction.instances.on(original),
    )


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
