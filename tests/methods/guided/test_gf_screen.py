"""GF-Screen: the glance learns from rewards and the focus does not notice; what is not looked at is background, with a record of it."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.case import Batch, Case, Image
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.datasets.phantoms import open_phantom
from vesalius.engine import api
from vesalius.engine.prepare import Cache
from vesalius.engine.sample import Draws
from vesalius.inferers import SlidingWindow
from vesalius.methods.guided.gf_screen import NOTHING, GFScreen, balanced_cross_entropy, world_boxes

MANIFEST = Manifest("lesions", Path("."), 3, ("CT",), {"background": 0, "lesion": 1}, ())
PLAN = Plan(
    dims=3, channels=("CT",), classes=MANIFEST.names, patch=(8, 8, 8), batch=2, features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)), deep_supervision=False,
)  # fmt: skip
GRID = Geometry.of((20, 14, 10), (1.0, 1.5, 2.0), origin=(-30, 12, 5), direction=np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1.0]]))
CASE = Case("a", images={"CT": Image(np.random.default_rng(0).normal(size=(1, *GRID.shape)).astype(np.float32), GRID)})


def method(plan: Plan = PLAN, **options) -> GFScreen:
    torch.manual_seed(0)
    return GFScreen(plan, MANIFEST, **options)


def crops(seed: int, positive: int = 4, negative: int = 4) -> Batch:
    """Noise; the first crops hold a bright lesion of 2^3 voxels somewhere."""
    rng = np.random.default_rng(seed)
    n = positive + negative
    image, label = rng.normal(0, 0.3, (n, 1, 8, 8, 8)).astype(np.float32), np.zeros((n, 8, 8, 8), np.int64)
    for k in range(positive):
        i, j, m = rng.integers(0, 7, 3)
        image[k, 0, i : i + 2, j : j + 2, m : m + 2] += 4
        label[k, i : i + 2, j : j + 2, m : m + 2] = 1

    def part(at: slice) -> Batch:
        return Batch(torch.from_numpy(image[at]), {"reference": torch.from_numpy(label[at])}, None, ["a"] * len(image[at]))

    first = part(slice(0, n // 2))
    first.streams = {"beside": part(slice(n // 2, n))}
    return first


def trained(steps: int, half: int = 4, turns: tuple[str, ...] = ("glance", "main"), **options) -> GFScreen:
    """Steps of the engine's order by hand: every turn with its own gradients and optimiser."""
    net = method(**options).train()
    optimizers = net.optimizers()
    for step in range(steps):
        torch.manual_seed(100 + step)
        for turn in turns:
            net.zero_grad()
            sum(net.losses(crops(step, half, half), Clock(step, steps), turn).values()).backward()
            optimizers[turn].step()
        net.after_step(Clock(step, steps))
    return net


class Bright(nn.Module):
    """A focus that needs no training: what is brighter than 2 is a lesion."""

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.gain * (x - 2)], 1)


# ------------------------------------------------------------------------------------------------------------------------------ learning
def test_each_turn_teaches_its_own_network_alone():
    net = method().train()
    net.losses(crops(0), Clock(0, 9), "glance")["policy"].backward()
    assert all(p.grad is not None for p in net.glance.parameters()) and any(p.grad.abs().max() > 0 for p in net.glance.parameters())
    assert all(p.grad is None for p in (*net.network.parameters(), *net.old.parameters()))
    net = method().train()
    terms = net.losses(crops(0), Clock(0, 9), "main")
    terms["segmentation"].backward()
    assert set(terms) == {"segmentation"} and all(p.grad is None for p in net.glance.parameters())
    assert all(p.grad is not None for p in net.network.parameters())


def test_the_focus_is_the_same_bit_for_bit_whatever_the_glance_learns():
    with_policy, without, slow = trained(4), trained(4, policy_weight=0.0), trained(4, reward="dice", glance_lr=1e-5)
    for other in (without, slow):
        assert all(torch.equal(a, b) for a, b in zip(with_policy.network.parameters(), other.network.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(with_policy.glance.parameters(), other.glance.parameters(), strict=True))


def test_reinforcement_alone_teaches_the_glance_where_looking_pays():
    net = trained(60, half=8, turns=("glance",), network=Bright, glance_weight=0.0, glance_lr=1e-3, blocks=1).eval()
    batch = crops(999, 16, 16)
    with torch.no_grad():
        look = net.look(torch.cat([batch.image, batch["beside"].image]))
    assert (look[:16, None] > look[None, 16:]).float().mean() > 0.95  # AUC of unseen crops
    assert look[:16].mean() > look[16:].mean() + 0.3


def test_cross_entropy_only_has_no_other_term():
    net = method(policy_weight=0.0).train()
    assert set(net.losses(crops(0), Clock(0, 9), "glance")) == {"glance"}
    assert set(method().train().losses(crops(0), Clock(0, 9), "glance")) == {"glance", "policy", "kl"}


def test_the_policy_starts_every_epoch_as_its_own_old_policy():
    """Ratio 1, so the policy term is minus the mean advantage, 0, and no KL; but it has a gradient."""
    for net in (method(), trained(3)):  # an epoch of one step
        terms = {k: v.detach() for k, v in net.train().losses(crops(1), Clock(3, 9), "glance").items()}
        assert abs(terms["policy"]) < 1e-6 and terms["kl"] == 0


def test_the_old_policy_is_that_of_the_epoch_before():
    net = method()
    net.epoch, copied = 3, []
    for step in range(7):
        with torch.no_grad():
            net.glance.head.bias.fill_(step)
        net.after_step(Clock(step, 7))
        copied.append(float(net.old.head.bias[0].detach()))
    assert copied[2:] == [2, 2, 2, 5, 5] and copied[0] == copied[1] != 1
    assert not any(p.requires_grad for p in net.old.parameters())
    assert {k for k in net.state()[0] if k.startswith("old.")}  # a resumed training goes on with it


def test_an_epoch_shows_every_volume_as_many_crops_as_a_group_has_per_volume():
    class Lent:
        def train(self, *_):
            pass

    net = method(crops=4)
    net.fit([f"c{i}" for i in range(21)], [], Lent())
    assert net.epoch == 10 and net.group == 8


# ---------------------------------------------------------------------------------------------------------------------- rewards, labels
def test_a_reward_is_one_voxel_of_the_lesion_found():
    net = method(network=Bright)
    image, lesion = torch.zeros(4, 1, 8, 8, 8), torch.zeros(4, 8, 8, 8, dtype=torch.bool)
    image[0, 0, 1:3, 1, 1] = 5  # meets its lesion in one of two voxels
    lesion[0, 2:4, 1, 1] = True
    image[1, 0, 1, 1, 1] = 5  # beside it
    lesion[1, 5, 5, 5] = True
    image[2, 0, 1, 1, 1] = 5  # a false alarm in healthy tissue; crop 3 is healthy and found so
    assert net.rewards(image, lesion).tolist() == [1, 0, 0, 0]
    assert method(network=Bright, reward="dice").rewards(image, lesion).tolist() == [0.5, 0, 0, 0]


def test_balanced_cross_entropy():
    p = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.8, 0.2], [0.5, 0.5]])
    holds = torch.tensor([True, False, False, False])
    wanted = -np.log(0.9) - np.mean(np.log([0.6, 0.8, 0.5]))
    assert float(balanced_cross_entropy(p.log(), holds)) == pytest.approx(wanted, rel=1e-5)
    assert float(balanced_cross_entropy(p.log(), torch.zeros(4, dtype=torch.bool))) == pytest.approx(-float(p[:, 0].log().mean()), rel=1e-5)


@pytest.mark.parametrize("turn", ["glance", "main"])
def test_a_group_of_healthy_crops_is_survived(turn):
    net = method().train()
    terms = net.losses(crops(3, positive=0, negative=8), Clock(0, 9), turn)
    sum(terms.values()).backward()
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert turn == "main" or terms["policy"].item() == 0  # nobody earned more than another


def test_a_group_is_half_on_lesions_and_half_beside_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    manifest = open_phantom("torso-ct", lesions=True, organs=False, cases=(3, 0, 0))
    plan, _ = api.plan_for(manifest, manifest.split(), overrides={"patch": (16, 16, 8), "batch": 2, "features": (4, 8), "workers": 0})
    plan = plan.derive(augmentation={}, mirror_axes=())
    net = GFScreen(plan, manifest)
    cache = Cache(manifest, plan, net, api.reader(manifest))
    batch = Draws([cache[c.id] for c in manifest.cases], net, manifest, Stage(), seed=0, number=0)[0]
    assert len(batch) == len(batch["beside"]) == 4 and set(batch.cases) == {c.id for c in manifest.cases}
    diseased = {c.id for c in manifest.cases if c.table["lesions"]}
    holds = batch.label.flatten(1).gt(0).any(1).tolist()
    assert diseased and holds == [c in diseased for c in batch.cases]  # a volume without lesions gives crops without


# ------------------------------------------------------------------------------------------------------------------------------ answers
def answer(net: GFScreen, case: Case = CASE):
    with torch.no_grad():
        return net.eval().predict(case, rng=np.random.default_rng(0))


def test_nothing_worth_a_look_is_all_background_and_said():
    net = method()
    with torch.no_grad():
        net.glance.head.bias.copy_(torch.tensor([50.0, -50.0]))
    found = answer(net)
    assert (found.probability.data[0] == 1).all() and not found.probability.data[1:].any()
    assert found.table == {"kept_share": 0.0} and found.notes == (NOTHING,) and len(found.boxes["looked"].low) == 0
    assert not found.decide(PLAN.classes).label.data.any()


def test_looking_everywhere_is_the_plain_sliding_window():
    found, net = answer(method(least=0.0)), method().eval()
    with torch.no_grad():
        logits = SlidingWindow(PLAN.patch, overlap=PLAN.overlap, batch=2)(net, torch.from_numpy(CASE.stack(("CT",))))
    np.testing.assert_allclose(found.probability.data, logits.softmax(0).numpy(), atol=1e-5)
    assert found.table == {"kept_share": 1.0} and found.notes == ()


def test_some_windows_are_looked_at_and_recorded():
    net = method(network=Bright)
    hot = np.zeros((1, *GRID.shape), np.float32)
    hot[0, 3:5, 3:5, 3:5] = hot[0, 15:17, 9:11, 6:8] = 5
    net.look = lambda windows: (windows.flatten(1).amax(1) > 4).float()
    case = Case("a", images={"CT": Image(hot, GRID)})
    found, everywhere = (answer(n, case) for n in (net, method(network=Bright, least=0.0)))
    assert np.array_equal(*(f.decide(PLAN.classes).label.data for f in (found, everywhere)))
    n = len(found.boxes["looked"].scores)
    assert found.notes == (f"{n} of {round(n / found.table['kept_share'])} windows were looked at",)
    assert 0 < found.table["kept_share"] < 1 and len(found.boxes["looked"].low) == len(found.boxes["looked"].scores) > 0
    inside = GRID.to_world(np.argwhere(hot[0] > 4))
    boxes = found.boxes["looked"]
    assert all(((boxes.low <= p) & (p <= boxes.high)).all(1).any() for p in inside)


def test_boxes_are_the_windows_outer_faces_in_the_world():
    low, high = world_boxes(np.array([[0, 0, 0], [-2, 8, 2]]), (8, 8, 8), GRID)
    faces = GRID.to_world(np.array([[-0.5, -0.5, -0.5], [7.5, 7.5, 7.5]]))
    np.testing.assert_allclose([low[0], high[0]], [faces.min(0), faces.max(0)])
    faces = GRID.to_world(np.array([[-0.5, 7.5, 1.5], [5.5, 13.5, 9.5]]))  # cut at the image
    np.testing.assert_allclose([low[1], high[1]], [faces.min(0), faces.max(0)])
    assert world_boxes(np.zeros((0, 3), int), (8, 8, 8), GRID)[0].shape == (0, 3)


@pytest.mark.parametrize("bad", [{"least": 1.5}, {"crops": 1}, {"kl": -1.0}, {"blocks": 0}, {"segmented": -1}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(UsageError, match=f"gf-screen {next(iter(bad))}"):
        method(**bad)


def test_a_phantom_of_lesions_alone():
    whole, alone = (open_phantom("torso-ct", lesions=True, organs=o, cases=(3, 0, 0)) for o in (True, False))
    assert alone.names == ("background", "lesion") and not alone.mirror
    for ref in alone.cases:
        a, b = alone.built_in(ref), whole.built_in(whole[ref.id])
        assert np.array_equal(a.images["CT"].data, b.images["CT"].data)
        assert np.array_equal(a.labels["reference"].data, b.labels["reference"].data == 6)
    with pytest.raises(UsageError, match="nothing is labelled"):
        open_phantom("torso-ct", organs=False)


def test_the_proof_is_a_study():
    study = runpy.run_path(str(Path(__file__).parents[3] / "proofs" / "guided" / "gf_screen.py"))["study"]()
    names = [a.name for a in study.arms]
    assert study.slug == "gf-screen" and study.baseline in names and all(e.arm in names for e in study.expects)
