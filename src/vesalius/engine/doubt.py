"""How unsure an answer is of itself, voxel by voxel."""

from __future__ import annotations

import numpy as np

from ..core.case import Image
from ..core.prediction import Prediction
from ..metrics.uncertainty import predictive_entropy

_SLAB = 1 << 22  # numbers at a time


def doubt_of(answer: Prediction) -> Image | None:
    """(1, *spatial) float32 in [0, 1]: the entropy of the class probabilities as a share of the greatest there can be; where structures are
    answered apart (``threshold``), the highest of theirs. None of an answer without probabilities."""
    if answer.probability is None:
        return None
    p = np.asarray(answer.probability.data)
    out = np.empty((1, *p.shape[1:]), np.float32)
    step = max(1, _SLAB // max(1, p[:, 0].size))
    for start in range(0, p.shape[1], step):
        part = p[:, start : start + step]
        groups = [part] if answer.threshold is None else part[:, None]
        found = [predictive_entropy(group[None]) / np.log(max(2, len(group))) for group in groups]
        out[0, start : start + step] = np.maximum.reduce(found)
    return Image(out, answer.probability.geometry)
