"""Fuzzy C-means, the classical baseline of Kvasir-SEG: colours fall into a few clusters, and one of them is the polyp.

Every pixel belongs to every cluster to a degree; degrees and cluster centres are improved in turn until they stay. That needs no label, but
says not which cluster is the polyp. The published text names no rule, and to take the cluster that fits the reference best would be to
look at the answer. Here a rule is learnt from training frames alone: each cluster is described by colour (against the frame's), size,
place and how much of it lies at the frame's border, and a ridge regression guesses its overlap with the polyp; the best guess is taken.

Jha et al., Kvasir-SEG: a segmented polyp dataset, MMM 2020, https://arxiv.org/abs/1911.07069; Bezdek, Pattern recognition with fuzzy
objective function algorithms, 1981. Inferred, thus options: three clusters, m = 2, colours as they are. Ours: the rule, the start (centres
spread along the first principal axis of the colours) and that centres are found on evenly spaced ``pixels`` of a frame.

Key components: ``fuzzy_c_means``; ``describe``, what the rule knows of a cluster.

Good to know: a frame without a polyp gets one. Shadows, residue and highlights are clusters too, and a pale polyp shares its cluster with
the mucosa: it overlaps polyps far less than the network does (``kvasir-seg``), which is the point of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...core.case import Case, Image, LabelMap
from ...core.errors import DataError, UsageError, nearest
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...core.prompt import Prompt
from ...metrics.overlap import iou

NOT_LEARNT = "no rule was learnt: the smallest cluster is taken"


class FuzzyCMeans(Method):
    """``clusters`` of the frame's colours; ``fuzziness`` m above 1 (towards 1: hard clusters); it ends after ``iterations``, or when no
    degree moves more than ``tolerance``. ``pixels``: how many of a frame find the centres (0: all). ``ridge``: of the rule's regression,
    per training cluster. ``target``: the class to segment; empty: the first foreground class."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        clusters: int = 3,
        fuzziness: float = 2.0,
        iterations: int = 100,
        tolerance: float = 1e-3,
        pixels: int = 4096,
        ridge: float = 1e-3,
        target: str = "",
    ):
        super().__init__(plan, manifest, parts=parts)
        for name, fine, found, allowed in (
            ("clusters", clusters >= 2, clusters, "2 or more"),
            ("fuzziness", fuzziness > 1, fuzziness, "above 1"),
            ("iterations", iterations >= 1, iterations, "1 or more"),
            ("tolerance", tolerance > 0, tolerance, "above 0"),
            ("pixels", pixels >= 0, pixels, "0 (all) or more"),
            ("ridge", ridge > 0, ridge, "above 0"),
        ):
            if not fine:
                raise UsageError(f"impossible '{name}'", where=name, found=found, allowed=allowed)
        self.target = target or manifest.names[1]
        if self.target not in manifest.names[1:]:
            raise UsageError(f"no foreground class '{self.target}'", where="target", fix=nearest(self.target, manifest.names[1:]))
        self.clusters, self.fuzziness, self.iterations, self.tolerance = clusters, fuzziness, iterations, tolerance
        self.pixels, self.ridge = pixels, ridge
        self.rule = np.zeros((3, 0))  # mean and scale of the features, their weights; the last column is the constant

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> FuzzyCMeans:
        """Learn which cluster is the polyp, from training labels."""
        known, overlap = [], []
        for case in (run.prepared(c) for c in train):
            if case.label is None:
                continue
            reference = np.asarray(case.label.data) == self.manifest.names.index(self.target)
            degrees = self.degrees(case)
            known += [describe(d, case.stack(self.plan.channels)) for d in degrees]
            overlap += [iou(k == degrees.argmax(0), reference) or 0.0 for k in range(len(degrees))]
        if not known:
            raise DataError("no training case has labels", where=self.manifest.name, found=f"{len(train)} training cases")
        self.rule = regress(np.stack(known), np.array(overlap), self.ridge)
        run.log(training_clusters=len(known), best_training_overlap=float(np.mean(np.reshape(overlap, (-1, self.clusters)).max(1))))
        return self

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """Label map of the target class, and the degrees of belonging to it as image 'degree'."""
        degrees, names = self.degrees(case), self.manifest.names
        chosen = self.choose(degrees, case.stack(self.plan.channels))
        mask = degrees.argmax(0) == chosen
        label = LabelMap((mask * names.index(self.target)).astype(np.int16), case.geometry, names)
        degree = Image(degrees[chosen][None].astype(np.float32), case.geometry, normalise=False)
        notes = () if self.rule.size else (NOT_LEARNT,)
        return Prediction(labels={"prediction": label}, images={"degree": degree}, notes=notes)

    def degrees(self, case: Case) -> np.ndarray:
        """(clusters, *spatial): how much each pixel belongs to each cluster."""
        image = case.stack(self.plan.channels)
        colours = image.reshape(len(image), -1).T.astype(np.float64)
        step = max(1, len(colours) // self.pixels) if self.pixels else 1
        how = dict(fuzziness=self.fuzziness, iterations=self.iterations, tolerance=self.tolerance)
        centres, _ = fuzzy_c_means(colours[::step], self.clusters, **how)
        return memberships(colours, centres, self.fuzziness).T.reshape(self.clusters, *image.shape[1:])

    def choose(self, degrees: np.ndarray, image: np.ndarray) -> int:
        """The cluster that the rule expects to overlap most; the smallest where no rule was learnt."""
        if not self.rule.size:
            return int(degrees.sum(tuple(range(1, degrees.ndim))).argmin())
        return int(np.argmax([guess(describe(d, image), self.rule) for d in degrees]))

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        return {**tensors, "rule": self.rule}, facts

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.rule = np.asarray(tensors["rule"])


# ------------------------------------------------------------------------------------------------------------------------------- clusters
def fuzzy_c_means(
    x: np.ndarray, clusters: int, *, fuzziness: float = 2.0, iterations: int = 100, tolerance: float = 1e-3
) -> tuple[np.ndarray, list[float]]:
    """(centres (clusters, d), objective after each iteration) of points (n, d): u_ij = 1 / sum_k (d_ij / d_ik)^(2 / (m - 1)) and c_j = sum
    u_ij^m x_i / sum u_ij^m in turn, which never raises sum u_ij^m d_ij^2. Starts at quantiles along the first principal axis."""
    axis = np.linalg.eigh(np.cov(x.T).reshape(x.shape[1], -1))[1][:, -1] if len(x) > 1 else np.ones(x.shape[1])
    order = np.argsort(x @ axis, kind="stable")
    centres = x[order[((np.arange(clusters) + 0.5) * len(x) / clusters).astype(int)]]
    objective, before = [], None
    for _ in range(iterations):
        u = memberships(x, centres, fuzziness)
        objective.append(float((u**fuzziness * distances(x, centres)).sum()))
        if before is not None and np.abs(u - before).max() < tolerance:
            break
        weights, before = u**fuzziness, u
        centres = (weights.T @ x) / np.maximum(weights.sum(0), np.finfo(float).tiny)[:, None]
    return centres, objective


def memberships(x: np.ndarray, centres: np.ndarray, fuzziness: float) -> np.ndarray:
    """(n, clusters) degrees that sum to 1 for each point; a point on several centres is shared by them."""
    d = distances(x, centres)
    nearest_ = d.min(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(nearest_ > 0, (nearest_ / d) ** (1 / (fuzziness - 1)), d == 0)
    return u / u.sum(1, keepdims=True)


def distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n, clusters) squared distances."""
    return ((x[:, None] - centres[None]) ** 2).sum(-1)


# ------------------------------------------------------------------------------------------------------------------------------- the rule
def describe(degree: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What is known of a cluster with these degrees (*s) in an image (C, *s): its mean colour in the frame's mean and sd, its share of the
    frame, the mean distance of its pixels from the frame's middle and their spread (sides of the frame are 1), its share of the border."""
    axes = tuple(range(1, image.ndim))
    weight = degree / max(degree.sum(), np.finfo(float).tiny)
    sd = np.maximum(image.std(axes), 1e-6)
    colour = ((image * weight).sum(axes) - image.mean(axes)) / sd
    place = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in degree.shape), indexing="ij"))
    middle = (place * weight).sum(axes)
    apart = np.sqrt(((place - middle.reshape(-1, *(1,) * degree.ndim)) ** 2).sum(0))
    rim = np.abs(place).max(0) > 0.45
    return np.array([*colour, degree.mean(), (np.sqrt((place**2).sum(0)) * weight).sum(), (apart * weight).sum(), weight[rim].sum()])


def regress(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """(3, features + 1): mean, scale and weights of a ridge regression of y (n,) on x (n, features); the last column is the constant."""
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
    z = (x - mean) / scale
    weights = np.linalg.solve(z.T @ z + ridge * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return np.stack([np.append(mean, 0.0), np.append(scale, 1.0), np.append(weights, y.mean())])


def guess(x: np.ndarray, rule: np.ndarray) -> float:
    """What the rule expects of a cluster described by x (features,)."""
    mean, scale, weights = rule
    return float(np.append((x - mean[:-1]) / scale[:-1], 1.0) @ weights)
