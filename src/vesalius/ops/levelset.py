"""Parts that level-set papers share: smoothed Heaviside and delta, curvature, local means, re-initialisation, a saliency map.

``phi`` (*spatial) is positive inside. Every function keeps the floating type it is given; derivatives are per voxel, borders replicated.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, laplace

_TINY = 1e-8


def heaviside(phi: np.ndarray, eps: float = 1.5) -> np.ndarray:
    """(1 + 2/pi atan(phi / eps)) / 2: in (0, 1), 1/2 on the contour (Chan and Vese 2001, doi:10.1109/83.902291)."""
    return 0.5 + np.arctan(phi / eps) / np.pi


def delta(phi: np.ndarray, eps: float = 1.5) -> np.ndarray:
    """eps / (pi (eps^2 + phi^2)), the derivative of ``heaviside``."""
    return (eps / np.pi) / (eps**2 + phi**2)


def slope(phi: np.ndarray) -> np.ndarray:
    """|grad phi| by central differences."""
    return np.sqrt(sum(g * g for g in _gradient(phi)))


def curvature(phi: np.ndarray) -> np.ndarray:
    """div(grad phi / |grad phi|), positive where the inside is concave; 0 where phi is flat."""
    parts = _gradient(phi)
    steep = np.sqrt(sum(g * g for g in parts) + _TINY)
    return sum(_along(g / steep, a) for a, g in enumerate(parts))


def laplacian(phi: np.ndarray) -> np.ndarray:
    """Sum of second differences (step 1 voxel)."""
    return laplace(phi, mode="nearest")


def contour_length(phi: np.ndarray, eps: float = 1.5) -> float:
    """Integral of delta(phi) |grad phi|: length of the contour in voxels (area of the surface in 3D)."""
    return float((delta(phi, eps) * slope(phi)).sum())


def distance_penalty(phi: np.ndarray) -> float:
    """Integral of (|grad phi| - 1)^2 / 2: 0 for a signed distance (Li et al. 2005, doi:10.1109/CVPR.2005.213)."""
    return float(0.5 * ((slope(phi) - 1) ** 2).sum())


def window(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolution with a Gaussian of ``sigma`` voxels cut at 2 sigma (4 sigma + 1 wide), mirrored at the borders; the last two axes of
    a stack of 2D images are filtered."""
    return gaussian_filter(image, sigma, mode="reflect", truncate=2.0, axes=(-2, -1))


def local_means(image: np.ndarray, inside: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """(m1, m2): means of ``image`` (*s) or of a stack (N, *s) around each pixel, over the inside and the outside.

    m1 = K*(H I) / K*H and m2 = K*((1 - H) I) / K*(1 - H) with the Gaussian ``window`` K and the membership ``inside`` H (*s) in (0, 1).
    """
    of_all, weight, of_inside = window(image, sigma), window(inside, sigma), window(inside * image, sigma)
    return of_inside / np.maximum(weight, _TINY), (of_all - of_inside) / np.maximum(1 - weight, _TINY)


def rectangle(shape: tuple[int, ...], low: tuple[float, ...], high: tuple[float, ...], height: float = 2.0) -> np.ndarray:
    """A first phi (*shape) float32: +height from the shares ``low`` to ``high`` of each side, -height elsewhere."""
    phi = np.full(shape, -height, np.float32)
    phi[tuple(slice(round(a * n), max(round(b * n), round(a * n) + 1)) for a, b, n in zip(low, high, shape, strict=True))] = height
    return phi


def reinitialise(phi: np.ndarray) -> np.ndarray:
    """The signed distance (voxels) to the contour of ``phi > 0``, half a voxel beyond its border voxels; a phi of one sign is returned."""
    from edt import sdf

    inside = phi > 0
    if inside.all() or not inside.any():
        return phi
    away = sdf(np.ascontiguousarray(inside), parallel=1)
    return (away - np.where(inside, 0.5, -0.5)).astype(phi.dtype)


def saliency(image: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """|mean(I) - G*I| (*s), scaled from 0 to the width of the image's range; zeros for a constant image.

    The frequency-tuned saliency of one grey channel (Achanta et al. 2009, doi:10.1109/CVPR.2009.5206596); ``sigma`` 1 is a 5 x 5 Gaussian.
    """
    smooth = window(image - image.mean(), sigma)
    away = np.abs(smooth)
    low, width = away.min(), np.ptp(away)
    return (away - low) * (np.ptp(image) / width) if width > 1e-6 * (1 + np.ptp(image)) else np.zeros_like(away)


def _gradient(phi: np.ndarray) -> list[np.ndarray]:
    return [_along(phi, a) for a in range(phi.ndim)]


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences along one axis; half the one-sided difference at the ends (replicated border)."""
    wide = np.pad(values, [(1, 1) if a == axis else (0, 0) for a in range(values.ndim)], mode="edge")
    n = values.shape[axis]
    return 0.5 * (np.take(wide, range(2, n + 2), axis) - np.take(wide, range(n), axis))
