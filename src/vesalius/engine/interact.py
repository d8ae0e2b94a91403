"""A session with a promptable method, and the same session without a person: how good is the mask after so many prompts?

The user, simulated or not, sees the answer on the original image and points there; the method sees its own grid. The image is embedded
once a session, and every prompt after that costs a decoding. A sequence's slices are embedded once each, and masks that were drawn in some
are carried to the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.case import Case, Image, LabelMap, Query
from ..core.errors import DataError, GeometryError, UsageError
from ..core.geometry import Geometry, coarsest, resample
from ..core.method import Method
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..core.prompt import Asked, Box, Mask, Point, Prompt, Scribble, Text, Turn
from ..inferers.propagation import both_ways
from ..methods.learned import ReferringSegmenter
from ..methods.prompted import PromptableMethod, SequenceMethod, objects_of
from ..ops import prompts as users
from ..ops.proposals import proposals
from .embeddings import Embeddings
from .infer import infer
from .prepare import prepare
from .restore import restore

SURE = 20.0  # logit of what a person drew
_MOST_FRAME_BYTES = 256 * 2**20  # of the slices of a sequence that are kept embedded
_AT_ONCE = 16  # clicks of a grid that are answered in one batch


@dataclass(frozen=True)
class _State:
    """An object's turns, and the logits (1, 1, *s) that the last one was answered with. ``drawn``: slice -> its mask, in a sequence.
    ``notes``: what the method said beside."""

    turns: tuple[Turn, ...] = ()
    logits: Tensor | None = None
    drawn: Mapping[int, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Session:
    """One image and what was asked of it. ``ask`` answers, ``undo`` and ``redo`` step through what was asked."""

    def __init__(self, method: PromptableMethod, case: Case, plan: Plan, *, seed: int = 0):
        self.method, self.case, self.plan = method.eval(), case, plan
        self.prepared = prepare(case.without_labels(), plan, method, seed=seed)
        self.states: list[dict[str, _State]] = [{}]
        self.at = 0

    @cached_property
    def axis(self) -> int:
        """Of the case's own grid, the one that slices follow each other along for the method."""
        return int(self._turned[self.method.axis].argmax())

    @property
    def _turned(self) -> np.ndarray:
        """(prepared axis, own axis): how much the one runs along the other."""
        return np.abs(self.prepared.geometry.direction.T @ self.case.geometry.direction)

    @cached_property
    def embedding(self) -> Any:
        with torch.no_grad():
            return self.method.embed(self.method.tensor(self.prepared))

    def afresh(self) -> Session:
        """The same image, embedded once for both, of which nothing was asked yet."""
        other = copy(self)
        other.states, other.at = [{}], 0
        return other

    def ask(self, prompts: Sequence[Prompt]) -> Prediction:
        """Answer to more prompts, of one or several objects, on the case's own grid. A refused prompt leaves the session as it was."""
        if not prompts:
            raise UsageError("nothing was asked", where=f"case {self.case.id}", fix="give a prompt")
        with torch.no_grad():
            return self._then(self._after(objects_of(prompts)))

    def _after(self, objects: Mapping[str, Sequence[Prompt]]) -> dict[str, _State]:
        now = dict(self.states[self.at])
        for name, of in objects.items():
            before = now.get(name, _State())
            turns = (*before.turns, Turn(self.method.asked(of, self.prepared.geometry), before.logits))
            now[name] = _State(turns, self.method.reply(self.embedding, turns))
        return now

    def _then(self, now: dict[str, _State]) -> Prediction:
        self.states[self.at + 1 :] = [now]
        self.at += 1
        return self.answer()

    def candidates(self, name: str) -> Tensor:
        """(M, *s) logits of all masks that the method had for the object's last turn, on the prepared grid. Raises UsageError where nothing
        was asked about it."""
        state = self.states[self.at].get(name)
        if state is None or not state.turns:
            raise UsageError("nothing was asked about this object yet", where=f"case {self.case.id}", found=name)
        with torch.no_grad():
            return self.method.decode(self.embedding, state.turns).logits[0]

    def everything(self, side: int = 32) -> Tensor:
        """(N, *s) logits of masks found without a person, by a grid of ``side`` x ``side`` clicks each by itself (``ops.proposals``)."""
        if "point" not in self.method.kinds or self.prepared.geometry.ndim != 2:
            raise UsageError(
                "everything is found by clicks on a 2D image", where=type(self.method).__name__, found=sorted(self.method.kinds)
            )
        axes = [(np.arange(side) + 0.5) * n / side - 0.5 for n in self.prepared.geometry.shape]
        places = torch.tensor(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, 2), dtype=torch.float32)
        places, found = places.to(next(self.method.parameters()).device), []
        with torch.no_grad():
            for part in places.split(_AT_ONCE):
                clicks = Asked(part, torch.ones(part.shape[:2], dtype=torch.long, device=part.device))
                answer = self.method.decode(self.embedding, [Turn(clicks)])
                found.append(proposals(answer.logits.flatten(0, 1), answer.quality.flatten()))
        logits, quality = (torch.cat(x) for x in zip(*found, strict=True))
        return proposals(logits, quality)[0]

    def choose(self, masks: Mapping[str, Tensor]) -> Prediction:
        """The person takes these logits (*s) on the prepared grid, of ``candidates`` or ``everything``, as the objects' masks."""
        before = self.states[self.at]
        return self._then(before | {n: replace(before.get(n, _State()), logits=logits[None, None]) for n, logits in masks.items()})

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
        return self.restored(objects)

    def restored(self, objects: Mapping[str, _State]) -> Prediction:
        """The objects' masks on the case's own grid."""
        return restore(self.masks(objects), self.prepared.geometry, self.case.geometry, self.plan.classes, probability=True)

    def masks(self, objects: Mapping[str, _State]) -> Prediction:
        """The same on the prepared grid."""
        return self.method.masks(torch.cat([state.logits[0] for state in objects.values()]), tuple(objects), self.prepared.geometry)

    def _go(self, step: int, refusal: str) -> Prediction:
        if not 0 <= self.at + step < len(self.states):
            raise UsageError(refusal, where=f"case {self.case.id}")
        self.at += step
        return self.answer()


class SequenceSession(Session):
    """One volume or film and the slices that were outlined in it; ``axis`` of the case's own grid is the one they follow each other along
    (default: the one that the method learnt along). A ``Mask`` with a ``frame`` is that slice of it, one without is every slice that shows
    it.

    A person's slice stays as it was drawn; all others are carried there again after every ``ask``, of all objects that were drawn in the
    same slices together, from all slices drawn so far.
    """

    def __init__(self, method: SequenceMethod, case: Case, plan: Plan, *, axis: int | None = None, seed: int = 0):
        super().__init__(method, case, plan, seed=seed)
        if case.geometry.ndim != 3 or axis not in (None, 0, 1, 2):
            raise UsageError("a sequence is a volume, or a film", where=f"case {case.id}", found=f"{case.geometry.ndim}D, axis {axis}")
        if axis is not None:
            self.axis = axis
        self.along = int(self._turned[:, self.axis].argmax())
        self.frames = Embeddings(_MOST_FRAME_BYTES)

    @cached_property
    def _image(self) -> Tensor:
        """(T, C, h, w)."""
        return self.method.tensor(self.prepared)[0].movedim(self.along + 1, 0)

    def frame(self, t: int) -> Any:
        """What the method keeps of a slice of the prepared case; embedded at its first use, or again where there are too many to keep."""
        with torch.no_grad():
            return self.frames.get(t, lambda: self.method.embed(self._image[t : t + 1]))

    def _after(self, objects: Mapping[str, Sequence[Prompt]]) -> dict[str, _State]:
        now = dict(self.states[self.at])
        for name, prompts in objects.items():
            before = now.get(name, _State())
            drawn = dict(before.drawn)
            for prompt in prompts:
                drawn |= self._drawn(prompt)
            now[name] = _State((), None, drawn)
        together: dict[tuple[int, ...], list[str]] = {}
        for name, state in now.items():
            together.setdefault(tuple(sorted(state.drawn)), []).append(name)
        for names in together.values():
            states = [now[n] for n in names]
            if any(state.logits is None for state in states):
                logits = self._carried([state.drawn for state in states])
                now |= {n: replace(state, logits=one[None, None]) for n, state, one in zip(names, states, logits, strict=True)}
        return now

    def _drawn(self, prompt: Prompt) -> dict[int, np.ndarray]:
        """Slice of the case's own grid -> (*s) bool."""
        if not isinstance(prompt, Mask):
            found = type(prompt).__name__.lower()
            raise UsageError("this method does not understand the prompt", where=type(self.method).__name__, found=found, allowed=["mask"])
        mask = np.moveaxis(np.asarray(prompt.mask.on(self.case.geometry).data) > 0, self.axis, 0)
        shown = [prompt.frame] if prompt.frame is not None else np.flatnonzero(mask.any((1, 2))).tolist()
        if not shown or not 0 <= min(shown) <= max(shown) < len(mask):
            raise GeometryError(
                "the mask is in no slice of the image", found=shown or "an empty mask", allowed=f"slices 0 to {len(mask) - 1}"
            )
        return {k: mask[k].copy() for k in shown}

    def _carried(self, drawn: Sequence[Mapping[int, np.ndarray]]) -> Tensor:
        """(K, *s) logits of objects drawn in the same slices."""
        given: dict[int, list[Tensor]] = {}
        for k in sorted(drawn[0]):
            given[self._place(k)] = [self._prepared_slice(masks[k], k) for masks in drawn]
        shape = self.prepared.geometry.shape
        references = {t: torch.stack(masks) for t, masks in given.items()}
        p = both_ways(self.method, self.frame, shape[self.along], references, every=self.method.every)
        return torch.logit(p, 1 / (1 + np.exp(SURE))).clamp(-SURE, SURE).movedim(0, self.along + 1)

    def _place(self, k: int) -> int:
        """The prepared slice that shows slice ``k``. Raises GeometryError where the method does not see that part of the image."""
        index = (np.array(self.case.geometry.shape) - 1) / 2
        index[self.axis] = k
        t = float(self.prepared.geometry.to_index(self.case.geometry.to_world(index))[self.along])
        last = self.prepared.geometry.shape[self.along] - 1
        if not -1 <= t <= last + 1:
            raise GeometryError("the slice lies outside what the method sees", where=f"case {self.case.id}", found=f"slice {k}")
        return int(np.clip(round(t), 0, last))

    def _prepared_slice(self, mask: np.ndarray, k: int) -> Tensor:
        """A slice's mask as (h, w) in [0, 1] of the prepared slice that shows it."""
        low, high = np.zeros(3, int), np.array(self.case.geometry.shape)
        low[self.axis], high[self.axis] = k - 1, k + 2
        start, stop = np.zeros(3, int), np.array(self.prepared.geometry.shape)
        t = self._place(k)
        start[self.along], stop[self.along] = t, t + 1
        thick = np.repeat(np.expand_dims(mask, self.axis), 3, self.axis)  # so that a shift between grids loses nothing
        source, target = self.case.geometry.cropped(low, high), self.prepared.geometry.cropped(start, stop)
        out = resample(thick[None].astype(np.float32), source, target, "linear")[0]
        return torch.from_numpy(np.ascontiguousarray(np.take(out, 0, self.along))).to(self._image.device)

    def answer(self) -> Prediction:
        """As of any session; slices that were drawn are as they were drawn."""
        answer = super().answer()
        if answer.probability is None:
            return answer
        data = np.array(answer.probability.data)
        for p, state in zip(data, self.states[self.at].values(), strict=True):
            for k, mask in state.drawn.items():
                np.moveaxis(p, self.axis, 0)[k] = mask
        probability = replace(answer.probability, source=data)
        return answer.with_(probability=probability, labels={}).decide(self.plan.classes)


class TextSession(Session):
    """One image and what was said of it: an object is what the last ``Text`` about it means to a method that takes expressions."""

    def _after(self, objects: Mapping[str, Sequence[Prompt]]) -> dict[str, _State]:
        now = dict(self.states[self.at])
        for name, prompts in objects.items():
            *_, said = prompts
            if not isinstance(said, Text):
                found = type(said).__name__.lower()
                raise UsageError("this method understands words", where=type(self.method).__name__, found=found, allowed=["text"])
            answer = self.method.predict(self.prepared.with_(queries=(Query(name, said.text),)), rng=np.random.default_rng(0))
            p = torch.from_numpy(np.asarray(answer.probability.data, np.float32))
            now[name] = _State(logits=torch.logit(p, 1e-6)[None], notes=answer.notes)
        return now

    def masks(self, objects: Mapping[str, _State]) -> Prediction:
        maps = torch.cat([state.logits[0] for state in objects.values()]).sigmoid().numpy()
        names = tuple(name or self.plan.classes[-1] for name in objects)
        notes = tuple(note for state in objects.values() for note in state.notes)
        return Prediction(probability=Image(maps, self.prepared.geometry), names=names, threshold=0.5, notes=notes)


def takes_words(method: Method) -> bool:
    """Whether a session with the method is one of words (``TextSession``)."""
    return isinstance(method, ReferringSegmenter)


def session(method: PromptableMethod | ReferringSegmenter, case: Case, plan: Plan, *, seed: int = 0) -> Session:
    """The kind of session that a method takes."""
    kinds = ((SequenceMethod, SequenceSession), (ReferringSegmenter, TextSession), (PromptableMethod, Session))
    return next(kind for of, kind in kinds if isinstance(method, of))(method, case, plan, seed=seed)


def respond(method: Method, case: Case, plan: Plan, *, prompts: str = "", seed: int = 0, probability: bool = False) -> Prediction:
    """What any method answers for a native case: by itself, or, a promptable one, after the last turn of the simulated user ``prompts``,
    with the masks of all structures laid into one label map (where two claim a voxel, the more probable one has it)."""
    if not isinstance(method, PromptableMethod):
        return infer(method, case, plan, seed=seed, probability=probability)
    *_, answer = simulate(method, case, plan, prompts or method.usual, seed=seed)
    answer = _laid(answer, case, plan)
    return answer if probability else answer.with_(probability=None)


def respond_to_all(
    method: PromptableMethod, case: Case, plan: Plan, modes: Sequence[str], *, seed: int = 0
) -> Iterator[tuple[str, Prediction]]:
    """``respond`` for several simulated users, (mode, answer) each; the image is embedded once for all of them."""
    asked = session(method, case, plan, seed=seed)
    _ = asked.embedding if not isinstance(asked, SequenceSession) else None
    for mode in modes:
        *_, answer = simulate(method, case, plan, mode, seed=seed, asked=asked.afresh())
        yield mode, _laid(answer, case, plan)


def _laid(answer: Prediction, case: Case, plan: Plan) -> Prediction:
    """An answer about structures, as label map of the case's classes or instances."""
    label, masks = case.label, np.asarray(answer.probability.data)
    winner = np.where(masks.max(0) >= answer.threshold, masks.argmax(0) + 1, 0)
    ids = np.array([0, *(_identity(name, plan.classes) for name in answer.names)])
    found = LabelMap(ids[winner].astype(np.int32), case.geometry, plan.classes, instances=label.instances)
    return answer.with_(labels={"prediction": found.semantic}, instances=found if label.instances else None)


def simulate(
    method: PromptableMethod, case: Case, plan: Plan, mode: str, *, seed: int = 0, asked: Session | None = None
) -> Iterator[Prediction]:
    """The answer after each turn of the simulated user ``mode`` (``ops.prompts.user``), for every structure that the case has: each is an
    object of its own, and a turn is about all of them. Structures that are absent are not asked for. A turn in which nothing is wrong any
    more repeats its answer. The user's hand is unsteady in another way in every case, by its id. ``asked``: a session of this case that
    nothing was asked in yet. Raises DataError for a case without a reference or without foreground."""
    truths = structures(case, plan.classes)
    if not truths:
        found = "no reference" if case.label is None else "an empty reference"
        raise DataError("a simulated user has nothing to point at", where=f"case {case.id}", found=found)
    asked = asked or session(method, case, plan, seed=seed)
    rng, answer = np.random.default_rng([seed, 5, zlib.crc32(case.id.encode())]), Prediction()
    for ask in users.user(mode):
        shown = _shown(answer)
        if ask.kind in ("pick", "everything"):
            answer = asked.choose(_picked(ask, asked, truths))
        elif ask.kind == "slice":
            answer = _outlined(ask, asked, truths, shown) or answer
        elif prompts := [p for name, truth in truths.items() for p in _prompts(ask, truth, shown.get(name), asked, name, rng)]:
            answer = asked.ask(prompts)
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
    ask: users.Ask, truth: np.ndarray, shown: np.ndarray | None, asked: Session, name: str, rng: np.random.Generator
) -> list[Prompt]:
    """What the simulated user gives for one object, in world coordinates."""
    geometry = asked.case.geometry
    if ask.each and geometry.ndim == 3:
        return _by_slice(ask, truth, shown, geometry, asked.axis, name, rng)
    if ask.kind == "box":
        low, high = geometry.world_bounds(*users.box(truth, rng, jitter=ask.jitter))
        return [Box(tuple(low), tuple(high), name)]
    if ask.kind == "scribble":
        line, positive = users.scribble(truth, shown, plane=coarsest(geometry.spacing) if geometry.ndim == 3 else None)
        return [Scribble(geometry.to_world(line), positive, name)] if len(line) else []
    index, positive = users.clicks(truth, shown, rng, count=ask.count, policy=ask.policy, spacing=geometry.spacing)
    return [Point(tuple(at), bool(p), name) for at, p in zip(geometry.to_world(index), positive, strict=True)]


def _by_slice(
    ask: users.Ask, truth: np.ndarray, shown: np.ndarray | None, geometry: Geometry, axis: int, name: str, rng: np.random.Generator
) -> list[Prompt]:
    """A box or click in every slice across ``axis`` that shows the structure, as of a 2D image; both corners of a box lie in the slice."""
    out: list[Prompt] = []
    for k in np.flatnonzero(truth.any(tuple(a for a in range(3) if a != axis))).tolist():
        flat, before = np.take(truth, k, axis), None if shown is None else np.take(shown, k, axis)
        if ask.kind == "box":
            low, high = geometry.world_bounds(*np.insert(users.box(flat, rng, jitter=ask.jitter), axis, k, 1))
            out.append(Box(tuple(low), tuple(high), name, k))
            continue
        spacing = [s for a, s in enumerate(geometry.spacing) if a != axis]
        index, positive = users.clicks(flat, before, rng, count=ask.count, policy=ask.policy, spacing=spacing)
        world = geometry.to_world(np.insert(index, axis, k, 1))
        out += [Point(tuple(at), bool(p), name, k) for at, p in zip(world, positive, strict=True)]
    return out


def _picked(ask: users.Ask, asked: Session, truths: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Of the masks that the method has for each structure, or found without a person, the one that overlaps it most: an oracle's choice."""
    all_masks = asked.everything(ask.count) if ask.kind == "everything" else None
    out = {}
    for name, truth in truths.items():
        masks = asked.candidates(name) if all_masks is None else all_masks
        if not len(masks):
            masks = torch.full((1, *asked.prepared.geometry.shape), -SURE)
        shown = _shown(asked.restored({f"{k}": _State(logits=mask[None, None]) for k, mask in enumerate(masks)})).values()
        out[name] = masks[int(np.argmax([2 * (m & truth).sum() / (m.sum() + truth.sum()) for m in shown]))]
    return out


def _outlined(ask: users.Ask, asked: Session, truths: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> Prediction | None:
    """All structures drawn in the slices that the user looks at; None where nothing is wrong any more. Raises UsageError."""
    if not isinstance(asked, SequenceSession):
        raise UsageError(
            "slices are outlined for a method that carries masks on",
            found=type(asked.method).__name__,
            fix="ask with clicks, a box or a scribble",
        )
    geometry = asked.case.geometry
    axis = asked.axis
    before = np.stack([shown[n] for n in truths]) if shown else None
    chosen = users.slices(np.stack(list(truths.values())), before, axis=axis, count=ask.count)
    prompts = []
    for name, truth in truths.items():
        seen = np.zeros_like(truth)
        at = (slice(None),) * axis + (chosen,)
        seen[at] = truth[at]
        prompts += [Mask(LabelMap(seen.astype(np.uint8), geometry), name, k) for k in chosen]
    return asked.ask(prompts) if prompts else None
