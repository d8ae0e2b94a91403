"""Slices and their sequence: the order counts, untrained slices are alone, and what one run learnt another takes over."""

import pytest
import torch
from torch import nn

from vesalius.core.errors import DataError
from vesalius.networks.slice_unet import SliceUNet, adopt

SMALL = dict(features=(4, 8), slices=8, dim=12, depth=1, heads=2, hidden=16)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_order_of_slices_is_in_the_embedding_and_not_in_their_mean():
    net, x = SliceUNet(1, 2, spatial_dims=3, **SMALL).eval(), torch.randn(1, 1, 8, 8, 8)
    mixed = x[..., torch.tensor([4, 1, 6, 3, 0, 5, 2, 7])]
    assert (net.embedding(x) - net.embedding(mixed)).abs().max() > 1e-4
    torch.testing.assert_close(net.sequence(x).mean(1), net.sequence(mixed).mean(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_untrained_it_is_a_2d_network_slice_by_slice(axis):
    net = SliceUNet(1, 3, spatial_dims=3, axis=axis, **SMALL).eval()
    x = torch.randn(2, 1, 6, 7, 9)
    y = net(x)
    assert y.shape == (2, 3, 6, 7, 9)
    alone = SliceUNet(1, 3, spatial_dims=2, **SMALL).eval()
    alone.unet.load_state_dict(net.unet.state_dict())
    for i in (0, 5):
        torch.testing.assert_close(y.select(2 + axis, i), alone(x.select(2 + axis, i)))
    nn.init.normal_(net.inject.weight)
    other = x.clone()
    other.select(2 + axis, 0).add_(3 * torch.randn_like(x.select(2 + axis, 0)))
    assert (net(x) - net(other)).select(2 + axis, 5).abs().max() > 1e-5


def test_levels_follow_the_plan_in_plane():
    strides, kernels = ((1, 1, 1), (2, 1, 2)), ((3, 1, 3), (3, 3, 3))
    net = SliceUNet(1, 2, spatial_dims=3, axis=1, strides=strides, kernels=kernels, **SMALL)
    assert net.multiple == (2, 1, 2) and net.unet.down[0][0][0].kernel_size == (3, 3)
    assert SliceUNet(1, 2, spatial_dims=3, strides=strides, kernels=kernels, **SMALL).multiple == (2, 1, 1)


def saved(net: SliceUNet, path) -> str:
    from safetensors.torch import save_file

    save_file({f"method/network.{k}": v for k, v in net.state_dict().items()}, path)
    return str(path)


def test_pictures_teach_volumes(tmp_path):
    flat, deep = SliceUNet(1, 5, spatial_dims=2, **SMALL), SliceUNet(1, 2, spatial_dims=3, **SMALL)
    kept, picture = deep.transformer.norm.weight.clone(), torch.randn(3, 1, 8, 8)
    adopt(deep, saved(flat, tmp_path / "method.safetensors"))
    torch.testing.assert_close(deep.describe(picture), flat.describe(picture))
    assert torch.equal(deep.transformer.norm.weight, kept)
    again = SliceUNet(1, 5, spatial_dims=2, **SMALL)
    deep.unet.down[0][0][0].weight.data += 1
    adopt(again, saved(deep, tmp_path / "other.safetensors"))
    torch.testing.assert_close(again.describe(picture), deep.describe(picture))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    deep = SliceUNet(1, 2, spatial_dims=3, **SMALL)
    with pytest.raises(DataError, match="no finished run"):
        adopt(deep, tmp_path)
    wide = SliceUNet(1, 2, spatial_dims=3, **{**SMALL, "features": (8, 8)})
    with pytest.raises(DataError, match="another network"):
        adopt(deep, saved(wide, tmp_path / "wide.safetensors"))
    longer = SliceUNet(1, 2, spatial_dims=3, **{**SMALL, "dim": 16})
    with pytest.raises(DataError, match="another network"):
        adopt(deep, saved(longer, tmp_path / "longer.safetensors"))
