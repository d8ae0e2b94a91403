"""MCADS: published size, what a restoration loses, what a row sees, and six answers."""

import pytest
import torch
from torch.nn.functional import interpolate

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.mcads import MCADS, Decoder, Restore, RowAttention, Side, Step
from vesalius.networks.nested_encoder import DualGate


def small(channels: int = 3, out: int = 2, **options) -> MCADS:
    torch.manual_seed(0)
    return MCADS(channels, out, **{"spatial_dims": 2, "width": 4, **options})


def test_as_large_as_published():
    """50.90 M parameters and 61.89 GFLOPs at 256 px, two a multiplication; the published net has one map (sigmoid)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = MCADS(3, 1, spatial_dims=2).eval()
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(50.90, rel=0.02)
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(61.89, rel=0.02)


@pytest.mark.parametrize("channels, out, encoder, depths", [(1, 2, "nested", 6), (3, 7, "res2net", 4)])
def test_an_answer_at_every_depth_and_a_gradient_for_all(channels, out, encoder, depths):
    net, x = small(channels, out, encoder=encoder), torch.randn(2, channels, 64, 96)
    maps = net(x)
    assert len(maps) == depths and all(m.shape == (2, out, 64, 96) for m in maps)
    for side, m in zip(net.sides, maps, strict=True):  # each is taught by its own output
        assert torch.autograd.grad(m.square().mean(), side.conv.weight, retain_graph=True)[0].abs().sum() > 0
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.eval()(x).shape == (2, out, 64, 96)


class TestRestore:
    def test_a_shuffle_loses_nothing_and_numbers_channels_by_place(self):
        x = torch.randn(2, 12, 5, 6)
        y = torch.nn.PixelShuffle(2)(x)
        assert y.shape == (2, 3, 10, 12) and torch.equal(torch.nn.PixelUnshuffle(2)(y), x)
        for row in (0, 1):
            for column in (0, 1):  # torch's order; Keras has (row, column, channel)
                assert torch.equal(y[:, 1, row::2, column::2], x[:, 4 + 2 * row + column])

    def test_what_can_draw_a_pattern_finer_than_its_input_draws_a_checkerboard_until_it_has_learned(self):
        """Flat maps are to become a constant: what is left in cells of 2x2, away from the borders, at the start and after 40 steps.
        Interpolation gives flat maps again."""

        def left(y):
            return (y[..., 4:-4, 4:-4] - y[..., 4:-4, 4:-4].mean((2, 3), keepdim=True)).square().mean().sqrt().item()

        for how in ("depth-to-space", "transposed", "resize-convolution", "bilinear"):
            torch.manual_seed(0)
            net, energy = Restore(8, 4, how), []
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
            for _ in range(41):
                y = net(torch.randn(16, 8, 1, 1).expand(-1, -1, 8, 8))
                energy.append(left(y.detach()))
                optimizer.zero_grad()
                (y - 1).square().mean().backward()
                optimizer.step()
            if how in ("depth-to-space", "transposed"):
                assert energy[0] > 0.3 and energy[-1] < 0.8 * energy[0]
            else:
                assert max(energy) < 1e-5

    def test_a_resize_convolution_multiplies_as_often_as_depth_to_space(self):
        from torch.utils.flop_counter import FlopCounterMode

        cost = {}
        for how in ("depth-to-space", "resize-convolution"):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                Restore(8, 4, how)(torch.zeros(1, 8, 6, 6))
            cost[how] = counter.get_total_flops()
        assert cost["depth-to-space"] == cost["resize-convolution"]

    def test_all_double_the_sides(self):
        for how in ("depth-to-space", "resize-convolution", "bilinear", "transposed"):
            assert Restore(6, 4, how)(torch.randn(1, 6, 3, 5)).shape == (1, 4, 6, 10)
            places = [s.restore[0] for s in Decoder((4, 4, 4, 4), restore=how).steps]
            assert isinstance(places[2], torch.nn.Upsample)  # beyond the two deepest all interpolate


class TestRowAttention:
    def test_a_row_ignores_every_other_row(self):
        torch.manual_seed(0)
        net, x = RowAttention(3), torch.randn(1, 3, 4, 5)
        seen = torch.autograd.functional.jacobian(lambda v: net(v)[0], x)[:, :, :, 0].abs().sum((0, 2, 3, 5))  # output row, input row
        assert (seen.diagonal() > 0).all() and seen.sum() == seen.diagonal().sum()

    def test_it_is_a_softmax_without_a_scale(self):
        torch.manual_seed(0)
        net, x = RowAttention(3), torch.randn(2, 3, 4, 5)
        row = x[1, :, 2].T
        expected = (net.query(row) @ net.key(row).T).softmax(1) @ net.value(row)
        torch.testing.assert_close(net(x)[1, :, 2].T, expected)

    def test_what_differs_along_a_row_is_not_averaged_away_at_the_start(self):
        """The skips reach the decoder through these attentions alone. Of torch's own start a sixth is left."""
        kept = []
        for seed in range(3):
            torch.manual_seed(seed)
            net = MCADS(3, 2, spatial_dims=2, width=4)
            for m in net.modules():
                if isinstance(m, RowAttention):
                    assert not any(f.bias.any() for f in (m.query, m.key, m.value))
                    m.register_forward_hook(lambda _, x, y: kept.append((y.std(3).mean() / x[0].std(3).mean()).item()))
            with torch.no_grad():
                net(torch.randn(2, 3, 64, 64))
        assert len(kept) == 18 and sum(kept) / 18 > 0.4

    def test_it_corrects_and_cannot_replace(self):
        torch.manual_seed(0)
        step, x, skip = Step(6, 4, 2, "bilinear", True, looks_twice=False).eval(), torch.randn(1, 6, 4, 4), torch.randn(1, 4, 8, 8)
        before = step(x, skip)
        for p in step.attend.value.parameters():
            torch.nn.init.zeros_(p)
        silent = step(x, skip)
        assert torch.equal(silent, step.gate(step.refine(step.restore(x)))) and not torch.allclose(before, silent)

    def test_off_has_no_attention(self):
        assert not any(isinstance(m, RowAttention) for m in small(attention=False).modules())
        assert sum(isinstance(m, RowAttention) for m in small().modules()) == 6  # five steps and the second skip


def test_a_side_output_is_the_convolution_of_the_enlarged_map():
    torch.manual_seed(0)
    side, x = Side(5, 3), torch.randn(2, 5, 4, 6)
    expected = side.conv(interpolate(x, (16, 24), mode="bilinear", align_corners=False))
    torch.testing.assert_close(side(x, (16, 24)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(side(x, (4, 6)), side.conv(x))


def test_a_gate_adds_its_two_weights():
    torch.manual_seed(0)
    gate, x = DualGate(8).eval(), torch.rand(2, 8, 9, 9)
    share = gate(x) / x
    assert ((share > 0) & (share < 2)).all()
    across, along = share - share[:, :1], share - share[:, :, :1, :1]
    assert torch.allclose(across, across[:, :, :1, :1], atol=1e-5)  # a part per channel
    assert torch.allclose(along, along[:, :1], atol=1e-5)  # and a part per pixel


def test_a_gate_starts_he_normal():
    torch.manual_seed(0)
    gates = [DualGate(64) for _ in range(20)]
    for name, fan in (("squeeze", 64), ("excite", 4), ("around", 4 * 49)):
        weights = torch.cat([getattr(g, name).weight.flatten() for g in gates])
        assert weights.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    assert not any(g.around.bias.any() or g.point.bias.any() for g in gates)


def test_images_of_a_batch_do_not_meet():
    """In double precision: untrained, unscaled attention magnifies single precision's rounding."""
    net, x = small().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(net(x), torch.cat([net(x[:1]), net(x[1:])]), atol=1e-9, rtol=1e-9)


def test_any_encoder_serves_the_decoder():
    decoder = Decoder((3, 5, 7)).eval()
    found = decoder([torch.randn(1, n, s, s) for n, s in ((3, 16), (5, 8), (7, 4))])
    assert [tuple(f.shape[1:]) for f in found] == [(3, 16, 16), (5, 8, 8), (7, 4, 4)]


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(2, 3, 64, 80))
    with pytest.raises(UsageError, match="2D"):
        MCADS(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="restoration"):
        small(restore="nearest")
    with pytest.raises(UsageError, match="encoder"):
        small(encoder="vit")
    with pytest.raises(UsageError, match="more than one value"):
        small()(torch.zeros(1, 3, 32, 32))
