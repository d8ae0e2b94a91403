"""Prediction of whole cases: prepare, predict, restore."""

from __future__ import annotations

import numpy as np
import torch

from ..core.case import Case
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..methods.learned import LearnedMethod
from .prepare import prepare
from .restore import restore

_WORTH_IT = 24  # windows from which an accelerated forward pays for its compilation


def infer(method: Method, case: Case, plan: Plan, *, seed: int = 0, probability: bool = False, grad: bool = False) -> Prediction:
    """The method's answer for a native case, on the case's own grid. The method sees no label. Same seed, same answer."""
    prepared, prediction = answer(method, case, plan, seed=seed, grad=grad)
    if not case.images:
        return prediction
    return restore(
        prediction, prepared.geometry, case.geometry, plan.classes, probability=probability, largest_component=plan.largest_component
    )


def answer(method: Method, case: Case, plan: Plan, *, seed: int = 0, grad: bool = False) -> tuple[Case, Prediction]:
    """(prepared case without labels, prediction on its grid)."""
    prepared = prepare(case, plan, method, seed=seed).without_labels()
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


def windows(plan: Plan, shape: tuple[int, ...]) -> int:
    """How many patches cover a prepared case."""
    step = [max(1, int(p * (1 - plan.overlap))) for p in plan.patch]
    return int(np.prod([max(1, int(np.ceil((n - p) / s)) + 1) for n, p, s in zip(shape, plan.patch, step, strict=True)]))


def accelerate_if_worth_it(method: Method, plan: Plan, shapes: list[tuple[int, ...]], *, backend: str = "auto") -> dict | None:
    """Lend the method a faster forward (checked to agree) when the work ahead pays for it. Returns what was chosen, or None."""
    if not isinstance(method, LearnedMethod) or backend == "torch" or next(method.parameters()).is_cuda:
        return None
    if backend == "auto" and sum(windows(plan, s) for s in shapes) < _WORTH_IT:
        return None
    if method.condition.__func__ is not LearnedMethod.condition or type(method).fast_forward is not LearnedMethod.fast_forward:
        return None
    from ..inferers.backends import accelerate

    shape = (1, method.in_channels, *plan.patch)
    method.eval()
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    forward = accelerate(method, shape, backend=backend, probe=probe)
    method.fast = forward
    return forward.choice
