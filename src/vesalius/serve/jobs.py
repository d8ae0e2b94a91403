"""Background jobs with progress, a result and a way to stop: one at a time of those that a person waits for, and beside them one at a time
of those that take long. Training runs in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ResourceError, RunError, UsageError, VesaliusError
from ..engine.progress import Progress
from .records import Missing
from .security import log

MOST_JOBS = 200  # that are remembered
MOST_WAITING = 50
LONG = ("train", "score")  # kinds of jobs that nobody waits for


class Cancelled(Exception):
    """Somebody stopped the job."""


@dataclass
class Job:
    """``state``: queued, running, done, failed or cancelled; ``result`` is what the kind of job gives, ``file`` what can be fetched."""

    id: str
    kind: str
    state: str = "queued"
    fraction: float = 0.0
    text: str = ""
    result: Any = None
    file: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    changed: Callable[[Job], None] = lambda job: None

    def say(self, fraction: float, text: str = "") -> None:
        """Progress. Raises Cancelled where the job was stopped."""
        if self.stop.is_set():
            raise Cancelled
        self.fraction, self.text = min(1.0, max(0.0, float(fraction))), text or self.text
        self.changed(self)

    def to_json(self) -> dict:
        record = {k: getattr(self, k) for k in ("id", "kind", "state", "fraction", "text", "result")}
        return record | {"file": self.file is not None and self.state == "done"}


class Jobs:
    """``publish(job)`` is told of every change."""

    def __init__(self, publish: Callable[[Job], None] = lambda job: None):
        self.publish, self.held, self.lock = publish, OrderedDict(), threading.Lock()
        self.pool, self.long = ThreadPoolExecutor(1, "job"), ThreadPoolExecutor(1, "long job")

    def start(self, kind: str, work: Callable[[Job], Any]) -> Job:
        """Queue ``work``, whose return value becomes the result. Raises UsageError where too much is waiting."""
        job = Job(secrets.token_hex(6), kind, changed=self.publish)
        with self.lock:
            if sum(j.state in ("queued", "running") for j in self.held.values()) >= MOST_WAITING:
                raise UsageError("too many jobs are waiting", fix="cancel some, or try again later")
            self.held[job.id] = job
            while len(self.held) > MOST_JOBS:
                self.held.pop(next(k for k, j in self.held.items() if j.state not in ("queued", "running")))
        (self.long if kind in LONG else self.pool).submit(self._run, job, work)
        self.publish(job)
        return job

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        try:
            job.state = "running"
            job.say(0.0)
            job.result = work(job)
            job.state, job.fraction = "done", 1.0
        except Cancelled:
            job.state = "cancelled"
        except VesaliusError as error:
            job.state, job.text = "failed", sentence(error)
        except MemoryError:
            job.state, job.text = "failed", "There is not enough memory for this."
        except Exception as error:  # noqa: BLE001 - a job never takes the server with it
            log.error("a %s job failed: %s", job.kind, type(error).__name__, exc_info=bool(os.environ.get("VESALIUS_DEBUG")))
            job.state, job.text = "failed", f"This should not have happened: {type(error).__name__}."
        self.publish(job)

    def list(self) -> list[Job]:
        """The newest first."""
        with self.lock:
            return list(reversed(self.held.values()))

    def get(self, id: str) -> Job:
        with self.lock:
            if id not in self.held:
                raise Missing("there is no such job", fix="jobs are forgotten when the server is started anew; what they saved stays")
            return self.held[id]

    def cancel(self, id: str) -> Job:
        """Stop a job at its next step; one that waits does not start."""
        job = self.get(id)
        job.stop.set()
        return job

    def close(self) -> None:
        for job in self.list():
            job.stop.set()
        for pool in (self.pool, self.long):
            pool.shutdown(wait=False, cancel_futures=True)


def sentence(error: VesaliusError) -> str:
    """What is wrong, without the paths of the machine it happened on."""
    parts = [error.what]
    parts += [f"found {error.found}"] if error.found is not None else []
    parts += [f"allowed: {error.allowed}"] if error.allowed is not None else []
    text = "; ".join(parts)
    return text if text.endswith((".", "?", "!")) else text + "."


class Reported(Progress):
    """The engine's progress as fractions and texts: ``tell(fraction, text)``."""

    def __init__(self, tell: Callable[[float, str], None]):
        super().__init__(quiet=True)
        self.tell, self.fraction = tell, 0.0

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator:
        state = {"n": done, "of": max(1, total)}

        def advance(n: int = 1, text: str = "", total: int | None = None) -> None:
            state["n"] += n
            state["of"] = total or state["of"]
            self.fraction = min(1.0, state["n"] / state["of"])
            self.tell(self.fraction, f"{name} {text}".strip())

        yield advance

    def say(self, text: str) -> None:
        self.tell(self.fraction, text)


def train_apart(job: Job, request: Mapping[str, Any]) -> dict:
    """Train in another process (``training``) and return what it says at the end; stopping the job stops it after its checkpoint.

    ``request``: method, data, out, minutes, iterations, options. Raises RunError with the process's own sentence where it fails."""
    command = [sys.executable, "-m", "vesalius.serve.training"]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError as error:
        raise ResourceError("the training could not be started", found=error.strerror) from error
    watch = threading.Thread(target=_stop_with, args=(job, process), daemon=True)
    try:
        process.stdin.write(json.dumps(dict(request)))
        process.stdin.close()
        watch.start()
        last: dict = {}
        for line in process.stdout:
            with suppress(ValueError):
                last = json.loads(line)
                if "fraction" in last:
                    job.say(last["fraction"], last["text"])
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
    if job.stop.is_set():
        raise Cancelled
    if code or "done" not in last:
        raise RunError(last.get("error", "the training stopped"), found=None if "error" in last else f"exit code {code}")
    return last["done"]


def _stop_with(job: Job, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if job.stop.wait(0.2):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            return
