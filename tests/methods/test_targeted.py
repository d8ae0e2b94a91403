"""Targeted: maps of the whole case move with the image; any network learns from them; the answer is read out as the objective says."""

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.prepare import Cache, way_of
from vesalius.engine.sample import Draws
from vesalius.inferers.sliding import SlidingWindow
from vesalius.methods.planned import PlannedUNet
from vesalius.methods.recipe import Recipe
from vesalius.methods.targeted import Targeted, structures
from vesalius.networks.pls_net import PLSNet
from vesalius.objectives.sauna import SAUNA, certainty
from vesalius.objectives.singr import SiNGR
from vesalius.objectives.spockmip import SPOCKMIP
from vesalius.objectives.structure_loss import StructureLoss
from vesalius.ops.augment import PRESETS

MANIFEST = open_dataset("phantom:shapes-2d")
PLAN = Plan(
    dims=2, channels=("image",), classes=MANIFEST.names, patch=(32, 32), features=(4, 8, 8), strides=((1, 1), (2, 2), (2, 2)),
    kernels=((3, 3),) * 3, normalise={"image": "zscore"}, batch=4, workers=0,
)  # fmt: skip


def method(plan: Plan = PLAN, objective=SAUNA, **options) -> Targeted:
    torch.manual_seed(0)
    return Targeted(plan, MANIFEST, objective=objective, **options)


def draws(net: Targeted) -> Draws:
    cache = Cache(MANIFEST, net.plan, net, api.reader(MANIFEST))
    return Draws([cache[c] for c in MANIFEST.split().train[:4]], net, MANIFEST, Stage(), seed=0, number=0)


def test_patches_hold_the_whole_cases_map():
    """Mirrored and cropped, over the edge too: sure background is where the case ends."""
    net = method(PLAN.derive(augmentation={**PRESETS["none"], "mirror_p": 0.5}, mirror_axes=(0, 1), patch=(32, 80)))
    read, seen = api.reader(MANIFEST), 0
    batches = draws(net)
    for step in range(4):
        batch = batches[step]
        for b, name in enumerate(batch.cases):
            label = np.asarray(read(name).labels["reference"].data)
            whole = np.stack([certainty(label == k, (1, 1)) for k in (1, 2)])
            at = np.stack([*np.indices((32, 80)), np.ones((32, 80))], -1) @ batch.to_case[b].numpy().T
            index = np.rint(at[..., :2]).astype(int)
            inside = ((index >= 0) & (index < label.shape)).all(-1)
            index = np.clip(index, 0, np.array(label.shape) - 1)
            expected = np.where(inside, whole[:, index[..., 0], index[..., 1]], -1)
            assert np.allclose(batch.maps["certainty"][b].numpy(), expected, atol=1e-5)
            assert np.array_equal(batch.label[b].numpy() == 1, expected[0] > 0)
            seen += (~inside).any() and (expected > 0).any()
    assert seen


def test_maps_are_cached_by_what_they_depend_on():
    ways = [way_of(m) for m in (method(), method(lr=1e-4), method(objective=lambda: SAUNA(thickness=False)), method(objective=SiNGR))]
    assert ways[0] == ways[1] and len(set(ways)) == 3


def test_the_network_is_the_planned_unet_less_a_background():
    plain, net = PlannedUNet(PLAN, MANIFEST), method()
    heads = sum(p.numel() for h in plain.network.heads for p in h.parameters())
    mine = sum(p.numel() for h in net.network.heads for p in h.parameters())
    assert mine == heads * 2 // 3
    total = [sum(p.numel() for p in n.network.parameters()) for n in (plain, net)]
    assert total[0] - total[1] == heads - mine


@pytest.mark.parametrize("outputs", ["classes", "foreground"])
def test_any_segmenter_lends_its_network(outputs):
    plan = PLAN.derive(patch=(30, 34))
    lender = Recipe(plan, MANIFEST, network=catalog.load("vesalius.networks.unet:UNet"), outputs=outputs, objective=StructureLoss)
    net = Targeted(plan, MANIFEST, parts={"network": lender}, objective=SiNGR)
    assert net.network is lender.network and net.plan.patch == lender.plan.patch and min(net.plan.patch) % 8 == 0
    net.ema = None
    image = torch.randn(2, 1, *net.plan.patch)
    with torch.no_grad():
        mine, theirs = net.eval()(image), lender.network.eval()(image)
    assert mine.shape == (2, 2, *net.plan.patch)
    signed = theirs if outputs == "foreground" else theirs[:, 1:] - theirs[:, :1]
    torch.testing.assert_close(mine, SiNGR.start + SiNGR.gain * signed)
    terms = net.train().losses(draws(net)[0], Clock(0, 10))
    terms["segmentation"].backward()
    assert all(p.grad is not None for p in net.network.parameters())


def test_the_catalogue_lends_networks_of_other_papers(tmp_path):
    manifest = open_dataset("phantom:shapes-3d")
    overrides = {"patch": (16, 16, 16), "features": (4, 8), "batch": 2, "precision": "32", "workers": 0, "threads": 1}
    api.train("singr", manifest, tmp_path / "run", parts={"network": "meningioma-pls"}, iterations=2, plan_overrides=overrides)
    again = api.open_run(tmp_path / "run")
    assert isinstance(again.method.network, PLSNet) and again.method.readout == "tanh"


def test_what_cannot_lend_is_refused():
    with pytest.raises(UsageError, match="one part"):
        method(parts={"segmenter": PlannedUNet(PLAN, MANIFEST)})
    with pytest.raises(UsageError, match="only a segmenter"):
        method(parts={"network": catalog.build("saliency-acm", PLAN, MANIFEST)})


def test_probabilities_are_half_where_a_structures_logit_is_zero():
    net = method()
    p = net.probabilities(torch.tensor([[0.0, -1.0, 2.0], [-3.0, -2.0, 1.0]]).view(1, 2, 3, 1))[0, :, :, 0]
    assert torch.isclose(p[1, 0], torch.tensor(0.5)) and p.argmax(0)[1:].tolist() == [0, 1]
    assert torch.allclose(p[1:], 0.5 * (1 + torch.tensor([[0.0, -1, 2], [-3, -2, 1]]).tanh()))


@pytest.mark.parametrize("objective", [SAUNA, SiNGR])
def test_nothing_is_sure_before_it_is_learnt(objective):
    """Where a tanh begins at its end nothing is learnt; and voxels begin as what most of them are."""
    net = method(objective=objective).eval()
    with torch.no_grad():
        z = net(torch.randn(4, 1, 64, 64))
    assert abs(z.mean() - objective.start) < 0.4 and objective.start < -0.5
    bare = net.line[0] + (z - net.line[0]) / net.line[1]
    flat, otherwise = ((1 - x.tanh() ** 2 < 0.03).float().mean() for x in (z, bare))
    assert flat < 0.06 and otherwise > 2 * flat + 0.04


def test_a_run_keeps_the_line_it_was_trained_with():
    class Older(SAUNA):
        start, gain = 0.0, 1.0

    before, now = method(objective=Older), method()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = before.eval()(x)
        assert not torch.allclose(now.eval()(x), expected)
        now.load_state(*before.state())
        assert torch.equal(now.eval()(x), expected)


@pytest.mark.parametrize("objective, seen", [(SAUNA, lambda z: 0.5 + 0.5 * z.tanh()), (SPOCKMIP, torch.sigmoid)])
def test_windows_are_blended_as_probabilities(objective, seen):
    net = method(PLAN.derive(patch=(16, 16)), objective=objective).eval()
    net.line.copy_(torch.tensor([-1.0, 3.0]))  # sure ones, too
    grid = Geometry.of((30, 37), 1.0)
    case = Case("a", images={"image": Image(np.random.default_rng(1).normal(size=(1, 30, 37)).astype(np.float32), grid)})
    with torch.no_grad():
        found = net.predict(case, rng=np.random.default_rng(0)).probability.data[1:]
        window, image = SlidingWindow((16, 16), overlap=PLAN.overlap, batch=2), torch.from_numpy(case.stack())
        expected = window(lambda x: seen(net(x)), image).numpy()
        of_logits = seen(window(net, image)).numpy()
    assert np.allclose(found, expected, atol=1e-4) and np.abs(found - of_logits).max() > 0.05


def test_unknown_voxels_teach_nothing():
    net = method().train()
    batch = draws(net)[0]
    batch.labels["reference"][:, :16] = IGNORE
    first = net.losses(batch, Clock(0, 10))["segmentation"]
    batch.maps["certainty"][:, :, :16] = -batch.maps["certainty"][:, :, :16]
    assert torch.isclose(first, net.losses(batch, Clock(0, 10))["segmentation"])
    batch.maps["certainty"][:] = -batch.maps["certainty"]
    assert not torch.isclose(first, net.losses(batch, Clock(0, 10))["segmentation"])


def test_structures_may_overlap():
    masks = np.zeros((2, 8, 9), bool)
    masks[0, 2:7, 2:7], masks[1, 4:6, 4:6] = True, True
    grid = Geometry.of((8, 9), 1.0)
    label = LabelMap(masks, grid, MANIFEST.names[1:], overlapping=True)
    assert (structures(label, 2) == masks).all()
    net = method(PLAN.derive(patch=(8, 8)))
    case = Case("a", images={"image": Image(np.random.default_rng(0).normal(size=(1, 8, 9)).astype(np.float32), grid)})
    maps = net.targets(case.with_(labels={"reference": label}))["certainty"].data
    assert ((maps > 0) == masks).all()
    assert net.finish(torch.ones(2, 8, 9), case).decide(MANIFEST.names).label.data.shape == (8, 9)
    batch = draws(net)[0]
    batch.labels = {"reference": torch.stack([batch.label > 0, batch.label == 2], 1).long()}
    net.train().losses(batch, Clock(0, 10))
    again = method(PLAN.derive(patch=(8, 8)))
    again.load_state(*net.state())
    answer = again.finish(torch.ones(2, 8, 9), case).decide(MANIFEST.names).label
    assert answer.overlapping and answer.data.all() and answer.data.shape == (2, 8, 9)


def test_classes_that_come_in_pairs_are_not_mirrored_left_right():
    assert method(PLAN.derive(mirror_axes=(0, 1), mirror_pairs=((1, 2),))).plan.mirror_axes == (0,)
    assert method(PLAN.derive(mirror_axes=(0, 1))).plan.mirror_axes == (0, 1)


def test_levels_of_a_deeply_supervised_network_are_read_at_the_patchs_size():
    seen = []

    class Watch(SAUNA):
        levels = (1.0, 0.66)

        def __call__(self, logits, target, **options):
            seen.append(tuple(logits.shape))
            return logits.sum() * 0 + 10.0 ** len(seen)

    net = method(PLAN.derive(features=(4, 4, 4, 4), strides=((1, 1), (2, 2), (2, 2), (2, 2)), kernels=((3, 3),) * 4), Watch).train()
    loss = net.losses(draws(net)[0], Clock(0, 10))["segmentation"]
    assert seen == [(4, 2, 32, 32)] * 3 and torch.isclose(loss, torch.tensor((10 + 66 + 330) / 1.99))
