"""Figures of a report, as PNG bytes. Okabe-Ito colours (safe for colour-blind readers); matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import GeometryError
from .ranking import Ranking
from .tables import Scores, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
REFERENCE, PREDICTION = "#56B4E9", "#E69F00"
FALSE_POSITIVE, FALSE_NEGATIVE, OTHER_CLASS = "#E69F00", "#0072B2", "#CC79A7"  # light, dark and between: apart in grey print, too
LONGEST = 26  # characters of a name in a figure
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


def _marker(scores: Scores, method: str) -> str:
    """Together with the colour this tells 49 methods apart, also in print."""
    n = scores.methods.index(method)
    return MARKERS[(n + n // len(PALETTE)) % len(MARKERS)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _grid(panels: int, width: float, height: float, most: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, the rest of the last row left blank."""
    columns = min(most, panels)
    rows = -(-panels // columns)
    figure, axes = _figure(width * columns, height * rows, rows, columns)
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def _complete(values: Mapping[str, Sequence], methods: Sequence[str]) -> np.ndarray:
    """(n, methods): only entries that every method has."""
    table = np.array([[np.nan if v is None else v for v in values[m]] for m in methods], float).T.reshape(-1, len(methods))
    return table[np.isfinite(table).all(axis=1)]


# --------------------------------------------------------------------------------------------------------------------------------- plots
def distributions(scores: Scores, metrics: Sequence[str], structure_of: Mapping[str, str]) -> bytes:
    """A panel a metric: violin, box and one point a case (and structure) of each method; two methods are joined by a line a pair."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(metrics), 3.5, 3.0 + 0.12 * max(0, len(scores.methods) - 4))
        for axis, metric in zip(axes, metrics, strict=True):
            _distribution(axis, scores, metric, structure_of[metric])
        return _png(figure)


def _distribution(axis: Axes, scores: Scores, metric: str, structure: str) -> None:
    values, _, _ = scores.aligned(metric, structure, scores.methods)
    if len(scores.methods) == 2:
        pairs = _complete(values, scores.methods)
        axis.plot(np.array([[1.0], [2.0]]).repeat(len(pairs), 1), pairs.T, color="#999999", linewidth=0.5, alpha=0.5, zorder=1)
    for n, method in enumerate(scores.methods, 1):
        y = np.array([v for v in values[method] if v is not None], float)
        colour = _colour(scores, method)
        if y.size > 4 and np.ptp(y) > 0:
            for body in axis.violinplot([y], positions=[n], widths=0.8, showextrema=False)["bodies"]:
                body.set(facecolor=colour, alpha=0.18, edgecolor="none")
        wide = 0.0 if len(scores.methods) == 2 else 0.16
        x = n + np.random.default_rng(n).uniform(-wide, wide, y.size)
        axis.scatter(x, y, s=10 if y.size < 100 else 5, color=colour, alpha=0.5, linewidths=0, zorder=3)
        if y.size:
            whole = {"color": "#222222", "linewidth": 1.1, "zorder": 4}
            props = {"boxprops": whole, "whiskerprops": whole, "capprops": whole, "medianprops": whole | {"linewidth": 2.2}}
            axis.boxplot([y], positions=[n], widths=0.28, showfliers=False, **props)
    names = [_short(m) for m in scores.methods]
    long = len(names) > 3 or sum(map(len, names)) > 26  # the names would run into each other
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_xticks(range(1, len(names) + 1), names, **turn)
    axis.set_xlim(0.4, len(names) + 0.6)
    better = {"higher": "higher is better", "lower": "lower is better", "zero": "zero is best"}.get(scores.facts[metric]["better"], "")
    axis.set_title(scores.label(metric), fontweight="bold", loc="left")
    axis.set_ylabel(better, color="#444444", fontsize=8)


def stability(found: Ranking) -> bytes:
    """The share of bootstrap samples in which each method takes each place, as a stacked bar a method, best first; dark is a good place."""
    import matplotlib

    methods = sorted(found.place, key=lambda m: (found.place[m], m))
    shades = matplotlib.colormaps["cividis"](np.linspace(0.0, 1.0, len(methods)))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, (axis,) = _figure(7.2, 0.9 + 0.36 * len(methods), 1, 1)
        left = np.zeros(len(methods))
        for place in range(len(methods)):
            share = np.array([100 * found.shares[m][place] for m in methods])
            axis.barh(range(len(methods)), share, left=left, height=0.72, color=shades[place], edgecolor="white", linewidth=0.8)
            dark = shades[place][:3] @ (0.299, 0.587, 0.114) < 0.55
            for n, width in enumerate(share):
                if width >= 7:
                    text = f"{place + 1}: {width:.0f}%"
                    axis.text(left[n] + width / 2, n, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            left += share
        axis.set_yticks(range(len(methods)), [_short(m) for m in methods])
        axis.invert_yaxis()
        axis.set(xlim=(0, 100), xlabel="bootstrap samples of the patients (%), by place")
        axis.spines["left"].set_visible(False)
        axis.tick_params(left=False)
        return _png(figure)


def scatter(scores: Scores, metrics: Sequence[str], structure_of: Mapping[str, str], baseline: str, other: str) -> bytes:
    """Case by case, the other method against the baseline: points off the diagonal differ."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(metrics), 3.5, 3.6)
        for axis, metric in zip(axes, metrics, strict=True):
            values, _, _ = scores.aligned(metric, structure_of[metric], (baseline, other))
            pairs = _complete(values, (baseline, other))
            low, high = (float(pairs.min()), float(pairs.max())) if len(pairs) else (0.0, 1.0)
            room = 0.06 * (high - low or abs(high) or 1.0)
            axis.plot([low - room, high + room], [low - room, high + room], color="#888888", linewidth=0.8, linestyle="--")
            axis.scatter(*pairs.T, s=16, color=_colour(scores, other), alpha=0.75, linewidths=0)
            axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
            axis.set(xlabel=_short(baseline), ylabel=_short(other))
            ticks = [t for t in axis.get_yticks() if low - room <= t <= high + room]
            axis.set(xticks=ticks, yticks=ticks)
            axis.tick_params(axis="x", rotation=45)
            above = {"higher": f"above the line: {_short(other)} better", "lower": f"below the line: {_short(other)} better"}
            axis.set_title(f"{scores.label(metric)}\n{above.get(scores.facts[metric]['better'], '')}", loc="left", fontsize=9)
        return _png(figure)


def costs(scores: Scores, points: Mapping[str, tuple[dict[str, float], float]], label: str) -> bytes | None:
    """Mean accuracy against each known cost; ``points[method]`` = (cost by name, accuracy). None when no cost is known."""
    import matplotlib

    names = [n for n in dict.fromkeys(k for cost, _ in points.values() for k in cost) if any(c.get(n, 0) > 0 for c, _ in points.values())]
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(names), 3.5, 2.9, most=2 if len(names) == 4 else 3)
        for axis, name in zip(axes, names, strict=True):
            for method, (cost, accuracy) in points.items():
                if cost.get(name, 0) > 0:
                    look = {"color": _colour(scores, method), "marker": _marker(scores, method), "label": _short(method)}
                    axis.scatter(cost[name], accuracy, s=55, **look)
            axis.set(xlabel=name, ylabel=f"mean {label}")
            axis.margins(0.15)
            axis.set_xlim(left=0)
        shown = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(4, len(shown)), frameon=False)
        return _png(figure)


def bland_altman(scores: Scores) -> bytes | None:
    """Predicted minus reference volume against their mean, with bias and limits of agreement (mean +- 1.96 SD; Bland and Altman 1986).

    One point a case and structure that either mask has; ml in 3D, mm^2 in 2D. None where fewer than three are known of every method.
    """
    import matplotlib

    found = {m: np.array([v[m] for v in scores.volumes.values() if m in v and any(v[m])], float).reshape(-1, 2) for m in scores.methods}
    found = {m: v for m, v in found.items() if len(v) >= 3}
    if not found:
        return None
    unit = scores.volume_unit
    gaps = np.concatenate([v[:, 1] - v[:, 0] for v in found.values()])
    spreads = [1.96 * np.std(v[:, 1] - v[:, 0], ddof=1) for v in found.values()]
    biases = [np.mean(v[:, 1] - v[:, 0]) for v in found.values()]
    low = min(0.0, gaps.min(), *(b - s for b, s in zip(biases, spreads, strict=True)))
    high = max(0.0, gaps.max(), *(b + s for b, s in zip(biases, spreads, strict=True)))
    room = 0.06 * (high - low or 1.0)
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(found), 3.5, 3.0)
        for axis, (method, pair) in zip(axes, found.items(), strict=True):
            reference, predicted = pair.T
            difference = predicted - reference
            bias, sd = difference.mean(), difference.std(ddof=1)
            axis.scatter((predicted + reference) / 2, difference, s=14, color=_colour(scores, method), alpha=0.6, linewidths=0)
            for y, dash in ((bias, "-"), (bias - 1.96 * sd, "--"), (bias + 1.96 * sd, "--")):
                axis.axhline(y, color="#222222", linewidth=0.9, linestyle=dash)
            limits = f"{number(bias - 1.96 * sd, unit)} to {number(bias + 1.96 * sd, unit)}"
            axis.set_title(f"{_short(method)}\nbias {number(bias, unit)} {unit}; limits {limits}", loc="left", fontsize=8.5)
            axis.set_xlabel(f"mean of prediction and reference ({unit})", fontsize=8)
            axis.set_ylabel(f"prediction − reference ({unit})", fontsize=8)
            axis.set_ylim(low - room, high + room)
            axis.locator_params(axis="x", nbins=5)
        return _png(figure)


# ------------------------------------------------------------------------------------------------------------------------------ pictures
def contours(picture: CasePicture, methods: Sequence[str], captions: Mapping[str, str], *, errors: bool = False) -> bytes:
    """The image, then one panel a method with the outlines of reference and prediction, true to spacing; four in a row. With ``errors``
    each panel has a map of its false positives, false negatives and voxels of a wrong class under it.

    3D: the axial slice with the largest reference (without one: the largest error), shown as radiologists do, the patient's right on the
    left and front up. The view is cropped around what is outlined, to no less than about half of the image's sides.
    """
    import matplotlib

    image, reference, predictions, spacing = _slice(picture)
    marked = (reference > 0) | np.logical_or.reduce([p > 0 for p in predictions.values()] or [reference > 0])
    window = tuple(_view(marked.any(axis=1 - a), reference.shape[a]) for a in (0, 1))
    height, width = (reference[window].shape[a] * spacing[a] for a in (0, 1))
    shown = {"cmap": "gray", "vmin": 0, "vmax": 1, "extent": (0, width, height, 0), "interpolation": "bilinear"}
    panels: list[str | None] = [None, *methods]
    columns, deep, side = min(4, len(panels)), 2 if errors else 1, 2.9
    rows = deep * -(-len(panels) // columns)
    tall = min(max(side * height / width, 0.6), 1.6 * side) + 0.22
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _panels(columns, rows, side, tall)
        for n, name in enumerate(panels):
            axis = axes[(n // columns) * columns * deep + n % columns]
            axis.imshow(image[window], **shown)
            axis.set_title("image" if name is None else captions.get(name, name), fontsize=9, loc="left")
            if name is None:
                continue
            given = predictions.get(name, np.zeros_like(reference))[window]
            _outline(axis, reference[window], spacing, REFERENCE)
            _outline(axis, given, spacing, PREDICTION)
            axis.set(xlim=(0, width), ylim=(height, 0))  # outlines at the edge would widen the view
            if errors:
                below = axes[(n // columns) * columns * deep + columns + n % columns]
                below.imshow(image[window], **shown)
                below.imshow(_error_map(given, reference[window]), extent=shown["extent"], interpolation="nearest")
        return _png(figure, 100)


def _panels(columns: int, rows: int, side: float, tall: float) -> tuple[Figure, list[Axes]]:
    """Axes without decoration but a title, in a grid of our own making: matplotlib's layout engine would take longer than the drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * columns, tall * rows), facecolor="white")
    width, height, title = 1 / columns, 1 / rows, 0.22 / tall
    boxes = [((n % columns + 0.02) * width, 1 - (n // columns + 0.99) * height) for n in range(columns * rows)]
    axes = [figure.add_axes((x, y, 0.96 * width, (0.98 - title) * height)) for x, y in boxes]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _error_map(given: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(rows, columns, 4): where prediction and reference disagree; transparent where they agree or nobody spoke for the voxel."""
    from matplotlib.colors import to_rgba

    out = np.zeros((*reference.shape, 4))
    out[(given > 0) & (reference == 0)] = to_rgba(FALSE_POSITIVE, 0.85)
    out[(given == 0) & (reference > 0)] = to_rgba(FALSE_NEGATIVE, 0.85)
    out[(given > 0) & (reference > 0) & (given != reference)] = to_rgba(OTHER_CLASS, 0.85)
    return out


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
