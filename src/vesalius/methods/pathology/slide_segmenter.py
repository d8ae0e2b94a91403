"""SlideSegmenter: tissue, pen marks and the cross-sections on a slide, whose fragments find each other by voting for a common centre.

One encoder, three decoders. For every tissue pixel the third gives the way to the centroid of its cross-section; the votes of all pixels,
in a smoothed histogram, have a peak for each section, and a pixel belongs to the peak that its own vote is nearest to, wherever it lies.

Lucassen et al., Tissue cross-section and pen marking segmentation in whole slide images, SPIE Medical Imaging 2024,
https://arxiv.org/abs/2401.13511. Here tissue and pen exclude each other where the labels do (pen lies above); pasted pen strokes are drawn,
not cut from other slides; thresholds are options, not tuned; steps of down-sampling that the planned patch cannot take are left out; peaks
lower than ``least`` of the highest are noise; the sizes of the separation are ours. Slides are read in tiles, with the votes of all of
them in one histogram, so the plan's spacing may be any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ...core.case import IGNORE, Batch, Case, Condition, Image, LabelMap, Sample
from ...core.errors import UsageError
from ...core.geometry import resample
from ...core.manifest import Manifest
from ...core.method import Clock, Derived, Method
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...core.prompt import Prompt
from ...inferers.tiles import Tile, Tiles, stained
from ...networks.multi_decoder_unet import MultiDecoderUNet
from ...objectives.tversky_bce import tversky_bce
from ...ops import augment
from ...ops.components import components
from ...ops.strokes import with_stroke
from ...ops.votes import Votes, nearest
from ..learned import LearnedMethod

_IN_MEMORY = 1 << 28  # bytes; larger arrays of a slide lie in a temporary file, whose untouched parts take no room


class SlideSegmenter(LearnedMethod):
    """``filters`` of the first level, ``factors`` of down-sampling; ``separate``: with the decoder of the centroids; ``distance_factor``:
    px of way that are 1 in the network. Separation, in px of the prepared image: ``pixels_per_bin``; in bins: ``sigma`` and
    ``filter_size`` of the peaks, which lie above the ``percentile`` of all bins and reach ``least`` of the highest. ``thresholds`` of
    tissue and pen. ``strokes``: share of training patches that get a pen stroke. ``window``, ``margin``: of the tiles, px."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        filters: int = 32,
        factors: tuple[int, ...] = (2, 4, 4, 4, 4),
        separate: bool = True,
        distance_factor: float = 100.0,
        pixels_per_bin: int = 4,
        sigma: float = 2.0,
        filter_size: int = 11,
        percentile: float = 90.0,
        least: float = 0.1,
        thresholds: tuple[float, ...] = (0.5, 0.5),
        strokes: float = 0.25,
        window: int = 1024,
        margin: int = 128,
        lr: float = 3e-4,
        weight_decay: float = 1e-2,
    ):
        super().__init__(plan, manifest, parts=parts)
        if distance_factor <= 0 or pixels_per_bin < 1 or len(thresholds) != 2:
            found = f"distance_factor {distance_factor}, pixels_per_bin {pixels_per_bin}, thresholds {thresholds}"
            raise UsageError("the separation needs positive sizes and two thresholds", where="slide-segmenter", found=found)
        self.lr, self.weight_decay, self.factor, self.strokes = lr, weight_decay, distance_factor, strokes
        self.thresholds, self.bin, self.tiling = thresholds, pixels_per_bin, (window, margin)
        self.peaks = {"sigma": sigma, "size": filter_size, "percentile": percentile, "least": least}
        self.pen = plan.classes.index("pen") if "pen" in plan.classes else None
        self.tissue = next(k for k in range(1, len(plan.classes)) if k != self.pen) if len(plan.classes) > 1 + (self.pen == 1) else 1
        heads = {"tissue": 1} | ({"pen": 1} if self.pen else {}) | ({"way": 2} if separate else {})
        self.network = MultiDecoderUNet(self.in_channels, heads, filters=filters, factors=_fitting(factors, plan.patch))
        self.plan = plan.derive(patch=tuple(-(-p // m) * m for p, m in zip(plan.patch, self.network.multiple, strict=True)))

    # training --------------------------------------------------------------------------------------------------------------------------
    def targets(self, case: Case) -> Mapping[str, Derived]:
        """'centroid' (3, *s): whether a pixel is tissue, and if so row and column (px) of its cross-section's centroid. They are places and
        not ways, so that a patch may be turned and scaled and still know its ways (``ways``)."""
        if "way" not in self.network.decoders or not case.labels:
            return {}
        ids = sections(case, self.tissue)
        n = int(ids.max())
        centres = np.array(ndimage.center_of_mass(ids > 0, ids, range(1, n + 1)), np.float32).reshape(n, 2)
        table = np.concatenate([np.zeros((1, 3), np.float32), np.concatenate([np.ones((n, 1), np.float32), centres], 1)])
        return {"centroid": Derived(np.ascontiguousarray(np.moveaxis(table[ids], -1, 0)))}

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The plan's poses and intensities, glass outside the slide, and sometimes a pen stroke over it all."""
        strength = augment.checked(self.plan.augmentation)
        spatial = self.sampling(self.stage).spatial
        sample = augment.draw(sample, rng, strength=strength, mirror_axes=self.plan.mirror_axes, spatial=spatial)
        sample = augment.render(sample, fill=1.0)
        if self.pen and rng.random() < self.strokes:
            image, inked = with_stroke(sample.patch["image"], rng)
            sample.patch["image"] = image
            for name in sample.labels:
                label = sample.patch[f"label:{name}"]
                if label.ndim == inked.ndim:
                    sample.patch[f"label:{name}"] = np.where(inked, self.pen, label).astype(label.dtype)
                else:
                    label[self.pen - len(self.plan.classes) + len(label)] |= inked
        augment.intensity(sample.patch["image"], rng, strength=strength, frozen=sample.frozen)
        return sample

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        """Tversky (0.5, 0.5: Dice) + 10 x cross-entropy of tissue and of pen; squared error of the ways and of their gradient in tissue."""
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        maps = self.network(batch.image)
        terms = {}
        for name, k in (("tissue", self.tissue), ("pen", self.pen)):
            if name in maps:
                truth = batch.label == k if batch.label.ndim == 3 else batch.label[:, k - len(self.plan.classes) + batch.label.shape[1]] > 0
                known = batch.label != IGNORE if batch.label.ndim == 3 else torch.ones_like(truth)
                terms[name] = tversky_bce(maps[name][:, 0], truth, known)
        if "way" in maps and "centroid" in batch.maps:
            truth, inside = ways(batch.maps["centroid"], batch.to_case)
            error = (maps["way"] - truth / self.factor) * inside
            terms["way"] = error.square().sum() / (2 * inside.sum()).clamp(min=1)
            terms["gradient"] = sum(_slope(error, inside, axis) for axis in (2, 3))
        elif "way" in maps:
            terms["way"] = maps["way"].sum() * 0
        return terms

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)}

    def learning_rate(self, clock: Clock) -> float:
        """Halved after each fifth of the budget (every 20k of 100k iterations)."""
        return 0.5 ** min(4, int(5 * clock.fraction))

    # prediction ------------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """'logits' (B, 1 or 2, *s) of tissue and pen, and 'way' (B, 2, *s) in units of ``distance_factor``."""
        maps = self.network(image)
        out = {"logits": torch.cat([maps[k] for k in ("tissue", "pen") if k in maps], 1)}
        return out | ({"way": maps["way"]} if "way" in maps else {})

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """Labels, and cross-sections as instances; a slide is read and answered tile by tile."""
        names = self.channels
        image = case.images[names[0]] if len(names) == 1 else Image(case.stack(names), case.geometry)
        device = next(self.parameters()).device
        return self.read_out(self.inferer()(self, image, device=device, progress=self.progress), case)

    progress: Callable[[int, int], object] | None = None  # told (tiles just done, tiles in all)

    def inferer(self) -> Tiles:
        window, margin = self.tiling
        return Tiles(window, margin, multiple=self.network.multiple[0], gate=stained if self.in_channels == 3 else None, fill=1.0)

    def read_out(self, tiles: Iterable[Tile], case: Case) -> Prediction:
        """The maps of all tiles -> labels and separated sections on the prepared grid."""
        grid = case.geometry
        label, votes = _scratch(grid.shape, np.uint8), Votes(grid.shape, self.bin)
        places, cast = [], None
        for tile in tiles:
            p = 1 / (1 + np.exp(-np.clip(tile.maps["logits"], -60, 60)))
            kind = np.where(p[0] >= self.thresholds[0], self.tissue, 0).astype(np.uint8)
            if self.pen:
                kind[p[1] >= self.thresholds[1]] = self.pen
            label[tile.at] = kind
            if "way" in tile.maps:
                cast = _scratch((2, *grid.shape), np.float32) if cast is None else cast
                at = np.stack(np.mgrid[tile.at]).astype(np.float32) - self.factor * tile.maps["way"]
                cast[(slice(None), *tile.at)] = at
                votes.add(at[:, kind == self.tissue])
                places.append(tile.at)
        answer = Prediction(labels={"prediction": LabelMap(label, grid, self.plan.classes)})
        if "way" not in self.network.decoders:
            return answer
        centres, ids = votes.centres(**self.peaks), _scratch(grid.shape, np.int32)
        for at in places:
            mine = label[at] == self.tissue
            ids[at][mine] = nearest(cast[(slice(None), *at)][:, mine], centres)
        found = LabelMap(ids, grid, ("background", "section"), instances=True)
        return answer.with_(instances=found, table={"sections": float(len(centres))})


# ---------------------------------------------------------------------------------------------------------------- sections and their ways
def sections(case: Case, tissue: int = 1) -> np.ndarray:
    """(*s) int32: 1..n by cross-section on a prepared case, 0 elsewhere. From object ids where the case's labels have them; else from
    points named 'section ...', one on each fragment: a pixel goes to the nearest point of its connected component, a component without
    a point is a section of its own, as is each one where nobody placed points."""
    first = case.label
    ids = next((v for v in case.native.labels.values() if v.instances), None)
    if ids is not None:
        data = resample(np.asarray(ids.data)[None], ids.geometry, first.geometry, "nearest")[0]
        return np.unique(np.maximum(data, 0), return_inverse=True)[1].reshape(data.shape).astype(np.int32) + (1 if data.min() > 0 else 0)
    labels = np.asarray(first.data)
    mask = labels[tissue - 1] > 0 if first.overlapping else labels == tissue
    parts, sizes = components(mask)
    named = [np.asarray(p.xyz, float).reshape(-1, 2) for k, p in case.points.items() if k.startswith("section")]
    at = np.concatenate([first.geometry.to_index(p) for p in named]) if named else np.zeros((0, 2))
    if not len(at):
        return parts
    number = np.repeat(np.arange(1, len(named) + 1), [len(p) for p in named])
    home = parts[tuple(np.clip(np.rint(at).astype(int), 0, np.array(parts.shape) - 1).T)]
    out = np.where(parts > 0, parts + len(named), 0)
    for part in np.unique(home[home > 0]):
        inside = np.nonzero(parts == part)
        away = [np.hypot(inside[0] - r, inside[1] - c) for r, c in at[home == part]]
        out[inside] = number[home == part][np.argmin(away, 0)]
    return np.unique(np.append(out.ravel(), 0), return_inverse=True)[1][:-1].reshape(out.shape).astype(np.int32)


def ways(centroid: Tensor, to_case: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of the target 'centroid' (B, 3, h, w) and their poses (B, 3, 3) -> from its centroid to each pixel, in patch px (B, 2, h, w),
    and where that is known (B, 1, h, w) float: within tissue, off its interpolated border."""
    inside = (centroid[:, :1] > 0.999).to(centroid.dtype)
    pose = torch.linalg.inv(to_case.double()).to(centroid.dtype)
    centre = torch.einsum("bij,bjhw->bihw", pose[:, :2, :2], centroid[:, 1:]) + pose[:, :2, 2, None, None]
    rows, columns = (torch.arange(n, dtype=centroid.dtype, device=centroid.device) for n in centroid.shape[2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return (place - centre) * inside, inside


def _slope(error: Tensor, inside: Tensor, axis: int) -> Tensor:
    """Mean squared difference of the error between neighbours that are both tissue: the error of the gradient."""
    n = error.shape[axis] - 1
    both = inside.narrow(axis, 0, n) * inside.narrow(axis, 1, n)
    return (torch.diff(error, dim=axis) * both).square().sum() / (2 * both.sum()).clamp(min=1)


def _fitting(factors: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """The first steps of down-sampling that leave at least a pixel of the shortest side; at least one."""
    steps = np.cumprod(factors)
    return tuple(factors[: max(1, int((steps <= min(patch)).sum()))])


def _scratch(shape: Sequence[int], dtype: type) -> np.ndarray:
    """Zeros; in a temporary file, which goes with the array, where they are many."""
    if np.prod(shape) * np.dtype(dtype).itemsize <= _IN_MEMORY:
        return np.zeros(shape, dtype)
    return np.memmap(tempfile.TemporaryFile(), dtype, "w+", shape=tuple(shape))
