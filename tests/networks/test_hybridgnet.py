"""HybridGNet and its image-to-graph skips: 'Prove it small', with the correction that a self-crossing contour may fall into pieces."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.networks.blocks.graph import normed
from vesalius.networks.hybridgnet import WIDTHS, HybridGNet
from vesalius.networks.hybridgnet_igsc import HybridGNetIGSC, read
from vesalius.ops.components import components
from vesalius.ops.raster import fill

NODES, SIZE = (9, 6, 12), (64, 96)
SMALL = {"channels": (4, 4, 8, 8, 8, 8), "latent": 8, "order": 3}


def net(kind=HybridGNet, **options):
    torch.manual_seed(0)
    return kind(1, NODES, SIZE, **{**SMALL, **options})


IMAGE = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decoder", ["graph", "dense"])
def test_points_of_all_structures_come_out(decoder):
    maps = net(decoder=decoder)(IMAGE)
    assert maps["points"].shape == (2, 27, 2) and maps["mu"].shape == maps["logvar"].shape == (2, 8)


def test_the_published_layout():
    """Six levels to 128 channels, a code of 64, six graph convolutions of which the last is of order 1 and has no bias."""
    model = HybridGNet(1, (44, 50, 26), (160, 160))
    assert [m.shape[1:] for m in model.encoder(torch.randn(2, 1, 160, 160))] == [
        (c, n, n) for c, n in zip((8, 16, 32, 64, 128, 128), (160, 80, 40, 20, 10, 5), strict=True)
    ]
    convs = model.decoder.convs
    assert [(c.mix.in_features // c.order, c.mix.out_features) for c in convs] == list(pairwise(WIDTHS))
    assert [c.order for c in convs] == [6] * 5 + [1] and convs[-1].mix.bias is None
    assert [len(c.laplacian) for c in convs] == [60] * 3 + [120] * 3


@pytest.mark.parametrize("kind", [HybridGNet, HybridGNetIGSC])
def test_evaluation_repeats_itself_and_training_samples_the_code(kind):
    model = net(kind)
    first, second = model(IMAGE)["points"], model(IMAGE)["points"]
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(IMAGE)["points"], model(IMAGE)["points"])


@pytest.mark.parametrize("kind, options", [(HybridGNet, {}), (HybridGNet, {"decoder": "dense"}), (HybridGNetIGSC, {})])
def test_every_weight_learns(kind, options):
    model = net(kind, **options)
    sum((v**2).sum() for v in model(IMAGE).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if not n.endswith("body.2.bias"))


def test_a_contour_that_crosses_itself_may_have_two_pieces():
    """Invariant (c) of the specification holds for simple contours alone."""
    grid, turn = Geometry.of((64, 64)), np.linspace(0, 2 * np.pi, 40, endpoint=False)
    simple = 32 + np.stack([20 * np.cos(turn), (12 + 3 * np.cos(3 * turn)) * np.sin(turn)], 1)
    eight = 32.5 + np.stack([20 * np.sin(turn), 20 * np.sin(turn) * np.cos(turn)], 1)
    assert len(components(fill(simple, grid))[1]) == 1
    assert len(components(fill(eight, grid))[1]) == 2


@pytest.mark.parametrize("size", [(64, 80), (32, 64), (64,)])
def test_sides_that_cannot_be_halved(size):
    with pytest.raises(GeometryError, match="halve"):
        HybridGNet(1, NODES, size)


def test_another_size_of_image_is_refused():
    with pytest.raises(GeometryError, match="one size"):
        net()(IMAGE[..., :64])


# ------------------------------------------------------------------------------------------------------------------------------- skips
def test_places_on_the_way_are_of_the_half_and_of_the_whole_graph():
    maps = net(HybridGNetIGSC)(IMAGE)
    assert maps["points before 2"].shape == (2, 5 + 3 + 6, 2) and maps["points before 4"].shape == (2, 27, 2)
    one = net(HybridGNetIGSC, levels=(4,))(IMAGE)
    assert set(one) == {"points", "mu", "logvar", "points before 2"}


def test_moving_the_map_and_the_place_together_reads_the_same():
    features = torch.randn(1, 3, 16, 16)
    place = torch.rand(1, 7, 2) * 0.4 + 0.2
    shifted = features.roll((2, 3), (2, 3))
    torch.testing.assert_close(read(features, place, 3), read(shifted, place + torch.tensor([2, 3]) / 16, 3), atol=1e-5, rtol=1e-5)


def test_reading_at_a_pixel_s_centre_is_indexing_and_a_window_is_its_mean():
    features = torch.randn(2, 3, 8, 10)
    place = torch.tensor([[[(5 + 0.5) / 8, (2 + 0.5) / 10]]]).expand(2, -1, -1)
    torch.testing.assert_close(read(features, place, 1)[:, 0], features[:, :, 5, 2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read(features, place, 3)[:, 0], features[:, :, 4:7, 1:4].mean((2, 3)), atol=1e-5, rtol=1e-5)
    outside = torch.tensor([[[-3.0, 9.0]]]).expand(2, -1, -1)
    torch.testing.assert_close(read(features, outside, 1)[:, 0], features[:, :, 0, -1], atol=1e-5, rtol=1e-5)


def used(model):
    """With weights for what its skips add, as after some training."""
    with torch.no_grad():
        for conv in model.decoder.convs:
            conv.mix.weight.normal_(0, 0.1)
    return model


def test_the_encoder_learns_through_the_code_and_through_what_is_read():
    """With the code cut off the image, gradient still arrives from the maps; and the other way round."""
    model = used(net(HybridGNetIGSC)).eval()
    maps = [m.detach().requires_grad_() for m in model.encoder(IMAGE)]
    z = torch.randn(2, 8, requires_grad=True)
    (model.decoder(z, maps)["points"] ** 2).sum().backward()
    assert z.grad.abs().sum() > 0 and maps[5].grad.abs().sum() > 0 and maps[4].grad.abs().sum() > 0
    assert all(maps[i].grad is None for i in range(4))


def test_skips_start_as_no_skips_and_scaling_tames_what_is_read():
    model = net(HybridGNetIGSC).eval()
    maps = model.encoder(IMAGE)
    z = torch.randn(2, 8)
    assert torch.equal(model.decoder(z, maps)["points"], model.decoder(z, [m * 0 + 7 for m in maps])["points"])
    skip, x = model.decoder.skips["2"], torch.randn(2, 14, 16)
    place = skip(x, maps)[1]
    torch.testing.assert_close(skip(x, maps)[0], torch.cat([x, normed(read(maps[5], place, 3)) / 8**0.5, place], -1))
    raw = net(HybridGNetIGSC, scaled=False).decoder.skips["2"]
    assert torch.equal(raw(x, maps)[0][..., 16:-2], read(maps[5], raw(x, maps)[1], 3))


@pytest.mark.parametrize("through_place", [False, True])
def test_whether_gradient_flows_through_where_a_window_lies(through_place):
    model = net(HybridGNetIGSC, through_place=through_place)
    skip = model.decoder.skips["2"]
    x = torch.randn(2, 14, 16)
    seen = skip(x, model.encoder(IMAGE))[0][..., 16:-2]
    assert seen.requires_grad
    grad = torch.autograd.grad(seen.square().mul(torch.arange(8)).sum(), skip.place.weight, allow_unused=True)[0]
    assert (grad is not None and bool(grad.abs().sum() > 0)) is through_place


def test_skips_of_no_weight_leave_the_plain_network():
    base, model = net().eval(), net(HybridGNetIGSC).eval()
    weights = {k: v for k, v in base.state_dict().items()}
    for i, conv in enumerate(model.decoder.convs):
        own, inp = conv.mix.weight.detach(), base.decoder.convs[i].mix.in_features // conv.order
        padded = torch.zeros(own.shape[0], conv.order, own.shape[1] // conv.order)
        padded[..., :inp] = base.decoder.convs[i].mix.weight.detach().view(-1, conv.order, inp)
        weights[f"decoder.convs.{i}.mix.weight"] = padded.flatten(1)
    left_out = model.load_state_dict(weights, strict=False)
    assert left_out.missing_keys == ["decoder.skips.2.place.weight", "decoder.skips.4.place.weight"] and not left_out.unexpected_keys
    torch.testing.assert_close(model(IMAGE)["points"], base(IMAGE)["points"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"levels": ()}, {"levels": (7,)}, {"levels": (6, 5, 4)}, {"window": 2}])
def test_impossible_skips_are_refused(options):
    with pytest.raises(UsageError, match=r"levels|middle pixel"):
        net(HybridGNetIGSC, **options)
