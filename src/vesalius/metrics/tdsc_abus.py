"""The TDSC-ABUS challenge's three boards: detection (FROC), segmentation (DSC and Hausdorff distance), classification (accuracy and AUC).

The official evaluator's rules (PerceptionComputingLab/TDSC-ABUS2023, Final_Evaluation; the announcement had named mAP@0.75 instead) and
ours beside them, each under its name:

* Detection: a candidate belongs to the truth its box overlaps most and hits it at an IoU above 0.3; thresholds 0, 0.005 .. 0.995; recall
  interpolated at 1/8 .. 8 false positives a volume. IoU does not depend on units, so boxes in mm score as the official voxels do. Ours is
  ``detection.froc`` on the same evidence: every score is a threshold, nothing is interpolated.
* Segmentation: the official headers hold no spacing, so its Hausdorff distance is in voxels; an empty mask makes it infinite and the mean
  score minus infinity. Ours is in mm, and undefined for an empty mask.
* Classification: accuracy at 0.5 and AUC, averaged.

Source: Luo et al., https://arxiv.org/abs/2501.15588.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.case import Boxes, Case
from ..core.errors import DataError, GeometryError
from ..core.geometry import Geometry
from ..core.prediction import Prediction, Score
from ..ops.components import components
from . import detection
from .classification import accuracy, auroc
from .overlap import dsc
from .surface import hd_sitk

IOU = 0.3  # a hit has more
RATES = detection.RATES
STEP = 0.005  # between the official thresholds
TARGET, STRUCTURE = "malignant", "lesion"
ROWS: Mapping[str, tuple[str, str]] = {  # rows a case gives: name -> (which way is better, unit); the last two are pooled
    "tdsc_hd_voxels": ("lower", "voxels"),
    "tdsc_hd_mm": ("lower", "mm"),
    "tdsc_segmentation": ("higher", ""),
    "tdsc_froc": ("higher", ""),
    "tdsc_classification": ("higher", ""),
}
_EPS = 1e-8  # the evaluator's


# ------------------------------------------------------------------------------------------------------------------------------- per case
def score(prediction: Prediction, case: Case, *, patient: str = "") -> list[Score]:
    """The rows of one case: DSC, Hausdorff distance in voxels and mm, the official segmentation score, and two rows that carry the evidence
    of the pooled boards (``pool``).

    True boxes are ``case.boxes['lesion']``, or those of the reference's components; predicted ones ``prediction.boxes['lesion']``;
    P(malignant) is ``prediction.table['malignant']``, the truth ``case.table['malignant']``. A board the prediction does not answer is left
    out. Raises GeometryError for masks on different grids.
    """
    rows = []

    def add(metric: str, value: float | None, better: str, unit: str = "", note: str = "", **extra: object) -> None:
        facts = {"better": better, "unit": unit, **extra}
        rows.append(Score(case.id, metric, value, STRUCTURE, patient or case.patient, note=note, extra=facts))

    reference = case.labels.get("reference")
    if reference is not None and prediction.label is not None:
        if not prediction.label.geometry.close(reference.geometry):
            found, allowed = prediction.label.geometry.describe(), reference.geometry.describe()
            raise GeometryError("prediction and reference lie on different grids", where=f"case {case.id}", found=found, allowed=allowed)
        ours, theirs = np.asarray(prediction.label.semantic.data) > 0, np.asarray(reference.semantic.data) > 0
        overlap, spacing = dsc(ours, theirs), reference.geometry.spacing
        voxels, mm = hd_sitk(ours, theirs, (1.0,) * ours.ndim), hd_sitk(ours, theirs, spacing)
        why = "" if voxels is not None else "an empty mask; infinite in the official evaluation"
        add("tdsc_dsc", overlap, "higher", note="" if overlap is not None else "both masks are empty")
        add("tdsc_hd_voxels", voxels, "lower", "voxels", why)
        add("tdsc_hd_mm", mm, "lower", "mm", "" if mm is not None else "an empty mask")
        add("tdsc_segmentation", None if voxels is None or overlap is None else overlap - voxels, "higher", note=why)
    truth, found = case.boxes.get(STRUCTURE), prediction.boxes.get(STRUCTURE)
    if truth is None and reference is not None:
        truth = component_boxes(np.asarray(reference.semantic.data) > 0, reference.geometry)
    if truth is not None and found is not None:
        add("tdsc_froc", None, "higher", note="pooled over cases", evidence=evidence(found, truth))
    if prediction.table.get(TARGET) is not None and case.table.get(TARGET) is not None:
        pair = {"predicted": float(prediction.table[TARGET]), "reference": int(case.table[TARGET])}
        add("tdsc_classification", None, "higher", note="pooled over cases", evidence=pair)
    return rows


def component_boxes(mask: np.ndarray, grid: Geometry, *, smallest: float = 0.0) -> Boxes:
    """The boxes (world mm, outer voxel faces) of a bool mask's components of at least ``smallest`` mm^3, in scan order."""
    labels, sizes = components(mask)
    kept = [k + 1 for k, n in enumerate(sizes) if n * grid.voxel_volume >= smallest]
    low, high = np.zeros((len(kept), mask.ndim)), np.zeros((len(kept), mask.ndim))
    for row, k in enumerate(kept):
        at = np.argwhere(labels == k)
        low[row], high[row] = grid.world_bounds(at.min(0) - 0.5, at.max(0) + 0.5)
    return Boxes(low, high)


def evidence(found: Boxes, truth: Boxes, *, iou: float = IOU) -> dict:
    """What the FROC of all cases needs of one (``detection.marks``): a candidate belongs to the one truth it overlaps most, and hits it
    above ``iou``. Candidates without scores count as certain (1)."""
    low, high = np.asarray(found.low, float), np.asarray(found.high, float)
    scores = np.ones(len(low)) if found.scores is None else np.asarray(found.scores, float)
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise DataError("scores of boxes are probabilities", found=f"{scores.min():.4g} to {scores.max():.4g}", allowed="0 to 1")
    overlaps = detection.box_overlaps(low, high, np.asarray(truth.low, float), np.asarray(truth.high, float))
    hits = np.zeros(overlaps.shape, bool)
    if overlaps.size:
        rows, best = np.arange(len(overlaps)), overlaps.argmax(1)
        hits[rows, best] = overlaps[rows, best] > iou
    return detection.marks(hits, scores)


# ---------------------------------------------------------------------------------------------------------------------------- over cases
@dataclass(frozen=True)
class Froc:
    """The official curve: by threshold false positives a volume and recall (200,), recall at the seven rates, and their mean."""

    false: np.ndarray
    recall: np.ndarray
    at_rates: np.ndarray
    score: float


def official_froc(cases: Sequence[Mapping], *, rates: Sequence[float] = RATES) -> Froc:
    """The official detection score from the evidence of all volumes, those without a candidate too; in [0, 1], higher is better.

    Recall is interpolated linearly between the neighbouring thresholds, 0 below the fewest false positives, the largest recall above the
    most. The evaluator's unstable sort leaves open which of several thresholds with equal false positives comes first; here recall rises.
    Candidates of a volume without truth are false. Raises DataError without a volume or without a truth.
    """
    truths = sum(c["lesions"] for c in cases)
    if not truths:
        raise DataError("a FROC needs volumes with a true box", found=f"{len(cases)} volumes, {truths} true boxes")
    thresholds = np.arange(0, 1, STEP)
    found = np.array([s for c in cases for s in c["found"] if s is not None])
    wrong = np.array([s for c in cases for s in c["false"]])
    recall = ((found[None] >= thresholds[:, None]).sum(1) + _EPS) / (truths + _EPS)
    false = ((wrong[None] >= thresholds[:, None]).sum(1) + _EPS) / (len(cases) + _EPS)
    order = np.lexsort((recall, false))
    f, r = false[order], recall[order]
    at = np.array([_interpolated(f, r, rate) for rate in rates])
    return Froc(false, recall, at, float(at.mean()))


def _interpolated(false: np.ndarray, recall: np.ndarray, rate: float) -> float:
    below, above = np.flatnonzero(false <= rate), np.flatnonzero(false >= rate)
    if not below.size:
        return 0.0
    if not above.size:
        return float(recall.max())
    i, j = below[-1], above[0]
    return float(recall[i] + (recall[j] - recall[i]) * (rate - false[i]) / (false[j] - false[i] + _EPS))


def classification(predicted: Sequence[float], malignant: Sequence[int]) -> dict[str, float | None]:
    """{'accuracy', 'auc', 'score'}: accuracy of p >= 0.5, AUC, and their mean, in [0, 1], higher is better; AUC and score are None when a
    class is missing. Raises DataError for probabilities outside [0, 1]."""
    p, y = np.asarray(predicted, float), np.asarray(malignant).astype(int)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise DataError("P(malignant) is a probability", found=f"{p.min():.4g} to {p.max():.4g}", allowed="0 to 1")
    right, area = accuracy((p >= 0.5).astype(int), y), auroc(p, y == 1)
    return {"accuracy": right, "auc": area, "score": None if area is None or right is None else (right + area) / 2}


def pool(rows: Sequence[Score]) -> list[Score]:
    """The boards of one method from the rows of all its cases (``score``): detection, segmentation, classification.

    ``tdsc_board_detection`` and ``tdsc_froc`` are the official FROC and ours; ``tdsc_board_segmentation`` the official mean of DSC - HD
    (minus infinity, written as undefined with a note, when any case has none) beside the means over defined cases; and
    ``tdsc_board_classification`` with its ``tdsc_accuracy`` and ``tdsc_auc``.
    """
    out: list[Score] = []

    def add(metric: str, value: float | None, better: str = "higher", unit: str = "", note: str = "", **extra: object) -> None:
        out.append(Score("", metric, value, STRUCTURE, note=note, extra={"better": better, "unit": unit, **extra}))

    found = [r.extra["evidence"] for r in rows if r.metric == "tdsc_froc"]
    if found:
        some = any(c["lesions"] for c in found)
        curve = official_froc(found) if some else None
        at = {} if curve is None else {"recall_at": dict(zip(map(str, RATES), curve.at_rates.tolist(), strict=True))}
        why = "" if some else "no true box"
        add("tdsc_board_detection", curve.score if curve else None, note=why, cases=len(found), **at)
        add("tdsc_froc", detection.froc(found), note=why, cases=len(found))
    for metric, better, unit in (("tdsc_dsc", "higher", ""), ("tdsc_hd_voxels", "lower", "voxels"), ("tdsc_hd_mm", "lower", "mm")):
        values = [r.value for r in rows if r.metric == metric]
        if values:
            known = [v for v in values if v is not None]
            add(metric, float(np.mean(known)) if known else None, better, unit, cases=len(values), undefined=len(values) - len(known))
    segmented = [r.value for r in rows if r.metric == "tdsc_segmentation"]
    if segmented:
        lost = sum(v is None for v in segmented)
        note = f"minus infinity in the official evaluation: {lost} cases have no Hausdorff distance" if lost else ""
        add("tdsc_board_segmentation", None if lost else float(np.mean(segmented)), note=note, cases=len(segmented), undefined=lost)
    classed = [r.extra["evidence"] for r in rows if r.metric == "tdsc_classification"]
    if classed:
        board = classification([c["predicted"] for c in classed], [c["reference"] for c in classed])
        names = {"accuracy": "tdsc_accuracy", "auc": "tdsc_auc", "score": "tdsc_board_classification"}
        for key, value in board.items():
            add(names[key], value, note="" if value is not None else "one class only", cases=len(classed))
    return out
