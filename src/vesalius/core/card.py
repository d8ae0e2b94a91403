"""Card: what a paper is, as data. No torch, so that listing the catalogue takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

KINDS = ("method", "network", "objective", "wrapper", "audit", "importer", "protocol")
EVIDENCE = ("contract", "parity", "proof", "benchmark")


@dataclass(frozen=True)
class Card:
    """``homes``: written import paths 'module:Name', the first is what is built. ``recipe`` for a network or objective: the base that
    trains it and the options it passes. ``evidence``: what was really shown (contract < parity < proof < benchmark), each backed by a
    generated file. ``takes``: fields of Case that prediction sees ('images:CT', 'roi:lung', 'table:age'); ``learns``: what training
    sees beside them ('labels', 'points:extreme', 'table'); ``gives``: fields of Prediction. ``intensity``: the normalisation the
    method needs instead of the plan's. ``deviations``: what it asks to differ from the common plan, printed beside its numbers.
    ``small``: options of a configuration small enough for tests (a paper-sized network is not trained there);
    ``test_exceptions``: contract laws a paper breaks by design, with the reason."""

    slug: str
    title: str
    family: str
    kind: str
    homes: tuple[str, ...]
    paper: str
    url: str
    year: int
    task: str
    dims: tuple[int, ...]
    supervision: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    claim: str
    learns: tuple[str, ...] = ("labels",)
    baseline: str = ""
    recipe: Mapping[str, object] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    evidence: str = "contract"
    intensity: str = ""
    phantom: str = ""
    weights: str = ""
    licence: str = "Apache-2.0"
    deviations: tuple[str, ...] = ()
    small: Mapping[str, object] = field(default_factory=dict)
    test_exceptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS or self.evidence not in EVIDENCE:
            raise ValueError(f"card {self.slug}: kind is one of {KINDS}, evidence one of {EVIDENCE}")

    def to_json(self) -> dict:
        return asdict(self)
