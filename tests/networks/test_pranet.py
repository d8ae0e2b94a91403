"""PraNet: four maps, what reverse attention lets through, and backbones from a file."""

import pytest
import torch
from torch.nn.functional import interpolate

from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.networks.blocks.pretrained import load_backbone
from vesalius.networks.blocks.res2net import Res2Net
from vesalius.networks.pranet import PraNet
from vesalius.objectives.structure_loss import StructureLoss

SMALL = dict(spatial_dims=2, depths=(1, 1, 1, 1), width=8, channels=8)


def small(channels: int = 3, out: int = 1, **options) -> PraNet:
    torch.manual_seed(0)
    return PraNet(channels, out, **{**SMALL, **options})


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


def test_as_large_as_published():
    """Res2Net50-26w-4s is listed with 25.7 M, 2.05 M of them the classifier; PraNet with 30.5 M."""
    with torch.device("meta"):
        assert count(Res2Net(3)) / 1e6 == pytest.approx(25.7 - 2.05, rel=0.01)
        assert Res2Net(3).features == (256, 512, 1024, 2048)
        assert count(PraNet(3, 1, spatial_dims=2)) / 1e6 == pytest.approx(30.5, rel=0.01)


@pytest.mark.parametrize("channels, out", [(1, 1), (3, 1), (3, 6)])
def test_four_maps_of_the_inputs_size_and_a_gradient_for_all(channels, out):
    net, x = small(channels, out), torch.randn(2, channels, 96, 64)
    maps = net(x)
    assert len(maps) == 4 and all(m.shape == (2, out, 96, 64) for m in maps)
    y = torch.randint(0, out + 1, (2, 96, 64))
    sum(StructureLoss()(m, y) for m in maps).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    for m in maps:
        net.zero_grad()
        m2 = net(x)
        m2[[id(a) for a in maps].index(id(m))].square().mean().backward()
        assert net.backbone.conv1[0].weight.grad.abs().sum() > 0
    net.eval()
    assert torch.equal(net(x), net(x)) and net(x).shape == (2, out, 96, 64)


def test_reverse_attention_erases_what_was_found():
    s = torch.tensor([-1e4, -2.0, 0.0, 1e4]).view(1, 1, 1, 4)
    assert torch.equal(small().weight(s)[0, 0, 0, [0, 2, 3]], torch.tensor([1.0, 0.5, 0.0]))
    assert torch.allclose(small(attention="forward").weight(s), 1 - small().weight(s))
    assert (small(attention="uniform").weight(s) == 1).all()
    any_of = small(out=2).weight(torch.cat([s, -s], 1))
    assert torch.equal(any_of[0, 0, 0, [0, 2, 3]], torch.tensor([0.0, 0.5, 0.0]))  # found by either of two structures


def test_silent_heads_leave_the_global_map():
    net, off = small(), small(attention="off")
    off.load_state_dict(net.state_dict(), strict=False)
    for head in net.heads:
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    torch.nn.init.zeros_(net.decoder.head[-1].weight)  # a flat global map survives the resizing exactly
    off.decoder.head[-1].load_state_dict(net.decoder.head[-1].state_dict())
    x = torch.randn(2, 3, 64, 64)
    maps = net(x)
    assert all(torch.allclose(m, maps[-1]) for m in maps) and torch.allclose(maps[0], off(x)[0])
    torch.nn.init.normal_(net.decoder.head[-1].weight)  # any other passes a quarter of its resolution on the way
    found = []
    net.decoder.register_forward_hook(lambda _module, _inputs, rough: found.append(rough))
    fine = net(x)[0]
    expected = found[0]
    for size in ((2, 2), (4, 4), (8, 8), (64, 64)):
        expected = interpolate(expected, size, mode="bilinear", align_corners=False)
    assert torch.allclose(fine, expected, atol=1e-6) and len(off(x)) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        small()(torch.zeros(2, 3, 64, 80))
    with pytest.raises(UsageError, match="2D"):
        PraNet(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="four stages"):
        small(depths=(1, 1))
    with pytest.raises(UsageError, match="attention"):
        small(attention="inverse")
    with pytest.raises(UsageError, match="more than one value"):
        small()(torch.zeros(1, 3, 32, 32))
    assert small().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


class TestPretrained:
    """Weights from a local file."""

    def test_a_grey_image_gives_what_it_gave_in_every_channel(self, tmp_path):
        from safetensors.torch import save_file

        torch.manual_seed(1)
        colour, grey, two = (Res2Net(c, depths=(1, 1, 1, 1), width=8) for c in (3, 1, 2))
        extra = {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
        save_file({**{f"backbone.{k}": v for k, v in colour.state_dict().items()}, **extra}, tmp_path / "w.safetensors")
        x = torch.randn(2, 1, 64, 64)
        for net in (colour, grey, two):
            load_backbone(net.eval(), tmp_path / "w.safetensors")
        for a, b, c in zip(colour(x.expand(-1, 3, -1, -1)), grey(x), two(x.expand(-1, 2, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-4)

    def test_files_that_do_not_fit_are_named(self, tmp_path):
        from safetensors.torch import save_file

        net, path = Res2Net(3, depths=(1, 1, 1, 1), width=8), tmp_path / "w.safetensors"
        with pytest.raises(UsageError, match="no such file"):
            load_backbone(net, path)
        path.write_bytes(b"PK not weights")
        with pytest.raises(UsageError, match="not a safetensors"):
            load_backbone(net, path)
        state = net.state_dict()
        save_file({k: v for k, v in state.items() if not k.startswith("layer4")}, path)
        with pytest.raises(DataError, match="layer4"):
            load_backbone(net, path)
        save_file({**state, "layer5.weight": torch.zeros(1)}, path)
        with pytest.raises(DataError, match="layer5"):
            load_backbone(net, path)
        save_file({**state, "bn1.weight": torch.zeros(3)}, path)
        with pytest.raises(DataError, match="bn1.weight"):
            load_backbone(net, path)
        before = net.conv1[0].weight.clone()
        save_file({k: v + 1 if v.is_floating_point() else v for k, v in state.items()}, path)
        load_backbone(net, path)
        assert torch.equal(net.conv1[0].weight, before + 1)
