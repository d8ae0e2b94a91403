"""M2SNet: what a subtraction unit sees, the shape of the pyramid, and a LossNet that teaches without learning."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from vesalius.core.case import Case, Image
from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.methods.lossnet import StructureLossNet
from vesalius.networks.m2snet import LossNet, M2SNet, Pyramid, Subtraction, box
from vesalius.objectives.structure_loss import StructureLoss

SMALL = dict(spatial_dims=2, depths=(1, 1, 1, 1), width=8, channels=8)


def small(channels: int = 3, out: int = 1, **options) -> M2SNet:
    torch.manual_seed(0)
    return M2SNet(channels, out, **{**SMALL, **options})


def tiny_lossnet() -> LossNet:
    return LossNet(width=2, size=32)


class TestSubtraction:
    def test_equal_maps_differ_in_nothing_and_order_does_not_matter(self):
        a, b = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7)
        for unit in ("multi", "single"):
            su = Subtraction(4, unit)
            assert (su.join(a, a) == 0).all() and torch.equal(su.join(a, b), su.join(b, a)) and (su.join(a, b) > 0).all()
        assert (Subtraction(4, "add").join(a, a) != 0).any()  # a unit that adds has neither property

    def test_boxes_are_fixed_filters_of_ones(self):
        a, b = torch.randn(1, 3, 11, 8), torch.randn(1, 3, 11, 8)
        expected = torch.zeros_like(a)
        for n in (1, 3, 5):
            of_a, of_b = (conv2d(x, torch.ones(3, 1, n, n), padding=n // 2, groups=3) for x in (a, b))
            assert torch.allclose(box(a, n), of_a, atol=1e-5)
            expected += (of_a - of_b).abs() / n**2
            impulse = torch.zeros(1, 1, 9, 9)
            impulse[..., 4, 4] = 1
            assert box(impulse, n).sum() == n * n
        unit = Subtraction(3)
        torch.testing.assert_close(unit.join(a, b), expected)
        assert {n.split(".")[0] for n, _ in unit.named_parameters()} == {"conv"}

    def test_one_scale_is_the_plain_difference(self):
        a, b = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
        assert torch.equal(Subtraction(3, "single").join(a, b), (a - b).abs())

    def test_structure_counts_beyond_pixels(self):
        """Two maps with the same pixelwise differences, once all of a sign and once of changing sign: only boxes tell them apart."""
        a = torch.zeros(1, 1, 12, 12)
        one = torch.ones_like(a)
        checker = (torch.arange(12)[:, None] + torch.arange(12)) % 2 * 2.0 - 1
        single, multi = Subtraction(1, "single"), Subtraction(1)
        assert torch.equal(single.join(a, one), single.join(a, one * checker))
        assert multi.join(a, one).sum() > 2 * multi.join(a, one * checker).sum()

    def test_no_scale_drowns_the_others(self):
        """Smooth differences weigh the same at all three; of noise the larger boxes keep less, not more."""
        smooth, noise = torch.ones(1, 1, 40, 40), torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
        unit, nothing = Subtraction(1), torch.zeros(1, 1, 40, 40)
        assert (unit.join(smooth, nothing)[..., 2:-2, 2:-2] == 3).all()
        pixels = noise.abs().mean()
        assert pixels < unit.join(noise, nothing).mean() < 1.7 * pixels

    def test_concatenation_has_the_parameters_of_a_sum_and_mixes_both(self):
        add, concat = Subtraction(4, "add"), Subtraction(4, "concat").eval()
        assert sum(p.numel() for p in add.parameters()) == sum(p.numel() for p in concat.parameters())
        a, b = torch.randn(1, 4, 9, 7, requires_grad=True), torch.randn(1, 4, 9, 7, requires_grad=True)
        assert torch.equal(concat.join(a, b)[0, :, 0, 0], torch.stack([*a[0, :2, 0, 0], *b[0, :2, 0, 0], *a[0, 2:, 0, 0], *b[0, 2:, 0, 0]]))
        for found in concat.conv[0](concat.join(a, b))[0]:  # every map of the answer sees both levels
            seen = torch.autograd.grad(found.sum(), (a, b), retain_graph=True)
            assert all(g.abs().sum() > 0 for g in seen)
        with pytest.raises(UsageError, match="even"):
            Subtraction(3, "concat")


def test_ten_units_and_the_deepest_difference_goes_straight_on():
    pyramid = Pyramid(4, levels=5, unit="multi").eval()
    assert sum(isinstance(m, Subtraction) for m in pyramid.modules()) == 10 and [len(c) for c in pyramid.columns] == [4, 3, 2, 1]
    levels = [torch.randn(1, 4, n, n) for n in (16, 16, 8, 4, 2)]
    joined = pyramid(levels)
    assert [m.shape[-1] for m in joined] == [16, 16, 8, 4]
    assert torch.equal(joined[3], pyramid.columns[0][3](levels[3], levels[4]))
    # the second deepest: D43 and D543, nothing else
    d43, d54 = pyramid.columns[0][2](levels[2], levels[3]), joined[3]
    assert torch.equal(joined[2], pyramid.join[2](d43 + pyramid.columns[1][2](d43, d54)))


def test_far_levels_reach_the_finest_answer_through_the_pyramid_alone():
    pyramid = Pyramid(4, levels=5, unit="multi").eval()
    levels = [torch.randn(1, 4, n, n, requires_grad=True) for n in (16, 16, 8, 4, 2)]
    pyramid(levels)[0].square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


def test_forms_have_the_same_parameters_and_differ():
    nets = [small(unit=u).eval() for u in ("multi", "single", "add", "concat")]
    x = torch.randn(1, 3, 64, 64)
    sizes = [[(k, v.numel()) for k, v in n.state_dict().items()] for n in nets]
    answers = [n(x) for n in nets]
    assert all(s == sizes[0] for s in sizes)
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(answers, 2))


@pytest.mark.parametrize("channels, out", [(1, 1), (3, 6)])
def test_logits_of_the_inputs_size_and_a_gradient_for_all(channels, out):
    net, x = small(channels, out), torch.randn(2, channels, 96, 64)
    logits = net(x)
    assert logits.shape == (2, out, 96, 64)
    StructureLoss()(logits, torch.randint(0, out + 1, (2, 96, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


class TestLossNet:
    def test_nothing_for_a_perfect_map_and_something_else(self):
        net, g = tiny_lossnet(), (torch.rand(2, 1, 48, 40) > 0.5).float()
        assert net(g, g) == 0 and net(1 - g, g) > 0
        worse = g.clone()
        worse[..., :20] = 0
        slightly = g.clone()
        slightly[..., :2] = 0
        assert 0 < net(slightly, g) < net(worse, g)

    def test_it_teaches_and_does_not_learn(self):
        net, p = tiny_lossnet(), torch.rand(1, 1, 32, 32, requires_grad=True)
        net(p, torch.ones(1, 1, 32, 32)).backward()
        assert p.grad.abs().sum() > 0 and all(not q.requires_grad and q.grad is None for q in net.parameters())

    def test_the_same_every_time_whatever_the_seed(self):
        torch.manual_seed(1)
        a, after = tiny_lossnet(), torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(after, torch.rand(1))  # and it disturbs nobody's random numbers
        b = tiny_lossnet()
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    @pytest.mark.parametrize("width", [4, 8, 16])
    def test_random_filters_set_no_scale(self, width):
        """Every level says as much of the disc as any other, whatever the luck and the number of its filters."""
        net = LossNet(width=width, size=64)
        at = torch.arange(64) - 31.5
        disc = (at[:, None] ** 2 + at**2 < 20**2).float()[None, None]
        varied = torch.stack([f.var((2, 3)).mean() for f in net.features(disc)])
        torch.testing.assert_close(varied / net.scales, torch.ones(4))
        terms = [torch.nn.functional.mse_loss(f, g) / c for f, g, c in zip(net.features(1 - disc), net.features(disc), net.scales)]
        torch.testing.assert_close(net(1 - disc, disc), sum(terms))

    def test_larger_maps_are_shrunk_and_smaller_ones_are_not_enlarged(self):
        net = tiny_lossnet()
        assert [f.shape[2:] for f in net.features(torch.rand(1, 1, 24, 48))] == [(24, 32), (12, 16), (6, 8), (3, 4)]

    def test_cut_before_each_pooling(self):
        with torch.device("meta"):
            net = LossNet()
        assert [sum(isinstance(m, torch.nn.Conv2d) for m in part) for part in net.parts] == [2, 2, 3, 3]
        assert [isinstance(part[0], torch.nn.MaxPool2d) for part in net.parts] == [False, True, True, True]

    def test_weights_from_a_file(self, tmp_path):
        from safetensors.torch import save_file

        from vesalius.networks.blocks.vgg import VGG

        torch.manual_seed(3)
        vgg = VGG(3)
        save_file(vgg.state_dict(), tmp_path / "vgg.safetensors")
        net = LossNet(vgg=str(tmp_path / "vgg.safetensors"), size=32)
        assert torch.equal(net.parts[3][1].weight, vgg.features[17].weight) and (net.scales == 1).all()
        with pytest.raises(UsageError, match="VGG"):
            LossNet(vgg="some", width=8)


class TestObjective:
    def test_adds_the_weighted_lossnet_to_the_structure_loss(self):
        logits, y = torch.randn(2, 2, 48, 48), torch.randint(0, 3, (2, 48, 48))
        plain, both, double = (StructureLossNet(features=w, loss_width=2, loss_size=32)(logits, y) for w in (0.0, 0.1, 0.2))
        assert torch.equal(plain, StructureLoss()(logits, y)) and both > plain
        torch.testing.assert_close(double - plain, 2 * (both - plain))

    def test_ignored_pixels_count_nowhere(self):
        objective = StructureLossNet(loss_width=2, loss_size=32)
        logits, y = torch.randn(1, 1, 48, 48), torch.randint(0, 2, (1, 48, 48))
        y[:, :20] = -1
        other = logits.clone()
        other[:, :, :20] = torch.randn(1, 1, 20, 48)
        assert torch.equal(objective(logits, y, ignore_index=-1), objective(other, y, ignore_index=-1))
        assert not torch.equal(objective(logits, y.clamp(0)), objective(other, y.clamp(0)))

    def test_a_negative_weight_is_refused(self):
        with pytest.raises(UsageError, match="negative"):
            StructureLossNet(features=-1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(2, 3, 64, 80))
    with pytest.raises(UsageError, match="2D"):
        M2SNet(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="four stages"):
        small(depths=(1, 1))
    with pytest.raises(UsageError, match="unit"):
        small(unit="times")
    with pytest.raises(UsageError, match="more than one value"):
        small()(torch.zeros(1, 3, 32, 32))


def test_the_proofs_redundancy_is_what_levels_say_twice():
    redundancy = runpy.run_path(str(Path(__file__).resolve().parents[2] / "proofs/networks/m2snet.py"))["redundancy"]

    class Fake(torch.nn.Module):
        """A method whose pyramid answers with these channels at three sizes."""

        channels = ("RGB",)

        def __init__(self, *answers):
            super().__init__()
            self.network = torch.nn.Module()
            self.network.pyramid = torch.nn.Identity()
            self.levels = [torch.tensor(a).view(1, -1, 1, 1).expand(1, len(a), n, n) for a, n in zip(answers, (8, 4, 2))]

        def forward(self, image):
            return self.network.pyramid(self.levels)

    case = Case("a", images={"RGB": Image(np.zeros((3, 8, 8), np.float32), Geometry.of((8, 8)))})
    assert redundancy(Fake((1.0, 2.0), (2.0, 4.0), (3.0, 6.0)), case) == pytest.approx(1)
    assert redundancy(Fake((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), case) == pytest.approx(0)
    assert redundancy(Fake((1.0, 0.0), (2.0, 0.0), (0.0, 1.0)), case) == pytest.approx(1 / 3)
