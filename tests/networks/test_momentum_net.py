"""MomentumNet: the dynamics' known answers, a way back that is exact, and what it saves."""

import runpy
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.momentum import Momentum, advance, retreat, unpush
from vesalius.networks.momentum_net import MomentumNet

SMALL = dict(spatial_dims=2, depths=(2, 2, 2, 2), width=4)


def small(channels: int = 3, out: int = 2, **options) -> MomentumNet:
    torch.manual_seed(0)
    return MomentumNet(channels, out, **{**SMALL, **options})


def blocks(n: int, channels: int = 4, norm: bool = True) -> list[nn.Module]:
    torch.manual_seed(1)
    make = lambda: nn.Conv2d(channels, channels, 3, padding=1)
    return [nn.Sequential(make(), nn.BatchNorm2d(channels) if norm else nn.Identity(), nn.ReLU(), make()) for _ in range(n)]


class TestDynamics:
    def test_without_momentum_it_is_a_residual_network_to_the_bit(self):
        fs, x = blocks(4), torch.randn(2, 4, 6, 6)
        plain = x
        for f in fs:
            f.eval()
            plain = plain + f(plain)
        assert torch.equal(Momentum(0.0)(x, fs)[0], plain) and not torch.allclose(Momentum(0.5)(x, fs)[0], plain)

    @pytest.mark.parametrize("gamma", [0.3, 0.5, 0.9])
    def test_silent_branches_let_it_coast(self, gamma):
        """f = 0 and v_0 = c: x_N = x_0 + c gamma (1 - gamma^N) / (1 - gamma)."""

        class First(nn.Module):
            """c when the velocity starts, then 0."""

            calls = 0

            def forward(self, x):
                self.calls += 1
                return torch.full_like(x, 2.0 if self.calls == 1 else 0.0)

        x, n = torch.zeros(1, 1, 2, 2), 7
        silent = [lambda x: torch.zeros_like(x)] * (n - 1)
        expected = 2.0 * gamma * (1 - gamma**n) / (1 - gamma)
        end, v = Momentum(gamma, start="first")(x, [First(), *silent])
        torch.testing.assert_close(end, torch.full_like(x, expected))
        torch.testing.assert_close(v, torch.full_like(x, 2.0 * gamma**n))
        given = Momentum(gamma)(x, [lambda x: torch.zeros_like(x)] * n, torch.full_like(x, 2.0))  # a velocity from elsewhere
        torch.testing.assert_close(given, (end, v))

    @pytest.mark.parametrize("gamma", [0.5, 0.9])
    def test_what_a_branch_counts(self, gamma):
        """From rest, branch k of N moves x by 1 - gamma^(N - k): nearly nothing of few blocks at 0.9, at least half at 0.5."""
        for n in (2, 5):
            for k in range(n):
                fs = [lambda x, on=float(i == k): torch.full_like(x, on) for i in range(n)]
                moved = Momentum(gamma)(torch.zeros(1, 1, 1, 1), fs)[0].item()
                assert moved == pytest.approx(1 - gamma ** (n - k), rel=1e-5)
                assert (moved >= 0.5) == (gamma == 0.5)

    def test_both_starts(self):
        fs, x = blocks(1, norm=False), torch.randn(1, 4, 5, 5)
        y = fs[0](x)
        torch.testing.assert_close(Momentum(0.75)(x, fs)[0], x + 0.25 * y)
        torch.testing.assert_close(Momentum(0.75, start="first")(x, fs)[0], x + y)


class TestWayBack:
    @pytest.mark.parametrize("gamma, n", [(0.9, 200), (0.5, 50), (0.1, 15), (0.99, 400)])
    def test_integers_come_back_to_the_bit(self, gamma, n):
        torch.manual_seed(0)
        ratio = Fraction(gamma).limit_denominator(100)
        x, v = (torch.randint(-(2**31), 2**31, (1000,)) for _ in range(2))
        start, pushes = (x, v), torch.randint(-(2**30), 2**30, (n, 1000))
        cut = torch.zeros_like(x)
        for push in pushes:
            x, v, cut = advance(x, v, cut, push, ratio)
        for push in reversed(pushes):
            x, v = retreat(x, v)
            v, cut = unpush(v, cut, push, ratio)
        assert torch.equal(x, start[0]) and torch.equal(v, start[1]) and not cut.any()

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-10)])
    def test_the_formula_in_floating_point_comes_back_nearly(self, dtype, tolerance):
        torch.manual_seed(0)
        fs = [f.to(dtype).eval() for f in blocks(10)]
        x = start = torch.randn(2, 4, 6, 6, dtype=dtype)
        v, gamma = torch.zeros_like(x), 0.5
        for f in fs:
            v = gamma * v + (1 - gamma) * f(x)
            x = x + v
        for f in reversed(fs):
            x = x - v
            v = (v - (1 - gamma) * f(x)) / gamma
        assert torch.allclose(x, start, atol=tolerance) and v.abs().max() < tolerance
        assert not torch.equal(x, start)  # and that is why there are integers

    def test_the_integers_stay_near_the_real_thing(self):
        ratio = Fraction(9, 10)
        x = v = cut = torch.zeros(4, dtype=torch.long)
        real = 0.0
        for n in range(60):
            x, v, cut = advance(x, v, cut, torch.full((4,), 10**6 + n), ratio)
            real = 0.9 * real + 10**6 + n
        assert (v - real).abs().max() < 100

    @pytest.mark.parametrize("start", ["zero", "first"])
    def test_gradients_equal_those_of_stored_activations(self, start):
        results = []
        for memory in ("stored", "reversible"):
            fs, x = blocks(6), torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
            y, v = Momentum(0.7, start=start, memory=memory, blocks=6)(x, fs)
            ((y.sin() + v.cos()) * torch.arange(6.0)).sum().backward()  # the velocity is an answer as well
            weights = [p.grad for f in fs for p in f.parameters()]
            account = [b for f in fs for b in f.buffers()]
            results.append((y, v, x.grad, *weights, *account))  # batch norm counted once
        for stored, reversed_ in zip(*results, strict=True):
            torch.testing.assert_close(reversed_, stored, atol=1e-5, rtol=1e-4)

    def test_memory_does_not_grow_with_depth(self):
        def held(memory: str, n: int) -> int:
            stored = 0

            def count(t):
                nonlocal stored
                stored += t.numel() * t.element_size() if t.ndim == 4 and not isinstance(t, nn.Parameter) else 0
                return t

            with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                y, _ = Momentum(0.9, memory=memory, blocks=n)(torch.randn(1, 4, 16, 16, requires_grad=True), blocks(n))
            return stored + sum(t.numel() * t.element_size() for t in getattr(y.grad_fn, "end", ()))

        assert held("stored", 32) > 3.9 * held("stored", 8)
        assert held("reversible", 32) == held("reversible", 8) < held("stored", 8) / 4

    def test_what_has_no_integers_is_not_hidden(self):
        flow = Momentum(0.9, memory="reversible", blocks=3)
        for bad in (float("nan"), float("inf"), 1e12):
            x = torch.zeros(1, 4, 4, 4)
            x[0, 0, 0, 0] = bad
            assert all(out.isnan().all() for out in flow(x.requires_grad_(), blocks(3)))
        assert all(out.isfinite().all() for out in flow(torch.full((1, 4, 4, 4), 1e6, requires_grad=True), blocks(3)))

    def test_autocast_is_the_same_on_the_way_back(self):
        fs, x = blocks(5), torch.randn(2, 4, 6, 6, requires_grad=True)
        seen = []
        for f in fs:
            f.register_forward_hook(lambda _m, _i, y: seen.append(y.detach()))
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = Momentum(0.9, memory="reversible", blocks=5)(x, fs)
        y.float().square().sum().backward()
        there, back = seen[:5], seen[5:]
        assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True)) and there[0].dtype == torch.bfloat16


def test_the_proofs_memory_by_depth():
    """What a stage keeps for the way back: as much for each block, or three integers of 8 bytes per value, however many there are."""
    kept = runpy.run_path(str(Path(__file__).resolve().parents[2] / "proofs/networks/momentum_net.py"))["kept"]
    assert kept("stored", 4) == 4 * kept("stored", 1) > 0
    assert kept("reversible", 4) == kept("reversible", 1) == 3 * 8 * (8 * 64 * 24 * 24)


def test_momentum_costs_no_parameters_and_the_encoder_is_resnet_50():
    with torch.device("meta"):
        nets = [MomentumNet(3, 2, spatial_dims=2, gamma=g) for g in (0.0, 0.5)]
    shapes = [[(k, v.shape) for k, v in n.state_dict().items()] for n in nets]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in nets[0].backbone.parameters()) == 23_508_032  # 25.557 M less the classifier's 2.049 M
    names = nets[0].backbone.state_dict()
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer3.5.bn3.weight", "layer4.2.conv2.weight"} <= set(names)


@pytest.mark.parametrize("channels, out, memory", [(1, 2, "stored"), (3, 7, "reversible")])
def test_logits_and_gradients(channels, out, memory):
    net, x = small(channels, out, memory=memory), torch.randn(2, channels, 64, 96)
    y = net(x)
    assert y.shape == (2, out, 64, 96)
    y.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    stored = small(channels, out).eval()
    stored.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net.eval()(x), stored(x))
    torch.testing.assert_close(net(x), stored(x), atol=1e-4, rtol=1e-4)


def test_the_velocity_may_go_on_through_the_encoder():
    """Projected, it reaches later stages: with silent branches there, they still move. It has a way back as well."""
    nets = [small(between="project", memory=memory) for memory in ("stored", "reversible")]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    for net in nets:
        net(x).square().mean().backward()
    assert [c.weight.shape[:2] for c in nets[0].carry] == [(32, 16), (64, 32), (128, 64)]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-3)
    assert all(c.weight.grad.abs().sum() > 0 for c in nets[0].carry)
    silent = nets[0].eval()
    for block in list(silent.backbone.layer2)[1:]:
        torch.nn.init.zeros_(block.bn3.weight)
    with torch.no_grad():
        moving = silent.backbone(x, silent.carry)[2]
        resting = silent.backbone(x, ())[2]
        first = silent.backbone.layer2[0]
        at = silent.backbone(x, ())[1]
        assert torch.equal(resting, torch.relu(first.downsample(at) + first(at))) and not torch.allclose(moving, resting)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(2, 3, 64, 80))
    with pytest.raises(UsageError, match="2D"):
        MomentumNet(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="no such momentum"):
        small(gamma=1.0)
    with pytest.raises(UsageError, match="way back is unknown"):
        small(gamma=0.0, memory="reversible")
    with pytest.raises(UsageError, match="too many blocks"):
        small(gamma=0.01, memory="reversible", depths=(3, 4, 23, 3))
    with pytest.raises(UsageError, match="unknown start"):
        small(start="last")
    with pytest.raises(UsageError, match="four stages"):
        small(depths=(1, 1))
    with pytest.raises(UsageError, match="hand on"):
        small(between="project", depths=(1, 2, 2, 2))
