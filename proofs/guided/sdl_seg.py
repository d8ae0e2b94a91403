"""SDL-Seg's claim on the tumour-bed phantom, with a control: markers help because they are this patient's own."""

from __future__ import annotations

import numpy as np

from vesalius.core.case import Case
from vesalius.core.geometry import Geometry
from vesalius.datasets import read_case
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.guided.sdl_seg import SDLSeg


class AnotherPatientsMarkers(SDLSeg):
    """The control arm: saliency and markers of the next patient of the same split, laid over this one voxel by voxel (RAS+ order)."""

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        split = self.manifest[case.id].split
        there = [c for c in self.manifest.cases if c.split == split]
        at = next(i for i, c in enumerate(there) if c.id == case.id)
        other = next(c for c in there[at:] + there[:at] if c.patient != case.patient)
        donor = super().derive(read_case(self.manifest, other.id, labels=False), rng, training=training)
        source, target = donor.geometry.canonical(), case.geometry.canonical()
        saliency, markers = donor.images["saliency"].on(source, "nearest"), donor.points["markers"]
        onto = Geometry(source.shape, target.affine)
        image = type(saliency)(saliency.data, onto, normalise=False, name="saliency").on(case.geometry)
        moved = type(markers)(onto.to_world(source.to_index(markers.xyz)))
        return case.with_(images={"saliency": image}, points={"markers": moved})


def study() -> Study:
    return Study(
        slug="sdl-seg",
        claim="the saliency of surgical markers finds a tumour bed that hardly differs from gland; another patient's markers do not",
        arms=(Arm("unet", "unet"), Arm("sdl-seg", "sdl-seg"), Arm("another patient's markers", AnotherPatientsMarkers)),
        data=(Data("phantom:tumour-bed"),),
        baseline="unet",
        expects=(
            Expect("sdl-seg", "dsc", "higher"),
            Expect("sdl-seg", "hd95", "lower"),
            Expect("sdl-seg", "dsc", "higher", against="another patient's markers"),
        ),
        metrics=("dsc", "hd95", "assd"),
        seeds=3,
        iterations=150,
        plan={"patch": (32, 32, 32), "features": (8, 16, 32, 64), "overlap": 0.25},
    )
