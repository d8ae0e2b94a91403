"""Who judges a run's answers: wrappers around the trained method, fitted on its training cases or taken from its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog
from ..core.case import Case
from ..core.errors import DataError, RunError, UsageError
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.prediction import Prediction, Score
from ..datasets import open_dataset
from . import checkpoint
from .api import hide_labels
from .fit import Lender
from .progress import Progress
from .runs import Trained, reader

JUDGES = ("ood-knn", "chexmask")  # each wraps the one before; a judge that cannot look at this method is left out and named


@dataclass(frozen=True)
class Judge:
    """A fitted wrapper, its ``slug``, and the distances of ``known`` cases where it has such."""

    slug: str
    method: Method
    known: np.ndarray


class Lent(Lender):
    """A ``core.method.Run`` for wrappers around a trained method: cases and folds, and nothing is trained."""

    def __init__(self, manifest: Manifest, method: Method, seed: int):
        self.manifest, self.method, self.seed = manifest, method, seed
        self.rng, self.read = np.random.default_rng([seed, 1]), reader(manifest)

    def fit(self, part: Method, train: Sequence[str], val: Sequence[str], *, share: float = 1.0) -> None:
        """Nothing: the part came trained."""

    def train(self, method: Method, train: Sequence[str], val: Sequence[str], **how: Any) -> None:
        raise UsageError("an audit trains nothing", where=type(method).__name__)

    def score(self, prediction: Prediction, case: Case) -> list[Score]:
        raise UsageError("an audit's wrappers are not scored while they are fitted")

    def log(self, **values: float) -> None:
        """An audit keeps no log."""


def judges_of(
    trained: Trained, known: str | Path | Manifest, options: Mapping, notes: list[str], seed: int, progress: Progress
) -> list[Judge]:
    """Each judge wrapped around the last, from the run's folder or fitted on the training cases."""
    out: list[Judge] = []
    method, manifest = trained.method, None
    weights = trained.folder / "method.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else ""
    for slug in JUDGES:
        chosen = catalog.coerce(slug, options.get(slug, {}))
        path = trained.folder / "audit" / f"{slug}.safetensors"
        try:
            wrapper = catalog.build(slug, trained.plan, manifest or trained.manifest, {"segmenter": method}, chosen)
            stored = _stored(path, digest, chosen)
            if stored is None:
                manifest = manifest or _training_data(trained, known)
                wrapper = catalog.build(slug, trained.plan, manifest, {"segmenter": method}, chosen)
                progress.say(f"fitting {slug} on {len(trained.split.train)} training cases")
                wrapper.fit(trained.split.train, trained.split.val, Lent(manifest, wrapper, seed))
                stored = _own(wrapper)
                if digest:
                    checkpoint.write(path, stored[0], {"facts": stored[1], "of": digest, "options": _plain(chosen)})
            else:
                tensors, facts = wrapper.state()
                wrapper.load_state({**tensors, **stored[0]}, {**facts, **stored[1]})
        except (UsageError, DataError, RunError) as error:
            notes.append(f"{slug} was left out: {error}")
            continue
        method = wrapper
        out.append(Judge(slug, wrapper, stored[0].get("known", np.zeros(0))))
    return out


def _own(wrapper: Method) -> tuple[dict[str, np.ndarray], dict]:
    """A wrapper's state without its parts'."""
    tensors, facts = wrapper.state()
    return {k: v for k, v in tensors.items() if not k.startswith("parts.")}, {k: v for k, v in facts.items() if k != "parts"}


def _stored(path: Path, digest: str, options: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict] | None:
    """What an earlier audit fitted to these very weights, with these options."""
    if not path.exists() or not digest:
        return None
    tensors, record = checkpoint.read(path)
    return (tensors, record["facts"]) if record.get("of") == digest and record.get("options") == _plain(options) else None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def _training_data(trained: Trained, known: str | Path | Manifest) -> Manifest:
    """The data the run was trained on, as it saw them: those given where they are the same, else from where they were."""
    record = trained.record["data"]
    tried = [trained.manifest, known, record["root"]]
    for data in tried:
        if not isinstance(data, Manifest):
            text = str(data)
            if not text.startswith("phantom:") and not Path(text).exists():
                continue
            data = open_dataset(text)
        seen = as_trained_on(trained, data)
        if seen is not None:
            return seen
    fix = "say where they are with --trained-on"
    raise DataError("the training cases are not where they were", where=record["root"], found=f"no data set '{record['name']}'", fix=fix)


def as_trained_on(trained: Trained, data: Manifest) -> Manifest | None:
    """The data as the run saw them, labels that it was not shown left out; None where it was trained on others."""
    labelled = trained.record.get("labelled")
    if labelled:
        try:
            data = hide_labels(data, trained.split.train, labelled, trained.record["seed"])
        except UsageError:  # other cases, or fewer with labels
            return None
    return data if data.cases and data.digest() == trained.record["data"]["digest"] else None
