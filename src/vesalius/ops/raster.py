"""Outlines to masks, on any grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import GeometryError
from ..core.geometry import Geometry


def fill(outline: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(*shape) bool: the pixels of a 2D grid whose centre lies in the closed polygon ``outline`` (n, 2), world mm; by parity where it
    crosses itself. Fewer than three points enclose nothing."""
    from skimage.draw import polygon

    if geometry.ndim != 2:
        raise GeometryError("outlines are filled on 2D grids", found=f"{geometry.ndim}D", fix="give meshes or label maps in 3D")
    mask = np.zeros(geometry.shape, bool)
    if len(outline) >= 3:
        corners = geometry.to_index(np.asarray(outline, float))
        mask[polygon(corners[:, 0], corners[:, 1], geometry.shape)] = True
    return mask


def label_map(outlines: Mapping[str, np.ndarray], geometry: Geometry, names: Sequence[str]) -> np.ndarray:
    """(*shape) int16 class indices: each outline filled with the index of its name; later ones lie over earlier ones."""
    out = np.zeros(geometry.shape, np.int16)
    for name, outline in outlines.items():
        out[fill(outline, geometry)] = list(names).index(name)
    return out
