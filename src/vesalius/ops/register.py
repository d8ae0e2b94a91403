"""Intensity registration of 2D and 3D images on a CPU, in world coordinates: translation, rigid, affine, and a deformation on top.

The linear stage maximises Mattes mutual information (or correlation) over a pyramid by regular-step gradient descent in SimpleITK (Mattes
et al. 2003, doi:10.1109/TMI.2003.809072). The deformation is diffeomorphic demons on histogram-matched intensities (Vercauteren et al.
2009, doi:10.1016/j.neuroimage.2008.10.040), so it is for images of one modality. Both run in a world scaled by the fixed image's spacing:
the answer does not depend on the unit of length. One thread and seeded samples: the same images give the same transform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from scipy.ndimage import map_coordinates

from ..core.case import Image, LabelMap, Points
from ..core.errors import GeometryError, UsageError
from ..core.geometry import Geometry

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = ["Transform", "register"]

Item = TypeVar("Item", Image, LabelMap, Points)
KINDS = ("translation", "rigid", "affine", "deformable")
_SLAB = 1 << 21  # voxels read at a time
_LEAST = 24  # voxels along the longest side of the coarsest level


@dataclass(frozen=True)
class Transform:
    """Fixed world -> moving world, mm: y = matrix (x + u(x)).

    ``fixed``: the grid it was made for; ``matrix`` (d+1, d+1); ``displacement``: u as an Image (d, *spatial) in world mm, zero outside its
    grid, or None. ``facts`` by stage: iterations, metric (smaller is more alike) and why it stopped; 'failed' where a stage could not run.
    """

    fixed: Geometry
    matrix: np.ndarray
    displacement: Image | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, xyz: np.ndarray) -> np.ndarray:
        """(..., d) fixed world mm -> (..., d) moving world mm."""
        xyz = np.asarray(xyz, float)
        return self._linear(xyz + self._u(xyz))

    def back(self, xyz: np.ndarray, *, tolerance: float = 1e-3, iterations: int = 100) -> np.ndarray:
        """(..., d) moving world mm -> fixed world mm: fixed-point iteration to ``tolerance`` voxels (exact without a displacement)."""
        aim = (np.asarray(xyz, float) - self.matrix[:-1, -1]) @ np.linalg.inv(self.matrix[:-1, :-1]).T
        at = aim
        for _ in range(iterations if self.displacement is not None else 0):
            last, at = at, aim - self._u(at)
            if np.abs(at - last).max(initial=0) < tolerance * min(self.fixed.spacing):
                break
        return at

    def apply(self, item: Item, grid: Geometry | None = None) -> Item:
        """An Image (linear; its least value outside), LabelMap (nearest; background outside) or Points of the moving side, moved to the
        fixed one: on ``grid`` (default: the fixed grid); points by their coordinates."""
        grid = grid or self.fixed
        if isinstance(item, Points):
            return replace(item, xyz=self.back(item.xyz))
        data = np.asarray(item.data)
        if isinstance(item, LabelMap):
            moved = self._read(data if item.overlapping else data[None], item.geometry, grid, 0, 0)
            return replace(item, source=moved if item.overlapping else moved[0], geometry=grid)
        return replace(item, source=self._read(data.astype(np.float32), item.geometry, grid, 1, float(data.min())), geometry=grid)

    def _linear(self, xyz: np.ndarray) -> np.ndarray:
        return xyz @ self.matrix[:-1, :-1].T + self.matrix[:-1, -1]

    def _u(self, xyz: np.ndarray) -> np.ndarray:
        if self.displacement is None:
            return np.zeros_like(xyz)
        at = np.moveaxis(self.displacement.geometry.to_index(xyz), -1, 0)
        return np.stack([map_coordinates(c, at, order=1, mode="constant") for c in self.displacement.data], -1)

    def _read(self, data: np.ndarray, source: Geometry, grid: Geometry, order: int, fill: float) -> np.ndarray:
        """(C, *source) read at the transformed points of ``grid``, in slabs; ``fill`` outside the source's outer voxel faces."""
        out = np.empty((len(data), *grid.shape), data.dtype)
        step = max(1, _SLAB // max(1, int(np.prod(grid.shape[1:]))))
        limit = np.asarray(source.shape) - 0.5
        for start in range(0, grid.shape[0], step):
            axes = [np.arange(start, min(start + step, grid.shape[0])), *(np.arange(n) for n in grid.shape[1:])]
            at = source.to_index(self(grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1))))
            outside = ((at < -0.5) | (at > limit)).any(-1)
            at = np.moveaxis(at, -1, 0)
            for c, channel in enumerate(data):
                slab = map_coordinates(channel, at, order=order, mode="nearest")
                slab[outside] = fill
                out[c, start : start + len(axes[0])] = slab
        return out


def register(
    fixed: Image,
    moving: Image,
    *,
    kind: Literal["translation", "rigid", "affine", "deformable"] = "affine",
    similarity: Literal["mutual-information", "correlation"] = "mutual-information",
    start: Literal["centre", "mass", "world"] = "centre",
    shrink: Sequence[int] = (4, 2, 1),
    iterations: int = 60,
    samples: int = 4000,
    demons: Sequence[int] = (40, 20),
    smoothing: float = 1.5,
) -> Transform:
    """The transform that lays ``moving`` over ``fixed`` (channels are averaged; 'deformable' starts from the affine).

    ``start``: fields of view centred on each other, centres of mass, or the world as it is (images of one patient). ``shrink``: the
    pyramid, coarse to fine (levels of fewer than 24 voxels a side are left out); each level stops when the step falls below a thousandth
    of a voxel, or after ``iterations``; ``samples``: voxels that a step sees. The answer is never less similar than the start, over all
    voxels. ``demons``: iterations by level of the deformation, the last at full resolution; ``smoothing``: its sd, voxels.
    Images in which nothing can be matched (a constant one) keep the start, and ``facts['failed']`` says why. Raises GeometryError for
    images of different dimensions, UsageError.
    """
    for name, value, allowed in (
        ("kind", kind, KINDS),
        ("similarity", similarity, ("mutual-information", "correlation")),
        ("start", start, ("centre", "mass", "world")),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {name}", where="register", found=value, allowed=", ".join(allowed))
    if fixed.geometry.ndim != moving.geometry.ndim:
        fix = "register images of one dimension"
        raise GeometryError("the images differ in dimensions", found=f"{fixed.geometry.ndim}D and {moving.geometry.ndim}D", fix=fix)
    unit = float(np.mean(fixed.geometry.spacing))
    displacement = None
    with _one_thread():
        pair = _itk(fixed, unit), _itk(moving, unit)
        linear, facts = _linear_stage(*pair, kind, similarity, start, tuple(shrink), iterations, samples)
        if kind == "deformable" and "failed" not in facts:
            u, facts["deformable"] = _demons_stage(*pair, linear, tuple(demons), smoothing)
    if "deformable" in facts:
        displacement = Image(np.moveaxis(u * unit, -1, 0).astype(np.float32), fixed.geometry, normalise=False, name="displacement")
    return Transform(fixed.geometry, _matrix(linear, unit), displacement, facts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK adds up a metric's parts in the order in which threads finish; with one, the same images give the same bits."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


# ------------------------------------------------------------------------------------------------------------------------------- stages
def _linear_stage(fixed, moving, kind: str, similarity: str, start: str, shrink, iterations: int, samples: int):
    import SimpleITK as sitk

    d = fixed.GetDimension()
    blank = {"translation": sitk.TranslationTransform(d), "rigid": sitk.Euler2DTransform() if d == 2 else sitk.Euler3DTransform()}
    transform = _started(fixed, moving, blank.get(kind, sitk.AffineTransform(d)), start)
    begun = sitk.Transform(transform)
    method = _method(similarity)
    shrink = [s for s in shrink if max(fixed.GetSize()) >= _LEAST * s] or [1]
    sizes = [fixed.GetNumberOfPixels() / s**d for s in shrink]
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, samples / n) for n in sizes], 1)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, iterations, 0.5, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([s / 2 if s > 1 else 0 for s in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, True)
    try:
        method.Execute(fixed, moving)
        found, stopped = transform, method.GetOptimizerStopConditionDescription()
        metric, before = (_similarity(fixed, moving, t, similarity) for t in (transform, begun))
    except RuntimeError as error:
        return begun, {"failed": str(error).strip().rpartition("\n")[2].strip()[-200:]}
    if before <= metric:
        found, metric, stopped = begun, before, "nothing better than the start was found"
    facts = {"iterations": method.GetOptimizerIteration(), "metric": metric, "stopped": stopped}
    return found, {kind if kind != "deformable" else "affine": facts}


def _method(similarity: str):
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetInterpolator(sitk.sitkLinear)
    if similarity == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(32)
    return method


def _similarity(fixed, moving, transform, similarity: str) -> float:
    """Of all voxels at full resolution; smaller is more alike."""
    method = _method(similarity)
    method.SetInitialTransform(transform)
    return method.MetricEvaluate(fixed, moving)


def _started(fixed, moving, transform, start: str):
    """The transform, in ``transform``'s own class, that centres the moving image on the fixed one (in place where ITK can)."""
    import SimpleITK as sitk

    if start == "world":
        if not isinstance(transform, sitk.TranslationTransform):
            transform.SetCenter(_middle(fixed))
        return transform
    if isinstance(transform, sitk.TranslationTransform):
        transform.SetOffset([m - f for m, f in zip(_centre(moving, start), _centre(fixed, start), strict=True)])
        return transform
    transform.SetCenter(_centre(fixed, start))
    transform.SetTranslation([m - f for m, f in zip(_centre(moving, start), _centre(fixed, start), strict=True)])
    return transform


def _centre(image, start: str) -> tuple[float, ...]:
    """World centre of the field of view, or of the intensities above the least."""
    import SimpleITK as sitk

    data = sitk.GetArrayViewFromImage(image)
    weight = data - data.min()
    if start == "centre" or not weight.any():
        return _middle(image)
    at = [float((weight.sum(tuple(b for b in range(data.ndim) if b != a)) @ np.arange(n)) / weight.sum()) for a, n in enumerate(data.shape)]
    return image.TransformContinuousIndexToPhysicalPoint(at[::-1])


def _middle(image) -> tuple[float, ...]:
    return image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])


def _demons_stage(fixed, moving, linear, iterations: tuple[int, ...], smoothing: float) -> tuple[np.ndarray, dict]:
    """(*fixed, d) displacement in unit coordinates, and what the finest level says of itself."""
    import SimpleITK as sitk

    least = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.HistogramMatching(sitk.Resample(moving, fixed, linear, sitk.sitkLinear, least), fixed, 256, 15, True)
    displacement, facts = None, {}
    for level, steps in enumerate(iterations):
        factor = 2 ** (len(iterations) - 1 - level)
        small = [_shrunk(image, factor) for image in (fixed, moved)]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(steps)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(smoothing)
        before = [] if displacement is None else [sitk.Resample(displacement, small[0])]
        displacement = demons.Execute(*small, *before)
        stopped = f"rms step {demons.GetRMSChange():.3g} voxels"
        facts = {"iterations": demons.GetElapsedIterations(), "metric": demons.GetMetric(), "stopped": stopped}
    return sitk.GetArrayFromImage(displacement), facts


def _shrunk(image, factor: int):
    import SimpleITK as sitk

    factors = [factor if n >= 8 * factor else 1 for n in image.GetSize()]  # thin axes stay
    if max(factors) == 1:
        return image
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, [max(f / 2, 0.01) * s for f, s in zip(factors, image.GetSpacing())]), factors)


# ------------------------------------------------------------------------------------------------------------------------------- borders
def _itk(image: Image, unit: float) -> sitk.Image:
    """The channels' mean, standardised, in a world of ours divided by ``unit`` (no LPS: ITK need not know)."""
    import SimpleITK as sitk

    data = np.nan_to_num(np.asarray(image.data, np.float32)).mean(0)
    spread = float(data.std())
    out = sitk.GetImageFromArray((data - data.mean()) / (spread or 1.0))
    g = image.geometry
    out.SetSpacing([s / unit for s in g.spacing[::-1]])
    out.SetOrigin([x / unit for x in g.origin])
    out.SetDirection(g.direction[:, ::-1].ravel().tolist())
    return out


def _matrix(transform: sitk.Transform, unit: float) -> np.ndarray:
    """(d+1, d+1) of a linear ITK transform, back in mm."""
    d = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * d))
    out = np.eye(d + 1)
    for a in range(d):
        step = [0.0] * d
        step[a] = 1.0
        out[:d, a] = np.array(transform.TransformPoint(step)) - origin
    out[:d, d] = origin * unit
    return out
