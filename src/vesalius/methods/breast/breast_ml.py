"""Breast cancer from tables and thermal images, by ordinary classifiers whose options are searched.

A table's numbers go to a logistic regression, a tree, a forest, boosted trees or a small perceptron; a thermogram to a small convolutional
network. Their options are chosen by a tree-structured Parzen estimator under cross-validation inside the training patients; what was
chosen is fitted to all of them.

Zuluaga-Gomez, Breast Cancer Diagnosis Using Machine Learning Techniques, master's thesis 2019, and Zuluaga-Gomez et al., A CNN-based
methodology for breast cancer diagnosis using thermal images, https://arxiv.org/abs/1910.13757. [inferred]: the searched ranges, the inner
folds by patient, what the network is made of. Deviations: no ImageNet backbone (none with weights is at hand); a case, not a frame, is
answered; what a gap in a table is filled with is our question.

Key components: ``ops.search`` (random search and Optuna's estimator behind one function), ``ops.tabular`` (gaps, units, and scikit-learn's
classifiers as arrays), ``ThermalNet``.

Good to know: without Optuna a search is random, and the run's record says which it was (``search_by_tpe``). With few patients the inner
score is noisy: its best of many choices is better than what the model then reaches. A thermogram that lacks one of its images is refused;
words in a table are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from ...core.case import Case, Condition
from ...core.errors import DataError, UsageError
from ...core.geometry import Grid
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...metrics.classification import auroc, balanced_accuracy
from ...metrics.columns import macro
from ...networks.blocks.conv import ConvNormAct
from ...ops.search import Range, Space, Sweep, sweep
from ...ops.tabular import SPACES, Scaled, level, matrix, numeric, target_of
from ..learned import Classifier

NETWORK_SPACE: Space = {
    "layers": Range(2, 4, whole=True),
    "filters": Range(4, 16, log=True, whole=True),
    "kernel": (3, 5),
    "dropout": Range(0.0, 0.5),
    "lr": Range(3e-4, 1e-2, log=True),
}


class BreastML(Method):
    """Gives table[target], {level: probability}. Images, where the data have them, go to the network, else the table to ``model``.

    ``target``: the column asked for (empty: the data's only declared target); ``columns``: the numbers it is answered from (empty: all
    numeric ones). ``search``: 'tpe', 'random' or 'none' (the defaults); ``trials`` choices, the defaults first, of which ``startup`` are
    random, each judged by ``judge`` over ``folds`` folds by patient (images: one fold, half of the budget for all trials).
    ``missing``: a gap takes the training median; 'indicator' tells the model so too. ``side``: pixels of a prepared image.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        target: str = "",
        columns: tuple[str, ...] = (),
        model: Literal["logistic", "tree", "forest", "boosting", "mlp"] = "forest",
        search: Literal["tpe", "random", "none"] = "tpe",
        trials: int = 40,
        startup: int = 10,
        folds: int = 5,
        judge: Literal["auroc", "balanced_accuracy"] = "auroc",
        missing: Literal["median", "indicator"] = "median",
        side: int = 64,
    ):
        if manifest.dims:
            plan = plan.derive(grid=Grid(size=(side, side)), patch=(side, side), views=len(plan.channels) > 1)
        super().__init__(plan, manifest, parts=parts)
        if trials < 1 or folds < 2 or side < 16:
            allowed = "trials >= 1, folds >= 2, side >= 16"
            raise UsageError("no such search", where="trials, folds, side", found=(trials, folds, side), allowed=allowed)
        self.column, self.asked, self.kind, self.search = target, columns, model, search
        self.trials, self.startup, self.k, self.judge, self.indicators = trials, startup, folds, judge, missing == "indicator"
        self.target: dict[str, Any] = {}
        self.columns: tuple[str, ...] = ()
        self.options: dict[str, Any] = {}
        self.found: dict[str, Any] = {}  # how the options were searched: by what, and the best value after each trial
        self.model: Scaled | None = None

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> BreastML:
        """Validation cases are learnt from too: the inner folds are what choices are made by."""
        cases, seed = (*train, *val), int(run.rng.integers(2**31))
        self._learn_target([self.manifest[c].table for c in cases])
        cases = [c for c in cases if self.manifest[c].table.get(self.column) not in (None, "")]
        if self.manifest.dims:
            return self._fit_network(cases, run, seed)
        rows = {c: self.manifest[c].table for c in cases}
        self.columns = self.asked or numeric(list(rows.values()), (self.column,))
        if self.column in self.columns:
            raise UsageError("the target is not a column it is answered from", where="--set columns", found=self.column)
        if not self.columns:
            raise DataError("no column but the target holds numbers", where=self.manifest.name, found=", ".join(rows[cases[0]]))
        x = dict(zip(cases, matrix(list(rows.values()), self.columns), strict=True))
        y = {c: self._level(rows[c][self.column]) for c in cases}
        at = lambda ids: (np.stack([x[c] for c in ids]), np.array([y[c] for c in ids]))
        folds = [tuple(map(at, pair)) for pair in run.folds(cases, self.k)] if self.search != "none" else []

        def objective(options: Mapping[str, Any]) -> float:
            said = [self._fitted(*inner, options, seed)(outer[0]) for inner, outer in folds]
            return self.value(np.concatenate(said), np.concatenate([outer[1] for _, outer in folds]))

        self._choose(objective, SPACES[self.kind], seed, run)
        self.model = self._fitted(*at(cases), self.options, seed)
        return self

    def _learn_target(self, rows: Sequence[Mapping[str, Any]]) -> None:
        known = self.manifest.targets
        self.column = self.column or (next(iter(known)) if len(known) == 1 else "")
        if not self.column:
            found = ", ".join(known) or ", ".join(rows[0])
            fix = "name it with --set target=COLUMN"
            raise UsageError("which column of the table is to be answered?", where=self.manifest.name, found=found, fix=fix)
        self.target = target_of(rows, self.column, known.get(self.column))
        if self.target["kind"] == "real":
            raise UsageError("breast-ml answers columns of levels", where=self.column, found="real", allowed="binary, nominal, ordinal")

    def _level(self, value: Any) -> int:
        return self.target["levels"].index(level(value))

    def _fitted(self, x: np.ndarray, y: np.ndarray, options: Mapping[str, Any], seed: int) -> Scaled:
        return Scaled.fit(self.kind, x, y, len(self.target["levels"]), options, seed, indicators=self.indicators)

    def value(self, chances: np.ndarray, truth: np.ndarray) -> float:
        """What a choice is judged by, over all held-out cases (n, levels), (n,); of more than two levels the mean AUROC of each."""
        if self.judge == "balanced_accuracy":
            return balanced_accuracy(chances.argmax(1), truth) or 0.0
        return macro(auroc, chances, truth) or 0.0

    def _choose(self, objective: Callable[[Mapping[str, Any]], float], space: Space, seed: int, run: Run) -> None:
        if self.search == "none":
            self.options, self.found = {}, {"by": "none", "curve": []}
            return
        done: Sweep = sweep(objective, space, trials=self.trials, by=self.search, startup=self.startup, seed=seed, first={})
        self.options, self.found = dict(done.best.options), {"by": done.by, "curve": done.curve}
        run.log(search_default=done.trials[0].value, search_best=done.best.value, search_by_tpe=done.by == "tpe")

    def _fit_network(self, cases: Sequence[str], run: Run, seed: int) -> BreastML:
        """Cases that lack one of the images teach nothing; how many is logged."""
        whole = [c for c in cases if set(self.plan.channels) <= set(self.manifest[c].images)]
        run.log(cases_without_an_image=len(cases) - len(whole))
        cases = whole
        inner, outer = run.folds(cases, self.k)[0] if self.search != "none" else ((), ())
        truth, count = np.array([self._level(self.manifest[c].table[self.column]) for c in outer]), iter(range(self.trials))

        def objective(options: Mapping[str, Any]) -> float:
            torch.manual_seed(seed)
            network = self._network(options)
            run.train(network, inner, (), name=f"trial{next(count)}", share=0.5 / self.trials)
            said = [p.table[self.column] for _, p in run.infer(network, outer)]
            return self.value(np.array([[row[name] for name in self.target["levels"]] for row in said]), truth)

        self._choose(objective, NETWORK_SPACE, seed, run)
        torch.manual_seed(seed)
        self.parts["network"] = self._network(self.options)
        run.train(self.parts["network"], cases, (), name="network", share=1.0 if self.search == "none" else 0.5)
        return self

    def _network(self, options: Mapping[str, Any]) -> ThermalNet:
        said = {self.column: {**self.target, "kind": "nominal"}}
        return ThermalNet(self.plan, replace(self.manifest, targets=said), target=self.column, **options)

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        if "network" in self.parts:
            return self.parts["network"].predict(case, rng=rng)
        if self.model is None:
            raise UsageError("this model was not fitted", where="breast-ml", fix="train it first")
        x = matrix([case.table], self.columns)
        gaps = [c for c, v in zip(self.columns, x[0], strict=True) if not np.isfinite(v)]
        if len(gaps) == len(self.columns):
            found = ", ".join(case.table) or "no table"
            raise DataError("no variable that the model takes is known", where=f"case {case.id}", found=found, allowed=self.columns)
        p = self.model(x)[0]
        said = f"{len(gaps)} of {len(self.columns)} variables are missing ({', '.join(gaps)}): the training median stands in"
        table = {self.column: dict(zip(self.target["levels"], p.tolist(), strict=True))}
        return Prediction(table=table, notes=(said,) if gaps else ())

    # state ---------------------------------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        if self.model is not None:
            tensors |= self.model.arrays
        own = {"target": self.target, "column": self.column, "columns": list(self.columns), "options": self.options, "found": self.found}
        return tensors, {**facts, **own}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        self.target, self.column, self.columns = dict(facts["target"]), facts["column"], tuple(facts["columns"])
        self.options, self.found = dict(facts["options"]), dict(facts["found"])
        if "network" in facts.get("parts", {}):
            self.parts["network"] = self._network(self.options)
        self.model = Scaled.of(self.kind, len(self.target.get("levels", ())), tensors)
        super().load_state(tensors, facts)


class ThermalNet(Classifier):
    """``layers`` times a convolution (``filters``, doubled each time) and a pooling by two; the mean over the image, dropout and one
    linear layer. All images of a case (both breasts) are its channels."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        target: str = "",
        layers: int = 3,
        filters: int = 8,
        kernel: int = 3,
        dropout: float = 0.2,
        lr: float = 3e-3,
    ):
        super().__init__(plan, manifest, parts=parts, target=target)
        widths = [self.in_channels, *(filters * 2**n for n in range(layers))]
        self.blocks = nn.ModuleList(ConvNormAct(2, a, b, kernel, norm="instance") for a, b in zip(widths, widths[1:]))
        self.dropout, self.head, self.lr = nn.Dropout(dropout), nn.Linear(widths[-1], self.outputs), lr

    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        for block in self.blocks:
            image = max_pool2d(block(image), 2)
        return {self.target: self.head(self.dropout(image.mean((2, 3))))}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-2)}

    def learning_rate(self, clock: Clock) -> float:
        return 1.0 - 0.9 * clock.fraction
