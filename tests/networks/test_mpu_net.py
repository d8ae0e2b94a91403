"""MPU-Net: what position attention and gates are, that the answer is a mean over scales, and the form that reads slices."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.networks.blocks.conv import AttentionGate
from vesalius.networks.blocks.slices import thin_axis, with_neighbours
from vesalius.networks.mpu_net import MPUNet, PositionAttention, joined

GATES = 128 + 64 + 32 + 16  # biases that a batch norm takes away again: theirs has them, our gates do not


def tiny(inp: int = 1, out: int = 2, **options) -> MPUNet:
    torch.manual_seed(0)
    return MPUNet(inp, out, **{"spatial_dims": 3, "width": 2, "dropout": 0.0, **options})


def awake(net: MPUNet) -> MPUNet:
    """With attention at work, as it is not before it has learnt."""
    torch.nn.init.ones_(net.middle[1].gamma)
    return net


class TestPositionAttention:
    def test_it_starts_as_the_identity(self):
        x = torch.randn(2, 16, 3, 2, 4)
        assert torch.equal(PositionAttention(16)(x), x)

    def test_the_formula(self):
        torch.manual_seed(0)
        net, x = PositionAttention(16), torch.randn(2, 16, 3, 2, 4)
        torch.nn.init.constant_(net.gamma, 0.7)
        a = x[1].flatten(1)  # (C, N)
        q, k, v = (f.weight @ a + f.bias[:, None] for f in (net.query, net.key, net.value))
        s = (q.T @ k).softmax(1)
        assert q.shape[0] == 2
        torch.testing.assert_close(net(x)[1], (0.7 * v @ s.T + a).view(16, 3, 2, 4))

    def test_its_weights_sum_to_one(self):
        torch.manual_seed(0)
        net = PositionAttention(8)
        torch.nn.init.zeros_(net.value.weight)  # every position says the same
        torch.testing.assert_close(net.attended(torch.randn(1, 10, 8)), net.value.bias.expand(1, 10, 8))

    def test_it_does_not_know_where_a_position_is(self):
        torch.manual_seed(0)
        net, x, order = PositionAttention(8), torch.randn(1, 8, 1, 1, 12), torch.randperm(12)
        torch.nn.init.ones_(net.gamma)
        torch.testing.assert_close(net(x[..., order]), net(x)[..., order])

    def test_with_it_the_ends_of_a_volume_meet(self):
        x = torch.randn(1, 1, 8, 8, 256, requires_grad=True)
        for attention, far in ((True, True), (False, False)):
            net = tiny(attention=attention).eval()
            net = awake(net) if attention else net
            grad = torch.autograd.grad(net(x)[0, 0, 0, 0, 0], x)[0]
            assert bool((grad[..., 248:] != 0).any()) == far


class TestGate:
    def test_between_nothing_and_all(self):
        torch.manual_seed(0)
        gate, x, g = AttentionGate(3, 6, 5, norm="batch"), 9 * torch.randn(2, 6, 4, 4, 4), 9 * torch.randn(2, 5, 4, 4, 4)
        w = gate.weights(x, g)
        assert w.shape == (2, 1, 4, 4, 4) and 0 < w.min() < 0.2 and 0.8 < w.max() < 1
        torch.testing.assert_close(gate(x, g), x * w)

    def test_open_gates_are_none(self):
        gated, plain = tiny().eval(), tiny(gates=False).eval()
        for gate in gated.gates:
            torch.nn.init.constant_(gate.norms[2].bias, 40.0)
        plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gates.")})
        x = torch.randn(1, 1, 16, 8, 16)
        torch.testing.assert_close(gated(x), plain(x))
        assert not torch.allclose(tiny().eval()(x), plain(x), atol=1e-3)


class TestJoined:
    def test_the_answer_is_the_mean_of_four_probability_maps(self):
        net, x = tiny(out=3).eval(), torch.randn(1, 1, 16, 16, 8)
        maps = net.maps(x)
        assert len(maps) == 4 and {m.shape for m in maps} == {(1, 3, 16, 16, 8)}
        mean = sum(m.softmax(1) for m in maps) / 4
        torch.testing.assert_close(net(x).softmax(1), mean)
        torch.testing.assert_close(net(x).exp().sum(1), torch.ones(1, 16, 16, 8))

    def test_far_apart_logits_stay_finite(self):
        maps = [torch.tensor([[300.0, -300.0]])[..., None], torch.tensor([[-300.0, 300.0]])[..., None]]
        torch.testing.assert_close(joined(maps).softmax(1), torch.full((1, 2, 1), 0.5))

    def test_every_coarser_map_is_taught(self):
        net, x = tiny(), torch.randn(2, 1, 16, 16, 8)
        maps = net(x)
        torch.testing.assert_close(maps[0], joined([*net.maps(x)]), atol=1e-4, rtol=1e-4)
        assert len(maps) == 4
        step = maps[3][..., 4:12, 4:12, 0].diff(dim=-1)  # the coarsest map, of two voxels a side, is linear between them
        assert step.std(-1).max() < 1e-4 * step.abs().max() + 1e-6
        finest = tiny(joined=False)
        assert len(finest.heads) == 1 and isinstance(finest(x), torch.Tensor)


class TestSlices:
    def test_neighbours_are_channels(self):
        x = torch.arange(2 * 3 * 4.0).view(1, 2, 1, 3, 4)
        y = with_neighbours(x, 1)
        assert y.shape == (1, 6, 1, 3, 4)
        assert torch.equal(y[..., 2], torch.cat([x[..., 1], x[..., 2], x[..., 3]], 1))
        assert torch.equal(y[..., 0], torch.cat([x[..., 0], x[..., 0], x[..., 1]], 1))  # beyond the end: the last one again
        assert torch.equal(with_neighbours(x, 0), x) and with_neighbours(x[..., :1], 2).shape == (1, 10, 1, 3, 1)

    @pytest.mark.parametrize("context", [0, 1, 2])
    def test_a_slice_sees_so_many_neighbours(self, context):
        net, x = tiny(form="slices", context=context).eval(), torch.randn(1, 1, 16, 16, 9, requires_grad=True)
        net(x)[0, 0, 8, 8, 4].backward()
        seen = (x.grad.abs().sum((0, 1, 2, 3)) > 0).nonzero().flatten().tolist()
        assert seen == list(range(4 - context, 5 + context))

    def test_without_neighbours_a_volume_is_its_slices(self):
        net = tiny(2, 3, form="slices", context=0, axis=0).eval()
        x = torch.randn(1, 2, 3, 16, 24)
        assert net.multiple == (1, 8, 8) and net(x).shape == (1, 3, 3, 16, 24)
        torch.testing.assert_close(net(x)[:, :, 1], joined(net.maps(x[:, :, 1])), atol=1e-5, rtol=1e-4)
        assert net(x[:, :, :1]).shape == (1, 3, 1, 16, 24)

    def test_cut_across_the_thin_axis(self):
        assert [thin_axis(-1, w) for w in ((24, 24, 24), (64, 16, 64), (4, 96, 96), ())] == [2, 1, 0, 2] and thin_axis(1, (4, 9, 9)) == 1
        assert tiny(form="slices", window=(4, 96, 96)).multiple == (1, 8, 8) and tiny(window=(4, 96, 96)).multiple == (8, 8, 8)
        net, x = tiny(form="slices", window=(4, 16, 16)).eval(), torch.randn(1, 1, 3, 16, 16)
        last = tiny(form="slices").eval()
        last.load_state_dict(net.state_dict())
        torch.testing.assert_close(net(x), last(x.movedim(2, -1)).movedim(-1, 2))


def test_it_is_as_large_as_the_published_one():
    """21 507 255: the published code's layers, counted without the three it never calls."""
    with torch.device("meta"):
        net = MPUNet(1, 2, spatial_dims=3)
        assert sum(p.numel() for p in net.parameters()) == 21_507_255 - GATES
        assert net.eval()(torch.zeros(1, 1, 16, 32, 32)).shape == (1, 2, 16, 32, 32)


@pytest.mark.parametrize("form", ["volume", "slices"])
@pytest.mark.parametrize("channels, classes, size", [(1, 2, (21, 18, 13)), (3, 7, (17, 24, 1)), (1, 2, (1, 20, 20))])
def test_any_input(form, channels, classes, size):
    """As a method of the catalogue: odd sides, one slice, grey and three channels, two classes and seven."""
    torch.manual_seed(0)
    images, names = tuple(f"i{k}" for k in range(channels)), {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    plan = Plan(3, images, channels, tuple(names), patch=size)
    method = catalog.build("mpu-net", plan, Manifest("made", Path("."), 3, images, names, ()), options={"width": 2, "form": form})
    image, label = torch.randn(2, channels, *method.plan.patch), torch.randint(0, classes, (2, *method.plan.patch))
    batch = Batch(image, {"reference": label}, torch.eye(4).expand(2, 4, 4), ["a", "b"])
    loss = sum(method.train().losses(batch, Clock(0, 10)).values())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    with torch.no_grad():
        logits = method.eval()(torch.randn(2, channels, *size))
    assert logits.shape == (2, classes, *size) and torch.isfinite(logits).all()


def test_coarser_maps_teach_less_and_less():
    """0.4 of each at first, a fifth less after every twentieth of the budget."""
    torch.manual_seed(0)
    names = {"background": 0, "a": 1}
    plan = Plan(3, ("i",), 1, tuple(names), patch=(16, 16, 8))
    method = catalog.build("mpu-net", plan, Manifest("made", Path("."), 3, ("i",), names, ()), options={"width": 2, "dropout": 0})
    image, label = torch.randn(2, 1, 16, 16, 8), torch.randint(0, 2, (2, 16, 16, 8))
    batch = Batch(image, {"reference": label}, torch.eye(4).expand(2, 4, 4), ["a", "b"])
    alone = [float(method.objective(m, label).detach()) for m in method.train().network(image)]
    for step, share in ((0, 0.4), (49, 0.4), (50, 0.32), (999, 0.4 * 0.8**19)):
        found = float(method.losses(batch, Clock(step, 1000))["segmentation"].detach())
        assert found == pytest.approx(alone[0] + share * sum(alone[1:]), rel=1e-3)


def test_the_proofs_unet_is_of_mpu_nets_size_and_no_cheaper():
    study = runpy.run_path(str(Path(__file__).resolve().parents[2] / "proofs" / "networks" / "mpu_net.py"))["study"]()
    names, arms = {"background": 0, **{f"c{k}": k for k in range(1, 7)}}, {a.name: a for a in study.arms}
    manifest = Manifest("made", Path("."), 3, ("i",), names, ())
    for data, most in zip(study.data, (1.3, 1.1), strict=True):
        size, cost = {}, {}
        for name in ("unet", "bare", "mpu-net"):
            plan = Plan(3, ("i",), 1, tuple(names), **{**study.plan, **data.plan})
            net = catalog.build(arms[name].method, plan, manifest, options=arms[name].options).network.to("meta").eval()
            size[name] = sum(p.numel() for p in net.parameters())
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                net(torch.empty(1, 1, *plan.patch, device="meta"))
            cost[name] = counter.get_total_flops()
        assert max(size.values()) < 1.02 * min(size.values())
        assert 1 <= cost["unet"] / cost["mpu-net"] < most and 0.95 < cost["bare"] / cost["mpu-net"] <= 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        tiny()(torch.zeros(1, 1, 16, 16, 12))
    with pytest.raises(UsageError, match="more than one value"):
        tiny()(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(UsageError, match="unknown form"):
        tiny(form="slabs")
    with pytest.raises(UsageError, match="unknown form"):
        tiny(form="slices", spatial_dims=2)
    with pytest.raises(UsageError, match="axis"):
        tiny(axis=3)
    with pytest.raises(UsageError, match="out of range"):
        tiny(dropout=1.0)
