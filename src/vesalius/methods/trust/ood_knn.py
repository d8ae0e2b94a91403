"""OOD by nearest neighbours: a segmenter fails on images whose bottleneck features lie far from all it was trained on.

The features of a trained segmenter's bottleneck, made small (average pooling, PCA), are compared with those of the training cases: by the
distance to the k-th nearest one, or by Mahalanobis' distance. Nothing is trained, and no OOD example is needed.

Woodland et al., Dimensionality Reduction and Nearest Neighbors for Improving Out-of-Distribution Detection in Medical Image Segmentation,
MELBA 2024, https://arxiv.org/abs/2408.02761. Deviations: UMAP and t-SNE are left out (the one needs a package that is not here, the other
has no answer for new points); the published threshold is read off OOD examples, ours off known cases; where the covariance has no inverse
its pseudo-inverse is used, as the raw baseline needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from ...core.case import Case
from ...core.errors import DataError, UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ..learned import LearnedMethod, Segmenter

Reducer = Literal["none", "pool", "global", "pca"]
Distance = Literal["knn", "mahalanobis"]


def _nothing() -> np.ndarray:
    return np.zeros(0)


class OODKNN(Method):
    """Adds table['ood'], a distance (higher is stranger), table['ood_threshold'] and a note beyond it to the segmenter's prediction.

    ``reducer``: 'none' (raw), 'pool' (averages over ``kernel`` voxels a side, ``stride`` apart), 'global' (one average a channel) or 'pca'
    (``components``). ``distance``: 'knn' (Euclidean, to the ``k``-th nearest training case) or 'mahalanobis'. ``windows`` of a case are
    reduced by their mean or max. ``layer``: whose features ('bottleneck', or a submodule). ``quantile`` of known cases' distances is the
    threshold: of validation cases, and of training cases held out in up to five folds. k and the reducer's numbers were searched in the
    paper; these defaults are [inferred].
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        reducer: Reducer = "pool",
        distance: Distance = "knn",
        k: int = 1,
        kernel: int = 2,
        stride: int = 2,
        components: int = 32,
        windows: Literal["mean", "max"] = "mean",
        layer: str = "bottleneck",
        quantile: float = 0.95,
    ):
        super().__init__(plan, manifest, parts=parts or {"segmenter": Segmenter(plan, manifest)})
        if not isinstance(self.parts.get("segmenter"), LearnedMethod):
            found = ", ".join(self.parts)
            raise UsageError("ood-knn looks at the features of a learned segmenter", where="--part", found=found, allowed="segmenter=SLUG")
        if min(k, kernel, stride, components) < 1 or not 0 < quantile < 1:
            allowed = "k, kernel, stride, components >= 1; 0 < quantile < 1"
            raise UsageError("no such detector", where="ood-knn", found=(k, kernel, stride, components, quantile), allowed=allowed)
        self.detector = Detector(reducer, distance, k, kernel, stride, components)
        self.windows, self.layer, self.quantile = windows, layer, quantile
        self.known = _nothing()  # distances of known cases, ascending

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> OODKNN:
        run.fit(self.parts["segmenter"], train, val)
        seen = {case: self.features(run.prepared(case).without_labels(), run.rng)[0] for case in (*train, *val)}
        self.detector = self.detector.fit(_stack(seen, train))
        held = [self.detector.distance(_stack(seen, val))] if val else []
        folds = min(5, len({self.manifest[c].patient for c in train}))
        if folds > 2:
            for inner, outer in run.folds(train, folds):
                held.append(self.detector.fit(_stack(seen, inner)).distance(_stack(seen, outer)))
        if not held:
            raise DataError("a threshold needs validation cases, or three training patients", where="ood-knn", found=folds)
        self.known = np.sort(np.concatenate(held))
        return self

    def features(self, case: Case, rng: np.random.Generator) -> tuple[np.ndarray, Prediction]:
        """((C, *s) float32: the layer's features of the case's windows, reduced; the segmenter's prediction)."""
        segmenter = self.parts["segmenter"]
        with segmenter.eval().tap(self.layer) as seen, torch.no_grad():
            prediction = segmenter.predict(case.at("segmenter"), rng=rng)
        windows = torch.cat(seen)
        return (windows.mean(0) if self.windows == "mean" else windows.amax(0)).numpy(), prediction

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        features, prediction = self.features(case, rng)
        if not self.known.size:
            return prediction.with_(notes=(*prediction.notes, "no OOD distance: this detector was not fitted"))
        distance, limit = float(self.detector.distance(features[None])[0]), self.threshold
        table = {**prediction.table, "ood": distance, "ood_threshold": limit}
        note = f"unlike the training cases: OOD distance {distance:.4g}, {100 * self.quantile:g} % of known cases are below {limit:.4g}"
        return prediction.with_(table=table, notes=(*prediction.notes, note) if distance > limit else prediction.notes)

    @property
    def threshold(self) -> float:
        """The distance below which ``quantile`` of the known cases lie."""
        return float(np.quantile(self.known, self.quantile))

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        own = {"known": self.known, "train": self.detector.train, "mean": self.detector.mean, "axes": self.detector.axes}
        return {**tensors, **{k: v for k, v in own.items() if v.size}}, facts

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        own = {k: np.asarray(tensors[k]) for k in ("train", "mean", "axes") if k in tensors}
        self.detector, self.known = replace(self.detector, **own), np.asarray(tensors.get("known", _nothing()))


@dataclass(frozen=True, eq=False)
class Detector:
    """Features (n, C, *s) -> distances (n,), fitted on training features only (section 2 of the paper). See ``OODKNN`` for the options.

    ``mean`` (d,) and ``axes`` (d, r): the training mean and the projection; ``train`` (n, r): the projected training cases (KNN).
    """

    reducer: Reducer = "pool"
    statistic: Distance = "knn"
    k: int = 1
    kernel: int = 2
    stride: int = 2
    components: int = 32
    train: np.ndarray = field(default_factory=_nothing)
    mean: np.ndarray = field(default_factory=_nothing)
    axes: np.ndarray = field(default_factory=_nothing)

    def fit(self, features: np.ndarray) -> Detector:
        """A fitted copy. Mahalanobis needs two cases, KNN ``k``."""
        x = self._flat(features)
        need = self.k if self.statistic == "knn" else 2
        if len(x) < need:
            raise DataError("too few training cases for this detector", where="ood-knn", found=len(x), allowed=f"{need} or more")
        mean = x.mean(0)
        axes = _nothing()
        if self.reducer == "pca" or self.statistic == "mahalanobis":
            _, spread, rows = np.linalg.svd(x - mean, full_matrices=False)
            rank = int((spread > spread[0] * max(x.shape) * np.finfo(x.dtype).eps).sum())
            rank = min(rank, self.components) if self.reducer == "pca" else rank
            if rank == 0:
                raise DataError("the training cases' features do not differ", where="ood-knn", fix="train the segmenter longer")
            axes = rows[:rank].T
            if self.statistic == "mahalanobis":  # |x axes|^2 = x Sigma^+ x, Sigma the unbiased covariance
                axes = axes * (np.sqrt(len(x) - 1) / spread[:rank])
        fitted = replace(self, mean=mean, axes=axes, train=_nothing())
        return replace(fitted, train=fitted._project(x)) if self.statistic == "knn" else fitted

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(n,): Euclidean to the k-th nearest training case, or sqrt((x - mean) Sigma^+ (x - mean))."""
        x = self._project(self._flat(features))
        if self.statistic == "mahalanobis":
            return np.linalg.norm(x, axis=1)
        from scipy.spatial.distance import cdist

        return np.partition(cdist(x, self.train), self.k - 1, axis=1)[:, self.k - 1]

    def _project(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) @ self.axes if self.axes.size else x - self.mean

    def _flat(self, features: np.ndarray) -> np.ndarray:
        """(n, d) float64, pooled as asked."""
        x = np.asarray(features, float)
        spatial = tuple(range(2, x.ndim))
        if self.reducer == "global":
            x = x.mean(spatial)
        elif self.reducer == "pool":
            for a in spatial:
                kernel = min(self.kernel, x.shape[a])
                x = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=a).mean(-1)
                x = np.take(x, range(0, x.shape[a], self.stride), axis=a)
        x = x.reshape(len(x), -1)
        if self.mean.size and x.shape[1] != self.mean.size:
            found, fix = x.shape[1], "fit with reducer=global"
            raise DataError("the features are not as many as in training", where="ood-knn", found=found, allowed=self.mean.size, fix=fix)
        return x


def _stack(seen: Mapping[str, np.ndarray], cases: Sequence[str]) -> np.ndarray:
    return np.stack([seen[c] for c in cases])
