"""Bias without labels: if predicted quality differs between groups of patients, the segmenter is probably worse for one of them.

Reverse classification accuracy predicts each mask's Dice from references with labels (the same for all groups); the gap between the groups'
means is the estimate of the true gap, which nobody can compute where there are no labels.

Gaggion et al., Unsupervised bias discovery in medical image segmentation, FAIMI 2023, https://arxiv.org/abs/2309.00451. [inferred], as the
encoder, the registration networks and the test are not specified: references are chosen by the correlation of small images, registered
by ``ops.register``, and a gap comes with a bootstrap interval over patients and a Mann-Whitney p-value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from ...core.case import Case, LabelMap
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction, Score
from ...metrics.overlap import dsc
from ...ops.rca import Bank, align, evenly, reverse_accuracy, signature, working
from ..learned import Segmenter


class RCABias(Method):
    """Adds 'rca_max/<structure>', 'rca_mean/<structure>' and the baseline 'confidence/<structure>' (mean probability inside the mask) to
    the segmenter's table; ``pair_gaps`` turns such columns of a cohort into estimated gaps between groups. Options as in ``chexmask``."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        references: int = 5,
        kind: Literal["rigid", "affine", "deformable"] = "deformable",
        bank: int = 100,
        longest: int = 0,
    ):
        super().__init__(plan, manifest, parts=parts or {"segmenter": Segmenter(plan, manifest)})
        if "segmenter" not in self.parts:
            raise UsageError("rca-bias judges a segmenter", where="--part", found=", ".join(self.parts), allowed="segmenter=SLUG")
        if min(references, bank) < 1 or longest < 0:
            raise UsageError("no such bank", where="rca-bias", found=(references, bank, longest), allowed="references, bank >= 1")
        self.references, self.kind, self.size = references, kind, bank
        self.longest = longest or (128 if plan.dims == 2 else 64)
        self.bank: Bank | None = None

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> RCABias:
        run.fit(self.parts["segmenter"], train, val)
        keep = evenly([c for c in train if self.manifest[c].labels], self.size)
        cases = (run.prepared(c) for c in keep)
        self.bank = Bank.of(cases, self.plan.channels[0], self.longest, lambda _, image: signature(image))
        return self

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        if self.bank is None:
            prediction = self.parts["segmenter"].predict(case.at("segmenter"), rng=rng)
            return prediction.with_(notes=(*prediction.notes, "no predicted Dice: there are no references"))
        prediction = self.parts["segmenter"].predict(case.at("segmenter"), rng=rng)
        image = working(case.images[self.plan.channels[0]], self.longest)
        label = prediction.decide(self.plan.classes).label
        chosen = self.bank.choose(signature(image), self.references, label.names[1:])
        found = reverse_accuracy(label, self.bank, chosen, align(image, self.bank, chosen, kind=self.kind), dsc)
        table = {f"rca_max/{name}": e.best for name, e in found.items() if e.best is not None}
        table |= {f"rca_mean/{name}": e.mean for name, e in found.items() if e.mean is not None}
        return prediction.with_(table={**prediction.table, **table, **_confidence(prediction, label)})

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        own, more = self.bank.state() if self.bank is not None else ({}, {})
        return {**tensors, **own}, {**facts, **more}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.bank = Bank.from_state(tensors, facts)


def _confidence(prediction: Prediction, label: LabelMap) -> dict[str, float]:
    """Mean probability of each structure inside its own mask; absent where the mask is empty or there are no class probabilities."""
    if prediction.probability is None or prediction.threshold is not None or label.overlapping:
        return {}
    data, p = np.asarray(label.data), prediction.probability.data
    return {f"confidence/{name}": float(p[k][data == k].mean()) for k, name in enumerate(label.names) if k and (data == k).any()}


def pair_gaps(
    rows: Iterable[Score],
    groups: Mapping[str, str],
    *,
    by: str,
    least: int = 3,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Score]:
    """One row per metric, structure and pair of groups: mean of the first group minus mean of the second, over patients.

    ``rows`` score cases; ``groups``: case -> group ('' or absent: in none). A row's ``extra`` holds by, first, second, the interval low and
    high (percentile bootstrap of patients within each group), p (Mann-Whitney, two-sided), n of both. A pair with a group of fewer than
    ``least`` patients is left out. Cases are read by their rows alone: no reference mask can get in. Equation of section 2 of the paper.
    """
    from scipy.stats import mannwhitneyu

    values: dict[tuple, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in rows:
        group = groups.get(r.case, "")
        if r.value is not None and group != "":
            values[r.metric, r.structure][group][r.patient or r.case].append(r.value)
    out = []
    for (metric, structure), found in values.items():
        means = {g: np.array([np.mean(v) for v in patients.values()]) for g, patients in found.items() if len(patients) >= least}
        for first, second in combinations(sorted(means), 2):
            a, b = means[first], means[second]
            rng = np.random.default_rng([seed, len(a), len(b)])
            drawn = a[rng.integers(0, len(a), (samples, len(a)))].mean(1) - b[rng.integers(0, len(b), (samples, len(b)))].mean(1)
            low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
            extra = {"by": by, "first": first, "second": second, "low": float(low), "high": float(high)}
            extra |= {"p": float(mannwhitneyu(a, b).pvalue), "n_first": len(a), "n_second": len(b)}
            out.append(Score("", f"gap:{metric}", float(a.mean() - b.mean()), structure, note=f"{by}: {first} minus {second}", extra=extra))
    return out
