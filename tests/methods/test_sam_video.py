"""A SAM 2 checkpoint for videos carries masks through a volume: the network's own walk, on slices as people see them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tests.methods.test_sam_checkpoint import of_sam, of_sam2_video
from tests.networks.test_sam2_video import carried, tiny
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prompt import Mask
from vesalius.engine.interact import SequenceSession
from vesalius.methods.promptable.sam4mis import ZeroShot
from vesalius.methods.sam_checkpoint import MEAN, SD
from vesalius.methods.sam_video import SamVideo

GRID = Geometry((24, 20, 5), np.array([[-1.5, 0, 0, 10.0], [0, -1.5, 0, 20.0], [0, 0, 3.0, -30.0], [0, 0, 0, 1]]))  # LPS, thick slices


def zero_shot(folder) -> ZeroShot:
    plan = Plan(dims=3, channels=("T1",), classes=("background", "organ"))
    return ZeroShot(plan, Manifest("m", "", 3, ("T1",), {"background": 0, "organ": 1}, ()), checkpoint=str(folder)).eval()


def volume() -> Case:
    data = np.random.default_rng(0).normal(100, 30, (1, *GRID.shape)).astype(np.float32)
    data[0, 12:18, 3:9] += 80
    return Case("a", images={"T1": Image(data, GRID)})


@torch.no_grad()
def test_it_walks_as_the_network_does(tmp_path):
    zero, case, net = zero_shot(of_sam2_video(tmp_path / "c")), volume(), tiny()
    drawn = np.zeros(GRID.shape, np.uint8)
    drawn[12:18, 3:9, 1] = 1
    session = SequenceSession(zero.carrier, case, zero.carrier.plan, axis=2)
    answer = session.ask([Mask(LabelMap(drawn, GRID), frame=1)])
    assert answer.probability.geometry == GRID
    p = np.asarray(answer.probability.data)[0]
    assert np.array_equal(p[..., 1], drawn[..., 1]), "a person's slice stays"
    low, high = np.percentile(case.images["T1"].data, (0.5, 99.5))
    shown = np.clip((case.images["T1"].data[0] - low) / (high - low), 0, 1)
    shown = torch.from_numpy(shown).float().permute(2, 1, 0)  # front up, right left
    square = lambda x: interpolate(x, (128, 128), mode="bilinear", align_corners=False)
    mean, sd = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, SD))
    frames = square((shown[:, None].expand(-1, 3, -1, -1) - mean) / sd)
    mask = square(torch.from_numpy(drawn[None, None, ..., 1].transpose(0, 1, 3, 2).copy()).float())[0]
    for way in (1, -1):
        for t, logits in carried(net, {1: mask}, 1, way, frames).items():
            own = interpolate(logits[None], (20, 24), mode="bilinear", align_corners=False)[0, 0].sigmoid()
            assert np.allclose(p[..., t], own.T, atol=1e-3), (way, t)


def test_what_has_no_memory_carries_nothing(tmp_path):
    zero = zero_shot(of_sam(tmp_path / "c"))
    assert zero.carrier is None
    with pytest.raises(UsageError, match="no memory"):
        SamVideo(zero.plan, zero.manifest, model=zero.model)
