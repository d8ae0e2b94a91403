"""Objects by votes: where many pixels say that the centre of their object lies, there is one, and they belong to it wherever they are.

The separation of Lucassen et al. 2024 (https://arxiv.org/abs/2401.13511): a smoothed histogram of predicted centroids, its maxima, and
each vote to the nearest of them. Votes are added part by part, so that an image's tiles share one histogram.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


class Votes:
    """The histogram of predicted centroids over an image of ``shape`` px, in square bins; with the sums of the votes' places, so that a
    centre is as exact as the votes. Votes from beyond the border count at the border."""

    def __init__(self, shape: Sequence[int], bin: int):
        self.bin, self.sides = bin, tuple(-(-n // bin) for n in shape)
        self.sums = np.zeros((3, *self.sides))

    def add(self, at: np.ndarray) -> None:
        """``at`` (2, n): rows and columns, px."""
        index = [np.clip(np.floor((x + 0.5) / self.bin), 0, n - 1).astype(np.int64) for x, n in zip(at, self.sides, strict=True)]
        flat = index[0] * self.sides[1] + index[1]
        for total, weight in zip(self.sums, (None, *at), strict=True):
            total += np.bincount(flat, weight, total.size).reshape(self.sides)

    def centres(self, *, sigma: float, size: int, percentile: float, least: float) -> np.ndarray:
        """(S, 2) px: local maxima (within ``size`` bins) of the smoothed histogram above its ``percentile`` and ``least`` of the highest,
        moved to the mean of the votes in and around their bin; highest first."""
        if not self.sums[0].any():
            return np.zeros((0, 2))
        smooth = ndimage.gaussian_filter(self.sums[0], sigma, mode="constant", truncate=6.0)
        enough = (smooth > np.percentile(smooth, percentile)) & (smooth >= least * smooth.max())
        peaks, n = ndimage.label((smooth == ndimage.maximum_filter(smooth, size, mode="constant")) & enough, np.ones((3, 3)))
        tops = np.rint(ndimage.center_of_mass(peaks > 0, peaks, range(1, n + 1))).astype(int).reshape(n, 2)
        tops = tops[np.argsort(-smooth[tuple(tops.T)], kind="stable")]
        return np.array([self._mean(r, c) for r, c in tops]).reshape(-1, 2)

    def _mean(self, row: int, column: int) -> np.ndarray:
        number, rows, columns = self.sums[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum((1, 2))
        if number:
            return np.array([rows, columns]) / number
        return (np.array([row, column]) + 0.5) * self.bin - 0.5


def nearest(at: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) int32: 1..S, the centre that each vote (2, n) is nearest to; 0 where there is no centre."""
    if not len(centres):
        return np.zeros(at.shape[1], np.int32)
    from scipy.spatial import cKDTree

    return (cKDTree(centres).query(at.T)[1] + 1).astype(np.int32)
