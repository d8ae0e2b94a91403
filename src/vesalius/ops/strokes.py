"""A marker stroke over a patch of a slide, as a pathologist draws it on the glass: it absorbs light, whatever lies below."""

from __future__ import annotations

import numpy as np

# what the ink lets through of red, green and blue: blue, green, black, red markers
INKS = np.array([[0.2, 0.3, 0.75], [0.2, 0.6, 0.35], [0.15, 0.15, 0.18], [0.8, 0.2, 0.25]], np.float32)


def with_stroke(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(image (C, h, w) of 0..1 under the ink, inked (h, w) bool): one bent stroke of 1 to 4 % of the patch's side, in one colour; images of
    other than three channels get the ink's mean."""
    c, h, w = image.shape
    side = min(h, w)
    knots = rng.uniform(0, 1, 2) * (h, w) + np.cumsum(rng.normal(0, 0.18 * side, (4, 2)), 0)
    t = np.linspace(0, 1, 64)[:, None]
    bent = sum(k * b for k, b in zip(knots[:, None], ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3), strict=True))
    inked = _near(bent, (h, w), rng.uniform(0.005, 0.02) * side + 0.7)
    ink = INKS[rng.integers(len(INKS))]
    ink = (ink if c == 3 else np.full(c, ink.mean(), np.float32)) * np.float32(rng.uniform(0.8, 1.15))
    thick = np.float32(rng.uniform(0.6, 1.0))
    out = np.where(inked, image * (1 - thick + thick * np.minimum(ink, 1)[:, None, None]), image)
    return out.astype(image.dtype, copy=False), inked


def _near(line: np.ndarray, shape: tuple[int, int], radius: float) -> np.ndarray:
    """(h, w) bool: pixels within ``radius`` of the points of a line, which is drawn in steps of half a pixel."""
    from scipy.ndimage import distance_transform_edt

    long = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.linspace(0, long[-1], max(2, int(2 * long[-1])))
    index = np.rint(np.stack([np.interp(at, long, x) for x in line.T], 1)).astype(int)
    index = index[((index >= 0) & (index < shape)).all(1)]
    empty = np.ones(shape, bool)
    empty[tuple(index.T)] = False
    return distance_transform_edt(empty) <= radius if len(index) else ~empty
