"""TraCoCo: each term against its formula, and who learns from whom."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.errors import UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.methods.fewer_labels.tracoco import TraCoCo, confident_cross_entropy, cutmix, translation_terms
from vesalius.ops.overlap import overlap

MANIFEST = Manifest("shapes", Path("."), 3, ("image",), {"background": 0, "object": 1}, ())
PLAN = Plan(
    dims=3, channels=("image",), patch=(8, 8, 8), batch=4, features=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2,
    deep_supervision=False,
)  # fmt: skip


def method(plan: Plan = PLAN, **options) -> TraCoCo:
    torch.manual_seed(0)
    return TraCoCo(plan, MANIFEST, **options)


def batch(views: int = 2) -> Batch:
    """Two labelled and two unlabelled cases, the second crops shifted by (2, -1, 3)."""
    rng = torch.Generator().manual_seed(1)

    def crops(labelled: bool) -> Batch:
        world, out = torch.randn(2, 1, 16, 16, 16, generator=rng), []
        for at in ((4, 4, 4), (6, 3, 7))[:views]:
            box = tuple(slice(a, a + 8) for a in at)
            pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
            pose[:, :3, 3] = torch.tensor(at, dtype=torch.float64)
            image = world[(slice(None), slice(None), *box)]
            labels = {"reference": (image[:, 0] > 0.5).long()} if labelled else {}
            out.append(Batch(image, labels, pose, ["a", "b"]))
        out[0].views = tuple(out[1:])
        return out[0]

    labelled = crops(True)
    labelled.streams = {"unlabelled": crops(False)}
    return labelled


def terms(net: TraCoCo, step: int = 100) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return net.train().losses(batch(net.sampling(Stage()).views), Clock(step, 100))


def touched(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


# the overlap
BOXES = overlap(np.eye(4)[None], np.array([[1, 0, 0, 2], [0, 1, 0, -1], [0, 0, 1, 3], [0, 0, 0, 1.0]])[None], (8, 8, 8))


def two_crops():
    world = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return world[..., 4:12, 4:12, 4:12], world[..., 6:14, 3:11, 7:15]


def test_a_network_that_sees_one_voxel_at_a_time_is_translation_consistent():
    net = torch.nn.Conv3d(1, 2, 1)
    kl, _ = translation_terms(*(net(x) for x in two_crops()), BOXES)
    assert abs(kl.item()) < 1e-7


def test_a_network_that_knows_where_it_is_in_the_crop_is_not():
    where = torch.linspace(-1, 1, 8).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    torch.manual_seed(0)
    net = torch.nn.Conv3d(2, 2, 1)
    kl, _ = translation_terms(*(net(torch.cat([x, where], 1)) for x in two_crops()), BOXES)
    assert kl.item() > 1e-4


def test_the_divergence_is_of_the_first_crop_from_the_second():
    here, there = torch.randn(1, 3, 8, 8, 8), torch.randn(1, 3, 8, 8, 8)
    ((a, b),) = BOXES
    log_p, q = here[(slice(None), slice(None), *a)].log_softmax(1), there[(slice(None), slice(None), *b)].softmax(1)
    kl, _ = translation_terms(here, there, BOXES)
    assert torch.isclose(kl, F.kl_div(log_p, q, reduction="none").sum(1).mean())


def test_the_entropy_term_is_least_for_undecided_and_none_for_certain_answers():
    undecided, certain = torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 2, 8, 8, 8)
    certain[:, 0] = 50
    assert translation_terms(undecided, undecided, BOXES)[1].item() == pytest.approx(-math.log(2))
    assert translation_terms(certain, certain, BOXES)[1].item() == pytest.approx(0)


def test_crops_that_share_nothing_cost_nothing():
    far = np.eye(4)
    far[0, 3] = 99
    x = torch.randn(1, 2, 8, 8, 8)
    assert [t.item() for t in translation_terms(x, x, overlap(np.eye(4)[None], far[None], (8, 8, 8)))] == [0, 0]


# confident agreement
def test_two_classes_are_the_papers_formula():
    logits, q = torch.randn(2, 2, 4, 4, 4), torch.randn(2, 2, 4, 4, 4).mul(2).softmax(1)
    p, y = logits.softmax(1), q.argmax(1)
    high, low = q.max(1).values, q.min(1).values
    p_y, p_other = p.gather(1, y[:, None])[:, 0], p.gather(1, 1 - y[:, None])[:, 0]
    wanted = (high * -p_y.log())[high >= 0.65].mean() + (low * -(1 - p_other).log())[low < 0.1].mean()
    assert torch.isclose(confident_cross_entropy(logits, q, 0.65, 0.1), wanted)


def test_voxels_without_confidence_get_no_gradient():
    q = torch.tensor([[0.6, 0.9, 0.97, 0.6], [0.4, 0.1, 0.03, 0.4]])[None]  # (1, 2, 4): only the two in the middle are sure
    logits = torch.randn(1, 2, 4, requires_grad=True)
    confident_cross_entropy(logits, q, 0.65, 0.1).backward()
    assert (logits.grad[0, :, [0, 3]] == 0).all() and (logits.grad[0, :, [1, 2]] != 0).all()


def test_nobody_sure_is_zero():
    q = torch.full((1, 2, 3), 0.5)
    assert confident_cross_entropy(torch.randn(1, 2, 3), q, 0.65, 0.1) == 0


def test_of_three_classes_every_excluded_one_is_ruled_out():
    q = torch.tensor([0.9, 0.06, 0.04]).reshape(1, 3, 1)
    logits = torch.randn(1, 3, 1)
    p = logits.softmax(1).flatten()
    wanted = -0.9 * p[0].log() - (0.06 * (1 - p[1]).log() + 0.04 * (1 - p[2]).log()) / 2
    assert torch.isclose(confident_cross_entropy(logits, q, 0.65, 0.1), wanted)


# CutMix
def test_images_and_targets_are_cut_alike():
    image = torch.randn(4, 1, 10, 10, 6)
    for seed in range(10):
        torch.manual_seed(seed)
        mixed, target = cutmix(image, torch.cat([image, -image], 1))
        assert torch.equal(target[:, :1], mixed) and torch.equal(target[:, 1:], -mixed)
        moved = (mixed != image).any(1)
        for b in range(4):  # a box through the full depth, the rest untouched
            assert torch.equal(moved[b].any(2), moved[b].all(2))
            rows, columns = moved[b].any(2).any(1).sum(), moved[b].any(2).any(0).sum()
            assert moved[b].sum() == rows * columns * 6 and rows == columns
            assert any(torch.equal(mixed[b][:, moved[b]], image[k][:, moved[b]]) for k in range(4))


def test_crops_of_two_dimensions_too():
    torch.manual_seed(0)
    (mixed,) = cutmix(torch.randn(3, 2, 12, 9))
    assert mixed.shape == (3, 2, 12, 9)


# the whole
@pytest.mark.parametrize(("learner", "teacher"), [("first", "second"), ("second", "first")])
def test_no_gradient_reaches_the_network_that_teaches(learner, teacher):
    net = method()
    terms(net)[f"{learner}/agreement"].backward()
    nets = {"first": net.network, "second": net.second}
    assert touched(nets[learner]) and not touched(nets[teacher])


def test_all_terms_ramp_up_but_the_supervised_ones():
    net = method()
    early, late = terms(net, 0), terms(net, 100)
    assert set(early) == {f"{n}/{t}" for n in ("first", "second") for t in ("supervised", "agreement", "translation", "entropy")}
    for name in early:
        factor = 1.0 if name.endswith("supervised") else math.exp(-5)
        assert early[name].item() == pytest.approx(factor * late[name].item(), rel=1e-4)


def test_the_networks_start_apart_and_both_learn_from_labels():
    net = method()
    assert not torch.equal(next(net.network.parameters()), next(net.second.parameters()))
    found = terms(net)
    (found["first/supervised"] + found["second/supervised"]).backward()
    assert touched(net.network) and touched(net.second)
    held = {id(p) for group in net.optimizers()["main"].param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}


def test_contributions_switch_off():
    plain = method(translation=0.0, agreement="mse", cutmix=False, noise=0.0)
    assert plain.sampling(Stage()).views == 1 and method().sampling(Stage()).views == 2
    found = terms(plain)
    assert set(found) == {f"{n}/{t}" for n in ("first", "second") for t in ("supervised", "agreement")}
    free = batch(1)["unlabelled"].image
    with torch.no_grad():  # instance norm: a case's answer does not depend on its batch
        p, q = (net(free).softmax(1) for net in (plain.network, plain.second))
    assert found["first/agreement"].item() == pytest.approx(F.mse_loss(p, q).item(), rel=1e-3)
    assert found["second/agreement"].item() == pytest.approx(F.mse_loss(p, q).item(), rel=1e-3)


def test_deeply_supervised_networks_train():
    plan = PLAN.derive(features=(4, 8, 8), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 3, deep_supervision=True)
    net = method(plan)
    sum(terms(net).values()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_what_is_reported():
    x, answers = torch.randn(1, 1, 8, 8, 8), {}
    for report in ("first", "second", "mean"):
        answers[report] = method(report=report).eval()(x).softmax(1)
    assert not torch.equal(answers["first"], answers["second"])
    assert torch.allclose(answers["mean"], (answers["first"] + answers["second"]) / 2, atol=1e-6)


def test_optimisers_and_backbones():
    assert isinstance(method().optimizers()["main"], torch.optim.SGD) and method().optimizers()["main"].param_groups[0]["lr"] == 5e-2
    assert method().learning_rate(Clock(50, 100)) == pytest.approx(0.5**0.9)
    adam = method(optimizer="adamw", lr=1e-3).optimizers()["main"]
    assert isinstance(adam, torch.optim.AdamW) and adam.param_groups[0]["lr"] == 1e-3
    with pytest.raises(UsageError, match="vnet"):
        method(backbone="vnet")
    net = method(PLAN.derive(patch=(16, 16, 16)), backbone="vnet")
    assert type(net.network).__name__ == type(net.second).__name__ == "VNet"


def test_the_proof_s_labels_and_options():
    from vesalius.datasets import open_dataset

    proof = runpy.run_path(str(Path(__file__).parents[3] / "proofs" / "fewer_labels" / "tracoco.py"))
    study = proof["study"]()
    for arm in study.arms:
        assert catalog.coerce(arm.method, arm.options) == arm.options
    shown = open_dataset(study.data[0].where)
    assert sum(bool(c.labels) for c in shown.cases if c.split == "train") == proof["LABELLED"]
    assert all(c.labels for c in shown.cases if c.split != "train")
