"""Topology of a mask against a reference: connections, loops and cavities, centre lines.

Every function takes ``f(prediction, reference)``, bool (*spatial) in 2D or 3D. Foreground voxels touch by faces, edges and corners (8 or
26 neighbours), background voxels by faces (4 or 6), and outside the image is background, so that a closed ring has one loop. Voxel spacing
plays no part. Skeletons are scikit-image's (Zhang-Suen in 2D, Lee in 3D).
"""

from __future__ import annotations

from itertools import product

import numpy as np

from ..core.errors import GeometryError, UsageError
from ..ops.components import bounding_box
from .overlap import as_masks, mean_defined


# --------------------------------------------------------------------------------------------------------------------------- centre lines
def cldice(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """clDice: 2 Tprec Tsens / (Tprec + Tsens), in [0, 1], higher is better.

    Tprec is the share of the prediction's skeleton inside the reference, Tsens the share of the reference's inside the prediction.
    Empty masks: both empty is undefined (None); only one empty is 0. Source: Shit et al. 2021, CVPR (arXiv:2003.07311), eqs. 1-2.
    """
    prediction, reference = _pair(prediction, reference)
    if not prediction.any() and not reference.any():
        return None
    precision, found = _covered(prediction, reference), _covered(reference, prediction)
    if precision is None or found is None:
        return 0.0
    return 2 * precision * found / (precision + found) if precision + found else 0.0


def length_detected(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Tree length detected: the share of the reference's skeleton voxels inside the prediction, in [0, 1], higher is better.

    Empty masks: an empty reference is undefined (None); an empty prediction alone is 0. Source: Zhang et al. 2023 (ATM'22), TD; the
    'topology sensitivity' of clDice.
    """
    prediction, reference = _pair(prediction, reference)
    return _covered(reference, prediction)


def branches_detected(prediction: np.ndarray, reference: np.ndarray, *, share: float = 0.8) -> float | None:
    """Branches detected: the share of the reference's branches of which at least ``share`` of the centre line is in the prediction.

    A branch is what remains connected of the skeleton without its junctions (voxels with three or more skeleton neighbours); a skeleton
    of junctions alone is one branch. In [0, 1], higher is better; 1 minus it is the share of broken branches. Empty masks: an empty
    reference is undefined (None); an empty prediction alone is 0. Source: Zhang et al. 2023 (ATM'22, arXiv:2303.05745), BD at 80 %.
    """
    if not 0 < share <= 1:
        raise UsageError("the covered share of a branch lies between 0 and 1", found=share)
    prediction, reference = _pair(prediction, reference)
    if not reference.any():
        return None
    branches, lengths = skeleton_branches(reference)
    inside = np.bincount(branches[prediction], minlength=len(lengths) + 1)[1:]
    return float((inside >= share * lengths).mean())


def skeleton(mask: np.ndarray) -> np.ndarray:
    """The one-voxel-wide centre line of a bool mask; what the thinning dissolves altogether stays one voxel, its most central one."""
    from scipy.ndimage import distance_transform_edt
    from skimage.morphology import skeletonize

    out = np.zeros(mask.shape, bool)
    box = bounding_box(mask)
    if box is None:
        return out
    inner = (slice(1, -1),) * mask.ndim
    padded = np.pad(mask[box], 1)
    thin = skeletonize(padded) > 0
    if not thin.any():
        thin.flat[distance_transform_edt(padded).argmax()] = True
    out[box] = thin[inner]
    return out


def skeleton_branches(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels int32 (*spatial), lengths (n,) voxels): the branches of a mask's skeleton, numbered from 1."""
    from scipy.ndimage import convolve

    from ..ops.components import components

    thin = skeleton(mask)
    neighbours = convolve(thin.astype(np.uint8), np.ones((3,) * mask.ndim, np.uint8), mode="constant") - 1
    branches = thin & (neighbours < 3)
    return components(branches if branches.any() else thin)


def _covered(line_of: np.ndarray, by: np.ndarray) -> float | None:
    line = skeleton(line_of)
    length = int(line.sum())
    return float((line & by).sum() / length) if length else None


# ------------------------------------------------------------------------------------------------------------------------- Betti numbers
def betti_numbers(mask: np.ndarray) -> tuple[int, ...]:
    """(components, holes) in 2D, (components, tunnels, cavities) in 3D, of a bool mask.

    Components and cavities are counted (background components but the outer one); tunnels follow from the Euler characteristic
    chi = b0 - b1 + b2, itself the alternating count of the cells of the union of closed voxels (Kong and Rosenfeld 1989).
    """
    from cc3d import connected_components

    mask = np.asarray(mask)
    as_masks(mask, mask)
    if mask.ndim not in (2, 3):
        raise GeometryError("Betti numbers are counted in two or three dimensions", found=mask.shape)
    box = bounding_box(mask)
    if box is None:
        return (0,) * mask.ndim
    padded = np.pad(mask[box], 1)
    near, far = (8, 4) if mask.ndim == 2 else (26, 6)
    whole = int(connected_components(padded, connectivity=near, return_N=True)[1])
    enclosed = int(connected_components(~padded, connectivity=far, return_N=True)[1]) - 1
    if mask.ndim == 2:
        return whole, enclosed
    return whole, whole + enclosed - euler_characteristic(padded), enclosed


def euler_characteristic(mask: np.ndarray) -> int:
    """Vertices - edges + faces - cubes of the union of the mask's closed voxels; voxels that share a corner are connected."""
    padded = np.pad(mask, 1)
    total = 0
    for doubled in product((False, True), repeat=mask.ndim):  # a cell is open along its doubled axes, so two voxels share it
        cells = padded
        for axis, joined in enumerate(doubled):
            if joined:
                ahead, behind = ([slice(None)] * mask.ndim for _ in range(2))
                ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
                cells = cells[tuple(ahead)] | cells[tuple(behind)]
        total += (-1) ** (mask.ndim - sum(doubled)) * int(np.count_nonzero(cells))
    return total


def betti0_error(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """|components of the prediction - components of the reference|, at least 0, lower is better (connectivity error).

    Empty masks: both empty is undefined (None); an empty mask has no component. Source: Hu et al. 2019, NeurIPS (arXiv:1906.05404), 4.
    """
    return _betti_error(prediction, reference, 0)


def betti1_error(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """|holes (2D) or tunnels (3D) of the prediction - those of the reference|, at least 0, lower is better.

    Empty masks: both empty is undefined (None); an empty mask has none. Source: Hu et al. 2019, NeurIPS, section 4.
    """
    return _betti_error(prediction, reference, 1)


def betti2_error(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """|cavities of the prediction - those of the reference| in 3D, at least 0, lower is better; a picture has none: None.

    Empty masks: both empty is undefined (None); an empty mask has none. Source: Hu et al. 2019, NeurIPS, section 4.
    """
    return _betti_error(prediction, reference, 2)


def betti_error(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """The sum of the errors of all Betti numbers of the whole mask, at least 0, lower is better.

    Empty masks: both empty is undefined (None); an empty mask's numbers are 0. Source: Hu et al. 2019, NeurIPS, section 4.
    """
    prediction, reference = _pair(prediction, reference)
    if not prediction.any() and not reference.any():
        return None
    return float(sum(abs(a - b) for a, b in zip(betti_numbers(prediction), betti_numbers(reference), strict=True)))


def betti_error_patches(prediction: np.ndarray, reference: np.ndarray, *, size: int = 64) -> float | None:
    """``betti_error`` averaged over the tiles of side ``size`` voxels (cut at the far borders) that hold foreground of either mask.

    Local errors do not cancel as they do in the whole. At least 0, lower is better. Empty masks: both empty is undefined (None).
    Source: Hu et al. 2019, NeurIPS, section 4 (there random patches; a fixed tiling gives the same number every time).
    """
    if size < 1:
        raise UsageError("the side of a tile is at least one voxel", found=size)
    prediction, reference = _pair(prediction, reference)
    starts = product(*(range(0, n, size) for n in prediction.shape))
    tiles = (tuple(slice(s, s + size) for s in start) for start in starts)
    return mean_defined(betti_error(prediction[tile], reference[tile]) for tile in tiles)


def connectivity(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Connectivity: 1 - min(1, |components of P - components of R| / voxels of R), in [0, 1], higher is better.

    Empty masks: an empty reference is undefined (None); an empty prediction alone is judged by its 0 components. Source: Gegundez-Arias
    et al. 2012, IEEE TMI 31:231, eq. 3 (the C of CAL).
    """
    prediction, reference = _pair(prediction, reference)
    if not reference.any():
        return None
    return 1 - min(1.0, abs(betti_numbers(prediction)[0] - betti_numbers(reference)[0]) / int(reference.sum()))


def _betti_error(prediction: np.ndarray, reference: np.ndarray, n: int) -> float | None:
    prediction, reference = _pair(prediction, reference)
    if n >= prediction.ndim or not (prediction.any() or reference.any()):
        return None
    return float(abs(betti_numbers(prediction)[n] - betti_numbers(reference)[n]))


def _pair(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference = as_masks(prediction, reference)
    if prediction.ndim not in (2, 3):
        raise GeometryError("topology is measured in two or three dimensions", found=prediction.shape)
    return prediction, reference
