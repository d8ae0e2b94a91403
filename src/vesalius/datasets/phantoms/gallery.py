"""One picture of every phantom: the middle of its foreground with the reference outlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core.case import Case
from ...core.geometry import resample, resample_labels
from . import PHANTOMS, open_phantom

CT_WINDOW = (-160.0, 240.0)
CHOSEN = {  # options and case that show each phantom best
    "torso-ct": ({"lesions": True}, "train-000"),
    "torso-mr": ({"lesions": True}, "train-000"),
    "tumour-bed": ({}, "test-000"),
    "ultrasound": ({}, "train-001"),
    "polyp": ({}, "test-003"),
    "brain-mr": ({}, "train-000"),
}


def gallery(path: str | Path, *, seed: int = 0) -> Path:
    """Write one PNG with a tile a phantom (image, reference in colour, points as dots) to ``path`` and return it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(PHANTOMS) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.3 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    tiles = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in tiles:
        axes.set_axis_off()
    for axes, name in zip(tiles, PHANTOMS):
        options, case_id = CHOSEN.get(name, ({}, "train-000"))
        manifest = open_phantom(name, cases={"train": 1, "test": 4}, seed=seed, **options)
        _tile(axes, manifest.built_in(next((r for r in manifest.cases if r.id == case_id), manifest.cases[0])))
        axes.set_title(name, fontsize=10)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def _tile(axes, case: Case) -> None:
    picture, label, aspect, colour_range = _slice(case)
    axes.imshow(picture, cmap="gray", aspect=aspect, interpolation="nearest", vmin=colour_range[0], vmax=colour_range[1])
    for k in np.unique(label[label > 0]):
        colour = ("#ff3b30", "#ffd60a", "#30d158", "#0a84ff", "#bf5af2", "#ff9f0a")[(int(k) - 1) % 6]
        axes.contour(label == k, [0.5], colors=[colour], linewidths=0.9)
    if case.geometry.ndim == 2:
        for points in case.points.values():
            index = case.geometry.to_index(points.xyz)
            axes.plot(index[:, 1], index[:, 0], ".", markersize=2.5, color="#0a84ff")


def _slice(case: Case) -> tuple[np.ndarray, np.ndarray, float, tuple[float, float]]:
    """(picture, label, aspect, grey range): the picture itself, or the axial slice with most foreground, front up, right on the left."""
    name, image = list(case.images.items())[-1]
    label, grid = case.labels.get("reference", case.labels.get(name)).data, case.geometry
    if grid.ndim == 2:
        x = image.data
        return (x.transpose(1, 2, 0) if len(x) == 3 else x[0]), label, grid.spacing[0] / grid.spacing[1], _range(x, name)
    axial = grid.canonical()
    if case.labels["reference"].names[-1] == "vessel":  # front view, brightest voxel of each ray
        flat = lambda a: a.max(1).T[::-1, ::-1]
        x = resample(image.data, grid, axial, "nearest")[0]
        return flat(x), flat(resample_labels(label, grid, axial)), axial.spacing[2] / axial.spacing[0], _range(x, name)
    x = resample(image.data, grid, axial, "nearest")[0]
    label = resample_labels(label, grid, axial)
    weight = np.bincount(label.ravel(), minlength=2)[1:].astype(float)
    rare = 1 / np.where(weight > 0, weight, np.inf)
    k = int(np.argmax(np.concatenate([[0.0], rare])[label].sum((0, 1))))
    if "clips" in case.points:  # the bed's slice with most metal
        k = int(np.argmax((x > 1500).sum((0, 1)) * (label.sum((0, 1)) > 20)))
    turn = lambda plane: plane.T[::-1, ::-1]
    return turn(x[:, :, k]), turn(label[:, :, k]), axial.spacing[1] / axial.spacing[0], _range(x, name)


def _range(x: np.ndarray, name: str) -> tuple[float, float]:
    if name == "CT":
        return CT_WINDOW
    return (0.0, 255.0) if x.dtype == np.uint8 else tuple(float(v) for v in np.percentile(x, (1, 99.7)))
