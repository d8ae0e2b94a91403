"""The models of a project: zero-shot methods by slug, and trained runs. At most two are held in memory."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import catalog
from ..core.case import Case
from ..core.errors import RunError, UsageError, VesaliusError, nearest
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..engine import api
from .records import Missing
from .store import Project

ZERO_SHOT = ("lite-medsam",)
OF_CHECKPOINTS = "sam4mis"  # the method that asks any SAM checkpoint
ALLOWED = f"a run folder, {', '.join(ZERO_SHOT)}, or a SAM checkpoint of the transformers library (a folder or a hub id)"
_HELD = 2
_ALL = ("box", "lasso", "mask", "point", "scribble", "text")


@dataclass(frozen=True)
class Model:
    """``kinds``: the prompts it takes; none: it answers by itself. ``dims``: what it looks at; a 2D one sees volumes slice by slice.
    ``carries``: it understands nothing but masks of some slices, which it carries to the others; ``listens``: nothing but words.
    ``run``: the folder of a training; ``checkpoint``: a SAM checkpoint's folder or hub id; neither: the method that ``id`` names."""

    id: str
    title: str
    kinds: tuple[str, ...]
    dims: tuple[int, ...]
    run: Path | None = None
    checkpoint: str = ""

    @property
    def carries(self) -> bool:
        return self.kinds == ("mask",)

    @property
    def listens(self) -> bool:
        return self.kinds == ("text",)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "title": self.title,
            "kinds": list(self.kinds),
            "dims": list(self.dims),
            "trained": self.run is not None,
            "carries": self.carries,
        }


@dataclass(frozen=True)
class Loaded:
    method: Method
    plan: Plan
    zero_shot: bool


Build = Callable[[Case, int], Loaded]  # of a case, and the dimensions that are looked at


class Models:
    """``built``: further models by id, (what it is, how it is made); ``given``: one more; ``first``: the id that is listed first."""

    def __init__(
        self, project: Project, built: Mapping[str, tuple[Model, Build]] | None = None, *, given: Model | None = None, first: str = ""
    ):
        self.project, self.built, self.given, self.first = project, dict(built or {}), given, first
        self.held: OrderedDict[Any, Loaded | None] = OrderedDict()
        self.lock = threading.RLock()

    def list(self) -> list[Model]:
        """Those that can be used; a run whose folder is gone is left out."""
        known = [m for m, _ in self.built.values()] + [_of_card(slug) for slug in ZERO_SHOT] + [self.given] * bool(self.given)
        for id, title, run in self.project.runs():
            try:
                known.append(_of_run(id, title, run))
            except VesaliusError:
                continue
        return sorted(known, key=lambda m: m.id != self.first)

    def get(self, id: str) -> Model:
        found = next((m for m in self.list() if m.id == id), None)
        if found is None:
            raise Missing("there is no such model", fix="train one, or choose another of the list")
        return found

    def load(self, id: str, case: Case) -> Loaded:
        """The model, ready for images like this case's. Raises Missing, RunError, or DataError and UsageError (weights)."""
        model = self.get(id)
        dims = case.geometry.ndim if case.geometry.ndim in model.dims else model.dims[0]
        return self._held((id, dims, () if model.run else _channels(case)), lambda: self._load(model, case, dims))

    def carrier(self, id: str, case: Case) -> Loaded | None:
        """What carries masks from slice to slice of this volume with a memory, where the model has one. Raises as ``load``."""
        model = self.get(id)
        if model.carries:
            return self.load(id, case)
        return self._held((id, "carrier", _channels(case)), lambda: self._carrier(model, case)) if model.checkpoint else None

    def _held(self, key: Any, make: Callable[[], Loaded | None]) -> Loaded | None:
        with self.lock:
            if key not in self.held:
                self.held[key] = make()
                while len(self.held) > _HELD:
                    self.held.popitem(last=False)
            self.held.move_to_end(key)
            return self.held[key]

    def _load(self, model: Model, case: Case, dims: int) -> Loaded:
        if model.id in self.built:
            return self.built[model.id][1](case, dims)
        if model.run is not None:
            trained = api.open_run(model.run)
            return Loaded(trained.method, trained.plan, False)
        method = _untrained(model, *self._blank(case, dims))
        return Loaded(method, method.plan, True)  # its own plan: the grid and intensities that its weights expect

    def _carrier(self, model: Model, case: Case) -> Loaded | None:
        carrier = getattr(_untrained(model, *self._blank(case, 3)), "carrier", None)
        return carrier and Loaded(carrier, carrier.plan, True)

    def _blank(self, case: Case, dims: int) -> tuple[Plan, Manifest]:
        """A plan and a data set of this case's images and the project's labels."""
        names, labels = tuple(case.images), dict(zip(self.project.names, self.project.values, strict=True))
        plan = Plan(dims, names, sum(len(i.data) for i in case.images.values()), self.project.names, precision="auto")
        return plan, Manifest(self.project.manifest.name, self.project.manifest.root, dims, names, labels, ())


def _channels(case: Case) -> tuple:
    return tuple((n, 1 if case.lazy else len(i.data)) for n, i in case.images.items())


def prompts_of(slug: str) -> tuple[str, ...]:
    """The kinds of prompts that a card takes; a lasso is understood by whoever answers to a place, a text by whoever takes expressions."""
    takes = catalog.get(slug).takes
    kinds = {field.partition(":")[2] for field in takes if field.startswith("prompts:")} - {""}
    kinds |= {"text"} if "queries" in takes else set()
    return tuple(k for k in _ALL if k in kinds or (kinds - {"mask", "text"} and k == "lasso"))


def _of_card(slug: str) -> Model:
    card = catalog.get(slug)
    return Model(slug, card.title.partition(":")[0], prompts_of(slug), tuple(card.dims))


def _of_run(id: str, title: str, run: Path) -> Model:
    method, dims = _record(run)
    return Model(id, title, prompts_of(method), (dims,), run)


def _record(run: Path) -> tuple[str, int]:
    """(slug, dimensions) of a run folder. Raises RunError."""
    try:
        record, plan = (json.loads((run / name).read_text()) for name in ("run.json", "plan.json"))
        return record["method"], int(plan["dims"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError("the run cannot be read", where=run) from error


def _untrained(model: Model, plan: Plan, manifest: Manifest) -> Method:
    """Raises DataError and UsageError (weights)."""
    if model.checkpoint:
        return catalog.build(OF_CHECKPOINTS, plan, manifest, options={"checkpoint": model.checkpoint})
    return catalog.build(model.id, plan, manifest)


def checkpoint_of(model: str) -> Model | None:
    """What ``--model`` names where that is a SAM checkpoint of the transformers library: its folder, or a hub id, 'owner/name', for which
    nothing lies here. Raises DataError, UsageError (it cannot be read, or is another network's)."""
    folder = Path(model)
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not folder.parent.exists()
    if not hub and not (folder / "config.json").exists():
        return None
    found = Model("sam-checkpoint", model if hub else folder.resolve().name, prompts_of(OF_CHECKPOINTS), (2,), checkpoint=model)
    try:
        _untrained(found, Plan(2, ("RGB",), 3, ("background", "object")), Manifest("none", Path(), 2, ("RGB",), {"object": 1}, ()))
    except UsageError:
        if not hub:
            raise
        fix = "a hub id needs a network, and 'pip install huggingface_hub'"
        raise UsageError("no such model", where="--model", found=model, allowed=ALLOWED, fix=fix) from None
    return found


def checked_model(model: str) -> tuple[str, Path | None]:
    """What ``--model`` names: (slug, None) of a zero-shot method, (title, folder) of a run. Raises UsageError, RunError."""
    run = Path(model)
    if model in ZERO_SHOT:
        return model, None
    if (run / "run.json").exists():
        return f"{_record(run)[0]}, {run.resolve().name}", run
    if model in catalog.cards():
        fix = f"train it first: vesalius train {model} --data DATA --out runs/{model}, then --model runs/{model}"
        raise UsageError("this method answers only after a training", where="--model", found=model, allowed=ALLOWED, fix=fix)
    beside = [str(p.parent) for p in run.parent.glob("*/run.json")] if run.parent.is_dir() else []
    raise UsageError("no such model", where="--model", found=model, allowed=ALLOWED, fix=nearest(model, [*ZERO_SHOT, *beside]))


def add_model(project: Project, model: str) -> str:
    """``--model`` made known to the project; the model's id."""
    title, run = checked_model(model)
    return title if run is None else project.add_run(run, title)
