"""QTSeg: how levels are dealt out, what the two attentions start as, and masks as inner products of queries and features."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.feature_pyramid import FeaturePyramid
from vesalius.networks.qtseg import ChannelAttention, Distribution, DualMixBlock, QTSeg, QueryDecoder, SpatialAttention


def small(channels: int = 3, out: int = 2, **options) -> QTSeg:
    torch.manual_seed(0)
    return QTSeg(channels, out, **{"spatial_dims": 2, "width": 4, "hidden": 16, **options})


def levels(features=(16, 32, 64), side: int = 8) -> list[torch.Tensor]:
    return [torch.randn(2, n, side >> i, side >> i) for i, n in enumerate(features)]


class TestDistribution:
    def test_every_level_keeps_its_shape_and_channels(self):
        given = levels()
        assert [x.shape for x in Distribution((16, 32, 64))(given)] == [x.shape for x in given]

    def test_half_is_its_own_and_a_quarter_each_others(self):
        """What changes when one of the levels changes: its own half of itself, a quarter of the others."""
        net, given = Distribution((16, 32, 64)).eval(), levels()
        before = net(given)
        for j in range(3):
            other = [torch.randn_like(x) if i == j else x for i, x in enumerate(given)]
            for i, (a, b) in enumerate(zip(before, net(other), strict=True)):
                moved = (a != b).flatten(2).any(-1).any(0)
                n = a.shape[1]
                assert moved.sum() == (n // 2 if i == j else n // 4)

    def test_published_sizes(self):
        """Level P3: 32 own, 16 from P4, 16 from P5; and so on."""
        net = Distribution((64, 128, 256))
        assert [[link[0].out_channels for link in links] for links in net.links] == [[32, 16, 16], [32, 64, 32], [64, 64, 128]]
        assert [[link[0].kernel_size[0] for link in links] for links in net.links] == [[1, 2, 4], [3, 1, 2], [3, 3, 1]]


class TestAttention:
    def test_the_channel_branch_starts_as_the_identity(self):
        net, x = ChannelAttention(), torch.randn(2, 5, 4, 4)
        assert torch.equal(net(x), x)
        torch.nn.init.ones_(net.gamma)
        flat = x[0].flatten(1)
        alike = flat @ flat.T
        weight = (alike.amax(1, keepdim=True) - alike).softmax(1)
        torch.testing.assert_close(net(x)[0], x[0] + (weight @ flat).view(5, 4, 4))
        assert (weight.argmin(1) == alike.argmax(1)).all()  # what is most alike weighs least

    def test_the_spatial_branch_weighs_pixels_alike_in_all_channels(self):
        torch.manual_seed(0)
        x = torch.randn(2, 5, 9, 9)
        share = SpatialAttention()(x) / x
        assert ((share > 1) & (share < 2)).all() and torch.allclose(share, share[:, :1], atol=1e-4)

    def test_cross_attention_alone_lacks_both(self):
        names = {n.split(".")[0] for n, _ in DualMixBlock(16, 2, 8, dual=False).named_parameters()}
        assert not names & {"spatial", "channel", "to_channel"}
        assert names < {n.split(".")[0] for n, _ in DualMixBlock(16, 2, 8).named_parameters()}


class TestDecoder:
    def test_masks_are_inner_products(self):
        torch.manual_seed(0)
        net, seen = QueryDecoder((16, 32, 64), 3, 8, 16, dual=True).eval(), {}
        net.enlarge[-1].register_forward_hook(lambda _m, _i, y: seen.update(features=y))
        for k, last in enumerate(net.turn[-1]):
            last.register_forward_hook(lambda _m, _i, y, k=k: seen.update({k: y}))
        logits = net(levels())
        assert logits.shape == (2, 3, 32, 32)
        for k in range(3):
            torch.testing.assert_close(logits[:, k], (seen[k][:, :, None, None] * seen["features"]).sum(1))

    def test_classes_follow_their_queries(self):
        """With one network for all classes, another order of the queries is another order of the masks, and nothing else."""
        torch.manual_seed(0)
        net, given, order = QueryDecoder((16, 32, 64), 4, 8, 16, dual=True).eval(), levels(), [2, 0, 3, 1]
        for turn in net.turn:
            for other in turn[1:]:
                other.load_state_dict(turn[0].state_dict())
        before = net(given)
        net.queries.weight.data = net.queries.weight.data[order]
        torch.testing.assert_close(net(given), before[:, order], atol=1e-4, rtol=1e-4)

    def test_a_pixel_hears_of_far_ones_through_the_queries(self):
        for decoder, far in (("dual", True), ("cross", True), ("plain", False)):
            net, given = small(decoder=decoder).eval().decoder, [x.requires_grad_() for x in levels(side=64)]
            net(given)[0, 0, 0, 0].backward()
            assert bool((given[0].grad[0, :, 60:, 60:] != 0).any()) == far


def test_as_large_as_published():
    """YOLOv8-n is listed with 3,157,200 parameters, 897,664 of them the detection head."""
    with torch.device("meta"):
        net = FeaturePyramid(3)
        assert net.features == (64, 128, 256)
        assert [tuple(f.shape) for f in net(torch.zeros(1, 3, 512, 512))] == [(1, 64, 64, 64), (1, 128, 32, 32), (1, 256, 16, 16)]
    assert sum(p.numel() for p in net.parameters()) == 3_157_200 - 897_664


def test_the_plain_decoder_costs_as_much():
    from torch.utils.flop_counter import FlopCounterMode

    cost = {}
    for decoder in ("dual", "plain"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            QTSeg(3, 2, spatial_dims=2, decoder=decoder).eval()(torch.zeros(1, 3, 512, 512))
        cost[decoder] = counter.get_total_flops()
    assert cost["plain"] == pytest.approx(cost["dual"], rel=0.1)


@pytest.mark.parametrize("channels, out", [(1, 2), (3, 7)])
def test_logits_and_gradients(channels, out):
    for options in ({}, {"decoder": "cross"}, {"decoder": "plain", "distribute": False}):
        net = small(channels, out, **options)
        logits = net(torch.randn(2, channels, 64, 96))
        assert logits.shape == (2, out, 64, 96)
        logits.square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_frozen_encoder_stays_as_it_was():
    net, x = small(frozen=True).train(), torch.randn(2, 3, 64, 64)
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())
    assert all(p.grad is None for p in net.backbone.parameters()) and net.decoder.queries.weight.grad.abs().sum() > 0
    moving = small().train()
    before = {k: v.clone() for k, v in moving.backbone.state_dict().items()}
    moving(x)
    assert not all(torch.equal(v, before[k]) for k, v in moving.backbone.state_dict().items())


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(2, 3, 64, 80))
    with pytest.raises(UsageError, match="2D"):
        QTSeg(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="heads"):
        small(heads=3)
    with pytest.raises(UsageError, match="decoder"):
        small(decoder="none")
