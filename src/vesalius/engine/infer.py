"""Prediction of whole cases: prepare, predict, restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from ..core.case import Case, LabelMap
from ..core.errors import ResourceError
from ..core.geometry import Geometry, Grid
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..inferers.sliding import SlidingWindow
from ..methods.learned import LearnedMethod
from .pairs import laid_over
from .plan import memory_gib
from .prepare import prepare
from .restore import restore

_MANY, _LONG = 48, 180.0  # windows, seconds of work from which choosing and compiling a faster forward pays
_PROBED = 6  # windows of the first case on which candidates are judged


def infer(method: Method, case: Case, plan: Plan, *, seed: int = 0, probability: bool = False, grad: bool = False) -> Prediction:
    """The method's answer for a native case, on the case's own grid. The method sees no label. Same seed, same answer. That for a pair is
    on the fixed grid, with the moving image and labels laid on it."""
    prepared, prediction = answer(method, case, plan, seed=seed, grad=grad)
    if not case.images:
        return prediction
    pair = case.sides() is not None
    restored = restore(
        prediction,
        prepared.geometry,
        prepared.geometry if case.lazy else case.geometry,
        plan.classes,
        probability=probability,
        largest_component=plan.largest_component,
        others=[(prepared.images[k].geometry, v.geometry) for k, v in case.images.items() if k in prepared.images]
        if plan.views or pair
        else (),
    )
    return laid_over(restored, case) if pair else restored


def answer(method: Method, case: Case, plan: Plan, *, seed: int = 0, grad: bool = False) -> tuple[Case, Prediction]:
    """(prepared case, prediction on its grid). Labels are gone before anything of the method sees the case; what it derives stays."""
    prepared = prepare(case.without_labels(), plan, method, seed=seed)
    rng = np.random.default_rng([seed, 2])
    torch.manual_seed(seed)
    _evaluating(method)
    with torch.set_grad_enabled(grad):
        return prepared, method.predict(prepared, rng=rng)


def _evaluating(method: Method) -> None:
    """The method and its parts, in evaluation mode."""
    if isinstance(method, torch.nn.Module):
        method.eval()
    for part in method.parts.values():
        _evaluating(part)


def need_gib(plan: Plan, geometry: Geometry) -> float:
    """What predicting a case on ``geometry`` takes at most, GiB: by its own grid or by the plan's, whichever has more voxels."""
    return max(memory_gib(plan, geometry.shape), memory_gib(plan, _planned(plan, geometry).shape))


def can_be_cut(method: Method) -> bool:
    """Whether a case may be predicted block by block: a network that slides a window and is told nothing about the whole case."""
    if not isinstance(method, LearnedMethod) or type(method).condition is not LearnedMethod.condition:
        return False
    return type(method).predict is LearnedMethod.predict and isinstance(method.inferer(), SlidingWindow)


def infer_in_blocks(method: LearnedMethod, case: Case, plan: Plan, *, gib: float, seed: int = 0) -> Prediction:
    """The label map of a case too large for memory: blocks, each predicted with a margin of half a patch and at most ``gib`` GiB at a time,
    put together on the case's own grid. Intensities are normalised by the whole case's numbers; channels that a method derives are derived
    from each block. Raises ResourceError when even the smallest block needs more."""
    geometry = case.geometry
    body = _body(case) if plan.crop_to_body else [(0, n) for n in geometry.shape]
    target = _planned(plan, geometry).spacing
    reach = max(p * s for p, s in zip(plan.patch, target, strict=True)) / 2
    margin = [int(np.ceil(reach / s)) for s in geometry.spacing]
    each = need_gib(plan, geometry) / np.prod(geometry.shape)
    core = _core([b - a for a, b in body], margin, gib / each)
    if core is None:
        need = each * np.prod([min(b - a, 3 * m + 1) for (a, b), m in zip(body, margin, strict=True)])
        fix = "resample the image, or use a machine with more memory"
        raise ResourceError(
            "not even a block of this image fits into memory", found=f"about {need:.1f} GiB needed", allowed=f"{gib:.1f} GiB", fix=fix
        )
    plan = _with_whole_numbers(plan.derive(crop_to_body=False, grid=_fixed(plan, target)), _block(case, body))
    out = np.zeros(geometry.shape, np.uint8 if len(plan.classes) <= 256 else np.int16)
    for corner in product(*(range(a, b, n) for (a, b), n in zip(body, core, strict=True))):
        inside = [(c, min(c + n, b)) for c, n, (_, b) in zip(corner, core, body, strict=True)]
        around = [(max(a, i - m), min(b, j + m)) for (i, j), m, (a, b) in zip(inside, margin, body, strict=True)]
        label = np.asarray(infer(method, _block(case, around), plan, seed=seed).label.data)
        out[_slices(inside)] = label[_slices((i - a, j - a) for (i, j), (a, _) in zip(inside, around, strict=True))]
    note = f"predicted in blocks of {' x '.join(map(str, core))} voxels: the whole does not fit into memory"
    return Prediction(labels={"prediction": LabelMap(out, geometry, plan.classes)}, notes=(note,))


def middle(case: Case, plan: Plan) -> Case:
    """The middle of a case, about two patches wide: enough to try a network on where the whole does not fit into memory."""
    geometry = case.geometry
    reach = max(p * s for p, s in zip(plan.patch, _planned(plan, geometry).spacing, strict=True))
    wide = [int(np.ceil(reach / s)) for s in geometry.spacing]
    return _block(case, [(max(0, n // 2 - w), min(n, n // 2 + w + 1)) for n, w in zip(geometry.shape, wide, strict=True)])


def _planned(plan: Plan, geometry: Geometry) -> Geometry:
    return plan.grid.of(geometry.canonical())


def _fixed(plan: Plan, spacing: Sequence[float]) -> Grid:
    """The plan's grid by its spacing, so that it is the same for a part of a case as for the whole."""
    sized = plan.grid.size is not None or plan.grid.longest is not None
    return replace(plan.grid, size=None, longest=None, spacing=tuple(spacing)) if sized else plan.grid


def _core(size: Sequence[int], margin: Sequence[int], voxels: float) -> list[int] | None:
    """Sides of the largest block that stays within ``voxels`` with its margins: the longest side (in margins) is halved as long as it is
    worth its margins; None when that is not enough."""
    core = list(size)

    def whole() -> float:
        return np.prod([min(n, c + 2 * m) if c < n else n for c, m, n in zip(core, margin, size, strict=True)], dtype=float)

    while whole() > voxels:
        ratio = [c / max(1, m) if c > max(1, m) else 0.0 for c, m in zip(core, margin, strict=True)]
        axis = int(np.argmax(ratio))
        if not ratio[axis]:
            return None
        core[axis] = -(-core[axis] // 2)
    return core


def _body(case: Case) -> list[tuple[int, int]]:
    """First and last voxel along each axis of what is not the first image's background value (all of it where there is nothing else)."""
    data = next(iter(case.images.values())).data
    least = data.min()
    found = [np.zeros(n, bool) for n in data.shape[1:]]
    for channel in data:
        for i, row in enumerate(channel):  # slice by slice, so that no mask of the whole exists
            on = row != least
            found[0][i] |= on.any()
            for axis in range(on.ndim):
                found[axis + 1] |= on.any(tuple(a for a in range(on.ndim) if a != axis))
    if not found[0].any():
        return [(0, n) for n in data.shape[1:]]
    return [(int(f.argmax()), int(len(f) - f[::-1].argmax())) for f in found]


def _with_whole_numbers(plan: Plan, case: Case) -> Plan:
    """Normalisations that look at the whole case, as fixed numbers of it, read slice by slice (one-component images)."""
    rules, facts = dict(plan.normalise), dict(plan.intensities)
    for name, rule in plan.normalise.items():
        data = case.images[name].data
        if rule == "zscore" and len(data) == 1:
            sums = np.array([(s.sum(dtype=np.float64), np.square(s, dtype=np.float64).sum()) for s in data[0]]).sum(0) / data.size
            rules[name], facts[name] = "fixed", {"mean": float(sums[0]), "sd": float(np.sqrt(max(sums[1] - sums[0] ** 2, 0.0)))}
        elif rule in ("unit", "byte") and data.dtype != np.uint8:
            low, high = float(data.min()), float(data.max())
            rules[name], facts[name] = "fixed", {"mean": low, "sd": (high - low) / (1.0 if rule == "unit" else 255.0)}
    return plan.derive(normalise=rules, intensities=facts)


def _block(case: Case, spans: Sequence[tuple[int, int]]) -> Case:
    """The case within ``spans`` (first, last + 1 along each axis): views, no copies."""
    grid = case.geometry.cropped([a for a, _ in spans], [b for _, b in spans])
    at = _slices(spans)
    images = {k: replace(v, source=v.data[(slice(None), *at)], geometry=grid) for k, v in case.images.items()}
    rois = {k: replace(v, source=v.data[at], geometry=grid) for k, v in case.rois.items()}
    return replace(case, images=images, labels={}, rois=rois, points={}, boxes={})


def _slices(spans: Iterable[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in spans)


def accelerate_if_worth_it(
    method: Method, plan: Plan, shapes: Sequence[tuple[int, ...]], first: Callable[[], Case], *, backend: str = "auto"
) -> dict | None:
    """Lend the method a faster forward (checked to agree on a window of the ``first`` case) when the work ahead pays for choosing it.

    ``shapes``: the cases to predict, as prepared. Returns what was chosen and why, or None when torch as it is will do.
    """
    if not isinstance(method, LearnedMethod) or backend == "torch" or next(method.parameters()).is_cuda:
        return None
    inferer = method.inferer()
    own = type(method).condition is not LearnedMethod.condition or type(method).fast_forward is not LearnedMethod.fast_forward
    if own or not isinstance(inferer, SlidingWindow):
        return None
    number = sum(inferer.count(s) for s in shapes) * 2 ** len(inferer.mirror_axes)
    if backend == "auto" and number < _MANY:
        return None
    _evaluating(method)
    probe = inferer.some(torch.from_numpy(prepare(first(), plan, method).stack(method.channels)), _PROBED)
    tick = time.perf_counter()
    with torch.no_grad():
        method(probe[:1])
        if backend == "auto" and (time.perf_counter() - tick) * number < _LONG:
            return None
        from ..inferers.backends import accelerate

        method.fast = accelerate(method, tuple(probe.shape), backend=backend, probe=probe)
    return method.fast.choice
