"""D-Former: what falls into a group, who can look at whom, and what it costs."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.networks.d_former import Block, DFormer, Expand, GroupAttention, Groups, Merge, Position

SCOPES = ["local", "shifted", "dilated"]


def tiny(inp: int = 1, out: int = 2, **options) -> DFormer:
    torch.manual_seed(0)
    return DFormer(inp, out, **{"spatial_dims": 3, "width": 4, "depths": (2, 2), "heads": (1, 2), **options})


def places(shape) -> torch.Tensor:
    """(1, *shape, 3): every token says where it is, counted from 1."""
    return torch.stack(torch.meshgrid(*(torch.arange(1.0, n + 1) for n in shape), indexing="ij"), -1)[None]


def flops(net, x) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():  # fused attention is not counted
        net(x)
    return counter.get_total_flops()


class TestGroups:
    @pytest.mark.parametrize("shape", [(4, 14, 14), (5, 9, 16), (1, 3, 8), (2, 7, 7)])
    @pytest.mark.parametrize("scope", SCOPES)
    def test_there_and_back(self, shape, scope):
        groups, x = Groups.of(shape, (2, 7, 7), scope), torch.randn(2, *shape, 3)
        parts = groups.split(x)
        assert parts.shape[1] <= 2 * 7 * 7 and torch.equal(groups.join(parts), x)
        real = groups.real()
        if real is None:
            assert parts.numel() == x.numel()
        else:
            assert real.shape == (len(parts) // 2, parts.shape[1]) and real.any(1).all() and real.sum() == x[0, ..., 0].numel()
            assert (parts.unflatten(0, (2, -1))[:, ~real] == 0).all()

    @pytest.mark.parametrize("shape", [(4, 14, 21), (5, 9, 16), (3, 8, 40)])
    def test_a_dilated_group_lies_an_interval_apart(self, shape):
        groups = Groups.of(shape, (2, 7, 7), "dilated")
        assert groups.number == tuple(-(-n // g) for n, g in zip(shape, (2, 7, 7), strict=True))
        for members in groups.split(places(shape)):
            for axis, interval in enumerate(groups.number):
                found = members[members[:, 0] > 0][:, axis].unique()
                assert (found.diff() == interval).all() and found.min() <= interval and found.max() > shape[axis] - interval  # end to end

    def test_a_local_group_is_a_neighbourhood(self):
        for members in Groups.of((4, 14, 20), (2, 7, 7), "local").split(places((4, 14, 20))):
            there = members[members[:, 0] > 0]
            assert (there.amax(0) - there.amin(0) <= torch.tensor([1, 6, 6])).all() and (
                (there.amin(0) - 1) % torch.tensor([2, 7, 7]) == 0
            ).all()

    def test_shifted_groups_straddle_the_borders_of_local_ones(self):
        first = {tuple(g[0].int().tolist()) for g in Groups.of((4, 14, 14), (2, 7, 7), "local").split(places((4, 14, 14)))}
        shifted = Groups.of((4, 14, 14), (2, 7, 7), "shifted").split(places((4, 14, 14)))
        spans = [(g[g[:, 0] > 0].amin(0).int().tolist(), g[g[:, 0] > 0].amax(0).int().tolist()) for g in shifted]
        assert ([2, 5, 5], [3, 11, 11]) in spans and (2, 5, 5) not in first


class TestAttention:
    @pytest.mark.parametrize("scope", SCOPES)
    def test_one_group_of_all_is_dense_attention(self, scope):
        torch.manual_seed(0)
        net, x = GroupAttention(8, 2, (9, 9, 9), scope), torch.randn(2, 3, 4, 5, 8)
        q, k, v = net.qkv(x.flatten(1, 3)).chunk(3, -1)
        heads = lambda y: y.unflatten(-1, (2, 4)).transpose(1, 2)
        seen = (heads(q) @ heads(k).transpose(-1, -2) / 4**0.5).softmax(-1) @ heads(v)
        torch.testing.assert_close(net(x), net.out(seen.transpose(1, 2).flatten(2)).view(x.shape))

    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize("shape", [(5, 9, 8), (5, 7, 7)])  # the second one: padded along depth alone
    def test_padding_is_never_looked_at(self, scope, shape):
        """With one value for all, its mean over a group is that value: nothing is left for the padding."""
        torch.manual_seed(0)
        net = GroupAttention(4, 2, (2, 7, 7), scope)
        torch.nn.init.zeros_(net.qkv.weight[8:])
        torch.nn.init.constant_(net.qkv.bias[8:], 1.5)
        torch.testing.assert_close(net(torch.randn(2, *shape, 4)), net.out(torch.full((4,), 1.5)).expand(2, *shape, 4))

    def test_local_stays_and_local_then_dilated_reaches_all(self):
        torch.manual_seed(0)
        x = torch.randn(1, 4, 12, 16, 4, requires_grad=True)
        block = lambda scope: Block(4, 2, (2, 4, 4), scope)
        seen = lambda *blocks: torch.autograd.grad(torch.nn.Sequential(*blocks)(x)[0, 0, 0, 0].sum(), x)[0][0].abs().sum(-1) > 0
        local = seen(block("local"), block("local"))
        assert local[:2, :4, :4].all() and local.sum() == 2 * 4 * 4
        assert seen(block("local"), block("dilated")).all()
        assert not seen(block("local"), block("shifted")).all()

    def test_dilated_attention_costs_what_local_does(self):
        x = torch.randn(1, 4, 28, 28, 8)
        cost = {scope: flops(GroupAttention(8, 2, (2, 7, 7), scope), x) for scope in SCOPES}
        assert cost["dilated"] == cost["local"] <= cost["shifted"]
        assert cost["local"] < flops(GroupAttention(8, 2, (4, 28, 28), "local"), x) / 5

    def test_blocks_alternate(self):
        kinds = lambda scopes: [b.attention.scope for b in tiny(scopes=scopes, depths=(4, 2)).down[0].blocks]
        assert kinds("alternating") == ["local", "dilated"] * 2 and kinds("shifted") == ["local", "shifted"] * 2
        assert kinds("local") == ["local"] * 4


def test_merging_takes_eight_neighbours_and_expanding_lays_them_out():
    x, merge, expand = torch.randn(1, 4, 2, 6, 1), Merge(1), Expand(2, 3, (2, 4, 1))
    merge.norm, merge.reduce = torch.nn.Identity(), torch.nn.Identity()
    assert merge(x).shape == (1, 2, 1, 3, 8) and set(merge(x)[0, 1, 0, 2].tolist()) == set(x[0, 2:, :, 4:].flatten().tolist())
    assert Merge(1)(x[:, :3, :, :5]).shape == (1, 2, 1, 3, 2)  # odd sides are padded
    coarse = torch.randn(1, 2, 2, 3, 2)
    assert expand(coarse).shape == (1, 4, 8, 3, 3)
    torch.testing.assert_close(expand(coarse)[0, 2:, :4, 1].reshape(-1), expand.linear(coarse[0, 1, 0, 1]))


def test_positions_tell_where_a_token_is():
    torch.manual_seed(0)
    net, same = Position(4), torch.ones(1, 5, 5, 5, 4)
    assert not torch.allclose(net(same)[0, 0, 0, 0], net(same)[0, 2, 2, 2])
    torch.nn.init.zeros_(net.around.weight)
    torch.nn.init.zeros_(net.around.bias)
    assert torch.equal(net(same), same)
    assert sum(isinstance(m, Position) for m in tiny().modules()) == 3 and not any(
        isinstance(m, Position) for m in tiny(positions=False).modules()
    )


def test_its_size_and_cost_are_the_published_ones():
    """44.26 M parameters, 54.46 G multiplications on 64 x 128 x 128 (those of the specification)."""
    with torch.device("meta"):
        net = DFormer(1, 9, spatial_dims=3, axis=0).eval()
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(44.26e6, rel=0.02)
        cost = flops(net, torch.zeros(1, 1, 64, 128, 128)) / 2
    assert 0.94 * 54.46e9 < cost < 1.02 * 54.46e9


def test_arms_have_the_same_parameters():
    sizes = {s: [p.shape for p in tiny(scopes=s).parameters()] for s in ("alternating", "local", "shifted")}
    assert sizes["alternating"] == sizes["local"] == sizes["shifted"]


class TestDropPath:
    def test_rates_grow_with_depth_and_are_the_same_on_the_way_up(self):
        net = tiny(drop_path=0.5, depths=(2, 2, 2), heads=(1, 2, 4))
        rates = lambda stages: [[b.rate for b in stage.blocks] for stage in stages]
        assert rates(net.down) == [[0, 0.1], [0.2, pytest.approx(0.3)], [0.4, 0.5]] and rates(net.up) == rates(net.down)[1::-1]
        assert {b.rate for m in (tiny().down, tiny().up) for stage in m for b in stage.blocks} == {0}

    def test_a_dropped_block_is_skipped_for_the_whole_sample_and_a_kept_one_grows(self):
        torch.manual_seed(0)
        block, x = Block(4, 2, (2, 4, 4), "dilated", 0.5).train(), torch.randn(64, 2, 4, 4, 4)
        with torch.no_grad():
            both = block(x)
            first = x + 2 * block.attention(block.norm1(x))
            second = lambda y: y + 2 * block.mlp(block.norm2(y))
            ways = [torch.isclose(both, out, atol=1e-5).flatten(1).all(1).sum().item() for out in (x, first, second(x), second(first))]
            assert sum(ways) == 64 and min(ways) >= 6  # each sample went one of the four ways
            block.eval()
            torch.testing.assert_close(block(x), (first + x) / 2 + block.mlp(block.norm2((first + x) / 2)))

    def test_it_acts_in_training_alone(self):
        x, seed = torch.randn(2, 1, 8, 8, 8), torch.manual_seed
        net, plain = tiny(drop_path=0.9), tiny()
        torch.testing.assert_close(net.eval()(x), plain.eval()(x))
        assert not torch.allclose((seed(1), net.train()(x)[0])[1], (seed(2), net(x)[0])[1])
        assert torch.equal((seed(1), plain.train()(x)[0])[1], (seed(2), plain(x)[0])[1])


def test_levels():
    net, x = tiny(out=3, depths=(2, 2, 2), heads=(1, 2, 4)), torch.randn(1, 1, 12, 20, 6)
    assert [tuple(m.shape) for m in net(x)] == [(1, 3, 12, 20, 6), (1, 3, 6, 10, 3)]
    assert net.eval()(x).shape == (1, 3, 12, 20, 6)


def test_the_thin_axis_comes_first_in_patch_and_group():
    flat, last = tiny(window=(4, 96, 96)).eval(), tiny(window=(96, 96, 4)).eval()
    assert flat.multiple == (2, 4, 4) and last.multiple == (4, 4, 2) and last.down[0].blocks[1].attention.group == (7, 7, 2)
    assert tiny(patch=(1, 2, 4), axis=1).multiple == (2, 1, 4)


@pytest.mark.parametrize("scopes", ["alternating", "shifted"])
@pytest.mark.parametrize("channels, classes, size", [(1, 2, (21, 18, 13)), (3, 7, (17, 24, 1)), (1, 2, (1, 70, 33))])
def test_any_input(scopes, channels, classes, size):
    """As a method of the catalogue: odd sides, one slice, grey and three channels, two classes and seven."""
    torch.manual_seed(0)
    images, names = tuple(f"i{k}" for k in range(channels)), {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    plan = Plan(3, images, channels, tuple(names), patch=size)
    options = {"width": 4, "depths": (2, 2, 2), "heads": (1, 2, 4), "scopes": scopes}
    method = catalog.build("d-former", plan, Manifest("made", Path("."), 3, images, names, ()), options=options)
    image, label = torch.randn(2, channels, *method.plan.patch), torch.randint(0, classes, (2, *method.plan.patch))
    batch = Batch(image, {"reference": label}, torch.eye(4).expand(2, 4, 4), ["a", "b"])
    sum(method.train().losses(batch, Clock(0, 10)).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    with torch.no_grad():
        logits = method.eval()(torch.randn(2, channels, *size))
    assert logits.shape == (2, classes, *size) and torch.isfinite(logits).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        tiny()(torch.zeros(1, 1, 16, 18, 12))
    with pytest.raises(UsageError, match="volumes"):
        tiny(spatial_dims=2)
    with pytest.raises(UsageError, match="do not fit"):
        tiny(heads=(3, 2))
    with pytest.raises(UsageError, match="do not fit"):
        tiny(depths=(2,), heads=(1,))
    with pytest.raises(UsageError, match="three sides"):
        tiny(group=(7, 7))
    with pytest.raises(UsageError, match="unknown scopes"):
        tiny(scopes="global")
    with pytest.raises(UsageError, match="no probability"):
        tiny(drop_path=1.0)
    with pytest.raises(UsageError, match="axis"):
        tiny(axis=4)
