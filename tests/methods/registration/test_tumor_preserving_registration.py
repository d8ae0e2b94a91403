"""Tumour-preserving registration: where tissue shrinks more than its organ there is a tumour, nobody labels it, and it is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch, Case, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.datasets.phantoms import open_phantom
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.methods.registration.tumor_preserving_registration import SECOND, TumorPreserving, organ_scale
from vesalius.networks.voxelmorph import VoxelMorph
from vesalius.objectives.registration import volume_preserving
from vesalius.ops.flow import places, warp

SLUG = "tumor-preserving-registration"
SIZE = (32, 32)
MANIFEST = Manifest("organs", Path("."), 2, ("image",), {"background": 0, "organ": 1, "tumour": 2}, ())
PLAN = Plan(2, ("image",), 1, MANIFEST.names, patch=SIZE, batch=2, workers=0, threads=1, precision="32")
SMALL = {"features": (4, 8), "refine": (8,)}


def small(*args, **options):
    return VoxelMorph(*args, **SMALL, **options)


def made(**options) -> TumorPreserving:
    torch.manual_seed(0)
    return TumorPreserving(PLAN, MANIFEST, network=small, **options)


def disk(radius: float, centre=(15.5, 15.5)) -> torch.Tensor:
    at = places(torch.zeros(1, 2, *SIZE)) - torch.tensor(centre).view(1, 2, 1, 1)
    return (at.square().sum(1, keepdim=True).sqrt() < radius).float()


def squeezing(strength: float, radius: float, centre=(15.5, 15.5)) -> torch.Tensor:
    """A sampling flow that shows what lies about ``centre`` smaller: it looks further out there, and nothing changes beyond ``radius``."""
    at = places(torch.zeros(1, 2, *SIZE)) - torch.tensor(centre).view(1, 2, 1, 1)
    r = at.square().sum(1, keepdim=True).sqrt() / radius
    return at * strength * (1 - r.clamp_max(1) ** 2) ** 2


def batch(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    of = lambda: Batch(image=torch.rand(2, 1, *SIZE), labels={}, to_case=None, cases=["a", "b"])
    fixed, fixed.views = (b := of()), (of(),)
    return b


# -------------------------------------------------------------------------------------------------------------------- the invariants
def test_an_empty_mask_gives_the_first_stage_s_loss():
    """(c): the second network, told nothing, is trained by what the first is."""
    method = made(threshold=1e6, mask="hard")
    method.template_organ[:] = disk(10)
    method._as_the_first()
    with torch.no_grad():
        method.network.head.bias[:] = torch.tensor([0.7, -0.3])
    method._as_the_first()
    first = method.losses(batch(), Clock(5, 10, stage="similarity"))
    second = method.losses(batch(), Clock(5, 10, stage=SECOND))
    assert set(second) == {*first, "volume"} and second["volume"] == 0
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_what_shrinks_more_than_its_organ_is_found():
    method = made(second_pass=False)
    organ, flow = disk(12), squeezing(0.8, 6)
    ratio = method.shrinkage(flow, organ)
    assert ratio[0, 0, 15, 15] > 1.5
    calm = (disk(10) - disk(8))[0, 0] > 0
    torch.testing.assert_close(ratio[0, 0][calm], torch.ones(int(calm.sum())), atol=0.15, rtol=0)
    assert (ratio[warp(organ, flow) < 0.5] == 0).all()  # the organ only
    assert (method.shrinkage(squeezing(-0.4, 6), organ) < 1.5).all()  # swelling counts with both_ways alone
    assert (made(both_ways=True).shrinkage(squeezing(-0.4, 6), organ) > 1.5).any()


@pytest.mark.parametrize("c", [0.75, 1.3])
def test_a_uniform_scaling_shows_no_tumour(c):
    """(b): 1 means 'as the organ'. The ratio divided by the organ's scale instead would be c^4 or c^-4."""
    at = places(torch.zeros(1, 2, *SIZE)) - 15.5
    ratio = made().shrinkage(at * (1 / c - 1), disk(9))
    assert abs(float(ratio[ratio > 0].mean()) - 1) < 0.08


def test_the_border_of_the_organ_is_left_out_as_asked():
    flow, organ = torch.zeros(1, 2, *SIZE), disk(9)
    sides = [int((made(boundary=b).shrinkage(flow, organ) > 0).sum()) for b in (0.0, 0.5, 0.9, 1.0)]
    assert sides[0] == int(organ.sum()) and sides == sorted(sides, reverse=True) and sides[0] > sides[2]


@pytest.mark.parametrize("second_pass", [False, True])
def test_the_mask_lies_on_the_moving_image_and_in_the_organ(second_pass):
    """The first network is replaced by one that knows how to squeeze a spot; the organ is the template's."""
    method = made(second_pass=second_pass)
    method.template_organ[:] = disk(12)
    spot, calls = (18.0, 13.0), []

    class Squeezes(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            moving_is_template = bool((x[:, 1] == 0).all())
            back = len(calls) in (3, 5)
            flow = torch.zeros(len(x), 2, *SIZE) if moving_is_template or back else squeezing(0.8, 6, spot).expand(len(x), -1, -1, -1)
            return flow

    method.network = Squeezes()
    organ, mask = method.masks(torch.rand(2, 1, *SIZE), torch.rand(2, 1, *SIZE))
    assert len(calls) == (5 if second_pass else 3)
    torch.testing.assert_close(organ, disk(12).expand(2, -1, -1, -1))
    assert mask[0, 0, 18, 13] > 0.7 and (mask[disk(12).expand_as(mask) == 0] == 0).all() and mask[0, 0, 8, 20] < 0.2
    hard = made(second_pass=False, mask="hard")
    hard.template_organ[:], hard.network = disk(12), method.network
    calls.clear()
    assert set(hard.masks(torch.rand(1, 1, *SIZE), torch.rand(1, 1, *SIZE))[1].unique().tolist()) == {0.0, 1.0}


def test_the_scale_is_of_voxels_and_one_without_an_organ():
    assert organ_scale(disk(5), disk(10))[0] == pytest.approx(4, rel=0.15)
    assert organ_scale(torch.zeros(1, 1, *SIZE), disk(10)) == 1 == organ_scale(disk(10), torch.zeros(1, 1, *SIZE))


def test_the_second_stage_learns_to_keep_a_tumour_s_size():
    """One pair, its flow a parameter: with the volume term the spot keeps its size, without it it shrinks to look alike."""
    torch.manual_seed(0)
    fixed, spot = disk(12), disk(4)
    moving, sizes = fixed + spot, {}
    for weight in (0.0, 0.1):
        method = made(volume=weight)
        flow = torch.zeros(1, 2, *SIZE, requires_grad=True)
        step = torch.optim.Adam([flow], lr=0.05)
        for _ in range(150):
            step.zero_grad()
            moved = warp(spot, flow)
            terms = method.terms(fixed, moving, flow, weight=1 - moved.detach() if weight else None)
            (sum(terms.values()) + weight * 10 * volume_preserving(flow, moved.detach(), 1.0)).backward()
            step.step()
        sizes[weight] = float(warp(spot, flow.detach()).sum() / spot.sum())
    assert sizes[0.0] < 0.75 and abs(sizes[0.1] - 1) < 0.15, sizes


# --------------------------------------------------------------------------------------------------------------- training and options
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    phantom = open_phantom("organ-pairs-2d", cases={"train": 5, "test": 2})
    plan = {"patch": (32, 32), "batch": 2, "workers": 0, "threads": 1, "precision": "32"}
    return phantom, plan, api.train(SLUG, phantom, tmp_path_factory.mktemp("tpr") / "run", options=SMALL, iterations=4, plan_overrides=plan)


def relabelled(phantom: Manifest, change) -> Manifest:
    draw = phantom.built_in

    def built_in(ref):
        case = draw(ref)
        return case.with_(labels={k: LabelMap(change(np.asarray(v.data)), v.geometry, v.names) for k, v in case.labels.items()})

    return replace(phantom, built_in=built_in)


def test_tumour_labels_are_never_used(run, tmp_path, monkeypatch):
    """(d): without them (tumours are organ) the same weights come out, to the bit; but the organ has to be shown."""
    phantom, plan, done = run
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    blind = relabelled(phantom, lambda x: np.minimum(x, 1))
    again = api.train(SLUG, blind, tmp_path / "blind", options=SMALL, iterations=4, plan_overrides=plan)
    for (name, a), b in zip(done.method.state_dict().items(), again.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    healthy = {**SMALL, "organ": "tumour", "template": "train-000"}
    with pytest.raises(DataError, match="the template does not show the organ"):
        api.train(SLUG, phantom, tmp_path / "none", options=healthy, iterations=4, plan_overrides=plan)
    bare = phantom.only(phantom.where("train"))
    bare = replace(bare, cases=tuple(replace(c, labels={}) for c in bare.cases))
    with pytest.raises(DataError, match="no training case shows the organ"):
        api.train(SLUG, bare, tmp_path / "bare", options=SMALL, iterations=4, plan_overrides=plan)


def test_a_run_opened_again_answers_the_same_and_tells_its_mask(run):
    phantom, _, done = run
    pair = Case.pair(*(api.reader(phantom)(i) for i in phantom.where("test")))
    one = infer(done.method, pair, done.plan)
    opened = api.open_run(done.folder)
    two = infer(opened.method, pair, opened.plan)
    np.testing.assert_array_equal(one.displacement.data, two.displacement.data)
    mask = one.images["mask"]
    assert mask.geometry == pair.images["moving:image"].geometry and 0 <= mask.data.min() and mask.data.max() <= 1
    assert one.displacement.geometry == pair.geometry and set(one.labels) == {"reference"}


def test_the_second_network_starts_as_the_first(run):
    _, _, done = run
    x = torch.rand(1, 2, *done.plan.patch)
    method = done.method
    method._as_the_first()
    with torch.no_grad():
        torch.testing.assert_close(method.second(torch.cat([x, torch.rand(1, 1, *done.plan.patch)], 1)), method.network(x))


def test_the_first_stage_alone_has_no_second_network(run, tmp_path):
    phantom, plan, _ = run
    method = api.train(SLUG, phantom, tmp_path / "first", options={**SMALL, "mask": "none"}, iterations=2, plan_overrides=plan).method
    assert not hasattr(method, "second") and [s.share for s in method.stages()] == [1.0]
    with torch.no_grad():
        assert set(method(torch.rand(1, 2, *method.plan.patch))) == {"flow"}


def test_only_the_stage_s_network_learns(run):
    _, _, done = run
    first, second = done.method.stages()
    assert (first.trainable, second.trainable) == (("network",), ("second",)) and first.share == second.share == 0.5


def test_options_are_checked():
    with pytest.raises(UsageError, match="no class 'liver'"):
        made(organ=("liver",))
    with pytest.raises(UsageError, match="positive side for each axis"):
        made(size=(16, 16, 16))
    with pytest.raises(UsageError, match="wrong type"):
        catalog.coerce(SLUG, {"mask": "fuzzy"})
    method = catalog.build(SLUG, PLAN.derive(patch=(30, 30)), MANIFEST, options={**SMALL, "size": "17,20"})
    assert method.plan.patch == method.plan.grid.size == (20, 20) and method.network.multiple == (4, 4)


def test_an_untrained_voxelmorph_moves_nothing_in_2d_and_3d():
    for d, size in ((2, (16, 32)), (3, (16, 16, 32))):
        net = VoxelMorph(2, d, spatial_dims=d)
        assert net.multiple == (16,) * d
        out = net(torch.rand(1, 2, *size))
        assert out.shape == (1, d, *size) and not out.any()
        out.square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())
