"""Is a probability right as often as it says? Calibration errors, proper scores and the CRPS of a volume.

``probability`` is one map of the foreground (*shape) or one channel a class, background first, (K, *shape); ``label`` (*shape) holds class
indices (a boolean mask of the foreground will do for one map). Shapes are any: voxels of a volume or (n,) cases. Voxels labelled
``IGNORE`` and those outside ``roi`` (*shape, bool) count for nothing; without a voxel left every value is undefined (None).
A probability that is NaN or outside [0, 1], and channels that do not sum to 1, are a DataError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.case import IGNORE
from ..core.errors import DataError, GeometryError, UsageError
from .overlap import mean_defined

Form = Literal["top-label", "class-wise", "foreground"]
FORMS = ("top-label", "class-wise", "foreground")
BINS = 15  # Guo et al. 2017
_SMALL = float(np.finfo(np.float64).eps)


# ---------------------------------------------------------------------------------------------------------------------------- reliability
@dataclass(frozen=True)
class Reliability:
    """The reliability diagram: by bin its ``edges`` (M + 1,), ``count``, mean ``confidence`` and ``accuracy`` (M,), NaN in empty bins."""

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def filled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of all voxels, confidence and accuracy of the bins that hold any."""
        some = self.count > 0
        return self.count[some] / self.count.sum(), self.confidence[some], self.accuracy[some]


def reliability(confidence: np.ndarray, event: np.ndarray, *, bins: int = BINS, adaptive: bool = False) -> Reliability:
    """The table of ``confidence`` (n,) in [0, 1] against whether the event came true, ``event`` (n,) bool.

    Bins are closed on the right, the first one on both sides. ``adaptive`` puts the edges at the quantiles, so that bins hold about equal
    numbers (Nguyen and O'Connor 2015; Nixon et al. 2019); equal confidences share a bin, so the order of voxels never matters.
    """
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise UsageError("a reliability table has at least one bin", found=bins)
    confidence, event = np.asarray(confidence), np.asarray(event)
    if event.dtype != bool or event.shape != confidence.shape or event.ndim != 1:
        raise DataError("confidence and event are (n,) numbers and (n,) booleans", found=(confidence.shape, event.dtype, event.shape))
    check_probability(confidence)
    edges = np.linspace(0, 1, bins + 1)
    if adaptive and event.size:
        edges[1:-1] = np.quantile(confidence, edges[1:-1], method="inverted_cdf")
    where = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(where, confidence, bins) / count
        accuracy = np.bincount(where, event, bins) / count
    return Reliability(edges, count, mean, accuracy)


def reliability_tables(
    probability: np.ndarray,
    label: np.ndarray,
    *,
    form: Form = "top-label",
    bins: int = BINS,
    adaptive: bool = False,
    roi: np.ndarray | None = None,
) -> tuple[Reliability, ...]:
    """The reliability tables of a form: one for top-label and foreground, one a class for class-wise.

    top-label: confidence is the largest channel, right when that channel is the label (one map p stands for the channels 1 - p, p).
    class-wise: every channel against 'this class'. foreground: p (of channels: all but the first) against 'not background'.
    """
    if form not in FORMS:
        raise UsageError("unknown form of calibration", found=form, allowed=", ".join(FORMS))
    p, y = _spoken(probability, label, roi)
    pairs = {"top-label": _top_label, "class-wise": _class_wise, "foreground": _foreground}[form](p, y)
    return tuple(reliability(confidence, event, bins=bins, adaptive=adaptive) for confidence, event in pairs)


def ece(probability: np.ndarray, label: np.ndarray, **options) -> float | None:
    """Expected calibration error: sum over bins of |B| / n x |accuracy - confidence|, in [0, 1], lower is better.

    ``options`` are those of ``reliability_tables`` (form, bins, adaptive, roi); class-wise is the mean over the classes (Kull et al. 2019).
    Undefined (None) without voxels. Source: Guo et al. 2017, arXiv:1706.04599, equation 3; adaptive: Nixon et al. 2019, arXiv:1904.01685.
    """
    return _over_tables(probability, label, options, lambda share, c, a: float(share @ np.abs(a - c)), np.mean)


def mce(probability: np.ndarray, label: np.ndarray, **options) -> float | None:
    """Maximum calibration error: the largest |accuracy - confidence| of a bin that is not empty, in [0, 1], lower is better.

    Class-wise: the largest of all classes. Undefined (None) without voxels. Source: Guo et al. 2017, equation 5.
    """
    return _over_tables(probability, label, options, lambda share, c, a: float(np.abs(a - c).max()), np.max)


def overconfidence_error(probability: np.ndarray, label: np.ndarray, **options) -> float | None:
    """Overconfidence error: sum over bins of |B| / n x confidence x max(confidence - accuracy, 0), in [0, 1], lower is better.

    Doubting what is right costs nothing. Undefined (None) without voxels. Source: Thulasidasan et al. 2019, arXiv:1905.11001, section 3.
    """
    return _over_tables(probability, label, options, lambda share, c, a: float(share @ (c * np.maximum(c - a, 0))), np.mean)


def ece_by_rater(probability: np.ndarray, labels: Sequence[np.ndarray], *, bins: int = 5, **options) -> tuple[float | None, ...]:
    """The ECE against each rater's label map; the five bins are those of the CURVAS challenge."""
    return tuple(ece(probability, label, bins=bins, **options) for label in labels)


def multirater_ece(probability: np.ndarray, labels: Sequence[np.ndarray], *, bins: int = 5, **options) -> float | None:
    """Multi-rater ECE: the mean over raters of the ECE against each, in [0, 1], lower is better.

    It need not be 0 for the frequency with which raters say 'foreground': a rater who always dissents keeps it up. Channels include the
    background (``with_background``). Raters without a voxel are left out; none left is undefined (None). Source: CURVAS challenge 2024.
    """
    return mean_defined(ece_by_rater(probability, labels, bins=bins, **options))


def with_background(probability: np.ndarray) -> np.ndarray:
    """(K, *shape) channels of exclusive structures -> (K + 1, *shape) with the background, 1 - their sum, first."""
    probability = np.asarray(probability)
    rest = 1 - probability.sum(axis=0, keepdims=True)
    if not rest.min(initial=1) >= -0.01:
        raise DataError("the structures' probabilities sum to more than 1", found=1 - float(rest.min()), fix="score them one by one")
    return np.concatenate([np.clip(rest, 0, 1), probability])


# -------------------------------------------------------------------------------------------------------------------------- proper scores
def brier(probability: np.ndarray, label: np.ndarray, *, roi: np.ndarray | None = None) -> float | None:
    """Brier score, lower is better: the mean of (p - y)^2 of one map, in [0, 1]; of sum_k (p_k - [y = k])^2 of K channels, in [0, 2].

    Undefined (None) without voxels. Source: Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    p, y = _spoken(probability, label, roi)
    if y.size == 0:
        return None
    events = [y] if len(p) == 1 else [y == k for k in range(len(p))]
    return float(sum(np.mean(np.square(channel - event, dtype=np.float64)) for channel, event in zip(p, events, strict=True)))


def nll(probability: np.ndarray, label: np.ndarray, *, roi: np.ndarray | None = None) -> float | None:
    """Negative log-likelihood (log loss): the mean of -ln p(label), in nats, at least 0, lower is better.

    A probability below 2.2e-16 counts as that (36 nats), as one certain mistake would make the mean infinite. Undefined (None) without
    voxels. Source: Metrics Reloaded (Maier-Hein et al. 2024), NLL.
    """
    p, y = _spoken(probability, label, roi)
    if y.size == 0:
        return None
    said = np.where(y, p[0], 1 - p[0]) if len(p) == 1 else np.take_along_axis(p, y[None], axis=0)[0]
    return float(-np.mean(np.log(np.clip(said.astype(np.float64), _SMALL, 1))))


# -------------------------------------------------------------------------------------------------------------------- temperature scaling
def fit_temperature(logits: np.ndarray, label: np.ndarray, *, roi: np.ndarray | None = None) -> float:
    """The T in [0.01, 100] for which softmax(logits / T) has the least NLL; above 1 the logits were overconfident.

    ``logits`` (K, *shape), one channel a class. Dividing keeps every decision, so only confidences change. The NLL is convex in 1 / T, so
    the minimum is the only one. Raises DataError without a labelled voxel. Source: Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    z, y = _voxels(logits, label, roi)
    if len(z) < 2:
        raise DataError("temperature scaling needs one channel a class", found=np.shape(logits), fix="stack zeros and the logit")
    if y.size == 0 or not np.isfinite(z).all():
        raise DataError("temperature scaling needs labelled voxels and finite logits", found=f"{y.size} voxels")
    z = z.astype(np.float64)
    z -= z.max(axis=0)
    own = np.take_along_axis(z, y[None], axis=0)[0].mean()

    def loss(log_t: float) -> float:
        beta = np.exp(-log_t)
        return float(logsumexp(beta * z, axis=0).mean() - beta * own)

    reach = np.log(100.0)
    return float(np.exp(minimize_scalar(loss, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-6}).x))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(K, *shape) logits -> probabilities of softmax(logits / temperature)."""
    from scipy.special import softmax as of

    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError("a temperature is positive", found=temperature)
    return of(np.asarray(logits) / temperature, axis=0)


# -------------------------------------------------------------------------------------------------------------------------- CRPS of volume
def crps_gaussian(mean: float, sd: float, value: float, *, within: float = np.inf) -> float:
    """Continuous ranked probability score of N(mean, sd^2) at ``value``: the integral of (F(y) - [y >= value])^2 dy, lower is better.

    In the unit of ``value``. ``within`` cuts the integral off at that many sd from the mean (CURVAS: 3), so that a value beyond costs no
    more the further it is. sd = 0 is |value - mean|, cut off or not. With G(z) = z F^2 + 2 F f - F(sqrt(2) z) / sqrt(pi), the
    antiderivative of the squared normal F, and z the value in sd, cut off: sd (G(z) + G(-z) - 2 G(-within)).
    Source: Gneiting and Raftery 2007, doi:10.1198/016214506000001437.
    """
    if not (np.isfinite([mean, sd, value]).all() and sd >= 0 and within > 0):
        raise DataError("CRPS needs finite numbers, sd >= 0 and a positive range", found=(mean, sd, value, within))
    if sd == 0 or not np.isfinite((value - mean) / sd):
        return float(abs(value - mean))
    z = float(np.clip((value - mean) / sd, -within, within))
    return float(sd * (_squared_normal(z) + _squared_normal(-z) - 2 * _squared_normal(-within)))


def crps_ensemble(members: Sequence[float] | np.ndarray, value: float) -> float | None:
    """CRPS of the members' step distribution at ``value``: mean |x - value| - mean |x - x'| / 2 over all pairs, lower is better.

    One member is the absolute error; none is undefined (None). Source: Gneiting and Raftery 2007, section 4.2.
    """
    x = np.sort(_finite(members))
    if x.size == 0:
        return None
    (value,) = _finite([value])
    n = x.size
    half_spread = float((2 * np.arange(1, n + 1) - n - 1) @ x) / n**2
    return max(0.0, float(np.abs(x - value).mean()) - half_spread)


def volume_crps(predicted: Sequence[float] | float, references: Sequence[float], *, within: float = np.inf) -> float | None:
    """CRPS of the raters' volumes, as a normal distribution, at the predicted volume: lower is better, in the volumes' unit.

    mean and population sd are those of ``references`` (R,); ``predicted`` is the sum of probabilities x voxel volume (several: their
    mean); ``within=3`` is the published challenge code. Raters of one volume, or one rater: the absolute error. No rater or no prediction
    is undefined (None). Source: CURVAS challenge 2024; closed form: ``crps_gaussian``.
    """
    predicted, references = _finite(np.atleast_1d(predicted)), _finite(references)
    if not (predicted.size and references.size):
        return None
    return crps_gaussian(float(references.mean()), float(references.std()), float(predicted.mean()), within=within)


def volume_crps_ensemble(predicted: Sequence[float], references: Sequence[float]) -> float | None:
    """CRPS of the volumes of a method's samples (S,) at each rater's volume, mean over raters: lower is better, in the volumes' unit.

    Undefined (None) without samples or raters. Source: ``crps_ensemble``.
    """
    references = _finite(references)
    if not (np.size(predicted) and references.size):
        return None
    return float(np.mean([crps_ensemble(predicted, v) for v in references]))


# ------------------------------------------------------------------------------------------------------------------------------- the pairs
def _top_label(p: np.ndarray, y: np.ndarray):
    if len(p) == 1:
        return [(np.maximum(p[0], 1 - p[0]), (p[0] >= 0.5) == y)]
    return [(p.max(axis=0), p.argmax(axis=0) == y)]


def _class_wise(p: np.ndarray, y: np.ndarray):
    if len(p) == 1:
        return [(1 - p[0], ~y), (p[0], y)]
    return [(channel, y == k) for k, channel in enumerate(p)]


def _foreground(p: np.ndarray, y: np.ndarray):
    return [(p[0], y)] if len(p) == 1 else [(np.clip(p[1:].sum(axis=0), 0, 1), y > 0)]


def _over_tables(probability, label, options, value, mean) -> float | None:
    tables = reliability_tables(probability, label, **options)
    return float(mean([value(*t.filled) for t in tables])) if tables[0].count.any() else None


def _spoken(probability: np.ndarray, label: np.ndarray, roi: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(K, n) checked probabilities and (n,) labels of the voxels that count; K = 1 is one map of the foreground, its labels bool."""
    p, y = _voxels(probability, label, roi)
    check_probability(p)
    if len(p) > 1 and y.size and not np.abs(p.sum(axis=0) - 1).max() <= 0.01:
        raise DataError(
            "the channels' probabilities do not sum to 1",
            found=f"sums from {p.sum(axis=0).min():.4g} to {p.sum(axis=0).max():.4g}",
            fix="prepend the background's channel (with_background), or score overlapping structures one by one",
        )
    return p, (y.astype(bool) if len(p) == 1 else y)


def _voxels(maps: np.ndarray, label: np.ndarray, roi: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    maps, label = np.asarray(maps), np.asarray(label)
    if maps.shape != label.shape and maps.shape[1:] != label.shape:
        raise GeometryError("maps and labels have different shapes", found=maps.shape, allowed=f"{label.shape} or (K, *{label.shape})")
    if label.dtype != bool and not np.issubdtype(label.dtype, np.integer):
        raise DataError("labels are class indices or a boolean mask", found=label.dtype)
    keep = np.ones(label.shape, bool) if label.dtype == bool else label != IGNORE
    if roi is not None:
        roi = np.asarray(roi)
        if roi.dtype != bool or roi.shape != label.shape:
            raise GeometryError("a region of interest is a boolean mask of the labels' shape", found=(roi.dtype, roi.shape))
        keep = keep & roi
    channels = 1 if maps.shape == label.shape else len(maps)
    p, y, keep = maps.reshape(channels, label.size), label.ravel(), keep.ravel()
    if not keep.all():
        p, y = p[:, keep], y[keep]
    classes = max(2, len(p))
    if y.dtype != bool and y.size and not (y.min() >= 0 and y.max() < classes):
        raise DataError("labels name classes that have no channel", found=(int(y.min()), int(y.max())), allowed=f"0 to {classes - 1}")
    return p, (y.astype(np.intp) if len(p) > 1 else y)


def check_probability(p: np.ndarray) -> None:
    """Raises DataError for numbers outside [0, 1] and for NaN, which it counts."""
    if p.size and not (p.min() >= 0 and p.max() <= 1 + 1e-6):
        bad = int(np.count_nonzero(np.isnan(p)))
        found = f"NaN in {bad} of {p.size}" if bad else f"{p.min():.6g} to {p.max():.6g}"
        raise DataError("probabilities are numbers from 0 to 1", found=found)


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError("volumes are finite numbers, one each", found=values.tolist())
    return values


def _squared_normal(z: float) -> float:
    """The integral of F(y)^2 dy, F the standard normal distribution, up to z."""
    from scipy.special import ndtr

    if z == -np.inf:
        return 0.0
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return float(z * ndtr(z) ** 2 + 2 * ndtr(z) * density - ndtr(np.sqrt(2) * z) / np.sqrt(np.pi))
