"""What the annotator's jobs do: run a model, carry a mask on, train, export. Each takes a ``Job`` it tells its progress to."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import io
from ..core.case import Case, Image
from ..core.errors import DataError, UsageError, VesaliusError
from ..core.prediction import Prediction
from ..engine.doubt import doubt_of
from ..engine.embeddings import Embeddings
from ..engine.infer import infer
from . import active, export
from .images import Images
from .jobs import Job, train_apart
from .labels import values_of
from .models import Models
from .records import Conflict, Entry, Version
from .sessions import Prompted, Sessions, carry, propagate
from .store import Project
from .wire import encode

MOST_SCORED = 32  # open cases that a new model is asked about


@dataclass
class Desk:
    """A project with what works on it; ``trained`` is told of every new model."""

    project: Project
    models: Models
    sessions: Sessions
    pictures: active.Pictures = field(default_factory=active.Pictures)
    answering: threading.Lock = field(default_factory=threading.Lock)  # one answer at a time: memory
    trained: Callable[[str], None] = lambda model: None
    images: Images = field(init=False)

    def __post_init__(self):
        self.images = Images(self.project, self.pictures)

    def run(self, job: Job, case: str, model: str, user: str) -> dict:
        """A model's own answer as a new version; of an untouched case it is the draft to start from. The result names the version."""
        if self.models.get(model).kinds:
            raise UsageError("this model answers to prompts", found=model, fix="start a session with it")
        job.say(0.05, "reading")
        image, parent = self.project.read(case), self.project.entry(case).head
        job.say(0.2, "predicting")
        answer, doubt = self._answer(case, image, model)
        if answer.label is None:
            raise DataError("this model gives no masks")
        job.say(0.9, "saving")
        kept = self.keep(case, values_of(answer.label, self.project.labels), parent, user, {"kind": "model", "model": model})
        if doubt is not None:
            percent = encode((100 * doubt.data).round().astype(np.uint8), doubt.geometry)
            io.atomic_write_bytes(self.project.folder / "doubt" / case / f"{kept['version']}.nii.gz", percent)
        return kept

    def _answer(self, case: str, image: Case, model: str) -> tuple[Prediction, Image | None]:
        """A model's own answer and its doubt, which says how much is to be learnt from the case."""
        loaded = self.models.load(model, image)
        with self.answering:
            answer = infer(loaded.method, image, loaded.plan, probability=True)
        doubt = doubt_of(answer)
        if doubt is not None:
            self.project.set_priority(case, active.overall(doubt.data))
        return answer, doubt

    def score(self, job: Job, model: str) -> dict:
        """How unsure a model is of the first cases that are open. The result says of how many."""
        if self.models.get(model).kinds:
            return {"cases": 0}
        left = [e for e in self.project.entries() if e.status in ("todo", "draft")][:MOST_SCORED]
        scored = 0
        for k, entry in enumerate(left):
            job.say(k / len(left), "looking at open cases")
            try:
                _, doubt = self._answer(entry.id, self.project.read(entry.id), model)
            except VesaliusError:  # of one case, which whoever opens it is told
                continue
            scored += doubt is not None
        return {"cases": scored}

    def keep(self, case: str, mask: np.ndarray, parent: str | None, user: str, origin: Mapping[str, Any]) -> dict:
        """Save what a job made; where somebody saved meanwhile it stands beside theirs."""
        try:
            version: Version = self.project.save(case, mask, parent, user=user, origin=origin)
            return {"version": version.id, "conflict": False}
        except Conflict as beside:
            return {"version": beside.yours, "conflict": True}

    def propagate(
        self, job: Job, case: str, model: str, object: str, version: str | None, start: int, axis: int, user: str, window: Any = None
    ) -> dict:
        """One structure carried on from its mask in slice ``start``; other structures keep their voxels. ``window``: of grey values, for
        models that see the image through one (None: that of the newest session)."""
        image = self.project.read(case)
        if image.geometry.ndim != 3 or axis not in (0, 1, 2) or not 0 <= start < image.geometry.shape[axis]:
            raise UsageError("there is no such slice", found=f"axis {axis}, slice {start}")
        value = self.value_of(object)
        mask = self.project.mask(case, version)
        carrier = self.models.carrier(model, image)
        if carrier is not None:
            new = carry(carrier, image, mask == value, start, axis, job.say)
        else:
            window = window or self.sessions.window_of(case, model)
            session = Prompted(secrets.token_hex(8), image, case, model, self.models.load(model, image), window, Embeddings(0))
            new = propagate(session, mask == value, start, axis, job.say)
        out = np.where(new & (mask == 0), value, mask)
        parent = version or self.project.entry(case).head
        return self.keep(case, out, parent, user, {"kind": "propagated", "model": model, "from": start, "axis": axis})

    def value_of(self, label: str) -> int:
        for known in self.project.labels:
            if known.name == label:
                return known.value
        raise UsageError("there is no such label", found=label[:100], allowed=", ".join(x.name for x in self.project.labels))

    def export(self, job: Job, format: str, entries: Sequence[Entry]) -> dict:
        """The archive becomes the job's file."""
        folder = self.project.folder / "exports" / f"{format}-{secrets.token_hex(4)}"
        job.file = export.export(self.project, format, entries, folder, job.say)
        return {"cases": sum(e.head is not None for e in entries), "bytes": job.file.stat().st_size}

    def train(self, job: Job, method: str, minutes: float | None, iterations: int | None, options: Mapping[str, Any] | None) -> dict:
        """Train on the cases that are done, in a process of its own; the run becomes a model of the project. The result names both."""
        done = [e for e in self.project.entries() if e.status in ("done", "reviewed") and e.head is not None]
        if not done:
            raise DataError("no case is done yet", fix="mark the cases that the model may learn from as done")
        name = f"{method}-{secrets.token_hex(4)}"
        data, out = self.project.folder / "datasets" / name, self.project.folder / "runs" / name
        try:
            export.as_dataset(self.project, done, data, lambda share, text: job.say(0.1 * share, text))
            request = {"method": method, "data": str(data), "out": str(out), "minutes": minutes, "iterations": iterations}
            job.say(0.1, "training")
            result = train_apart(_Part(job, 0.1), {**request, "options": dict(options or {})})
        finally:
            shutil.rmtree(data, ignore_errors=True)  # the project has it all
        model = self.project.add_run(out, f"{method}, {len(done)} cases")
        self.trained(model)
        return {"model": model, "cases": len(done), **result}


class _Part:
    """A job seen from a step that makes up its rest, from ``low`` on."""

    def __init__(self, job: Job, low: float):
        self.job, self.low, self.stop = job, low, job.stop

    def say(self, fraction: float, text: str = "") -> None:
        self.job.say(self.low + (1 - self.low) * fraction, text)
