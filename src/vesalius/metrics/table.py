"""The table of metrics: what each is called, needs and means; data and pure functions.

``NEEDS`` says what a metric's function is handed. Everything per structure is cut from one prediction and one reference; 'per case' needs
are handed once a case. A pooled metric's function is handed the evidence of all cases instead (``pooling``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..core.errors import UsageError, nearest
from . import (
    calibration,
    classification,
    columns,
    curvas,
    detection,
    landmark,
    overlap,
    raters,
    registration,
    saliency,
    surface,
    tdsc_abus,
    text,
    topology,
    uncertainty,
)

TOLERANCE = 2.0  # mm, of NSD where none is given: Nikolov et al. 2021 found organ-wise rater disagreements of about 1 to 2.5 mm

NEEDS: Mapping[str, str] = {
    "counts": "f(Counts) per structure",
    "surfaces": "f(SurfaceDistances) per structure; with tolerance f(.., mm)",
    "borders": "f(BorderDistances) per structure, closed at the image's edge",
    "open borders": "f(BorderDistances) per structure, open at the image's edge",
    "masks": "f(prediction, reference) bool (*s) per structure",
    "masks in mm": "f(prediction, reference, spacing) bool (*s) per structure",
    "instances": "f(Matched) per structure: object ids, or the components of its masks",
    "probability": "f(probability (n,), reference (n,) bool) per structure, the voxels somebody spoke for",
    "probabilities": "f(probability (K, *s), labels (*s)) per rater; overlapping structures one by one, as 'probability'",
    "saliency": "f(probability (*s), reference (*s) bool) per structure",
    "uncertainty": "f(uncertainty (n,), wrong (n,) bool) per rater",
    "samples": "f(samples (S, *s) bool, references (R, *s) bool) per structure",
    "raters": "f(prediction (*s) bool, [label map of a rater, ...]) per structure; maps hold 0, 1 and IGNORE",
    "raters alone": "f([label map of a rater, ...]) per structure",
    "raters' probability": "f(probability (*s), [label map of a rater, ...]) per structure",
    "volumes": "f(predicted (S,) mL, of the raters (R,) mL) per structure",
    "points": "f(prediction (n, d) mm, reference (n, d) mm), matched by name, NaN where not found, per points' name",
    "warped points": "f(fixed points where the displacement takes them (n, d) mm, moving points (n, d) mm) per points' name",
    "displacement": "f(displacement (d, *s) mm, Geometry) per case",
    "warped labels": "f(displacement (d, *s) mm, Geometry, warped mask (*s) bool) per structure of the moving case",
    "text": "f(candidate, reference) per text's name",
    "record": "f(answers, cells), the target columns as one filled form, per case",
    "column": "pooled: f([evidence of a case, ...]) per target column (``columns.evidence``)",
    "candidates": "pooled: f([marks of a case, ...]) per structure or boxes' name (``detection.marks``)",
    **{name: "f(value) of the challenge's own scorer (``metrics.curvas``)" for name in curvas.ROWS},
    **{name: "f(value), or pooled f([evidence, ...]), of the challenge's own scorer (``metrics.tdsc_abus``)" for name in tdsc_abus.ROWS},
}
PROBABLE = frozenset(  # class probabilities
    {"probability", "probabilities", "saliency", "raters' probability", "volumes", "candidates", *curvas.ROWS}
)
FROM_LABELS = frozenset({"counts", "surfaces", "borders", "open borders", "masks", "masks in mm", "instances"})  # two label maps are enough
IMAGELESS = frozenset({"text", "column", "record"})  # what data of texts and tables (0 dims) can give


@dataclass(frozen=True)
class Metric:
    """One metric: ``function`` of what it ``needs`` (a key of ``NEEDS``; NSD also takes the tolerance in mm), as ``label`` in tables.

    ``better`` is 'higher', 'lower' or 'zero' (a signed error); ``range`` its least and greatest value; ``unit`` '' has none; ``kind``
    quality or cost; ``pooled``: computed over cases together rather than case by case; ``dims``: the image axes it is defined for.
    """

    label: str
    function: Callable[..., float | None]
    needs: str
    better: Literal["higher", "lower", "zero"]
    range: tuple[float, float]
    unit: str = ""
    kind: Literal["quality", "cost"] = "quality"
    tolerance: bool = False
    pooled: bool = False
    dims: tuple[int, ...] = (2, 3)

    @property
    def spacing(self) -> bool:
        """Whether it depends on the voxel size."""
        return self.needs in ("surfaces", "borders", "open borders", "masks in mm", "points", "warped points", "displacement", "volumes")


_UNIT, _ANY, _SIGNED, _REAL = (0.0, 1.0), (0.0, float("inf")), (-1.0, 1.0), (float("-inf"), float("inf"))


def _up(label: str, function: Callable, needs: str, span: tuple[float, float] = _UNIT, **facts: Any) -> Metric:
    return Metric(label, function, needs, "higher", span, **facts)


def _down(label: str, function: Callable, needs: str, unit: str = "", span: tuple[float, float] = _ANY, **facts: Any) -> Metric:
    return Metric(label, function, needs, "lower", span, unit, **facts)


def _pooled(label: str, shape: Callable, function: Callable, better: str = "higher", span: tuple[float, float] = _UNIT) -> Metric:
    """A measure of a target column over cases; ``shape`` turns the cases' evidence into what ``function`` takes."""
    return Metric(label, partial(shape, function), "column", better, span, pooled=True)


def _slot_f1(predicted: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    return text.slots(predicted, reference).f1


def _itself(value: float) -> float:
    return value


def _of_challenge(name: str, better: str, unit: str) -> Metric:
    """A row that a challenge's own scorer gives as it is."""
    return Metric(name, _itself, name, better, _REAL, unit)


def _official_froc(evidence: list[Mapping[str, Any]]) -> float | None:
    return tdsc_abus.official_froc(evidence).score


def _official_classes(evidence: list[Mapping[str, Any]]) -> float | None:
    pairs = [e for e in evidence if e["predicted"] is not None]
    return tdsc_abus.classification([e["predicted"] for e in pairs], [e["reference"] for e in pairs])["score"]


METRICS: Mapping[str, Metric] = {
    # overlap
    "dsc": _up("DSC", overlap.dsc, "counts"),
    "iou": _up("IoU", overlap.iou, "counts"),
    "hd95": _down("HD95", surface.hd95, "surfaces", "mm"),
    "hd": _down("HD", surface.hd, "surfaces", "mm"),
    "assd": _down("ASSD", surface.assd, "surfaces", "mm"),
    "masd": _down("MASD", surface.masd, "surfaces", "mm"),
    "nsd": _up("NSD", surface.nsd, "surfaces", tolerance=True),
    "rve": _down("RVE", overlap.relative_volume_error, "counts"),
    "rvd": Metric("RVD", overlap.relative_volume_difference, "counts", "zero", (-1.0, float("inf"))),
    "vs": _up("VS", overlap.volumetric_similarity, "counts"),
    "sensitivity": _up("Sensitivity", overlap.sensitivity, "counts"),
    "precision": _up("Precision", overlap.precision, "counts"),
    "specificity": _up("Specificity", overlap.specificity, "counts"),
    "accuracy": _up("Accuracy", overlap.accuracy, "counts"),
    "balanced_accuracy": _up("Balanced accuracy", overlap.balanced_accuracy, "counts"),
    "f2": _up("F2", partial(overlap.f_beta, beta=2.0), "counts"),
    "mcc": _up("MCC", overlap.mcc, "counts", _SIGNED),
    "kappa": _up("Cohen's kappa", overlap.kappa, "counts", _SIGNED),
    # the surface definitions of other tools
    "hd_voxel": _down("HD (voxel borders)", surface.hd_voxel, "borders", "mm"),
    "hd95_monai": _down("HD95 (MONAI)", surface.hd95_monai, "borders", "mm"),
    "hd95_panoptica": _down("HD95 (panoptica, medpy)", surface.hd95_panoptica, "borders", "mm"),
    "assd_monai": _down("ASSD (MONAI)", surface.assd_monai, "borders", "mm"),
    "assd_panoptica": _down("ASSD (panoptica, medpy)", surface.assd_panoptica, "borders", "mm"),
    "nsd_monai": _up("NSD (MONAI)", surface.nsd_monai, "borders", tolerance=True),
    "nsd_panoptica": _up("NSD (panoptica)", surface.nsd_panoptica, "borders", tolerance=True),
    "hd95_sitk": _down("HD95 (SimpleITK recipe)", surface.hd95_sitk, "open borders", "mm"),
    "assd_sitk": _down("ASSD (SimpleITK recipe)", surface.assd_monai, "open borders", "mm"),
    "hd_sitk": _down("HD (SimpleITK)", surface.hd_sitk, "masks in mm", "mm"),
    # topology
    "cldice": _up("clDice", topology.cldice, "masks"),
    "length_detected": _up("Tree length detected", topology.length_detected, "masks"),
    "branches_detected": _up("Branches detected", topology.branches_detected, "masks"),
    "betti0_error": _down("Betti-0 error", topology.betti0_error, "masks"),
    "betti1_error": _down("Betti-1 error", topology.betti1_error, "masks"),
    "betti2_error": _down("Betti-2 error", topology.betti2_error, "masks", dims=(3,)),
    "betti_error": _down("Betti error", topology.betti_error, "masks"),
    "betti_error_patches": _down("Betti error (patches)", topology.betti_error_patches, "masks"),
    "connectivity": _up("Connectivity", topology.connectivity, "masks"),
    # objects
    "object_f1": _up("Object F1", detection.object_f1, "instances"),
    "object_precision": _up("Object precision", detection.object_precision, "instances"),
    "object_sensitivity": _up("Object sensitivity", detection.object_sensitivity, "instances"),
    "pq": _up("PQ", detection.pq, "instances"),
    "sq": _up("SQ", detection.sq, "instances"),
    "rq": _up("RQ", detection.object_f1, "instances"),
    "aji": _up("AJI", detection.aji, "instances"),
    "false_positives": _down("False positives per case", detection.false_positives, "instances"),
    "count_error": Metric("Object count error", detection.count_error, "instances", "zero", _REAL),
    "froc": _up("FROC", detection.froc, "candidates", pooled=True),
    "llf": _up("LLF", detection.llf, "candidates", pooled=True),
    "nlf": _down("NLF", detection.nlf, "candidates", pooled=True),
    # probability maps
    "mae": _down("MAE", saliency.mae, "saliency", span=_UNIT),
    "weighted_f": _up("Weighted F-measure", saliency.weighted_f, "saliency", dims=(2,)),
    "s_measure": _up("S-measure", saliency.s_measure, "saliency", dims=(2,)),
    "e_measure": _up("E-measure (max)", saliency.e_measure, "saliency"),
    "e_measure_mean": _up("E-measure (mean)", partial(saliency.e_measure, over="mean"), "saliency"),
    "mean_dsc": _up("DSC over thresholds", saliency.mean_dsc, "saliency"),
    "mean_iou": _up("IoU over thresholds", saliency.mean_iou, "saliency"),
    # calibration and uncertainty
    "ece": _down("ECE", calibration.ece, "probabilities", span=_UNIT),
    "ece_classwise": _down("ECE (class-wise)", partial(calibration.ece, form="class-wise"), "probabilities", span=_UNIT),
    "ece_adaptive": _down("ECE (adaptive bins)", partial(calibration.ece, adaptive=True), "probabilities", span=_UNIT),
    "ece_structure": _down("ECE of a structure", partial(calibration.ece, form="foreground"), "probability", span=_UNIT),
    "mce": _down("MCE", calibration.mce, "probabilities", span=_UNIT),
    "overconfidence": _down("Overconfidence error", calibration.overconfidence_error, "probabilities", span=_UNIT),
    "brier": _down("Brier score", calibration.brier, "probabilities", span=(0.0, 2.0)),
    "nll": _down("NLL", calibration.nll, "probabilities", "nats"),
    "aurc": _down("AURC", uncertainty.aurc, "uncertainty", span=_UNIT),
    "e_aurc": _down("Excess AURC", uncertainty.e_aurc, "uncertainty", span=_UNIT),
    "uncertainty_error_overlap": _up("Uncertainty-error overlap", uncertainty.uncertainty_error_overlap, "uncertainty"),
    # samples and raters
    "ged": _down("GED", uncertainty.ged, "samples", span=(0.0, 2.0)),
    "dice_max": _up("Dice max", uncertainty.dice_max, "samples"),
    "matched_iou": _up("Hungarian-matched IoU", uncertainty.matched_iou, "samples"),
    "consensus_dsc": _up("DSC in consensus", raters.consensus_dsc, "raters"),
    "consensus_confidence": _up("Confidence in consensus", raters.consensus_confidence, "raters' probability"),
    "multirater_ece": _down("ECE over raters", partial(calibration.multirater_ece, form="foreground"), "raters' probability", span=_UNIT),
    "volume_crps": _down("CRPS of volume", calibration.volume_crps, "volumes", "mL"),
    "volume_crps_ensemble": _down("CRPS of sampled volumes", calibration.volume_crps_ensemble, "volumes", "mL"),
    "rater_dsc": _up("DSC between raters", raters.pairwise_dsc, "raters alone"),
    "fleiss_kappa": _up("Fleiss' kappa of the raters", raters.fleiss_kappa, "raters alone", _SIGNED),
    # points and registration
    "mre": _down("MRE", landmark.mre, "points", "mm"),
    "sdr@2": _up("SDR at 2 mm", partial(landmark.sdr, threshold=2.0), "points"),
    "sdr@2.5": _up("SDR at 2.5 mm", partial(landmark.sdr, threshold=2.5), "points"),
    "sdr@3": _up("SDR at 3 mm", partial(landmark.sdr, threshold=3.0), "points"),
    "sdr@4": _up("SDR at 4 mm", partial(landmark.sdr, threshold=4.0), "points"),
    "points_missing": _down("Points not found", landmark.missing, "points", span=_UNIT),
    "tre": _down("TRE", registration.tre, "warped points", "mm"),
    "folding": _down("|J| <= 0", registration.folding, "displacement", span=_UNIT),
    "log_jacobian_sd": _down("SD of ln |J|", registration.log_jacobian_sd, "displacement"),
    "volume_change": Metric("Volume change", registration.volume_change, "warped labels", "zero", (-1.0, float("inf"))),
    # text and table
    "bleu": _up("BLEU-4", text.sentence_bleu, "text"),
    "rouge_l": _up("ROUGE-L", text.rouge_l, "text"),
    "exact_match": _up("Exact match", text.exact_match, "text"),
    "slot_f1": _up("Slot F1", _slot_f1, "record"),
    "field_accuracy": _up("Field accuracy", text.field_accuracy, "record"),
    "auroc": _pooled("AUROC", columns.ranked, classification.auroc),
    "auprc": _pooled("AUPRC", columns.ranked, classification.auprc),
    "sensitivity@0.9": _pooled("Sensitivity at 0.9 specificity", columns.ranked, classification.sensitivity_at_specificity),
    "specificity@0.9": _pooled("Specificity at 0.9 sensitivity", columns.ranked, classification.specificity_at_sensitivity),
    "fpr95": _pooled("FPR at 0.95 sensitivity", columns.ranked, classification.fpr_at_tpr, better="lower"),
    "column_accuracy": _pooled("Accuracy over cases", columns.decided, classification.accuracy),
    "column_balanced_accuracy": _pooled("Balanced accuracy over cases", columns.decided, classification.balanced_accuracy),
    "column_f1": _pooled("F1 over cases (macro)", columns.decided, classification.f1),
    "column_mcc": _pooled("MCC over cases", columns.decided, classification.mcc, span=_SIGNED),
    "column_kappa": _pooled("Kappa over cases", columns.decided, classification.kappa, span=_SIGNED),
    "quadratic_kappa": _pooled("Quadratic kappa", columns.decided, partial(classification.kappa, weights="quadratic"), span=_SIGNED),
    "kendall_tau": _pooled("Kendall's tau", columns.numbers, classification.kendall_tau, span=_SIGNED),
    "column_mae": _pooled("MAE over cases", columns.numbers, columns.mean_absolute_error, better="lower", span=_ANY),
    # challenge protocols
    **{name: _of_challenge(name, *way) for name, way in curvas.ROWS.items()},
    **{name: _of_challenge(name, *way) for name, way in tdsc_abus.ROWS.items() if name not in ("tdsc_froc", "tdsc_classification")},
    "tdsc_board_detection": Metric("TDSC-ABUS FROC", _official_froc, "tdsc_froc", "higher", _UNIT, pooled=True),
    "tdsc_board_classification": Metric(
        "TDSC-ABUS (accuracy + AUC) / 2", _official_classes, "tdsc_classification", "higher", _UNIT, pooled=True
    ),
}
DEFAULT = ("dsc", "iou", "hd95", "assd", "nsd", "rve")


def metric(name: str) -> Metric:
    """The metric of that name; raises UsageError with the nearest name."""
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'", fix=nearest(name, METRICS))
    return METRICS[name]
