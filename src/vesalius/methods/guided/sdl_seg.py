"""SDL-Seg: a tumour bed that hardly differs from gland is found by the surgical markers on its rim.

Markers are segmented by their Hounsfield units; the distance to the nearest one becomes a saliency in 0..1 that the U-Net takes as one more
input channel (early fusion). Nothing else differs from the planned U-Net.

Kazemimoghadam et al., Saliency-guided deep learning network for automatic tumor bed volume delineation in post-operative breast
irradiation, Phys. Med. Biol. 2021, https://arxiv.org/abs/2105.02771. Only the abstract could be read: the metal threshold, the marker
sizes, sigma and the form of the Gaussian are ours, and options. The published loss and training are not known; the plan's are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from ...core.case import Case, Image, Points, Sample
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Method
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...ops.components import components
from ...ops.guidance import distance_to_mask, distance_to_points, guidance
from ..learned import Segmenter

NO_MARKER = "no marker found: the saliency channel is empty, and the bed is looked for in the CT alone"


class SDLSeg(Segmenter):
    """``sigma_mm``: how far from a marker the bed may lie; ``mode`` see ``ops.guidance``. A marker is a connected set of voxels of
    ``metal_hu`` or more, of ``smallest`` to ``largest`` mm^3, most of it inside the ROI ``inside`` where a case has one."""

    derived = ("saliency",)

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        sigma_mm: float = 10.0,
        mode: Literal["kernel", "filter"] = "kernel",
        metal_hu: float = 1500.0,
        smallest: float = 5.0,
        largest: float = 1000.0,
        inside: str = "breast",
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        super().__init__(plan, manifest, parts=parts, lr=lr, weight_decay=weight_decay, ema=ema)
        if not 0 < smallest <= largest:
            raise UsageError("marker sizes (mm^3) run from small to large", where="smallest, largest", found=(smallest, largest))
        self.sigma_mm, self.mode, self.metal_hu, self.sizes, self.inside = sigma_mm, mode, metal_hu, (smallest, largest), inside
        self.ct = "CT" if "CT" in plan.channels else plan.channels[0]

    @property
    def preparation(self) -> str:
        """What prepared cases depend on: part of the cache's key."""
        return f"{self.ct} {self.sigma_mm} {self.mode} {self.metal_hu} {self.sizes} {self.inside}"

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """Adds images['saliency'] and points['markers'] (centres of the marker voxels), from native Hounsfield units: markers are smaller
        than a resampled voxel. A case without markers gets zeros and no point."""
        ct, roi = case.images[self.ct], case.rois.get(self.inside)
        within = None if roi is None else roi.on(ct.geometry).data > 0
        markers = find_markers(ct.data[0], ct.geometry.voxel_volume, self.metal_hu, self.sizes, within)
        saliency = self.saliency(distance_to_mask(markers, ct.geometry.spacing), ct.geometry.spacing)
        return case.with_(
            images={"saliency": Image(saliency[None], ct.geometry, normalise=False, name="saliency")},
            points={"markers": Points(ct.geometry.to_world(np.argwhere(markers)))},
        )

    def saliency(self, distance: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
        return guidance(distance, spacing, sigma_mm=self.sigma_mm, mode=self.mode)

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The saliency is made anew from the moved markers, those outside the patch included; an interpolated or bent one would not be a
        function of the distance. Patch voxels are as large as the pose makes them: the bed and its saliency grow together."""
        sample = super().augment(sample, rng)
        d = len(sample.size)
        spacing = np.linalg.norm(np.asarray(sample.spacing)[:, None] * sample.pose[:d, :d], axis=0)
        distance = distance_to_points(sample.moved["markers"], sample.size, spacing)
        sample.patch["image"][sample.channels.index("saliency")] = self.saliency(distance, tuple(spacing))
        return sample

    def finish(self, maps: Tensor | Mapping[str, Tensor], case: Case) -> Prediction:
        prediction = super().finish(maps, case)
        if case.images["saliency"].data.any():
            return prediction
        return prediction.with_(notes=(*prediction.notes, NO_MARKER))


def find_markers(
    hu: np.ndarray, voxel_volume: float, metal_hu: float, sizes: tuple[float, float], within: np.ndarray | None = None
) -> np.ndarray:
    """(*s) bool: voxels of the 26-connected sets of ``hu`` >= ``metal_hu`` that fill ``sizes`` (smallest, largest) mm^3 and, given
    ``within`` (*s) bool, lie more inside than outside it."""
    labels, voxels = components(hu >= metal_hu)
    keep = (voxels * voxel_volume >= sizes[0]) & (voxels * voxel_volume <= sizes[1])
    if within is not None:
        keep &= 2 * np.bincount(labels[within], minlength=len(voxels) + 1)[1:] > voxels
    return np.concatenate([[False], keep])[labels]
