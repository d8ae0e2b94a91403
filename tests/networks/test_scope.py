"""SCOPE: the grid of patches as a graph, messages between neighbours, and patches that teach the convolutions."""

import pytest
import torch
from torch.nn.functional import interpolate

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.scope import GraphConv, GridGraph, Scope, grid_edges


def small(channels: int = 3, out: int = 2, **options) -> Scope:
    torch.manual_seed(0)
    return Scope(channels, out, **{"spatial_dims": 2, "width": 4, "hidden": 8, **options})


def adjacency(edges: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.zeros(n, n)
    for a, b in edges.T.tolist():
        out[a, b] += 1
    return out


class TestGraph:
    def test_degrees_and_symmetry(self):
        h, w = 4, 5
        a = adjacency(grid_edges(h, w), h * w)
        assert torch.equal(a, a.T) and a.max() == 1 and a.diagonal().sum() == 0
        degree = a.sum(1).view(h, w)
        assert degree[1:-1, 1:-1].eq(8).all() and degree[0, 1:-1].eq(5).all()
        assert [degree[i, j].item() for i in (0, -1) for j in (0, -1)] == [3] * 4
        four = adjacency(grid_edges(h, w, "four"), h * w)
        assert torch.equal(four, four.T) and four.sum(1).view(h, w)[1:-1, 1:-1].eq(4).all() and (a - four).min() == 0

    @pytest.mark.parametrize("h, w", [(1, 1), (1, 6), (3, 1), (5, 3)])
    def test_neighbours_are_those_beside(self, h, w):
        """Against every pair of places at most one step apart."""
        at = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        far = (at[:, None] - at[None]).abs().amax(-1)
        assert torch.equal(adjacency(grid_edges(h, w), h * w), (far == 1).float())

    def test_convolution_is_the_normalised_adjacency(self):
        torch.manual_seed(0)
        edges, x, net = grid_edges(3, 4), torch.randn(2, 12, 5), GraphConv(5, 7)
        loops = adjacency(edges, 12) + torch.eye(12)
        scale = loops.sum(1).rsqrt()
        torch.testing.assert_close(net(x, edges), net.mix(scale[:, None] * loops * scale @ x))

    def test_the_order_of_nodes_does_not_matter(self):
        torch.manual_seed(0)
        edges, x, net, order = grid_edges(4, 4), torch.randn(2, 16, 5), GraphConv(5, 7), torch.randperm(16)
        place = order.argsort()
        torch.testing.assert_close(net(x[:, order], place[edges]), net(x, edges)[:, order])

    def test_without_edges_every_node_is_on_its_own(self):
        torch.manual_seed(0)
        x, net = torch.randn(2, 12, 5), GraphConv(5, 7)
        torch.testing.assert_close(net(x, grid_edges(3, 4, "none")), net.mix(x))

    def test_neighbours_are_heard_from_the_start(self):
        """What edges change of the first answers, and how what was heard differs from node to node, beside what was seen."""
        for seed in range(3):
            torch.manual_seed(seed)
            net, told = GridGraph(64, 2, 4, "mean", 3, 32, "eight"), []
            x = interpolate(torch.randn(2, 64, 8, 8), (64, 64), mode="bicubic").relu()
            net.layers[-1].register_forward_hook(lambda _, __, y, told=told: told.append(y.relu()))
            with torch.no_grad():
                joined = net(x)
                net.edges = "none"
                alone = net(x)
            assert (joined - alone).std() > 0.1 * joined.std()
            assert told[0].std(1).mean() > 0.1 * x.std()

    @pytest.mark.parametrize("layers, edges", [(1, "eight"), (2, "eight"), (3, "four"), (2, "none")])
    def test_a_patch_is_heard_of_so_many_steps_away(self, layers, edges):
        torch.manual_seed(0)
        net = GridGraph(6, 2, 4, "mean", layers, 8, edges)
        x = torch.randn(1, 6, 36, 36)
        other = x.clone()
        other[:, :, 16:20, 16:20] += 5
        moved = (net(other) - net(x)).abs().sum(1)[0] > 0
        steps = (torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")) - 4).abs()
        reach = steps.amax(0) if edges == "eight" else steps.sum(0)
        assert torch.equal(moved, reach <= (0 if edges == "none" else layers))


class TestNetwork:
    def test_nodes_teach_the_convolutions(self):
        net = small().train()
        pixels, nodes = net(torch.randn(2, 3, 32, 48))
        assert pixels.shape == (2, 2, 32, 48) and nodes.shape == (2, 2, 8, 12)
        nodes.square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in net.backbone.parameters() if p.ndim > 1)

    def test_without_detail_a_patch_is_of_one_class(self):
        net, x = small(detail=False, patch=8), torch.randn(1, 3, 32, 48)
        nodes = net.train()(x)[0]
        spread = net.eval()(x)
        assert nodes.shape == (1, 2, 4, 6) and torch.equal(spread, nodes.repeat_interleave(8, 2).repeat_interleave(8, 3))

    def test_without_the_graph_the_rest_is_the_same(self):
        alone, whole = (dict(small(graph=g).named_parameters()) for g in (False, True))
        assert all(whole[n].shape == p.shape for n, p in alone.items())
        assert {n.split(".")[0] for n in set(whole) - set(alone)} == {"graph", "join"}

    def test_as_large_as_published(self):
        """VGG-16 has 138,357,544 parameters, its convolutions 14,714,688; the fifth stage's 7,079,424 are not used."""
        with torch.device("meta"):
            net = Scope(3, 2, spatial_dims=2, norm="none")
        assert sum(p.numel() for p in net.backbone.parameters()) == 14_714_688 - 7_079_424
        assert [c.out_channels for c in net.sides] == [16] * 4

    @pytest.mark.parametrize("channels, out", [(1, 2), (3, 7)])
    def test_logits_and_gradients(self, channels, out):
        for options in ({}, {"pooling": "max", "edges": "four"}, {"graph": False}, {"detail": False}, {"patch": 3, "norm": "none"}):
            net = small(channels, out, **options)
            size = net.multiple[0] * 2
            maps = net(torch.randn(2, channels, size, size))
            maps = maps if isinstance(maps, list) else [maps]
            sum(m.square().mean() for m in maps).backward()
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
            with torch.no_grad():
                assert net.eval()(torch.randn(1, channels, size, 2 * size)).shape == (1, out, size, 2 * size)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(GeometryError, match="multiples of"):
            small()(torch.zeros(1, 3, 32, 36))
        with pytest.raises(UsageError, match="2D"):
            Scope(1, 2, spatial_dims=3)
        for options in ({"patch": 0}, {"edges": "six"}, {"pooling": "sum"}, {"norm": "batch"}, {"graph": False, "detail": False}):
            with pytest.raises(UsageError):
                small(**options)
