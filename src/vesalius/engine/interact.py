"""A session with a promptable method, and the same session without a person: how good is the mask after so many prompts?

The user, simulated or not, sees the answer on the original image and points there; the method sees its own grid. The image is embedded
once a session, and every prompt after that costs a decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.case import Case, LabelMap
from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..core.prompt import Box, Point, Prompt, Scribble, Turn
from ..methods.prompted import PromptableMethod, objects_of
from ..ops import prompts as users
from .infer import infer
from .prepare import prepare
from .restore import restore

USUAL = "3clicks"  # what a promptable method is asked where nobody says how


@dataclass(frozen=True)
class _State:
    """An object's turns, and the logits (1, 1, *s) that the last one was answered with."""

    turns: tuple[Turn, ...] = ()
    logits: Tensor | None = None


class Session:
    """One image and what was asked of it. ``ask`` answers, ``undo`` and ``redo`` step through what was asked."""

    def __init__(self, method: PromptableMethod, case: Case, plan: Plan, *, seed: int = 0):
        self.method, self.case, self.plan = method.eval(), case, plan
        self.prepared = prepare(case.without_labels(), plan, method, seed=seed)
        self.states: list[dict[str, _State]] = [{}]
        self.at = 0

    @cached_property
    def embedding(self) -> Any:
        with torch.no_grad():
            return self.method.embed(self.method.tensor(self.prepared))

    def ask(self, prompts: Sequence[Prompt]) -> Prediction:
        """Answer to more prompts, of one or several objects, on the case's own grid. A refused prompt leaves the session as it was."""
        if not prompts:
            raise UsageError("nothing was asked", where=f"case {self.case.id}", fix="give a prompt")
        now = dict(self.states[self.at])
        with torch.no_grad():
            for name, of in objects_of(prompts).items():
                before = now.get(name, _State())
                turns = (*before.turns, Turn(self.method.asked(of, self.prepared.geometry), before.logits))
                now[name] = _State(turns, self.method.reply(self.embedding, turns))
        self.states[self.at + 1 :] = [now]
        self.at += 1
        return self.answer()

    def undo(self) -> Prediction:
        """The answer before the last prompts. Raises UsageError at the beginning."""
        return self._go(-1, "there is nothing to undo")

    def redo(self) -> Prediction:
        return self._go(1, "there is nothing to redo")

    def answer(self) -> Prediction:
        """The masks of all objects so far on the original grid, with their probabilities; empty before the first prompt."""
        objects = self.states[self.at]
        if not objects:
            return Prediction()
        logits = torch.cat([state.logits[0] for state in objects.values()])
        answer = self.method.masks(logits, tuple(objects), self.prepared.geometry)
        return restore(answer, self.prepared.geometry, self.case.geometry, self.plan.classes, probability=True)

    def _go(self, step: int, refusal: str) -> Prediction:
        if not 0 <= self.at + step < len(self.states):
            raise UsageError(refusal, where=f"case {self.case.id}")
        self.at += step
        return self.answer()


def respond(method: Method, case: Case, plan: Plan, *, prompts: str = "", seed: int = 0, probability: bool = False) -> Prediction:
    """What any method answers for a native case: by itself, or, a promptable one, after the last turn of the simulated user ``prompts``,
    with the masks of all structures laid into one label map (where two claim a voxel, the more probable one has it)."""
    if not isinstance(method, PromptableMethod):
        return infer(method, case, plan, seed=seed, probability=probability)
    *_, answer = simulate(method, case, plan, prompts or USUAL, seed=seed)
    label, masks = case.label, np.asarray(answer.probability.data)
    winner = np.where(masks.max(0) >= answer.threshold, masks.argmax(0) + 1, 0)
    ids = np.array([0, *(_identity(name, plan.classes) for name in answer.names)])
    found = LabelMap(ids[winner].astype(np.int32), case.geometry, plan.classes, instances=label.instances)
    answer = answer if probability else answer.with_(probability=None)
    return answer.with_(labels={"prediction": found.semantic}, instances=found if label.instances else None)


def simulate(method: PromptableMethod, case: Case, plan: Plan, mode: str, *, seed: int = 0) -> Iterator[Prediction]:
    """The answer after each turn of the simulated user ``mode`` (``ops.prompts.user``), for every structure that the case has: each is an
    object of its own, and a turn is about all of them. Structures that are absent are not asked for. A turn in which nothing is wrong any
    more repeats its answer. Raises DataError for a case without a reference or without foreground."""
    truths = structures(case, plan.classes)
    if not truths:
        found = "no reference" if case.label is None else "an empty reference"
        raise DataError("a simulated user has nothing to point at", where=f"case {case.id}", found=found)
    session, rng = Session(method, case, plan, seed=seed), np.random.default_rng([seed, 5])
    answer = Prediction()
    for ask in users.user(mode):
        shown = _shown(answer)
        prompts = [p for name, truth in truths.items() for p in _prompts(ask, truth, shown.get(name), case.geometry, name, rng)]
        if prompts:
            answer = session.ask(prompts)
        yield answer


def structures(case: Case, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> (*s) bool on the case's grid: the classes that the reference shows, or one entry an instance ('cell 3'); nothing where there
    is no reference."""
    label = case.label
    if label is None:
        return {}
    data = np.asarray(label.data)
    if label.instances:
        return {f"{classes[-1]} {k}": data == k for k in np.unique(data) if k > 0}
    if label.overlapping:
        return {name: mask for name, mask in zip(label.names, data, strict=True) if mask.any() and name != classes[0]}
    return {label.names[k]: data == k for k in np.unique(data) if k > 0}


def _identity(name: str, classes: Sequence[str]) -> int:
    """The class index of a structure's name, or an instance's id."""
    return list(classes).index(name) if name in classes else int(name.rpartition(" ")[2])


def _shown(answer: Prediction) -> dict[str, np.ndarray]:
    """Name -> (*s) bool: the masks the user sees."""
    if answer.probability is None:
        return {}
    return {n: p >= answer.threshold for n, p in zip(answer.names, np.asarray(answer.probability.data), strict=True)}


def _prompts(
    ask: users.Ask, truth: np.ndarray, shown: np.ndarray | None, geometry: Geometry, name: str, rng: np.random.Generator
) -> list[Prompt]:
    """What the simulated user gives for one object, in world coordinates."""
    if ask.kind == "box":
        corners = geometry.to_world(users.corners(users.box(truth, rng, jitter=ask.jitter)))
        return [Box(tuple(corners.min(0)), tuple(corners.max(0)), name)]
    if ask.kind == "scribble":
        line, positive = users.scribble(truth, shown, plane=_across(geometry) if geometry.ndim == 3 else None)
        return [Scribble(geometry.to_world(line), positive, name)] if len(line) else []
    index, positive = users.clicks(truth, shown, rng, count=ask.count, policy=ask.policy, spacing=geometry.spacing)
    return [Point(tuple(at), bool(p), name) for at, p in zip(geometry.to_world(index), positive, strict=True)]


def _across(geometry: Geometry) -> int:
    """The axis whose planes a person draws in: the one of the coarsest spacing, of equals the last."""
    return int(np.flatnonzero(np.isclose(geometry.spacing, max(geometry.spacing)))[-1])
