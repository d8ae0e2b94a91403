"""TransDAE: what the two attentions are, what they cost, and what the inter-scale module weighs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.transdae import DualBlock, EfficientAttention, InterScale, ReducedAttention, TransDAE

TINY = dict(spatial_dims=2, widths=(8, 12, 16), depth=1, heads=(1, 2, 2))


def tiny(inp: int = 1, out: int = 2, **options) -> TransDAE:
    torch.manual_seed(0)
    return TransDAE(inp, out, **{**TINY, **options})


def flops(net, x) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def softmax_attention(net: EfficientAttention | ReducedAttention, x):
    """One head, every position to every position."""
    q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (net.query, net.key, net.value))
    seen = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return net.out(seen.transpose(1, 2).reshape(x.shape))


class TestEfficientAttention:
    def test_the_formula(self):
        torch.manual_seed(0)
        net, x = EfficientAttention(6), torch.randn(2, 6, 3, 4)
        q, k, v = (f(x)[1].flatten(1).T for f in (net.query, net.key, net.value))  # (N, C)
        expected = q.softmax(1) @ (k.softmax(0).T @ v)
        torch.testing.assert_close(net(x)[1], net.out(expected.T.view(1, 6, 3, 4))[0])
        assert not torch.allclose(net(x), softmax_attention(net, x), atol=1e-3)

    def test_it_does_not_know_where_a_token_is(self):
        torch.manual_seed(0)
        net, x, order = EfficientAttention(6), torch.randn(2, 6, 1, 12), torch.randperm(12)
        torch.testing.assert_close(net(x[..., order]), net(x)[..., order])

    def test_one_token_gets_its_own_value(self):
        torch.manual_seed(0)
        net, x = EfficientAttention(6), torch.randn(2, 6, 1, 1)
        torch.testing.assert_close(net(x), net.out(net.value(x)))

    def test_its_cost_is_linear(self):
        net = EfficientAttention(8)
        small, large = torch.randn(1, 8, 32, 32), torch.randn(1, 8, 32, 64)
        assert flops(net, large) == 2 * flops(net, small)
        full = ReducedAttention(8, 1, 1)
        assert flops(full, large) > 3.7 * flops(full, small)


class TestReducedAttention:
    def test_without_reduction_it_is_full_attention(self):
        torch.manual_seed(0)
        net, x = ReducedAttention(6, 1, 1), torch.randn(2, 6, 3, 4)
        torch.testing.assert_close(net(x), softmax_attention(net, x))
        assert not torch.allclose(ReducedAttention(6, 2, 1)(x), net(x))

    def test_reduction_shrinks_the_square(self):
        x = torch.randn(1, 8, 32, 32)
        assert flops(ReducedAttention(8, 1, 8), x) < flops(ReducedAttention(8, 1, 1), x) / 20
        assert ReducedAttention(8, 2, 8)(x).shape == x.shape


class TestInterScale:
    def test_a_weight_of_one_hands_on_what_came(self):
        net, x = InterScale(5), torch.randn(1, 5, 9, 8)
        torch.nn.init.zeros_(net.weight[2].weight)
        torch.nn.init.ones_(net.weight[2].bias)
        net.out.weight.data = torch.eye(5)[:, :, None, None]  # and the 1x1 is the identity
        torch.nn.init.zeros_(net.out.bias)
        torch.testing.assert_close(net.weighed(x), x)
        torch.testing.assert_close(net(x), 2 * x)

    def test_it_sees_23_pixels(self):
        torch.manual_seed(0)
        net, x = InterScale(2), torch.randn(1, 2, 41, 41, requires_grad=True)
        net.weight(x)[0, 0, 20, 20].backward()
        seen = (x.grad[0].abs().sum(0) > 0).nonzero()
        assert (seen.amin(0) == 9).all() and (seen.amax(0) == 31).all()  # 20 -+ (2 + 9)


def test_no_part_is_silent_at_the_start():
    """How much what a part adds differs from place to place, beside its input. With torch's own start: .005, .02 and .09."""
    found = {EfficientAttention: [], ReducedAttention: [], InterScale: []}
    for seed in range(3):
        torch.manual_seed(seed)
        net = TransDAE(1, 2, spatial_dims=2, widths=(16, 32, 64), depth=1, heads=(1, 2, 4))
        for m in net.modules():
            if type(m) in found:
                m.register_forward_hook(
                    lambda m, x, y: found[type(m)].append(
                        ((y - x[0] if isinstance(m, InterScale) else y).std((2, 3)).mean() / x[0].std((2, 3)).mean()).item()
                    )
                )
        with torch.no_grad():
            net(torch.randn(2, 1, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3))
    mean = {kind: sum(v) / len(v) for kind, v in found.items()}
    assert mean[EfficientAttention] > 0.025 and mean[ReducedAttention] > 0.08 and mean[InterScale] > 0.5


def test_an_inter_scale_module_starts_with_weights_about_one():
    net, weights = tiny(), []
    for m in net.interact:
        m.weight.register_forward_hook(lambda _, __, y: weights.append(y.mean().item()))
    net(torch.randn(2, 1, 64, 64))
    assert len(weights) == 2 and all(0.7 < w < 1.3 for w in weights)


def test_blocks_look_twice():
    kinds = {a: [type(p).__name__ for p in DualBlock(8, 2, 2, a).parts] for a in ("dual", "channel", "spatial", "off")}
    assert kinds["dual"] == ["EfficientAttention", "MixFFN", "ReducedAttention", "MixFFN"]
    assert kinds["channel"] == ["EfficientAttention", "MixFFN"] * 2 and kinds["spatial"] == ["ReducedAttention", "MixFFN"] * 2
    assert kinds["off"] == ["MixFFN", "MixFFN"]


def test_without_attention_far_pixels_do_not_meet():
    """Feed-forward networks and embeddings see a few pixels around; attention sees the whole picture."""
    for attention, far in (("off", False), ("dual", True), ("channel", True), ("spatial", True)):
        net, x = tiny(attention=attention, skips="plain"), torch.randn(1, 1, 256, 256, requires_grad=True)
        net(x)[0, 0, 0, 0].backward()
        assert bool((x.grad[0, 0, 200:, 200:] != 0).any()) == far


@pytest.mark.parametrize("inp, out", [(1, 2), (3, 7)])
def test_shapes_and_gradients(inp, out):
    for options in ({}, {"attention": "off", "skips": "plain"}):
        net = tiny(inp, out, **options)
        logits = net(torch.randn(2, inp, 64, 96))
        assert logits.shape == (2, out, 64, 96)
        logits.square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())
    with torch.device("meta"):
        assert TransDAE(1, 9, spatial_dims=2)(torch.zeros(1, 1, 224, 224)).shape == (1, 9, 224, 224)


def test_a_volume_is_its_slices():
    flat, deep = tiny().eval(), tiny(spatial_dims=3).eval()
    deep.load_state_dict(flat.state_dict())
    x = torch.randn(1, 1, 32, 64, 3)
    y = deep(x)
    assert y.shape == (1, 2, 32, 64, 3)
    torch.testing.assert_close(y[..., 1], flat(x[..., 1]), atol=1e-5, rtol=1e-4)
    assert deep(x[..., :1]).shape == (1, 2, 32, 64, 1)  # one slice


def test_volumes_are_cut_across_the_thin_axis():
    flat = tiny().eval()
    x = torch.randn(1, 1, 3, 32, 64)
    for options in ({"axis": 0}, {"window": (10, 160, 160)}):
        deep = tiny(spatial_dims=3, **options).eval()
        deep.load_state_dict(flat.state_dict())
        assert deep.multiple == (1, 32, 32)
        torch.testing.assert_close(deep(x)[:, :, 1], flat(x[:, :, 1]), atol=1e-5, rtol=1e-4)
    assert [tiny(spatial_dims=3, window=w).axis for w in ((24, 24, 24), (64, 16, 64), ())] == [2, 1, 2]
    with pytest.raises(UsageError, match="axis"):
        tiny(spatial_dims=3, axis=3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        tiny()(torch.zeros(1, 1, 64, 80))
    with pytest.raises(UsageError, match="three stages"):
        tiny(widths=(8, 16))
    with pytest.raises(UsageError, match="do not fit"):
        tiny(heads=(3, 2, 2))
    with pytest.raises(UsageError, match="do not fit"):
        tiny(reductions=(3, 4, 2))
    with pytest.raises(UsageError, match="unknown attention"):
        tiny(attention="both")
