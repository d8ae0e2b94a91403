"""Primus: published sizes, an identity twin that sees one token, and the ablation of any network."""

import pytest
import torch
from torch import nn

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.ablation import default_unet, identity_twin, transformer_parameters, unet_index
from vesalius.networks.blocks.transformer import EvaBlock
from vesalius.networks.primus import CONFIGS, Painter, Primus
from vesalius.networks.unet import UNet

TINY = dict(spatial_dims=3, depth=2, heads=3, dim=36)


def tiny(inp: int = 1, out: int = 2, window=(16, 24, 16), **options) -> Primus:
    torch.manual_seed(0)
    return Primus(inp, out, window=window, **{**TINY, **options})


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


def test_as_large_as_published():
    """Primus-M has 146.6 M parameters, more than 98 % of them in the transformer; nnU-Net's U-Net 31.2 M."""
    with torch.device("meta"):
        m = Primus(1, 2, spatial_dims=3)
        assert count(m) / 1e6 == pytest.approx(146.6, rel=0.02) and count(m.transformer) / count(m) > 0.98
        sizes = [count(Primus(1, 2, spatial_dims=3, config=c)) for c in CONFIGS]
    assert sizes == sorted(sizes) and default_unet() / 1e6 == pytest.approx(31.2, rel=0.005)


@pytest.mark.parametrize("inp, out", [(1, 2), (1, 1), (3, 7)])
def test_shapes_and_gradients(inp, out):
    net = tiny(inp, out, drop_path=0.0)
    logits = net(torch.randn(2, inp, 16, 24, 16))
    assert logits.shape == (2, out, 16, 24, 16)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_tokens_of_other_sizes_and_another_window():
    x = torch.randn(1, 1, 16, 32, 16)
    for token in (2, 4, 16):
        assert tiny(token=token, window=(16, 16, 16)).eval()(x).shape == (1, 2, 16, 32, 16)
    assert tiny(window=(13, 20, 9)).transformer.grid == (2, 3, 2)  # whole tokens


def test_decoder_shrinks_by_one_ratio_in_eights():
    widths = [m.out_channels for m in Painter(864, 2, 3, 3) if isinstance(m, nn.ConvTranspose3d)]
    assert widths == [144, 24, 2] and [m.out_channels for m in Painter(36, 7, 3, 3) if hasattr(m, "stride")] == [24, 16, 7]


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        tiny()(torch.zeros(1, 1, 16, 20, 16))
    with pytest.raises(UsageError, match="3D"):
        Primus(1, 2, spatial_dims=2, window=(64, 64))
    with pytest.raises(UsageError, match="power of two"):
        tiny(token=6)
    with pytest.raises(UsageError, match="do not fit the heads"):
        tiny(dim=30)
    with pytest.raises(UsageError, match="configuration"):
        tiny(config="XL")


def test_without_its_blocks_a_voxel_sees_its_token_and_no_more():
    net, x = tiny(identity=True), torch.randn(1, 1, 16, 24, 16, requires_grad=True)
    net(x)[0, 1, 3, 12, 15].backward()
    seen = x.grad[0, 0] != 0
    own = torch.zeros_like(seen)
    own[0:8, 8:16, 8:16] = True
    assert torch.equal(seen, own)
    x.grad = None
    tiny()(x)[0, 1, 3, 12, 15].backward()
    assert (x.grad != 0).all()


def test_identity_twin_is_the_networks_own_option():
    net = tiny().eval()
    twin, x = identity_twin(net), torch.randn(1, 1, 16, 24, 16)
    ablated = tiny(identity=True).eval()
    ablated.load_state_dict(twin.state_dict())
    assert torch.equal(twin(x), ablated(x)) and not torch.allclose(twin(x), net(x))
    assert transformer_parameters(twin) == 0 and count(net) - count(twin) == transformer_parameters(net)
    assert len(net.transformer.blocks) == 2 and isinstance(net.transformer.blocks[0], EvaBlock)  # untouched


def test_unet_index():
    net = tiny()
    assert unet_index(net) < 0.2 and unet_index(net) == unet_index(identity_twin(net))
    with torch.device("meta"):
        unet = UNet(1, 2, spatial_dims=3, features=(32, 64, 128, 256, 320, 320), deep_supervision=True)
    assert unet_index(unet) == 1.0
    assert unet_index(net, reference=count(net) - transformer_parameters(net)) == 1.0


def test_ablation_takes_blocks_of_any_library():
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 5, 4)
    twin = identity_twin(net, (nn.TransformerEncoderLayer,))
    assert torch.equal(twin(x), net[2](net[0](x)))
    with pytest.raises(UsageError, match="no transformer"):
        identity_twin(net)
