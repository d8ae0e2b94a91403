"""The reference pipeline for TDSC-ABUS: segment -> components become scored boxes -> the best one's crop is classified.

A segmenter (any; the planned U-Net) learns on patches half of which are centred on lesions. Components of its foreground become candidates,
scored by their surest voxels; what is smaller than training lesions ever were is dropped, overlapping boxes keep the surer one. The best
candidate is the mask. What radiologists look at is measured in its crop (outline, orientation, halo, echo behind it) and weighed by a
logistic regression: P(malignant). The official evaluator is ``metrics.tdsc_abus``, the data ``datasets.tdsc_abus``.

Luo et al., TDSC-ABUS challenge, https://arxiv.org/abs/2501.15588. The paper ranks entries and prescribes none; this is the pattern of the
leading ones (specification, section 2), with measured features where they train a 3D network on crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.case import Boxes, Case, Image
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...core.prompt import Prompt
from ...metrics.detection import box_overlaps
from ...metrics.tdsc_abus import component_boxes
from ...ops.components import bounding_box, components
from ..planned import PlannedUNet

TARGET, STRUCTURE = "malignant", "lesion"
NO_LESION = "no candidate was found: P(malignant) is the share of the training cases"
NOT_LEARNT = "no classifier was learnt: the training cases lack one of the two classes"


@dataclass(frozen=True)
class Candidate:
    """One component: its ``mask`` (*spatial) and ``box`` (world mm), ``score`` 0..1."""

    mask: np.ndarray
    box: Boxes
    score: float


class TumourPipeline(Method):
    """``foreground``: share of the own segmenter's training patches that are centred on a lesion; ``threshold`` of a candidate's voxels;
    ``top``: share of its surest voxels that are averaged to its score, ``scored`` False scores 1; ``nms``: IoU above which the less sure
    box goes; ``single``: only the best candidate stays in the mask; ``crop``: classify the crop (``margin_mm`` around), not the volume;
    ``l2``: of the logistic regression."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        foreground: float = 0.5,
        threshold: float = 0.5,
        top: float = 0.1,
        scored: bool = True,
        nms: float = 0.3,
        single: bool = True,
        crop: bool = True,
        margin_mm: float = 10.0,
        l2: float = 1.0,
    ):
        for name, value in (("foreground", foreground), ("threshold", threshold), ("top", top), ("nms", nms)):
            if not 0 <= value <= 1 or (name == "top" and not value):
                raise UsageError(f"'{name}' is a share", where=name, found=value, allowed="0 to 1")
        own = {} if parts and "segmenter" in parts else {"segmenter": PlannedUNet(plan.derive(foreground=foreground), manifest)}
        super().__init__(plan, manifest, parts={**own, **(parts or {})})
        self.threshold, self.top, self.scored, self.nms = threshold, top, scored, nms
        self.single, self.crop, self.margin_mm, self.l2 = single, crop, margin_mm, l2
        self.smallest, self.base = 0.0, 0.5  # mm^3; share of malignant training cases
        self.regression = np.zeros((3, 0))  # mean and scale of the features, their weights; the last column is the constant

    # learning ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> TumourPipeline:
        segmenter = self.parts["segmenter"]
        run.fit(segmenter, train, val)
        seen, volumes = [], []
        for case, prediction in run.infer(segmenter, train):
            truth = _truth(case)
            hits = [c for c in self.candidates(prediction) if truth is not None and (c.mask & truth).any()]
            best = hits[0] if hits else self._drawn(truth, prediction)
            if best is not None:
                volumes += [float(c.mask.sum()) * case.geometry.voxel_volume for c in hits]
                seen.append((case.table.get(TARGET), self.features(case, best)))
        self.smallest = 0.5 * min(volumes, default=0.0)
        known = [(int(y), x) for y, x in seen if y is not None]
        self.base = float(np.mean([y for y, _ in known])) if known else 0.5
        if len({y for y, _ in known}) == 2:
            self.regression = logistic(np.stack([x for _, x in known]), np.array([y for y, _ in known]), self.l2)
        run.log(smallest_mm3=self.smallest, malignant=self.base, classified=len(known))
        return self

    def _drawn(self, truth: np.ndarray | None, prediction: Prediction) -> Candidate | None:
        """The reference lesion itself, for a training case whose lesion was missed."""
        if truth is None or not truth.any():
            return None
        grid = prediction.probability.geometry
        return self._candidate(truth, 1 - np.asarray(prediction.probability.data[0]), component_boxes(truth, grid))

    # answering -----------------------------------------------------------------------------------------------------------------------
    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        seen = case.at("segmenter")
        prediction = self.parts["segmenter"].predict(seen, rng=rng)
        found = self.candidates(prediction)
        low, high = (np.stack([getattr(c.box, side)[0] for c in found]) if found else np.zeros((0, 3)) for side in ("low", "high"))
        boxes = Boxes(low, high, (STRUCTURE,) * len(found), np.array([c.score for c in found]))
        table, notes = {}, prediction.notes
        if not self.regression.size:
            notes += (NOT_LEARNT,)
        elif found:
            table[TARGET] = probability_of(self.features(seen, found[0]), self.regression)
        else:
            table[TARGET], notes = self.base, (*notes, NO_LESION)
        if self.single and found:
            prediction = prediction.with_(probability=only(prediction.probability, found[0].mask))
        return prediction.with_(boxes={STRUCTURE: boxes}, table=table, notes=notes)

    def candidates(self, prediction: Prediction) -> list[Candidate]:
        """Components of the foreground of at least the learnt size, the surest first, without those whose box a surer one covers."""
        p, grid = 1 - np.asarray(prediction.probability.data[0]), prediction.probability.geometry
        labels, sizes = components(p >= self.threshold)
        kept = [k + 1 for k, n in enumerate(sizes) if n * grid.voxel_volume >= self.smallest]
        found = [self._candidate(mask, p, component_boxes(mask, grid)) for mask in (labels == k for k in kept)]
        found.sort(key=lambda c: -c.score)
        out: list[Candidate] = []
        for c in found:
            if all(box_overlaps(c.box.low, c.box.high, o.box.low, o.box.high)[0, 0] <= self.nms for o in out):
                out.append(c)
        return out

    def _candidate(self, mask: np.ndarray, p: np.ndarray, box: Boxes) -> Candidate:
        inside = np.sort(p[mask])[::-1]
        surest = inside[: max(1, int(np.ceil(self.top * inside.size)))]
        return Candidate(mask, box, float(np.clip(surest.mean(), 0, 1)) if self.scored else 1.0)

    def features(self, case: Case, candidate: Candidate) -> np.ndarray:
        """What the classifier sees, (n,)."""
        image = case.stack(self.plan.channels)[0]
        if not self.crop:
            return volume_features(image)
        return np.append(lesion_features(image, candidate.mask, case.geometry.spacing, self.margin_mm), candidate.score)

    # state ---------------------------------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        return {**tensors, "regression": self.regression}, {**facts, "smallest": self.smallest, "base": self.base}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.regression = np.asarray(tensors["regression"], float)
        self.smallest, self.base = float(facts["smallest"]), float(facts["base"])


def _truth(case: Case) -> np.ndarray | None:
    label = case.labels.get("reference")
    return None if label is None else np.asarray(label.data) > 0


def only(probability: Image, mask: np.ndarray) -> Image:
    """The probabilities with everything decided as foreground outside ``mask`` turned into background."""
    p = np.array(probability.data)
    p[:, (p.argmax(0) > 0) & ~mask] = np.eye(len(p), dtype=p.dtype)[0][:, None]
    return Image(p, probability.geometry)


# --------------------------------------------------------------------------------------------------------------------------- the features
def lesion_features(image: np.ndarray, mask: np.ndarray, spacing: Sequence[float], margin_mm: float) -> np.ndarray:
    """(9,) of a lesion in a normalised volume (*spatial, RAS+ order: the beam runs backwards along axis 1, against the index).

    log volume; compactness (36 pi V^2 / A^3, small for spicules) and its surface's roughness (sd / mean of distances to the centre);
    depth over width; mean and sd of the echo against the surroundings within ``margin_mm``; the halo (within 2 mm, against the rest);
    echo behind against beside; share of its box.
    """
    from edt import edt

    step = np.asarray(spacing, float)
    crop = bounding_box(mask, np.ceil(margin_mm / step).astype(int))
    x, m = np.asarray(image[crop], float), np.ascontiguousarray(mask[crop])
    away = edt(~m, anisotropy=tuple(step), parallel=1) if not m.all() else np.zeros(m.shape)
    around, rim = (away > 0) & (away <= margin_mm), (away > 0) & (away <= 2.0)
    volume = m.sum() * step.prod()
    padded = np.pad(m, 1).astype(np.int8)
    faces = sum(np.abs(np.diff(padded, axis=a)).sum() * step.prod() / step[a] for a in range(3))
    border = np.argwhere(m & (edt(m, anisotropy=tuple(step), black_border=True, parallel=1) <= step.max())) * step
    radii = np.linalg.norm(border - border.mean(0), axis=1)
    extent = [(s.stop - s.start) * d for s, d in zip(bounding_box(m), step, strict=True)]
    below = around.copy()
    below[:, np.argwhere(m)[:, 1].min() :] = False  # deeper than the lesion: towards lower indices
    under = np.broadcast_to(m.any(1, keepdims=True), m.shape)
    mean = lambda where: float(x[where].mean()) if where.any() else float(x.mean())
    return np.array(
        [
            np.log(volume),
            36 * np.pi * volume**2 / faces**3,
            radii.std() / max(radii.mean(), 1e-6),
            extent[1] / np.sqrt(extent[0] * extent[2]),
            mean(m) - mean(around),
            float(x[m].std()),
            mean(rim) - mean(around & ~rim),
            mean(below & under) - mean(below & ~under),
            volume / np.prod(extent),
        ]
    )


def volume_features(image: np.ndarray) -> np.ndarray:
    """(9,) of a whole volume that knows no lesion: mean, sd, skewness and six percentiles of its intensities."""
    x = np.asarray(image, float)
    sd = max(float(x.std()), 1e-6)
    return np.array([x.mean(), sd, float(((x - x.mean()) ** 3).mean()) / sd**3, *np.percentile(x, [1, 5, 25, 75, 95, 99])])


# ---------------------------------------------------------------------------------------------------------------------------- the weights
def logistic(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """(3, n + 1): mean and scale of the features (cases, n) and the weights of a logistic regression on them, standardised, with the
    constant last; ``l2`` / 2 |w|^2 is added to the summed log loss, the constant is free."""
    from scipy.optimize import minimize

    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    free = np.append(np.ones(x.shape[1]), 0.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logit = z @ w
        residual = 1 / (1 + np.exp(-logit)) - y
        return float(np.logaddexp(0, logit).sum() - y @ logit + l2 / 2 * (free * w) @ w), z.T @ residual + l2 * free * w

    w = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B").x
    return np.stack([np.append(mean, 0.0), np.append(scale, 1.0), w])


def probability_of(x: np.ndarray, regression: np.ndarray) -> float:
    """P(malignant) of one case's features by ``logistic``'s answer."""
    mean, scale, w = regression
    logit = float(((np.append(x, 1.0) - mean) / scale) @ w)
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))
