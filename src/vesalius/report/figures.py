"""Figures of a report, as PNG bytes. Okabe-Ito colours (safe for colour-blind readers); matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import GeometryError
from .tables import Scores, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REFERENCE, PREDICTION = "#56B4E9", "#E69F00"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class CasePicture:
    """What is shown of a case: ``image`` (C, *spatial), ``spacing`` (mm by axis), ``reference`` and ``predictions`` (*spatial) class
    indices by method, ``names`` of the classes (background first). 3D arrays have RAS+ index order. Raises GeometryError."""

    case: str
    image: np.ndarray
    spacing: tuple[float, ...]
    reference: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ("background", "foreground")

    def __post_init__(self):
        if self.reference.shape != self.image.shape[1:] or self.reference.ndim not in (2, 3) or len(self.spacing) != self.reference.ndim:
            found = (self.image.shape, self.reference.shape, self.spacing)
            raise GeometryError("a picture is (C, *spatial) with a reference and a spacing on that grid", where=self.case, found=found)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _png(figure: Figure, dpi: int = 130) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def _colour(scores: Scores, method: str) -> str:
    return PALETTE[scores.methods.index(method) % len(PALETTE)]


def _complete(values: Mapping[str, Sequence], methods: Sequence[str]) -> np.ndarray:
    """(n, methods): only entries that every method has."""
    table = np.array([[np.nan if v is None else v for v in values[m]] for m in methods], float).T.reshape(-1, len(methods))
    return table[np.isfinite(table).all(axis=1)]


# --------------------------------------------------------------------------------------------------------------------------------- plots
def boxes(scores: Scores, metrics: Sequence[str], structure_of: Mapping[str, str]) -> bytes:
    """A box plot a metric, one point a case (and structure); two methods are joined by a line a pair."""
    import matplotlib

    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3 * columns, 3.0 * rows, rows, columns)
        for axis in axes[len(metrics) :]:
            axis.set_axis_off()
        for axis, metric in zip(axes, metrics, strict=False):
            _box(axis, scores, metric, structure_of[metric])
        return _png(figure)


def _box(axis: Axes, scores: Scores, metric: str, structure: str) -> None:
    values, _, _ = scores.aligned(metric, structure, scores.methods)
    if len(scores.methods) == 2:
        pairs = _complete(values, scores.methods)
        axis.plot(np.array([[1.0], [2.0]]).repeat(len(pairs), 1), pairs.T, color="#999999", linewidth=0.5, alpha=0.6, zorder=1)
    for n, method in enumerate(scores.methods, 1):
        y = np.array([v for v in values[method] if v is not None], float)
        colour = _colour(scores, method)
        if y.size:
            whole = {"color": colour, "linewidth": 1.3}
            props = {"boxprops": whole, "whiskerprops": whole, "capprops": whole, "medianprops": {"color": "black", "linewidth": 1.8}}
            axis.boxplot([y], positions=[n], widths=0.5, showfliers=False, **props)
        wide = 0.0 if len(scores.methods) == 2 else 0.14
        x = n + np.random.default_rng(n).uniform(-wide, wide, y.size)
        axis.scatter(x, y, s=10, color=colour, alpha=0.6, linewidths=0, zorder=3)
    long = len(scores.methods) > 3 or sum(map(len, scores.methods)) > 26  # the names would run into each other
    turn = {"rotation": 30, "ha": "right"} if long else {}
    axis.set_xticks(range(1, len(scores.methods) + 1), scores.methods, **turn)
    axis.set_xlim(0.4, len(scores.methods) + 0.6)
    better = {"higher": "higher is better", "lower": "lower is better"}.get(scores.facts[metric]["better"], "")
    axis.set_title(scores.label(metric), fontweight="bold", loc="left")
    axis.set_ylabel(better, color="#666666", fontsize=8)


def scatter(scores: Scores, metrics: Sequence[str], structure_of: Mapping[str, str], baseline: str, other: str) -> bytes:
    """Case by case, the other method against the baseline: points off the diagonal differ."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3 * len(metrics), 3.3, 1, len(metrics))
        for axis, metric in zip(axes, metrics, strict=True):
            values, _, _ = scores.aligned(metric, structure_of[metric], (baseline, other))
            pairs = _complete(values, (baseline, other))
            low, high = (float(pairs.min()), float(pairs.max())) if len(pairs) else (0.0, 1.0)
            room = 0.06 * (high - low or 1.0)
            axis.plot([low - room, high + room], [low - room, high + room], color="#888888", linewidth=0.8, linestyle="--")
            axis.scatter(*pairs.T, s=16, color=_colour(scores, other), alpha=0.75, linewidths=0)
            axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal", xlabel=baseline, ylabel=other)
            ticks = [t for t in axis.get_yticks() if low - room <= t <= high + room]
            axis.set(xticks=ticks, yticks=ticks)
            above = {"higher": f"above the line: {other} better", "lower": f"below the line: {other} better"}
            axis.set_title(f"{scores.label(metric)}\n{above.get(scores.facts[metric]['better'], '')}", loc="left", fontsize=9)
        return _png(figure)


def costs(scores: Scores, points: Mapping[str, tuple[dict[str, float], float]], label: str) -> bytes | None:
    """Mean accuracy against each known cost; ``points[method]`` = (cost by name, accuracy). None when no cost is known."""
    import matplotlib

    names = [n for n in dict.fromkeys(k for cost, _ in points.values() for k in cost) if any(c.get(n, 0) > 0 for c, _ in points.values())]
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3 * len(names), 2.9, 1, len(names))
        for axis, name in zip(axes, names, strict=True):
            for method, (cost, accuracy) in points.items():
                if cost.get(name, 0) > 0:
                    axis.scatter(cost[name], accuracy, s=45, color=_colour(scores, method))
                    axis.annotate(method, (cost[name], accuracy), xytext=(6, 4), textcoords="offset points", fontsize=8)
            axis.set(xlabel=name, ylabel=f"mean {label}")
            axis.margins(0.25)
            axis.set_xlim(left=0)
        return _png(figure)


def bland_altman(scores: Scores, pictures: Sequence[CasePicture]) -> bytes | None:
    """Predicted minus reference volume against their mean, with bias and limits of agreement (mean +- 1.96 SD; Bland and Altman 1986).

    One point a case and structure that either mask has; ml in 3D, mm^2 in 2D. None with fewer than three points.
    """
    import matplotlib

    volumes = {m: _volumes(pictures, m) for m in scores.methods}
    volumes = {m: v for m, v in volumes.items() if len(v) >= 3}
    if not volumes:
        return None
    unit = "ml" if pictures[0].reference.ndim == 3 else "mm²"
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3 * len(volumes), 2.9, 1, len(volumes))
        for axis, (method, pair) in zip(axes, volumes.items(), strict=True):
            predicted, reference = pair.T
            difference = predicted - reference
            bias, sd = difference.mean(), difference.std(ddof=1)
            axis.scatter((predicted + reference) / 2, difference, s=16, color=_colour(scores, method), alpha=0.75, linewidths=0)
            for y, dash in ((bias, "-"), (bias - 1.96 * sd, "--"), (bias + 1.96 * sd, "--")):
                axis.axhline(y, color="#444444", linewidth=0.9, linestyle=dash)
            limits = f"{number(bias - 1.96 * sd, unit)} to {number(bias + 1.96 * sd, unit)}"
            axis.set_title(f"{method}\nbias {number(bias, unit)} {unit}, limits {limits}", loc="left", fontsize=9)
            axis.set(xlabel=f"mean of prediction and reference ({unit})", ylabel=f"difference ({unit})")
        return _png(figure)


def _volumes(pictures: Sequence[CasePicture], method: str) -> np.ndarray:
    """(n, 2): predicted and reference volume."""
    out = []
    for p in pictures:
        voxel = float(np.prod(p.spacing)) / (1000 if p.reference.ndim == 3 else 1)
        if method in p.predictions:
            known = p.reference >= 0
            pairs = [((p.predictions[method] == k) & known, p.reference == k) for k in range(1, len(p.names))]
            out += [(a.sum() * voxel, b.sum() * voxel) for a, b in pairs if a.any() or b.any()]
    return np.array(out, float).reshape(-1, 2)


# ------------------------------------------------------------------------------------------------------------------------------ pictures
def contours(picture: CasePicture, methods: Sequence[str], captions: Mapping[str, str]) -> bytes:
    """The image, then one panel a method with the outlines of reference and prediction, true to spacing.

    3D: the axial slice with the largest reference (without one: the largest error), shown as radiologists do, the patient's right on the
    left and front up. The view is cropped around what is outlined, to no less than about half of the image's sides.
    """
    import matplotlib

    image, reference, predictions, spacing = _slice(picture)
    marked = (reference > 0) | np.logical_or.reduce([p > 0 for p in predictions.values()] or [reference > 0])
    window = tuple(_view(marked.any(axis=1 - a), reference.shape[a]) for a in (0, 1))
    height, width = (reference[window].shape[a] * spacing[a] for a in (0, 1))
    columns, side = 1 + len(methods), 2.9
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _figure(side * columns, min(max(side * height / width, 1.2), 2 * side) + 0.25, 1, columns)
        for axis, name in zip(axes, [None, *methods], strict=True):
            shown = {"cmap": "gray", "vmin": 0, "vmax": 1, "extent": (0, width, height, 0), "interpolation": "bilinear"}
            axis.imshow(image[window], **shown)
            axis.set_axis_off()
            axis.set_title("image" if name is None else captions.get(name, name), fontsize=9, loc="left")
            if name is not None:
                _outline(axis, reference[window], spacing, REFERENCE)
                _outline(axis, predictions.get(name, np.zeros_like(reference))[window], spacing, PREDICTION)
        return _png(figure, 110)


def _slice(p: CasePicture) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], tuple[float, ...]]:
    """Image in [0, 1] (rows, columns[, 3]), label slices, spacing of rows and columns."""
    image = p.image if p.image.shape[0] == 3 else p.image[:1]
    if p.reference.ndim == 2:
        return _grey(image), p.reference, p.predictions, tuple(p.spacing)
    area = (p.reference > 0).sum(axis=(0, 1))
    if not area.any():
        area = sum(((q > 0).sum(axis=(0, 1)) for q in p.predictions.values()), start=area)
    k = int(area.argmax()) if area.any() else p.reference.shape[2] // 2

    def turn(volume: np.ndarray) -> np.ndarray:
        return volume[..., k].swapaxes(-1, -2)[..., ::-1, ::-1]

    return _grey(turn(image)), turn(p.reference), {m: turn(q) for m, q in p.predictions.items()}, (p.spacing[1], p.spacing[0])


def _grey(channels: np.ndarray) -> np.ndarray:
    """Windowed to the 0.5-99.5 percentiles, into [0, 1]; three channels are RGB, channel last."""
    data = np.nan_to_num(channels.astype(np.float32))
    low, high = (0.0, max(1.0, float(data.max()))) if len(data) == 3 else np.percentile(data, (0.5, 99.5))
    data = np.clip((data - low) / ((high - low) or 1.0), 0, 1)
    return np.moveaxis(data, 0, -1) if len(data) == 3 else data[0]


def _view(marked: np.ndarray, side: int) -> slice:
    hit = np.flatnonzero(marked)
    if hit.size == 0:
        return slice(0, side)
    length = min(side, max(int((hit[-1] - hit[0] + 1) * 1.8), side // 2, 8))
    start = int(np.clip((hit[0] + hit[-1] + 1 - length) // 2, 0, side - length))
    return slice(start, start + length)


def _outline(axis: Any, labels: np.ndarray, spacing: Sequence[float], colour: str) -> None:
    padded = np.pad(labels, 1, constant_values=0)
    y, x = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape, spacing, strict=True))
    for k in np.unique(labels[labels > 0]):
        axis.contour(x, y, (padded == k).astype(np.float32), levels=[0.5], colors=colour, linewidths=1.4)
