"""Patient frames: checking an affine that came from a file, taking a little shear out of it, and LPS+ <-> RAS+."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import GeometryError
from ..core.geometry import Geometry
from .notes import note

LEAST_MM, MOST_MM = 1e-6, 200.0  # spacings outside are no medical image but a wrong unit or a broken header
EXACT, LITTLE = 1e-5, 1e-3  # cosines between index axes: float32 rounding | what may be projected away

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ <-> LPS+, its own inverse


def geometry_of(shape: Sequence[int], affine: np.ndarray, where: str | Path) -> Geometry:
    """The grid of a file, or a GeometryError for spacings that are zero, not finite or implausible, singular affines and shear.

    Shear up to 1e-3 (cosine between two index axes) is projected to the nearest orthonormal axes about the centre, with a note.
    """
    affine = np.asarray(affine, float)
    if not np.isfinite(affine).all():
        raise GeometryError("the affine is not finite", where=where, found=affine.tolist())
    d = len(shape)
    spacing = np.linalg.norm(affine[:d, :d], axis=0)
    check_spacing(spacing, where)
    if np.linalg.matrix_rank(affine[:d, :d] / spacing, tol=1e-4) < d:
        raise GeometryError("two index axes run along the same direction (singular affine)", where=where, found=affine.tolist())
    tilt = shear(affine)
    if tilt > LITTLE:
        raise GeometryError(
            "the index axes are not at right angles (shear)",
            where=where,
            found=f"cosine {tilt:.3g} between two axes",
            allowed=f"up to {LITTLE:g}",
            fix="resample the image to a grid with right angles, for example with `mri_convert`, `dcm2niix` or SimpleITK's Resample",
        )
    if tilt > EXACT:
        straight = without_shear(shape, affine)
        moved = Geometry(tuple(shape), affine).corner_distance(Geometry(tuple(shape), straight))
        note(f"a shear of {tilt:.2g} was taken out of the affine; no voxel moved more than {moved:.3g} mm", where)
        affine = straight
    return Geometry(tuple(shape), affine)


def check_spacing(spacing: Sequence[float], where: str | Path) -> None:
    """GeometryError unless every spacing (mm) is finite, positive and plausible."""
    spacing = np.asarray(spacing, float)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise GeometryError("the spacing is zero, negative or not a number", where=where, found=_mm(spacing), fix="correct the header")
    if spacing.min() < LEAST_MM or spacing.max() > MOST_MM:
        raise GeometryError(
            "the spacing is not plausible",
            where=where,
            found=_mm(spacing),
            allowed=f"{LEAST_MM:g} to {MOST_MM:g} mm",
            fix="check the unit in the header",
        )


def shear(affine: np.ndarray) -> float:
    """Largest absolute cosine between two index axes; 0 for right angles."""
    axes = affine[:-1, :-1] / np.linalg.norm(affine[:-1, :-1], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(len(axes))).max())


def without_shear(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """The affine with the nearest orthonormal axes (polar decomposition), the same spacing and the same centre."""
    linear = affine[:-1, :-1]
    spacing = np.linalg.norm(linear, axis=0)
    left, _, right = np.linalg.svd(linear / spacing)
    out = affine.copy()
    out[:-1, :-1] = (left @ right) * spacing
    centre = (np.asarray(shape, float) - 1) / 2
    out[:-1, -1] = linear @ centre + affine[:-1, -1] - out[:-1, :-1] @ centre
    return out


def check_writable(geometry: Geometry, where: str | Path) -> None:
    """GeometryError when the grid has shear: most formats and most readers cannot hold it."""
    if shear(geometry.affine) > EXACT:
        raise GeometryError(
            "a grid with shear cannot be written", where=where, found=f"cosine {shear(geometry.affine):.3g}", fix="resample it first"
        )


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
