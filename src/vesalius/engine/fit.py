"""The one training loop.

Every update is a function of (weights, seed, stage, step): draws are (``sample``), and torch's generator is seeded anew each step. A
training that was killed and resumed therefore ends in the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import csv
import io
import logging
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.case import Case
from ..core.errors import RunError, UsageError
from ..core.manifest import Manifest
from ..core.method import Clock, Method, Stage
from ..core.plan import Plan
from ..core.prediction import Prediction, Score
from ..inferers.backends import computes
from ..io.atomic import atomic_write_text
from ..methods.learned import LearnedMethod
from . import checkpoint
from .infer import answer
from .prepare import Cache, Prepared, Relabelled, prepare
from .progress import Progress
from .restore import restore
from .sample import Draws, loader

_PATIENCE = 10  # non-finite updates in a row before a training gives up
_VALIDATING = 0.04  # share of a minute budget set aside for validations
_WARM, _TIMED = 10, 40  # of a minute budget: the steps between these two are timed, workers and all, and decide the iterations


@dataclass
class Budget:
    """``iterations`` of the loop, or ``minutes`` of wall time (turned into iterations by timing a copy, once, and recorded)."""

    iterations: int | None = None
    minutes: float | None = None
    patience: int | None = None  # validations without improvement before stopping; the best weights are then used, else the last
    checks: int = 5  # validations
    save_every: float = 60.0  # seconds between checkpoints


class Interrupted(RunError):
    """Ctrl-C or SIGTERM: the checkpoint is on disk."""

    exit_code = 130


class Lender:
    """What any ``core.method.Run`` lends of the cases of a ``manifest``, which ``read`` gives; ``method`` is the one being fitted."""

    manifest: Manifest
    read: Callable[[str], Case]
    method: Method
    seed: int

    def prepared(self, case: str, method: Method | None = None) -> Case:
        """Made anew on every call."""
        method = method or self.method
        return prepare(self.read(case), method.plan, method, training=True)

    def infer(self, method: Method, cases: Iterable[str | Case]) -> Iterable[tuple[Case, Prediction]]:
        for case in cases:
            native = self.read(case) if isinstance(case, str) else case
            yield prepare(native, method.plan, method), answer(method, native, method.plan)[1]

    def open(self, folder: str) -> Method:
        from .runs import open_run

        return open_run(folder, device="cpu").method  # whoever asks moves it

    def folds(self, cases: Sequence[str], k: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        part = self.manifest.only(cases)
        return [(s.train, s.val) for s in (part.split(fold, k, seed=self.seed) for fold in range(k))]


@dataclass
class Training(Lender):
    """Lent to ``Method.fit`` (``core.method.Run``): trains methods in the loop, infers, splits, scores and logs, all in one folder."""

    out: Path
    manifest: Manifest
    plan: Plan
    read: Callable[[str], Case]
    method: Method
    seed: int
    budget: Budget
    device: str
    score_cases: Callable[[Method, Sequence[str]], float]
    score_case: Callable[[Prediction, Case], list[Score]]
    save: Callable[[], None]  # writes run.json
    progress: Progress = field(default_factory=Progress)
    facts: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    share: float = 1.0

    def __post_init__(self):
        self.rng = np.random.default_rng([self.seed, 1])
        self._calls = 0
        self._log = _Log(self.out / "log.csv")

    # what methods ask for
    def fit(self, part: Method, train: Sequence[str], val: Sequence[str], *, share: float = 1.0) -> None:
        outer, self.share = self.share, self.share * share
        try:
            part.fit(train, val, self)
        finally:
            self.share = outer

    def score(self, prediction: Prediction, case: Case) -> list[Score]:
        native = case.native
        return self.score_case(restore(prediction, case.geometry, native.geometry, self.plan.classes), native)

    def log(self, **values: float) -> None:
        self.facts.setdefault("logged", {}).update({k: float(v) for k, v in values.items()})

    def train(
        self,
        method: Method,
        train: Sequence[str],
        val: Sequence[str],
        *,
        name: str = "",
        share: float = 1.0,
        unfold: Callable[[Case], Iterable[Case]] | None = None,
    ) -> None:
        """Optimise a LearnedMethod. ``name`` tells several trainings of one run apart; ``share`` scales the budget; cases that ``unfold``
        are not validated (their scores are another task's)."""
        name = name or ("main" if self._calls == 0 else f"part{self._calls}")
        if not isinstance(method, LearnedMethod):
            raise UsageError("run.train optimises a LearnedMethod", found=type(method).__name__)
        self._calls += 1
        _Loop(self, method, train, [] if unfold else val, name, self.share * share, unfold).run()


class _Loop:
    """One call of ``Training.train``: stages in order, validations, checkpoints."""

    def __init__(
        self,
        run: Training,
        method: LearnedMethod,
        train: Sequence[str],
        val: Sequence[str],
        name: str,
        share: float,
        unfold: Callable[[Case], Iterable[Case]] | None = None,
    ):
        self.run_, self.method, self.train, self.val, self.name, self.share = run, method, list(train), list(val), name, share
        self.unfold = unfold
        self.folder = run.out / "checkpoint"
        self.last, self.best = self.folder / f"{name}.safetensors", self.folder / f"{name}.best.safetensors"
        self.stages: Sequence[Stage] = method.stages()
        self.stage, self.step = 0, 0
        self.best_value, self.stale, self.skipped, self.precision = -math.inf, 0, 0, run.plan.precision
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._stop = False
        self._bad = 0

    def run(self) -> None:
        torch.set_num_threads(self.run_.plan.threads)
        torch.manual_seed(self.run_.seed)
        self.free = {n: p.requires_grad for n, p in self.method.named_parameters()}
        self.fresh = {n: v.clone() for n, v in self.method.state_dict().items()} if any(s.reinit for s in self.stages) else {}
        resumed = self._resume() if self.run_.resume and self.last.exists() else None
        self.cases = self._prepare()
        self._decide()
        with _signals(self):
            while self.stage < len(self.stages):
                self._stage(resumed)
                resumed = None
                self.stage, self.step = self.stage + 1, 0
        self._use_best()
        self.method.eval()

    # one stage
    def _stage(self, tensors: dict | None) -> None:
        stage, run = self.stages[self.stage], self.run_
        method = self.method.to(run.device)
        method.stage = stage
        for name, parameter in method.named_parameters():
            parameter.requires_grad_(self.free[name] and (not stage.trainable or _under(name, stage.trainable)))
        self.optimizers = method.optimizers()
        cases = self._relabelled(stage, fresh=tensors is None and self.stage > 0) if stage.relabel else self.cases
        if tensors is not None:
            checkpoint.load_optimizers(self.optimizers, tensors)
        else:
            if stage.reinit:
                method.load_state_dict({n: v for n, v in self.fresh.items() if _under(n, stage.reinit)}, strict=False)
            self.best_value, self.stale = -math.inf, 0  # the best weights are the last stage's
            self.best.unlink(missing_ok=True)
        rates = {n: [g["lr"] for g in o.param_groups] for n, o in self.optimizers.items()}
        total = max(1, int(round(self.total * stage.share)))
        draws = Draws(cases, method, run.manifest, stage, seed=run.seed, number=self.stage, start=self.step)
        if draws.sampling.views > 1 and all(n <= p for c in cases for n, p in zip(c.image.shape[1:], draws.size, strict=True)):
            run.facts.setdefault("notes", []).append(f"{self.name}: the patch holds whole cases, so the views of a draw are the same crop")
        fabric, module = self._lend()
        saved = time.monotonic()
        title = f"training {self.name}" if len(self.stages) == 1 else f"training {self.name}/{stage.name}"
        recent: list[float] = []
        with run.progress.task(title, total, self.step) as advance:
            for batch in loader(draws, run.plan.workers):
                if self.step >= total:
                    break
                if self.stage == 0 and self.step == _WARM:
                    self.warm = time.monotonic()
                if self.stage == 0 and self.step == _TIMED and self._revise():
                    total = max(1, int(round(self.total * stage.share)))
                    advance(0, total=total)
                method.train()
                clock = Clock(self.step, total, self.step // draws.epoch_length, stage.name)
                _seed(_mix(run.seed, self.stage, self.step))
                for name, optimizer in self.optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                        group["lr"] = rate * method.learning_rate(clock)
                terms, fine = _update(fabric, module, method, self.optimizers, batch.to(run.device), clock)
                method.after_step(clock)
                self.step += 1
                if fine:
                    self._bad = 0
                    recent = [*recent[-19:], terms["loss"]]
                else:
                    fabric, module = self._not_finite(clock, fabric, module)
                if self.step % 10 == 0 or self.step == total:
                    run._log.row(self.name, stage.name, self.step, terms)
                advance(1, f"loss {np.mean(recent):.3f}" if recent else "")
                if self.val and self.step * run.budget.checks // total > (self.step - 1) * run.budget.checks // total:
                    if self._validate(stage):
                        break
                if self._stop or time.monotonic() - saved > run.budget.save_every:
                    self._save()
                    saved = time.monotonic()
                if self._stop:
                    raise Interrupted("interrupted; the checkpoint is saved", where=run.out, fix="continue with --resume")
        self.step = total
        self._save()

    def _not_finite(self, clock: Clock, fabric, module):
        """A loss or gradient that is not finite: the update was skipped; bf16 gives way to fp32; fp32 gives up after a while."""
        self._bad += 1
        self.skipped += 1
        if self.precision != "32" and self._bad >= 3:
            self.precision = "32"
            self.run_.progress.say(f"step {clock.step}: numbers overflowed in bf16; going on in fp32")
            self.run_.facts.setdefault("notes", []).append(
                f"{self.name}: bf16 gave non-finite updates at step {clock.step}, fp32 from there"
            )
            return self._lend()
        if self._bad >= _PATIENCE:
            raise RunError(
                f"the loss is not finite {_PATIENCE} times in a row",
                where=self.run_.out,
                found=f"step {clock.step}",
                fix=f"lower the learning rate (--set lr=...); the last good weights are in {self.last}",
            )
        return fabric, module

    # deciding
    def _prepare(self) -> list[Prepared]:
        cache, cases = Cache(self.run_.manifest, self.method.plan, self.method, self.run_.read, self.unfold), []
        with self.run_.progress.task("preparing cases", len(self.train)) as advance:
            for case in self.train:
                cases += cache.all(case)
                advance(1)
        return cases

    def _relabelled(self, stage: Stage, fresh: bool) -> list[Prepared]:
        """The cases with the labels of this stage, from the weights at its start; a resumed stage keeps those it was started with, and so
        does the first, whose weights are the untrained ones."""
        if self.unfold is not None:
            raise UsageError("a training of unfolded cases cannot relabel them", where=self.name, found=f"stage '{stage.name}'")
        folder = self.folder / f"{self.name}.{self.stage}.labels"
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        self.method.eval()
        out = []
        with torch.no_grad(), self.run_.progress.task(f"relabelling for {stage.name}", len(self.cases)) as advance:
            for i, known in enumerate(self.cases):
                own = folder / str(i)
                if not (own / "facts.json").exists():
                    _seed(_mix(self.run_.seed, self.stage, 77, i))
                    case = self.run_.prepared(known.facts["of"], self.method)
                    case = stage.relabel(case, np.random.default_rng([self.run_.seed, self.stage, 77, i]))
                    Relabelled.make(known, case, self.method.plan, own)
                out.append(Relabelled(known.folder, own))
                advance(1)
        return out

    def _decide(self) -> None:
        """Iterations and precision, from the budget and a timing of a copy; recorded, so that a resumed run does not decide anew."""
        run, key = self.run_, f"budget.{self.name}"
        if key not in run.facts:
            iterations = run.budget.iterations or run.plan.iterations
            precision, seconds, why = _calibrate(self, timed=run.budget.minutes is not None)
            if run.budget.minutes is not None:
                iterations = run.budget.minutes * 60 / seconds
            iterations = max(1, int(round(iterations * self.share)))
            run.facts[key] = {"iterations": iterations, "first": iterations, "precision": precision, "why": why}
            run.save()
        before = self.stage == 0 and self.step < _TIMED  # a resumed run follows the same numbers at the same steps
        self.total = run.facts[key]["first" if before else "iterations"]
        if self.precision == "auto":
            self.precision = run.facts[key]["precision"]
        self.start, self.warm = time.monotonic(), None

    def _revise(self) -> bool:
        """Of a minute budget: the iterations that fit, from the steps just timed. Decided once; a resumed run keeps the number."""
        facts, minutes = self.run_.facts[f"budget.{self.name}"], self.run_.budget.minutes
        if facts.get("revised"):
            self.total = facts["iterations"]
            return True
        if minutes is None or self.warm is None:
            return False
        now = time.monotonic()
        each, left = (now - self.warm) / (_TIMED - _WARM), minutes * 60 * self.share - (now - self.start)
        if self.val:
            left *= 1 - _VALIDATING
        facts["iterations"] = self.total = _TIMED + max(1, int(left / each))
        facts["revised"] = True
        self.run_.save()
        return True

    def _lend(self):
        """The method wrapped by Lightning Fabric for this device and precision."""
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which precision was chosen stands in run.json
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accelerator = "cuda" if self.run_.device.startswith("cuda") else "cpu"
            fabric = Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if self.precision == "bf16" else "32-true")
            module = fabric.setup_module(self.method, move_to_device=False)
            module.mark_forward_method("losses")
        return fabric, module

    # validating, saving
    def _validate(self, stage: Stage) -> bool:
        """True when training should stop early. With a patience, the best weights so far are kept on disk."""
        self.method.eval()
        value = self.run_.score_cases(self.method, self.val)
        self.run_._log.row(self.name, stage.name, self.step, {"val_dsc": value})
        self.run_.facts[f"val_dsc.{self.name}"] = value
        if self.run_.budget.patience is None:
            return False
        if math.isfinite(value) and value > self.best_value:
            self.best_value, self.stale = value, 0
            tensors, facts = checkpoint.method_tensors(self.method)
            checkpoint.write(self.best, tensors, {"facts": facts, "step": self.step, "value": value})
        else:
            self.stale += 1
        return self.stale >= self.run_.budget.patience

    def _save(self) -> None:
        tensors, facts = checkpoint.method_tensors(self.method)
        record = {
            "facts": facts,
            "stage": self.stage,
            "step": self.step,
            "best": self.best_value if math.isfinite(self.best_value) else None,
            "stale": self.stale,
            "skipped": self.skipped,
            "precision": self.precision,
            "bad": self._bad,
        }
        checkpoint.write(self.last, {**tensors, **checkpoint.optimizer_tensors(self.optimizers)}, record)

    def _resume(self) -> dict:
        tensors, record = checkpoint.read(self.last)
        checkpoint.load_method(self.method, tensors, record["facts"], self.last)
        self.stage, self.step, self.stale, self.skipped = record["stage"], record["step"], record["stale"], record["skipped"]
        self.best_value = -math.inf if record["best"] is None else record["best"]
        self.precision, self._bad = record["precision"], record["bad"]
        self.run_._log.trim(self.name, self.stages[self.stage].name, self.step)
        self.run_.progress.say(f"resuming {self.name} at step {self.step}")
        return tensors

    def _use_best(self) -> None:
        if self.run_.budget.patience is not None and self.best.exists():
            tensors, record = checkpoint.read(self.best)
            checkpoint.load_method(self.method, tensors, record["facts"], self.best)
            self.run_.facts[f"best.{self.name}"] = {"step": record["step"], "val_dsc": record["value"]}
        if self.skipped:
            self.run_.facts.setdefault("notes", []).append(f"{self.name}: {self.skipped} updates with non-finite numbers were skipped")


def _update(fabric, module, method: LearnedMethod, optimizers: dict, batch, clock: Clock) -> tuple[dict[str, float], bool]:
    """All turns of one iteration: the terms' values, and whether every loss and gradient was finite (a turn that was not is skipped)."""
    values: dict[str, float] = {}
    fine = True
    for turn in method.turns(clock):
        optimizer = optimizers.get(turn, optimizers.get("main"))
        for o in optimizers.values():
            o.zero_grad(set_to_none=True)
        with fabric.autocast():
            terms = module.losses(batch, clock, turn)
            loss = sum(terms.values())
        values.update({k: float(v.detach()) for k, v in terms.items()})
        values["loss"] = values.get("loss", 0.0) + float(loss.detach())
        if not math.isfinite(values["loss"]):
            fine = False
            continue
        fabric.backward(loss)
        held = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(held, method.clip) if held else torch.zeros(())
        if not torch.isfinite(norm):
            fine = False
            continue
        optimizer.step()
    return values, fine


def _calibrate(loop: _Loop, timed: bool) -> tuple[str, float, str]:
    """(precision, seconds per step, why): a copy of the method takes a few steps in fp32 and, where the processor has it, in bf16, which is
    taken when its losses stay within 5 % of fp32's and it is at least 1.15 times as fast."""
    run, method = loop.run_, loop.method
    wanted = run.plan.precision
    candidates = [wanted] if wanted != "auto" else ["32", *(["bf16"] if _has_bf16(run.device) else [])]
    if not timed and len(candidates) == 1:
        return candidates[0], 0.0, "as planned"
    first = loop.stages[0]
    cases = loop._relabelled(first, fresh=False) if first.relabel else loop.cases
    draws = Draws(cases, method, run.manifest, first, seed=run.seed, number=999, start=0)
    tick = time.perf_counter()
    batches = [draws[i] for i in range(5)]
    load = (time.perf_counter() - tick) / 5
    copies = {}
    for precision in candidates:
        torch.manual_seed(run.seed)
        copied = _Loop(run, copy.deepcopy(method).to(run.device), [], [], "calibration", 1.0)
        copied.precision = precision
        copies[precision] = copied.method.train(), copied.method.optimizers(), *copied._lend()
    seconds, losses = ({precision: [] for precision in candidates} for _ in range(2))
    for i, batch in enumerate(batches):
        for precision in candidates[:: -1 if i % 2 else 1]:  # in turns: other work on the machine slows both
            copied, optimizers, fabric, module = copies[precision]
            _seed(_mix(run.seed, 99, i))
            tick = time.perf_counter()
            terms, fine = _update(fabric, module, copied, optimizers, batch.to(run.device), Clock(i, 1000))
            copied.after_step(Clock(i, 1000))
            seconds[precision].append(time.perf_counter() - tick)
            losses[precision].append(terms["loss"] if fine else math.nan)
    step = {precision: float(np.median(of[1:])) for precision, of in seconds.items()}
    chosen, why = candidates[0], f"{step[candidates[0]]:.3f} s a step"
    if len(candidates) == 2:
        faster = float(np.median([slow / fast for slow, fast in zip(*seconds.values(), strict=True)][1:]))
        off = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(*losses.values(), strict=True))
        if math.isfinite(off) and off < 0.05 and faster > 1.15:
            chosen = "bf16"
        why = f"bf16 {faster:.2f} times as fast as fp32, losses within {100 * off:.1f} %: {chosen} chosen"
    cores = max(1, run.plan.threads)
    return chosen, step[chosen] + load / cores, why


def _has_bf16(device: str) -> bool:
    return torch.cuda.is_bf16_supported() if device.startswith("cuda") else computes("bf16")


def _under(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _seed(seed: int) -> None:
    """``torch.manual_seed`` without a stack trace for every accelerator that is not there, at every step."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _signals:
    """While training, the first Ctrl-C or SIGTERM asks the loop to save and stop; a second Ctrl-C stops at once."""

    def __init__(self, loop: _Loop):
        self.loop, self.old = loop, {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _frame: object) -> None:
            if self.loop._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.loop._stop = True

        for s in (signal.SIGINT, signal.SIGTERM):
            self.old[s] = signal.signal(s, ask)

    def __exit__(self, *_: object) -> None:
        for s, handler in self.old.items():
            signal.signal(s, handler)


class _Log:
    """log.csv: name, stage, step, term, value; rows after a resume point are dropped."""

    def __init__(self, path: Path):
        self.path = path

    def row(self, name: str, stage: str, step: int, terms: dict[str, float]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(["name", "stage", "step", "term", "value"])
            writer.writerows([name, stage, step, k, f"{v:.6g}"] for k, v in terms.items())

    def trim(self, name: str, stage: str, step: int) -> None:
        if not self.path.exists():
            return
        with self.path.open(newline="") as f:
            rows = list(csv.reader(f))
        keep = [r for r in rows[1:] if len(r) == 5 and not (r[0] == name and r[1] == stage and int(r[2]) > step)]
        text = io.StringIO()
        csv.writer(text).writerows([*rows[:1], *keep])
        atomic_write_text(self.path, text.getvalue())
