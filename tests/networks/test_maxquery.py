"""MaxQuery: assignments that sum to one, queries without order, and a score that asks only how near the nearest query is."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.maxquery import KMeans, MaxQuery, score
from vesalius.networks.unet import UNet
from vesalius.objectives.maxquery import QueryDistribution


def small(channels: int = 1, out: int = 3, **options) -> MaxQuery:
    torch.manual_seed(0)
    made = {"spatial_dims": 2, "queries": (3, 2, 3), "width": 8, "heads": 2, "expansion": 2, "features": (4, 8, 8), **options}
    return MaxQuery(channels, out, **made)


def seen(net: MaxQuery, channels: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, *(16,) * len(net.multiple))


@pytest.mark.parametrize("agreement", ["none", "l2", "instance"])
@pytest.mark.parametrize("dims", [2, 3])
def test_shares_sum_to_one(dims, agreement):
    net = small(spatial_dims=dims, agreement=agreement).eval()
    for c in net.clusters(seen(net)):
        assert c.assignment.shape[:2] == (2, 8) and c.logits.shape == (2, 3, *(16,) * dims)
        torch.testing.assert_close(c.assignment.sum(1), torch.ones_like(c.assignment[:, 0]))
        mass = QueryDistribution(net.sizes, (0, 1, 2)).mass(c.assignment)
        assert mass.shape[1] == 3 and torch.allclose(mass.sum(1), torch.ones_like(mass[:, 0]))


def test_logits_are_the_queries_classes_spread_over_their_voxels():
    net = small().eval()
    queries, voxels = torch.randn(2, 8, 8), torch.randn(2, 8, 4, 4)
    c = net.grouped(queries, voxels)
    for b, i, j in ((0, 0, 0), (1, 2, 3)):
        share = (queries[b] @ voxels[b, :, i, j]).softmax(0)
        torch.testing.assert_close(c.logits[b, :, i, j], (share[:, None] * net.classes(queries[b])).sum(0))


@pytest.mark.parametrize("update", ["attention", "kmeans"])
def test_the_order_of_queries_does_not_matter(update):
    """Within a group nothing changes but the order; masses, logits and scores stay."""
    net = small(update=update).eval()
    x, order = seen(net), [2, 0, 1, 4, 3, 7, 5, 6]
    before = net.clusters(x)[-1]
    net.queries.data = net.queries.data[order]
    after = net.clusters(x)[-1]
    torch.testing.assert_close(after.assignment, before.assignment[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(score(after.agreement), score(before.agreement), atol=1e-5, rtol=1e-4)


class TestScore:
    def test_a_voxel_that_is_a_query_is_as_known_as_can_be(self):
        net, queries = small(agreement="l2").eval(), torch.randn(1, 8, 8)
        voxels = torch.randn(1, 8, 6, 6)
        voxels[0, :, 2, 3] = 3 * queries[0, 5]
        found = score(net.grouped(queries, voxels).agreement)[0, 0]
        assert found[2, 3] == found.min() and found[2, 3].item() == pytest.approx(-10, abs=1e-4)

    def test_raw_products_do_not_promise_that(self):
        net, queries = small().eval(), torch.eye(8)[None]
        voxels = torch.zeros(1, 8, 1, 2)
        voxels[0, 0, 0, 0], voxels[0, :, 0, 1] = 1, 2  # a query itself, and something long between all
        found = score(net.grouped(queries, voxels).agreement)[0, 0, 0]
        assert found[1] < found[0]

    def test_it_does_not_ask_for_the_class(self):
        net = small().eval()
        x = seen(net)
        before = net.clusters(x)[-1]
        torch.nn.init.normal_(net.classes.weight)
        after = net.clusters(x)[-1]
        assert torch.equal(score(after.agreement), score(before.agreement)) and not torch.equal(after.logits, before.logits)


def test_places_go_to_the_nearest_query():
    torch.manual_seed(0)
    net, queries = KMeans(4), torch.eye(4)[None, :3]
    places = torch.tensor([[[5.0, 0, 0, 1], [4, 0, 0, 2], [0, 0, 3, 0]]])
    found = net(queries, places, places)
    value = net.value(places)[0]
    torch.testing.assert_close(found[0, 0], net.out(value[:2].mean(0)))
    torch.testing.assert_close(found[0, 1], net.out(torch.zeros(4)))
    torch.testing.assert_close(found[0, 2], net.out(value[2]))


@pytest.mark.parametrize("channels, out", [(1, 2), (3, 7)])
def test_every_layer_reaches_every_parameter(channels, out):
    for options in ({}, {"update": "kmeans"}, {"agreement": "l2"}, {"agreement": "instance", "levels": 1}, {"features": (4, 8)}):
        net = small(channels, out, **options)
        found = net.clusters(seen(net, channels))
        assert len(found) == 3
        sum(c.logits.square().mean() for c in found).backward()
        silent = [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not silent, silent


def test_the_backbone_is_the_planned_unet():
    """All that is added is the decoder's: as many parameters as the formulas say."""
    with torch.device("meta"):
        net, plain = MaxQuery(1, 3, spatial_dims=3), UNet(1, 3, spatial_dims=3, features=(32, 64, 128, 256, 320))
    size = lambda m: sum(p.numel() for p in m.parameters())
    assert size(net.body) == size(plain) - size(plain.heads)
    c, hidden = 64, 8 * 64
    layer = 2 * 4 * (c * c + c) + 2 * c * hidden + hidden + c + 3 * 2 * c
    assert size(net.layers) == 3 * layer and net.queries.shape == (32, 64)
    assert size(net.places) == c * (320 + 256 + 128) + 3 * c


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(1, 1, 16, 18))
    bad = ({"queries": (3, 2)}, {"queries": (3, 0, 3)}, {"heads": 3}, {"agreement": "cosine"}, {"update": "sum"}, {"features": (4,)})
    for options in bad:
        with pytest.raises(UsageError):
            small(**options)
