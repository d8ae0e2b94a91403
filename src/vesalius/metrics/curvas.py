"""The CURVAS challenge's protocol: agreement where all raters agree, calibration against each of them, and the volume they disagree about.

Per organ the DSC and the confidence in the raters' consensus and the CRPS of the volume; per case the ECE against each rater and its mean.
The ranking is the mean of ranks per metric. Riera-Marin et al., CURVAS 2024, https://arxiv.org/abs/2505.08685; code read:
SYCAI-Technologies/curvas-challenge, CURVAS_2024/evaluation_metrics.

The published code departs from the published words in four places. What it computes is given beside the definition, under the metric's name
with ``_code``:

* DSC: the code hands MONAI volumes as if (slices, rows) were (batch, channel), so its Dice is a mean of the Dice of image rows (row 0 left
  out as 'background', rows without consensus too) over rows, then slices;
* CRPS: the integral ends 3 sd from the raters' mean, so that a volume further away costs no more;
* ECE: 50 bins, closed on the left, in the in-plane box of voxels with CT > 0 (the first version: 5 bins, and organs compared one label off,
  which is not reproduced);
* confidence: half the mean probability in consensus foreground plus half of one minus that in consensus background; the first version took
  the largest probability in the foreground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.case import Case, LabelMap
from ..core.errors import DataError, GeometryError
from ..core.prediction import Prediction, Score
from ..ops.components import bounding_box
from ..ops.opinions import opinions
from .calibration import check_probability, ece_by_rater, volume_crps
from .overlap import dsc, mean_defined
from .raters import Regions, regions

BINS = 50  # of the ECE in the challenge's final evaluation
ROWS: Mapping[str, tuple[str, str]] = {  # name -> (which way is better, unit)
    "curvas_dsc": ("higher", ""),
    "curvas_dsc_code": ("higher", ""),
    "curvas_confidence": ("higher", ""),
    "curvas_ece": ("lower", ""),
    "curvas_ece_code": ("lower", ""),
    "curvas_crps": ("lower", "mL"),
    "curvas_crps_code": ("lower", "mL"),
}
RANKED = ("curvas_dsc", "curvas_ece", "curvas_crps")


def score(prediction: Prediction, case: Case, *, raters: Sequence[str] = (), bins: int = BINS, patient: str = "") -> list[Score]:
    """All rows of one case on its own grid: DSC, confidence and CRPS (mL) a structure, ECE a rater and, with rater '', their mean.

    ``prediction`` holds the label map and the probabilities of all classes, background first (``infer(..., probability=True)``); without
    probabilities what needs them is undefined, with a note. ``raters`` names the label maps that are opinions (default: all, 'reference'
    only where nothing else is). Raises GeometryError for another grid, DataError for other classes or channels.
    """
    raters = tuple(raters) or (opinions(case.labels) if case.labels else ())
    said = _opinions(case, raters)
    names, grid = said[0].names, said[0].geometry
    label = prediction.label
    if label is None:
        raise DataError("the prediction has no label map to score", where=f"case {case.id}")
    for name, field in (("label map", label), ("probability", prediction.probability)):
        if field is not None and not field.geometry.close(grid):
            found, allowed = field.geometry.describe(), grid.describe()
            raise GeometryError(f"{name} and raters lie on different grids", where=f"case {case.id}", found=found, allowed=allowed)
    maps = np.stack([np.asarray(m.data) for m in said])
    p = None if prediction.probability is None else np.asarray(prediction.probability.data)
    if label.names != names or (p is not None and (len(p) != len(names) or prediction.threshold is not None)):
        found = f"{label.names}, {'no' if p is None else len(p)} channels"
        raise DataError("CURVAS scores one channel a class, background first", where=f"case {case.id}", found=found, allowed=names)
    if p is not None:
        check_probability(p)
    ml, rows = grid.voxel_volume / 1000, []

    def add(metric: str, value: float | None, structure: str = "", rater: str = "", **extra: float) -> None:
        why = "the prediction has no probability" if p is None and "dsc" not in metric else "nothing to compare"
        note, (better, unit) = "" if value is not None else why, ROWS[metric]
        facts = {"better": better, "unit": unit, **extra}
        rows.append(Score(case.id, metric, value, structure, patient or case.patient, rater=rater, note=note, extra=facts))

    for k, structure in list(enumerate(names))[1:]:
        agreed, mask = regions(maps, k), np.asarray(label.data) == k
        volumes = [float((m == k).sum() * ml) for m in maps]
        predicted = None if p is None else float(p[k].sum(dtype=np.float64) * ml)
        mask &= ~agreed.dissensus  # as raters.consensus_dsc, whose regions serve all rows here
        add("curvas_dsc", dsc(mask, agreed.foreground), structure, dissensus_ml=float(agreed.dissensus.sum() * ml))
        add("curvas_dsc_code", rowwise_dsc(mask.T, agreed.foreground.T), structure)
        add("curvas_confidence", None if p is None else confidence(p[k], agreed), structure)
        facts = {} if predicted is None else {"predicted_ml": predicted, "raters_ml": volumes}
        add("curvas_crps", None if predicted is None else volume_crps(predicted, volumes), structure, **facts)
        add("curvas_crps_code", None if predicted is None else volume_crps(predicted, volumes, within=3), structure)
    found = [None] * len(maps) if p is None else ece_by_rater(p, maps, bins=bins)
    for name, value in zip(raters, found, strict=True):
        add("curvas_ece", value, rater=name, bins=bins)
    add("curvas_ece", mean_defined(found), bins=bins)
    inside = body_box(np.asarray(next(iter(case.images.values())).data[0])) if case.images else ()
    coded = [None] if p is None else [ece_code(p[(slice(None), *inside)], m[inside], bins=bins) for m in maps]
    add("curvas_ece_code", mean_defined(coded), bins=bins)
    return rows


def _opinions(case: Case, names: Sequence[str]) -> list[LabelMap]:
    """These raters' label maps, all of the same classes."""
    missing = [n for n in names if n not in case.labels]
    if missing or len(names) < 2:
        allowed = list(names) if missing else "two or more"
        raise DataError("CURVAS compares with several raters", where=f"case {case.id}", found=list(case.labels), allowed=allowed)
    maps = [case.labels[n].semantic for n in names]
    if any(m.overlapping or m.names != maps[0].names for m in maps):
        raise DataError("the raters name different classes, or classes that overlap", where=f"case {case.id}")
    return maps


# --------------------------------------------------------------------------------------------------------------------------- the measures
def rowwise_dsc(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """What the published code reports as Dice: of bool (slices, rows, columns) the DSC of each row that has reference, the first row of a
    slice left out, averaged over rows and then over slices that have any; None without such a row."""
    p, r = prediction[:, 1:], reference[:, 1:]
    has = r.any(-1)
    if not has.any():
        return None
    each = 2 * (p & r).sum(-1) / np.maximum(p.sum(-1) + r.sum(-1), 1)
    some = has.any(1)
    return float(((each * has).sum(1)[some] / has.sum(1)[some]).mean())


def confidence(probability: np.ndarray, agreed: Regions) -> float | None:
    """Mean of the probability (*spatial) in consensus foreground and of one minus it in consensus background, in [0, 1], higher is better;
    None when there is no consensus of either kind."""
    if not (agreed.foreground.any() and agreed.background.any()):
        return None
    inside, outside = (float(probability[r].mean(dtype=np.float64)) for r in (agreed.foreground, agreed.background))
    return (1 - outside + inside) / 2


def ece_code(probability: np.ndarray, label: np.ndarray, *, bins: int = BINS) -> float:
    """Top-label ECE of (K, *spatial) against class indices, with bins closed on the left and a bin of its own for certainty (p = 1), as the
    published code's library has them; in [0, 1], lower is better."""
    sure, right = probability.max(0).ravel(), (probability.argmax(0) == label).ravel()
    where = np.minimum((sure * bins).astype(np.int64), bins)
    gap = np.abs(np.bincount(where, sure, bins + 1) - np.bincount(where, right, bins + 1))
    return float(gap.sum() / sure.size)


def body_box(ct: np.ndarray) -> tuple[slice, ...]:
    """The in-plane bounding box of voxels above 0 HU of any slice (last axis) as slices; everything where there is none."""
    inside = (ct > 0).any(-1)
    box = bounding_box(inside)
    return (slice(None),) * ct.ndim if box is None else (*box, slice(None))


def mean_ranks(values: Mapping[str, Mapping[str, float | None]], metrics: Sequence[str] = RANKED) -> dict[str, float]:
    """Method -> mean over metrics of its rank (1 is best, ties share the mean; an undefined value is last), best first.

    ``values``: method -> metric -> mean over cases. That all metrics weigh the same is our reading of the challenge.
    """
    from scipy.stats import rankdata

    ranks = []
    for metric in metrics:
        sign = -1 if ROWS[metric][0] == "higher" else 1
        ranks.append(rankdata([np.inf if v.get(metric) is None else sign * v[metric] for v in values.values()]))
    means = dict(zip(values, np.mean(ranks, axis=0).tolist(), strict=True))
    return dict(sorted(means.items(), key=lambda item: item[1]))
