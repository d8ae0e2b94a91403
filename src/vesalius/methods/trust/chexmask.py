"""CheXmask: every mask comes with a quality that nobody had to look at.

A segmenter's answer is judged by reverse classification accuracy: the image is registered to the most similar training images, the answer
is carried along, and its overlap with their labels is the predicted Dice of each organ. Answers at or below a threshold are flagged.

Gaggion et al., CheXmask: a large-scale dataset of anatomical segmentation masks for multi-center chest x-ray images, Scientific Data 2024,
https://arxiv.org/abs/2307.03293. The published segmenter is HybridGNet; here it is any (part ``segmenter``). [inferred], as the encoder and
the registration networks are not specified: references are chosen by the correlation of small images (or of bottleneck features), and
the registration is ``ops.register``'s. Mask files are the engine's, not run-length codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from ...core.case import Case, Image
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...metrics.overlap import dsc
from ...ops.rca import Bank, align, evenly, reverse_accuracy, signature, unit, working
from ..learned import LearnedMethod, Segmenter


class CheXmask(Method):
    """Adds 'rca_max/<structure>' and 'rca_mean/<structure>' (predicted Dice; absent where no reference can say) and 'rca_flag' (1: some
    structure's best is at most ``threshold``, with a note) to the segmenter's table.

    ``references`` of a ``bank`` of training cases are registered to (``kind``), chosen by the similarity of ``similarity``. Registration
    runs at a longest side of ``longest`` voxels (0: 128 in 2D, 64 in 3D)."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        references: int = 5,
        kind: Literal["rigid", "affine", "deformable"] = "deformable",
        threshold: float = 0.7,
        similarity: Literal["image", "features"] = "image",
        bank: int = 100,
        longest: int = 0,
    ):
        super().__init__(plan, manifest, parts=parts or {"segmenter": Segmenter(plan, manifest)})
        segmenter = self.parts.get("segmenter")
        if segmenter is None:
            raise UsageError("chexmask judges a segmenter", where="--part", found=", ".join(self.parts), allowed="segmenter=SLUG")
        if similarity == "features" and not isinstance(segmenter, LearnedMethod):
            raise UsageError("only a learned segmenter has features", where="chexmask similarity", fix="use similarity=image")
        if min(references, bank) < 1 or longest < 0:
            raise UsageError("no such bank", where="chexmask", found=(references, bank, longest), allowed="references, bank >= 1")
        self.references, self.kind, self.threshold, self.similarity, self.size = references, kind, threshold, similarity, bank
        self.longest = longest or (128 if plan.dims == 2 else 64)
        self.bank: Bank | None = None

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> CheXmask:
        run.fit(self.parts["segmenter"], train, val)
        keep = evenly([c for c in train if self.manifest[c].labels], self.size)
        cases = (run.prepared(c) for c in keep)
        self.bank = Bank.of(cases, self.plan.channels[0], self.longest, lambda case, image: self.code(case, image, run.rng)[0])
        return self

    def code(self, case: Case, image: Image, rng: np.random.Generator) -> tuple[np.ndarray, Prediction | None]:
        """(what references are chosen by, the segmenter's prediction where that needed one)."""
        if self.similarity == "image":
            return signature(image), None
        segmenter = self.parts["segmenter"]
        with segmenter.eval().tap() as seen, torch.no_grad():
            prediction = segmenter.predict(case.without_labels().at("segmenter"), rng=rng)
        windows = torch.cat(seen)
        features = windows.mean((0, *range(2, windows.ndim))).numpy()
        return unit(features - features.mean()), prediction

    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        if self.bank is None:
            prediction = self.parts["segmenter"].predict(case.at("segmenter"), rng=rng)
            return prediction.with_(notes=(*prediction.notes, "no predicted Dice: there are no references"))
        image = working(case.images[self.plan.channels[0]], self.longest)
        code, prediction = self.code(case, image, rng)
        prediction = prediction or self.parts["segmenter"].predict(case.at("segmenter"), rng=rng)
        label = prediction.decide(self.plan.classes).label
        chosen = self.bank.choose(code, self.references, label.names[1:])
        transforms = align(image, self.bank, chosen, kind=self.kind)
        found = reverse_accuracy(label, self.bank, chosen, transforms, dsc)
        best = {name: e.best for name, e in found.items() if e.best is not None}
        table = {f"rca_max/{name}": value for name, value in best.items()}
        table |= {f"rca_mean/{name}": e.mean for name, e in found.items() if e.mean is not None}
        low = {name: value for name, value in best.items() if value <= self.threshold}
        worst = ", ".join(f"{name} {value:.2f}" for name, value in low.items())
        note = f"predicted Dice at or below {self.threshold:g}: {worst}"
        table = {**prediction.table, **table, "rca_flag": float(bool(low))}
        return prediction.with_(table=table, notes=(*prediction.notes, note) if low else prediction.notes)

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        own, more = self.bank.state() if self.bank is not None else ({}, {})
        return {**tensors, **own}, {**facts, **more}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.bank = Bank.from_state(tensors, facts)
