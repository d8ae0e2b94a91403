"""Prediction of whole cases: prepare, predict, restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..core.case import Case, LabelMap
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..inferers.sliding import SlidingWindow
from ..methods.learned import LearnedMethod
from .plan import memory_gib
from .prepare import prepare
from .restore import restore

_MANY, _LONG = 24, 60.0  # windows, seconds of work from which choosing and compiling a faster forward pays


def infer(method: Method, case: Case, plan: Plan, *, seed: int = 0, probability: bool = False, grad: bool = False) -> Prediction:
    """The method's answer for a native case, on the case's own grid. The method sees no label. Same seed, same answer."""
    prepared, prediction = answer(method, case, plan, seed=seed, grad=grad)
    if not case.images:
        return prediction
    return restore(
        prediction, prepared.geometry, case.geometry, plan.classes, probability=probability, largest_component=plan.largest_component
    )


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


def infer_in_slabs(method: LearnedMethod, case: Case, plan: Plan, *, gib: float, seed: int = 0) -> Prediction:
    """The label map of a case too large for memory: slabs along its longest axis, each predicted with a margin of half a patch and at most
    about ``gib`` GiB at a time, put together on the case's own grid. Intensities are normalised by the whole case's numbers."""
    geometry = case.geometry
    axis = int(np.argmax(geometry.shape))
    plan = _with_whole_numbers(plan, case)
    target = plan.grid.of(geometry.canonical()).spacing
    margin = int(np.ceil(max(p * s for p, s in zip(plan.patch, target, strict=True)) / 2 / geometry.spacing[axis]))
    each = memory_gib(plan, geometry.shape) / geometry.shape[axis]
    thick = max(1, int(gib / each) - 2 * margin)
    out = np.zeros(geometry.shape, np.uint8 if len(plan.classes) <= 256 else np.int16)
    for start in range(0, geometry.shape[axis], thick):
        stop = min(start + thick, geometry.shape[axis])
        low, high = max(0, start - margin), min(geometry.shape[axis], stop + margin)
        label = np.asarray(infer(method, _slab(case, axis, low, high), plan, seed=seed).label.data)
        _part(out, axis, start, stop)[...] = _part(label, axis, start - low, stop - low)
    note = f"predicted in slabs of {thick} voxels along axis {axis}: the whole does not fit into memory"
    return Prediction(labels={"prediction": LabelMap(out, geometry, plan.classes)}, notes=(note,))


def _with_whole_numbers(plan: Plan, case: Case) -> Plan:
    """Per-case z-scores of one-component images as fixed numbers, read slice by slice."""
    rules, facts = dict(plan.normalise), dict(plan.intensities)
    for name, rule in plan.normalise.items():
        data = case.images[name].data
        if rule == "zscore" and len(data) == 1:
            sums = np.array([(s.sum(dtype=np.float64), np.square(s, dtype=np.float64).sum()) for s in data[0]]).sum(0) / data.size
            rules[name], facts[name] = "fixed", {"mean": float(sums[0]), "sd": float(np.sqrt(max(sums[1] - sums[0] ** 2, 0.0)))}
    return plan.derive(normalise=rules, intensities=facts, crop_to_body=False)


def _slab(case: Case, axis: int, low: int, high: int) -> Case:
    first, last = [0] * case.geometry.ndim, list(case.geometry.shape)
    first[axis], last[axis] = low, high
    grid = case.geometry.cropped(first, last)
    images = {k: replace(v, source=_part(v.data, axis + 1, low, high), geometry=grid) for k, v in case.images.items()}
    rois = {k: replace(v, source=_part(v.data, axis, low, high), geometry=grid) for k, v in case.rois.items()}
    return replace(case, images=images, labels={}, rois=rois, points={}, boxes={})


def _part(data: np.ndarray, axis: int, low: int, high: int) -> np.ndarray:
    """A view of the rows ``low`` to ``high`` along one axis."""
    return data[(slice(None),) * axis + (slice(low, high),)]


def accelerate_if_worth_it(
    method: Method, plan: Plan, shapes: Sequence[tuple[int, ...]], first: Callable[[], Case], *, backend: str = "auto"
) -> dict | None:
    """Lend the method a faster forward (checked to agree on a window of the ``first`` case) when the work ahead pays for choosing it.

    ``shapes``: the cases to predict. Returns what was chosen and why, or None when torch as it is will do.
    """
    if not isinstance(method, LearnedMethod) or backend == "torch" or next(method.parameters()).is_cuda:
        return None
    inferer = method.inferer()
    if type(method).condition is not LearnedMethod.condition or not isinstance(inferer, SlidingWindow):
        return None
    number = sum(inferer.count(s) for s in shapes)
    if backend == "auto" and number < _MANY:
        return None
    _evaluating(method)
    probe = _central_window(prepare(first(), plan, method).stack(method.channels), plan.patch)
    tick = time.perf_counter()
    with torch.no_grad():
        method(probe)
        if backend == "auto" and (time.perf_counter() - tick) * number < _LONG:
            return None
        from ..inferers.backends import accelerate

        method.fast = accelerate(method, tuple(probe.shape), backend=backend, probe=probe)
    return method.fast.choice


def _central_window(image: np.ndarray, patch: Sequence[int]) -> torch.Tensor:
    """(1, C, *patch) around the middle, zero-padded."""
    out = torch.zeros(1, image.shape[0], *patch)
    into, of = [], []
    for n, p in zip(image.shape[1:], patch, strict=True):
        size = min(n, p)
        into.append(slice((p - size) // 2, (p - size) // 2 + size))
        of.append(slice((n - size) // 2, (n - size) // 2 + size))
    out[(0, slice(None), *into)] = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *of)]))
    return out
