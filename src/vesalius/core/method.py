"""What the engine needs from any method, and what it gives: three verbs (fit, predict, state) and the data that steer the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .case import Case
from .geometry import Grid
from .manifest import Manifest
from .plan import Plan
from .prediction import Prediction, Score
from .prompt import Prompt


@dataclass(frozen=True)
class Clock:
    """Where the stage stands: ``step`` of ``total`` steps (a step is one pass over the turns).
    Ramps use ``fraction``, so they scale when a budget is cut."""

    step: int
    total: int
    epoch: int = 0
    stage: str = "main"

    @property
    def fraction(self) -> float:
        """0 at the first step, 1 at the end."""
        return min(1.0, self.step / max(1, self.total))


@dataclass(frozen=True)
class Stream:
    """One rule for drawing cases: ``where`` chooses them ('labelled', 'unlabelled', 'all', or a predicate of the CaseRef);
    ``centre``: the classes its patches are centred on (empty: by ``Sampling.foreground``; (0,): on background)."""

    name: str
    size: int
    where: str | Callable[[Any], bool] = "labelled"
    centre: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn from prepared cases. DATA: the engine does it.

    ``unit``: 'patch' | 'case' (the whole prepared case, centred in the patch; also cases without an image) | 'pair' (a case and, as the
    only view, another one of the same stream: one that the manifest pairs it with, if it declares pairs; with ``world`` it is read where
    the first one's voxels lie in the world, else in its own middle).
    ``query``: each draw is about one of the case's expressions (``Sample.query``), whose
    target is the label map 'query'; cases without one are not drawn. ``streams``: the first is the batch itself (empty: one stream of
    ``plan.batch`` labelled cases); ``views``: crops per case and draw, whose overlap along each axis is at least ``overlap`` of the patch;
    ``spatial``: 'full' (affine, elastic, mirror) | 'exact' (mirror and quarter turns: no interpolation) | 'none'. In 'exact' mode all
    views of a draw share one turn, so their overlap is a box in both. ``foreground``: share of patches centred on a foreground voxel
    (None: the plan's); ``size``: patch, voxels (None: the plan's).
    """

    unit: Literal["patch", "case", "pair"] = "patch"
    world: bool = False
    query: bool = False
    streams: tuple[Stream, ...] = ()
    views: int = 1
    overlap: float = 0.25
    spatial: str = "full"
    foreground: float | None = None
    size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Stage:
    """One run of the loop. ``share`` of the iteration budget; ``trainable`` (empty: all) and ``reinit`` (set back to their weights before
    the first step) name submodules. ``relabel`` gives each prepared training case the labels it has in this stage (a Case with other
    ``labels``; called once per case, in eval mode, without gradients). Repeated stages are rounds."""

    name: str = "main"
    share: float = 1.0
    trainable: tuple[str, ...] = ()
    reinit: tuple[str, ...] = ()
    relabel: Callable[[Case, np.random.Generator], Case] | None = None


@dataclass(frozen=True)
class Derived:
    """A target computed from a whole case: ``data`` (K, *spatial) float32, ``fill`` outside the case."""

    data: np.ndarray
    fill: float = 0.0


class Run(Protocol):
    """What the engine lends to ``Method.fit``, so that cascades, out-of-fold training and per-case optimisation need no second loop."""

    rng: np.random.Generator

    def fit(self, part: Method, train: Sequence[str], val: Sequence[str], *, share: float = 1.0) -> None:
        """The part's own ``fit`` under ``share`` of this run's iterations (nested shares multiply). An audit, which wraps methods around a
        finished run, leaves its parts as they are."""

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
        """Optimise a LearnedMethod in the engine's loop, for ``share`` of the run's iterations; ``name`` its log and checkpoint.
        ``unfold``: before preparation, one original case becomes the cases trained on (two views, the sentences of a report); a named
        function, by whose name prepared cases are cached."""

    def infer(self, method: Method, cases: Iterable[str | Case]) -> Iterable[tuple[Case, Prediction]]:
        """Predictions on the method's prepared grid, with the prepared cases, labels included. Cases are ids or original cases."""

    def prepared(self, case: str, method: Method | None = None) -> Case:
        """A case as prepared for the method (default: the one being fitted), labels included, from the cache."""

    def open(self, folder: str) -> Method:
        """The method of a finished run (a teacher), ready to predict. Raises RunError."""

    def folds(self, cases: Sequence[str], k: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """k patient-wise (train, held-out) pairs."""

    def score(self, prediction: Prediction, case: Case) -> list[Score]:
        """The comparison's metrics; prediction and case are restored to the original grid first."""

    def log(self, **values: float) -> None:
        """Into the run's log."""


class Method(ABC):
    """A published method. Options are keyword-only, annotated, at the paper's defaults; unknown ones are refused by the catalogue.

    ``parts`` are the methods it is made of, given or built by itself; a case as prepared for a part is ``case.at(name)``.
    ``derived`` names the images ``derive`` adds; they follow the plan's channels. Cases are prepared by ``self.plan``.
    ``unit``: whether ``predict`` is handed a case, or a 'pair' (``Case.pair``, each side prepared by itself) to answer with a displacement.
    """

    derived: tuple[str, ...] = ()
    unit: Literal["case", "pair"] = "case"

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None):
        super().__init__()
        self.plan, self.manifest, self.parts = plan, manifest, dict(parts or {})

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> Method:
        """Learn from the cases named; classical methods learn nothing."""
        return self

    @abstractmethod
    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """Answer for one prepared case (no labels in it), on its prepared grid."""

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """What was learnt, as named arrays (safetensors) and JSON facts; a part's under 'parts.<name>.' and facts['parts'][name]."""
        tensors, facts = {}, {}
        for name, part in self.parts.items():
            arrays, facts[name] = part.state()
            tensors |= {f"parts.{name}.{k}": v for k, v in arrays.items()}
        return tensors, {"parts": facts} if facts else {}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        """The inverse of ``state``."""
        for name, part in self.parts.items():
            head = f"parts.{name}."
            part.load_state({k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}, facts["parts"][name])

    def grids(self) -> Mapping[str, Grid]:
        """Further grids ``predict`` reads the same case on, by the name for ``case.at``."""
        return {}

    @property
    def preparation(self) -> str:
        """What ``derive`` and ``targets`` depend on beside the case (options, a part's weights): prepared cases are cached by it."""
        return ""

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """Extra channels and points from the whole case BEFORE normalisation (native intensities); cached in training."""
        return case
