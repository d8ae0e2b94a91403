"""Searching options: at random, or by a tree-structured Parzen estimator (TPE; Bergstra et al., NIPS 2011).

After a random start the estimator splits the trials into a good and a poor part, models each option's density in both, and tries next what
is likelier among the good. The estimator is Optuna's (``pip install optuna``); without it a search is random and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from ..core.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, evenly or evenly in their logarithm; ``whole`` numbers where asked."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, rng: np.random.Generator) -> float | int:
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        low = max(low, 0.51) if self.whole and self.log else low
        value = np.exp(rng.uniform(np.log(low), np.log(high))) if self.log else rng.uniform(low, high)
        return int(np.clip(np.rint(value), self.low, self.high)) if self.whole else float(np.clip(value, self.low, self.high))


Space = Mapping[str, Range | Sequence[Any]]  # a sequence: one of these


@dataclass(frozen=True)
class Trial:
    options: Mapping[str, Any]
    value: float


@dataclass(frozen=True)
class Sweep:
    """The trials in order; higher values are better."""

    trials: tuple[Trial, ...]
    by: str

    @property
    def best(self) -> Trial:
        """The first of the best."""
        return max(self.trials, key=lambda t: t.value)

    @property
    def curve(self) -> list[float]:
        """The best value so far, after each trial."""
        return np.maximum.accumulate([t.value for t in self.trials]).tolist()


def sweep(
    objective: Callable[[Mapping[str, Any]], float],
    space: Space,
    *,
    trials: int,
    by: Literal["tpe", "random"] = "tpe",
    startup: int = 10,
    seed: int = 0,
    first: Mapping[str, Any] | None = None,
) -> Sweep:
    """Evaluate ``trials`` choices of options; higher is better. ``first``: tried before all others (the defaults). The ``startup`` trials
    of 'tpe' are the ones 'random' takes, so that with ``startup`` >= ``trials`` both are the same; the same seed gives the same trials.
    ``by`` of the result is 'random' where Optuna is not installed. Raises UsageError without a trial or an option."""
    if trials < 1 or not space:
        raise UsageError("a search takes a trial and an option at least", where="trials", found=(trials, list(space)))
    rng = np.random.default_rng([seed, 41])
    study = _Parzen(space, startup, seed) if by == "tpe" and find_spec("optuna") else None
    done: list[Trial] = []
    for n in range(trials):
        if n == 0 and first is not None:
            options = dict(first)
        elif study is None or n < startup:
            options = {k: r.draw(rng) if isinstance(r, Range) else r[int(rng.integers(len(r)))] for k, r in space.items()}
        else:
            options = study.ask()
        done.append(Trial(options, float(objective(options))))
        if study is not None:
            study.tell(done[-1])
    return Sweep(tuple(done), "tpe" if study is not None else "random")


class _Parzen:
    """Optuna's sampler, told every trial."""

    def __init__(self, space: Space, startup: int, seed: int):
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        def of(r: Range | Sequence[Any]) -> Any:
            if not isinstance(r, Range):
                return CategoricalDistribution(list(r))
            return IntDistribution(int(r.low), int(r.high), log=r.log) if r.whole else FloatDistribution(r.low, r.high, log=r.log)

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.space = optuna, {k: of(r) for k, r in space.items()}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(1, startup))
        self.study, self.asked = optuna.create_study(direction="maximize", sampler=sampler), None

    def ask(self) -> dict[str, Any]:
        self.asked = self.study.ask(self.space)
        return dict(self.asked.params)

    def tell(self, trial: Trial) -> None:
        if self.asked is not None:
            self.study.tell(self.asked, trial.value)
            self.asked = None
            return
        known = {k: v for k, v in trial.options.items() if k in self.space}
        frozen = self.optuna.trial.create_trial(params=known, distributions={k: self.space[k] for k in known}, value=trial.value)
        self.study.add_trial(frozen)
