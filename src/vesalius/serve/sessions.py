"""Prompt sessions: a person points in world mm on the original image, and is answered there.

A model of two dimensions sees a volume slice by slice, each slice turned as it is displayed (rows run to the back or the feet, columns to
the patient's left or back) and, for zero-shot models, windowed to bytes: to the window that the person looks through, or to the 0.5 and
99.5 percentiles. Embeddings lie in one least-recently-used cache, bounded in bytes, and are made again when they are needed again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.case import Case, LabelMap
from ..core.errors import DataError, GeometryError, UsageError
from ..core.geometry import Geometry, coarsest
from ..core.prediction import Prediction
from ..core.prompt import Box, Lasso, Mask, Point, Prompt, Scribble, Text
from ..engine.embeddings import Embeddings, nbytes
from ..engine.interact import SequenceSession, Session, TextSession, takes_words
from ..ops import prompts as users
from .models import Loaded, Models
from .records import Missing
from .store import Project
from .wire import packed, unpacked

MOST_SESSIONS = 64
MOST_SESSION_BYTES = 4 * 2**30  # of images, slices and answers that sessions hold
MOST_IDLE = 8 * 3600.0  # seconds that an unused session is kept
MOST_VIEWS = 256  # slices that a session remembers the prompts of
_MOST_POINTS, _MOST_PROMPTS, _MOST_LETTERS = 10_000, 256, 200
_MOST_KEPT, _MOST_DRAWN = 256, 500  # prompts that a version names, points of one


class _View(Session):
    """A session of the engine whose embedding lies in the server's cache, and that answers with the probabilities of the object in question
    (``shown``; None: of all): nobody waits for the objects that were drawn before."""

    shown: str | None = None

    def __init__(self, loaded: Loaded, case: Case, key: Any, cache: Embeddings):
        super().__init__(loaded.method, case, loaded.plan)
        self.key, self.cache = key, cache
        self.weight = sum(nbytes(i.data) for seen in (case, self.prepared) for i in seen.images.values())

    @property
    def embedding(self) -> Any:
        return self.cache.get(self.key, lambda: Session.embedding.func(self))

    def answer(self) -> Prediction:
        objects = {n: state for n, state in self.states[self.at].items() if self.shown in (None, n)}
        if not objects:
            return Prediction()
        answer = self.masks(objects)
        return answer.with_(probability=answer.probability.on(self.case.geometry))


class _Worded(_View, TextSession):
    """The same with a method that takes words: it looks at the image anew for each expression."""

    embedding = None


@dataclass(frozen=True)
class Plane:
    """A slice of a volume as a model of two dimensions sees it: ``axes`` are the volume's axes of its rows and columns."""

    geometry: Geometry
    axis: int
    index: int

    def __post_init__(self):
        if self.geometry.ndim != 3 or self.axis not in (0, 1, 2) or not 0 <= self.index < self.geometry.shape[self.axis]:
            allowed = f"axis 0 to 2, index within {self.geometry.shape}"
            raise GeometryError("there is no such slice", found=f"axis {self.axis}, index {self.index}", allowed=allowed)

    @property
    def axes(self) -> tuple[int, int]:
        left = [a for a in range(3) if a != self.axis]
        rows = max(left, key=lambda a: self._world(a)[0])
        return rows, next(a for a in left if a != rows)

    def _world(self, axis: int) -> tuple[int, float]:
        """The world axis that an index axis runs along, and its sign."""
        code = self.geometry.orientation[axis]
        return "RLAPSI".index(code) // 2, 1.0 if code in "RAS" else -1.0

    @property
    def turned(self) -> tuple[bool, bool]:
        """Whether rows and columns run against the index: towards the patient's left, back and feet."""
        return tuple(self._world(a)[1] > 0 for a in self.axes)

    @property
    def grid(self) -> Geometry:
        return Geometry.of([self.geometry.shape[a] for a in self.axes], [self.geometry.spacing[a] for a in self.axes])

    def cut(self, data: np.ndarray) -> np.ndarray:
        """(C, *volume) -> (C, rows, columns)."""
        return np.ascontiguousarray(self.turn(np.take(data, self.index, self.axis + 1)))

    def turn(self, flat: np.ndarray) -> np.ndarray:
        """(.., a, b), a slice as the volume's array has it -> (.., rows, columns)."""
        flat = flat if self.axes[0] < self.axes[1] else flat.swapaxes(-2, -1)
        return flat[..., :: -1 if self.turned[0] else 1, :: -1 if self.turned[1] else 1]

    def place(self, flat: np.ndarray) -> np.ndarray:
        """(rows, columns) bool -> (*volume) with it in its slice."""
        flat = flat[:: -1 if self.turned[0] else 1, :: -1 if self.turned[1] else 1]
        out = np.zeros(self.geometry.shape, bool)
        out[(slice(None),) * self.axis + (self.index,)] = flat if self.axes[0] < self.axes[1] else flat.T
        return out

    def project(self, world: np.ndarray) -> np.ndarray:
        """(n, 3) mm of the volume -> (n, 2) mm of the slice. Raises GeometryError for what lies in another slice."""
        world = np.atleast_2d(np.asarray(world, float))
        if world.shape[1] != 3 or not np.isfinite(world).all():
            raise GeometryError("a point is given in mm, one number an axis", found=world.shape, allowed="3 numbers")
        index = self.geometry.to_index(world)
        if (np.abs(index[:, self.axis] - self.index) > 1.0).any():
            raise GeometryError("the prompt lies in another slice", found=index[:, self.axis].round(1).tolist()[:4], allowed=self.index)
        sides = np.array(self.grid.shape)
        at = index[:, list(self.axes)]
        return self.grid.to_world(np.where(self.turned, sides - 1 - at, at))


@dataclass
class Prompted:
    """One person's session with one case and one model."""

    id: str
    case: Case
    case_id: str
    model: str
    loaded: Loaded
    window: tuple[float, float] | None
    cache: Embeddings
    views: dict[tuple[int, int] | None, _View] = field(default_factory=dict)
    done: list[tuple[int, int] | None] = field(default_factory=list)
    at: int = 0
    asked: list[list[dict]] = field(default_factory=list)  # what was said, step by step
    lock: Any = field(default_factory=threading.Lock)
    warm: Future | None = None
    used: float = field(default_factory=time.monotonic)
    weight: int = 0  # bytes of slices and answers, without the case's own

    @property
    def sliced(self) -> bool:
        return self.case.geometry.ndim == 3 and self.loaded.plan.dims == 2

    def plane(self, key: tuple[int, int] | None) -> Plane | None:
        return None if key is None else Plane(self.case.geometry, *key)

    def view(self, key: tuple[int, int] | None) -> _View:
        if key not in self.views:
            if len(self.views) >= MOST_VIEWS:
                raise UsageError("this session has prompts in too many slices", fix="save the mask and start a new session")
            cache_key = (self.case_id, self.model, key, self.window, id(self.loaded))
            kind = _Worded if takes_words(self.loaded.method) else _View
            self.views[key] = view = kind(self.loaded, self._seen(self.plane(key)), cache_key, self.cache)
            self.weight += view.weight
        return self.views[key]

    def _seen(self, plane: Plane | None) -> Case:
        """The case, or its slice, as the model takes it."""
        cut = (lambda data: np.asarray(data)) if plane is None else plane.cut
        grid = self.case.geometry if plane is None else plane.grid
        images = {}
        for name, image in self.case.images.items():
            data = cut(image.data)
            if self.loaded.zero_shot and self.loaded.plan.dims == 2 and data.dtype != np.uint8:
                data = _windowed(data, self.window)
            images[name] = replace(image, source=data, geometry=grid)
        return Case(self.case.id, images=images)

    # ------------------------------------------------------------------------------------------------------------------- the verbs
    def ask(self, object: str, prompts: Sequence[Prompt], key: tuple[int, int] | None, label: str = "") -> dict:
        """The object's mask after more prompts. Raises UsageError or GeometryError for what cannot be asked; nothing then changes."""
        started = time.perf_counter()
        with self.lock:
            key = self._key(prompts, key)
            plane = self.plane(key)
            given = [_in_plane(p, plane) for p in prompts] if plane else list(prompts)
            view = self.view(key)
            view.shown = object
            answer = view.ask([replace(p, object=object) for p in given])
            self.weight += sum(nbytes(state.logits) for state in view.states[view.at].values())
            for other in {k for k in self.done[self.at :] if k != key}:
                later = self.views[other]
                later.states = later.states[: later.at + 1]
            self.done[self.at :] = [key]
            self.asked[self.at :] = [[_told(p, object, label, key) for p in prompts]]
            self.at += 1
            return self._record(answer, object, key, started)

    def undo(self) -> list[dict]:
        """All objects of the view that the last prompts were about, as they were before."""
        return self._step(-1)

    def redo(self) -> list[dict]:
        return self._step(1)

    def _step(self, way: int) -> list[dict]:
        started = time.perf_counter()
        with self.lock:
            if not 0 <= self.at + way <= len(self.done):
                raise UsageError("there is nothing to undo" if way < 0 else "there is nothing to redo")
            key = self.done[self.at - 1 if way < 0 else self.at]
            view = self.view(key)
            view.shown, names = None, {n for state in view.states for n in state}
            answer = view.undo() if way < 0 else view.redo()
            self.at += way
            return [self._record(answer, name, key, started) for name in sorted(names)]

    @property
    def prompts(self) -> list[dict]:
        """What was said and not taken back, the newest last: the version of a mask keeps it."""
        return [record for step in self.asked[: self.at] for record in step][-_MOST_KEPT:]

    def _key(self, prompts: Sequence[Prompt], key: tuple[int, int] | None) -> tuple[int, int] | None:
        """The slice that is meant: as said, or else the one across the coarsest axis in which the prompts lie."""
        if not self.sliced or key is not None:
            return key if self.sliced else None
        axis = coarsest(self.case.geometry.spacing)
        ends = [x for p in prompts for x in ((p.low, p.high) if isinstance(p, Box) else np.atleast_2d(getattr(p, "xyz", np.zeros((0, 3)))))]
        if not ends or any(len(e) != 3 for e in ends):
            raise UsageError("this model looks at slices: say which one", fix="give slice: {axis, index}")
        return axis, int(np.rint(self.case.geometry.to_index(np.array(ends, float)).mean(0)[axis]))

    def _record(self, answer: Prediction, name: str, key: tuple[int, int] | None, started: float) -> dict:
        shown = name or self.loaded.plan.classes[-1]
        mask, quality = np.zeros(self.case.geometry.shape, bool), None
        if answer.probability is not None and shown in answer.names:
            p = np.asarray(answer.probability.data)[answer.names.index(shown)]
            on = p >= answer.threshold
            quality = round(float(p[on].mean()), 4) if on.any() else 0.0
            plane = self.plane(key)
            mask = on if plane is None else plane.place(on)
        ms = round(1000 * (time.perf_counter() - started), 1)
        record = {"object": name, **packed(mask), "quality": quality, "notes": list(answer.notes), "ms": ms}
        return record | ({"slice": {"axis": key[0], "index": key[1]}} if key is not None else {})


class Sessions:
    """The server's sessions, least recently used first out, and the thread that embeds for them in the background."""

    def __init__(self, project: Project, models: Models, cache: Embeddings | None = None, most: int = MOST_SESSIONS):
        self.project, self.models, self.cache = project, models, cache or Embeddings()
        self.most, self.most_bytes = most, MOST_SESSION_BYTES
        self.held: OrderedDict[str, Prompted] = OrderedDict()
        self.ended: OrderedDict[str, tuple[str, list[dict]]] = OrderedDict()  # case and prompts of sessions that are over
        self.lock, self.pool = threading.Lock(), ThreadPoolExecutor(1, "embedding")

    def start(self, case: str, model: str, *, window: tuple[float, float] | None = None, slice: tuple[int, int] | None = None) -> Prompted:
        """A session; its image is embedded in the background (of a sliced volume the named slice, if one is named)."""
        known = self.models.get(model)
        if not known.kinds or known.carries:
            fix = "propagate a mask with it" if known.carries else "run it on the case instead"
            raise UsageError("this model takes no prompts", found=model, fix=fix)
        check_window(window)
        with self.lock:
            shared = next((s.case for s in self.held.values() if s.case_id == case), None)
        image = shared or self.project.read(case)
        session = Prompted(secrets.token_hex(8), image, case, model, self.models.load(model, image), window, self.cache)
        if slice is not None and session.sliced:
            session.plane(slice)
        with self.lock:
            self.held[session.id] = session
            self._trim()
        if slice is not None or not session.sliced:
            session.warm = self.pool.submit(self._warm, session, slice if session.sliced else None)
        return session

    def _warm(self, session: Prompted, key: tuple[int, int] | None) -> None:
        with session.lock:
            _ = session.view(key).embedding

    def get(self, id: str) -> Prompted:
        """Raises Missing for one that ended, was too long unused, or belonged to a server that was started anew."""
        with self.lock:
            if id not in self.held:
                raise Missing("the session has ended", fix="start a new one; nothing that was saved is lost")
            self.held.move_to_end(id)
            session = self.held[id]
            session.used = time.monotonic()
            self._trim()
        return session

    @property
    def bytes(self) -> int:
        """Of the images, each counted once, and of what sessions made of them."""
        cases = {id(s.case): s.case for s in self.held.values()}
        return sum(nbytes(i.data) for case in cases.values() for i in case.images.values()) + sum(s.weight for s in self.held.values())

    def _trim(self) -> None:
        """End the least recently used sessions that are too many, too old or too large together; the newest stays."""
        oldest = time.monotonic() - MOST_IDLE
        while len(self.held) > 1 and (
            len(self.held) > self.most or self.bytes > self.most_bytes or next(iter(self.held.values())).used < oldest
        ):
            self._forget(next(iter(self.held)))

    def _forget(self, id: str) -> None:
        session = self.held.pop(id)
        self.ended[id] = session.case_id, session.prompts
        while len(self.ended) > self.most:
            self.ended.popitem(last=False)

    def end(self, id: str) -> None:
        with self.lock:
            if id in self.held:
                self._forget(id)

    def prompts_of(self, id: str, case: str) -> list[dict]:
        """What was said in a session about this case, also if it is over by now; of an unknown one nothing."""
        with self.lock:
            of, said = (self.held[id].case_id, self.held[id].prompts) if id in self.held else self.ended.get(id, ("", []))
        return said if of == case else []

    def window_of(self, case: str, model: str) -> tuple[float, float] | None:
        """The window of the newest session with a case and a model: what a person who goes on with them looks through."""
        with self.lock:
            return next((s.window for s in reversed(self.held.values()) if (s.case_id, s.model) == (case, model)), None)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def check_window(window: tuple[float, float] | None) -> None:
    if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
        raise UsageError("a window has a low and a high grey value", found=window)


def state_of(session: Prompted) -> dict:
    """embedding | ready | failed, with the error in one sentence."""
    if session.warm is None:
        return {"state": "ready", "error": None}
    if not session.warm.done():
        return {"state": "embedding", "error": None}
    error = session.warm.exception()
    return {"state": "failed" if error else "ready", "error": str(error) if error else None}


def prompts_from(rows: Sequence[Mapping[str, Any]], geometry: Geometry) -> list[Prompt]:
    """Prompts as JSON -> in world mm. Raises UsageError for what is none, GeometryError for numbers that are none."""
    if not 0 < len(rows) <= _MOST_PROMPTS:
        raise UsageError("nothing was asked, or too much at once", found=f"{len(rows)} prompts", allowed=f"1 to {_MOST_PROMPTS}")
    return [_prompt(row, geometry) for row in rows]


def _prompt(row: Mapping[str, Any], geometry: Geometry) -> Prompt:
    kind = row.get("kind")
    if kind == "mask":
        return Mask(LabelMap(unpacked(dict(row), geometry.shape).astype(np.uint8), geometry))
    if kind == "box":
        low, high = _numbers(row.get("low"), geometry), _numbers(row.get("high"), geometry)
        if len(low) != 1 or len(high) != 1:
            raise GeometryError("a box has one low and one high corner")
        return Box(tuple(np.minimum(low[0], high[0])), tuple(np.maximum(low[0], high[0])))
    if kind in ("point", "scribble", "lasso"):
        xyz = _numbers(row.get("xyz"), geometry)
        if kind == "lasso":
            return Lasso(xyz)
        positive = row.get("positive", True) is True
        return Point(tuple(xyz[0]), positive) if kind == "point" else Scribble(xyz, positive)
    if kind == "text":
        words = row.get("text")
        if not isinstance(words, str) or not words.strip() or len(words) > _MOST_LETTERS:
            raise UsageError("a text says in a few words what to outline", allowed=f"1 to {_MOST_LETTERS} letters")
        return Text(words.strip())
    raise UsageError("no such prompt", found=str(kind)[:20], allowed="box, point, scribble, lasso, mask, text")


def _told(prompt: Prompt, object: str, label: str, key: tuple[int, int] | None) -> dict:
    """A prompt as a version keeps it: kind, object, label, world mm (of a long line every so many) and sign; of a mask no voxels."""
    record: dict[str, Any] = {"kind": type(prompt).__name__.lower(), "object": object, "label": label}
    record |= {"slice": {"axis": key[0], "index": key[1]}} if key is not None else {}
    for name in ("low", "high", "xyz"):
        if hasattr(prompt, name):
            mm = np.round(np.asarray(getattr(prompt, name), float), 3)
            record[name] = mm[:: 1 + len(mm) // _MOST_DRAWN].tolist()
    return record | {name: getattr(prompt, name) for name in ("positive", "text") if hasattr(prompt, name)}


def _numbers(value: Any, geometry: Geometry) -> np.ndarray:
    """(n, d) finite mm."""
    try:
        out = np.atleast_2d(np.asarray(value, float))
    except (TypeError, ValueError) as error:
        raise GeometryError("coordinates are numbers in mm") from error
    if out.ndim != 2 or out.shape[1] != geometry.ndim or not 0 < len(out) <= _MOST_POINTS or not np.isfinite(out).all():
        raise GeometryError("a point is given in mm, one number an axis", found=out.shape, allowed=f"{geometry.ndim} numbers")
    return out


def _in_plane(prompt: Prompt, plane: Plane) -> Prompt:
    """A prompt in a volume's mm -> in its slice's."""
    if isinstance(prompt, Box):
        index = np.array(plane.geometry.index_bounds(prompt.low, prompt.high))
        if not index[0, plane.axis] - 1 <= plane.index <= index[1, plane.axis] + 1:
            raise GeometryError("the prompt lies in another slice", found=index[:, plane.axis].round(1).tolist(), allowed=plane.index)
        index[:, plane.axis] = plane.index
        ends = plane.project(plane.geometry.to_world(index))
        return Box(tuple(ends.min(0)), tuple(ends.max(0)))
    if isinstance(prompt, Mask):
        flat = plane.cut(np.asarray(prompt.mask.data)[None])[0]
        return Mask(LabelMap(flat, plane.grid))
    if isinstance(prompt, Text):
        return prompt
    if isinstance(prompt, (Point, Scribble, Lasso)):
        xyz = plane.project(np.asarray(prompt.xyz))
        return replace(prompt, xyz=tuple(xyz[0]) if isinstance(prompt, Point) else xyz)
    raise UsageError("this prompt cannot be asked of a slice", found=type(prompt).__name__.lower())


def _windowed(data: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Grey values in the window as bytes."""
    low, high = window or np.percentile(data, (0.5, 99.5))
    scaled = (np.asarray(data, np.float32) - low) / max(float(high) - float(low), 1e-6)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def propagate(session: Prompted, mask: np.ndarray, start: int, axis: int, step: Callable[[float, str], None]) -> np.ndarray:
    """(*volume) bool: ``mask``'s slice ``start`` carried on in both directions, each slice asked by the box of the one
    before it, until an answer is empty, three times as large or less than a fifth of the last. Raises DataError for an empty slice."""
    at = np.take(mask, start, axis)
    if not at.any():
        raise DataError("the object is not in that slice", found=start, fix="choose a slice that shows it")
    out, sides = np.zeros_like(mask), mask.shape[axis]
    out[(slice(None),) * axis + (start,)] = at
    for way in (1, -1):
        before, k = at, start + way
        while 0 <= k < sides:
            step(abs(k - start) / sides, f"slice {k}")
            flat = _carried(session, before, k, axis)
            if not flat.any() or flat.sum() > 3 * before.sum() or flat.sum() < before.sum() / 5:
                break
            out[(slice(None),) * axis + (k,)] = flat
            before, k = flat, k + way
    return out


def carry(loaded: Loaded, case: Case, mask: np.ndarray, start: int, axis: int, step: Callable[[float, str], None]) -> np.ndarray:
    """``propagate`` by a model that carries masks itself, with a memory (``engine.interact.SequenceSession``)."""
    if not np.take(mask, start, axis).any():
        raise DataError("the object is not in that slice", found=start, fix="choose a slice that shows it")
    step(0.1, "carrying")
    session = SequenceSession(loaded.method, case, loaded.plan, axis=axis)
    answer = session.ask([Mask(LabelMap(mask.astype(np.uint8), case.geometry), frame=start)])
    return np.asarray(answer.probability.data)[0] >= answer.threshold


def _carried(session: Prompted, before: np.ndarray, index: int, axis: int) -> np.ndarray:
    """The mask of slice ``index`` for the box around ``before``, its neighbour's mask."""
    if not session.sliced:
        raise UsageError("only a model of two dimensions carries a mask from slice to slice")
    plane = session.plane((axis, index))
    ends = users.box(plane.turn(before))
    grown = (ends[1] - ends[0]) * 0.02
    low, high = plane.grid.world_bounds(ends[0] - grown, ends[1] + grown)
    view = _View(session.loaded, session._seen(plane), ("propagate", session.id, index), Embeddings(0))
    answer = view.ask([Box(tuple(low), tuple(high))])
    on = np.asarray(answer.probability.data)[0] >= answer.threshold
    return np.take(plane.place(on), index, axis)


__all__ = ["Embeddings", "Plane", "Prompted", "Sessions", "carry", "check_window", "prompts_from", "propagate", "state_of"]
