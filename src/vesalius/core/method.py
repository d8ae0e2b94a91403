"""What the engine needs from any method, and what it gives: three verbs (fit, predict, state) and the data that steer the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .case import Case
from .manifest import Manifest
from .plan import Plan
from .prediction import Prediction, Score
from .prompt import Prompt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Clock:
    """Where training stands. Ramps use ``fraction``, so they scale when a budget is cut."""

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
    """One rule for drawing cases: ``where`` chooses them ('labelled', 'unlabelled', 'all', or a predicate of the CaseRef)."""

    name: str
    size: int
    where: str | Callable[[Any], bool] = "labelled"


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn from prepared cases. DATA: the engine does it.

    unit: patch | slice | tile | case | pair | episode; ``streams``: the first is the batch itself (empty: one stream of ``plan.batch``
    labelled cases); ``views``: crops per case and draw, whose overlap along each axis is at least ``overlap`` of the patch;
    ``spatial``: 'full' (affine, elastic, mirror) | 'exact' (mirror and quarter turns: no interpolation) | 'none'. In 'exact' mode all
    views of a draw share one turn, so their overlap is a box in both. ``foreground``: share of patches centred on a foreground voxel
    (None: the plan's).
    """

    unit: str = "patch"
    streams: tuple[Stream, ...] = ()
    views: int = 1
    overlap: float = 0.25
    spatial: str = "full"
    foreground: float | None = None
    size: tuple[int, ...] | None = None
    balance: str = ""


@dataclass(frozen=True)
class Stage:
    """One run of the loop. ``share`` of the iteration budget; ``trainable`` and ``init`` name submodules; ``relabel`` makes the labels the
    stage trains on (Case -> Case) from what the method has learnt so far. Repeated stages are rounds."""

    name: str = "main"
    share: float = 1.0
    trainable: tuple[str, ...] = ()
    reinit: tuple[str, ...] = ()
    relabel: Callable[[Case], Case] | None = None


@dataclass(frozen=True)
class Derived:
    """A target computed from a whole case: ``data`` (K, *spatial) float32, ``fill`` outside the case."""

    data: np.ndarray
    fill: float = 0.0


class Run(Protocol):
    """What the engine lends to ``Method.fit``, so that cascades, out-of-fold training and per-case optimisation need no second loop."""

    rng: np.random.Generator

    def train(self, method: Method, train: Sequence[str], val: Sequence[str], **budget: Any) -> None:
        """Optimise a LearnedMethod in the engine's loop."""

    def infer(self, method: Method, cases: Sequence[str]) -> Iterable[tuple[Case, Prediction]]:
        """Predictions on prepared grids, with the prepared cases."""

    def prepared(self, case: str) -> Case:
        """A case on the plan's grid, from the cache."""

    def folds(self, cases: Sequence[str], k: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """k patient-wise (train, held-out) pairs."""

    def score(self, prediction: Prediction, case: Case) -> list[Score]:
        """The comparison's metrics."""

    def log(self, **values: float) -> None:
        """Into the run's log."""


class Method(ABC):
    """A published method. Options are keyword-only, annotated, at the paper's defaults; unknown ones are refused by the catalogue."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None):
        super().__init__()
        self.plan, self.manifest, self.part_methods = plan, manifest, dict(parts or {})

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> Method:
        """Learn from the cases named; classical methods learn nothing."""
        return self

    @abstractmethod
    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """Answer for one prepared case (no labels in it), on its prepared grid."""

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """What was learnt, as named arrays (safetensors) and JSON facts."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        """The inverse of ``state``."""

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """Extra channels and points from the whole case BEFORE normalisation (native intensities); cached in training."""
        return case


@dataclass(frozen=True)
class Condition:
    """What a forward pass is told beside the image, once per case and the same for all windows: embeddings, latent, noise seed."""

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int = 0
