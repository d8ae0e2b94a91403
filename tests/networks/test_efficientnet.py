"""EfficientNet: published sizes, MONAI's numbers on the same weights, taps, stochastic depth, weights from a file."""

import pytest
import torch
from safetensors.torch import save_file

from vesalius.core.errors import UsageError
from vesalius.networks.blocks.pretrained import load_backbone
from vesalius.networks.efficientnet import EfficientNet, MBConv, head, scaled

TINY = dict(width=0.25, depth=0.3)


def weights(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("factors", "published"), [((1.0, 1.0), 5_288_548), ((1.0, 1.1), 7_794_184), ((1.2, 1.4), 12_233_232)])
def test_b0_b1_and_b3_have_the_published_number_of_parameters(factors, published):
    net = EfficientNet(3, width=factors[0], depth=factors[1])
    assert weights(net) + 1000 * (net.channels + 1) == published


def test_it_equals_monai_on_the_same_weights():
    """MONAI pads as TensorFlow does; on sides of 2^n + 1 that is symmetric in every layer."""
    from monai.networks.nets import EfficientNetBN

    torch.manual_seed(0)
    theirs = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3, num_classes=2).eval()
    ours = EfficientNet(3).eval()
    for m in ours.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eps = 1e-3
    part = lambda prefixes: [v for k, v in theirs.state_dict().items() if k.startswith(prefixes)]
    given = part(("_conv_stem", "_bn0")) + part("_blocks") + part(("_conv_head", "_bn1"))
    own = ours.state_dict()
    names = [k for k in own if k.startswith(("conv_stem", "bn1"))] + [k for k in own if k.startswith("blocks")]
    names += [k for k in own if k.startswith(("conv_head", "bn2"))]
    ours.load_state_dict(dict(zip(names, given, strict=True)))
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).mean((2, 3)) @ theirs._fc.weight.T + theirs._fc.bias, theirs(x), atol=1e-4, rtol=1e-4)


def test_levels_have_the_channels_and_strides_they_say():
    net = EfficientNet(1).eval()
    assert net.features == (16, 24, 40, 112, 320) and net.channels == 1280
    with torch.no_grad():
        levels, last = net.levels(torch.zeros(1, 1, 96, 65)), net(torch.zeros(1, 1, 96, 65))
    assert [tuple(f.shape[1:]) for f in levels] == [(n, -(-96 // s), -(-65 // s)) for n, s in zip(net.features, (2, 4, 8, 16, 32))]
    assert last.shape == (1, 1280, 3, 3)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_smaller_stride_keeps_the_parameters_and_a_finer_map(stride):
    net, usual = EfficientNet(1, **TINY, stride=stride).eval(), EfficientNet(1, **TINY)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in usual.state_dict().items()}
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 96, 64)).shape[2:] == (96 // stride, 64 // stride)
        assert [f.shape[3] for f in net.levels(torch.zeros(1, 1, 96, 64))] == [64 // min(s, stride) for s in (2, 4, 8, 16, 32)]


def test_every_parameter_learns_and_the_head_pools():
    torch.manual_seed(0)
    net = EfficientNet(2, **TINY, drop_path=0.0)
    top = head(net.channels, 2, 3)
    out = top(net(torch.randn(4, 2, 64, 48)))
    out.square().sum().backward()
    assert out.shape == (4, 3) and all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_channels_are_multiples_of_eight_and_never_much_fewer():
    assert [scaled(n, 1.2) for n in (32, 16, 24, 40, 1280)] == [40, 24, 32, 48, 1536]
    assert all(scaled(n, w) % 8 == 0 and scaled(n, w) >= 0.9 * n * w for n in range(8, 400, 8) for w in (0.1, 0.35, 1.1, 2.2))


def test_stochastic_depth_keeps_the_mean_and_is_off_when_evaluating():
    torch.manual_seed(0)
    block = MBConv(8, 8, expand=2, drop_path=0.4)
    for m in block.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.0  # statistics stay where they are
    x = torch.randn(1, 8, 6, 6).expand(4000, -1, -1, -1)
    branch = torch.nn.Sequential.forward(block, x) * 1  # training statistics
    out = block.train()(x) - x
    kept = out.flatten(1).abs().sum(1) > 0
    assert kept.float().mean() == pytest.approx(0.6, abs=0.03)
    torch.testing.assert_close(out[kept], branch[kept] / 0.6, atol=1e-4, rtol=1e-4)
    block.eval()
    assert torch.equal(block(x[:1]), block(x[:1]))


def test_weights_come_from_a_file_and_grey_serves_for_three_channels(tmp_path):
    torch.manual_seed(0)
    published = EfficientNet(3, **TINY).eval()
    file = tmp_path / "net.safetensors"
    save_file({**published.state_dict(), "classifier.weight": torch.zeros(4, published.channels), "classifier.bias": torch.zeros(4)}, file)
    grey = EfficientNet(1, **TINY).eval()
    load_backbone(grey, file)
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), published(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_parameters_are_named_as_published():
    names = set(EfficientNet(3).state_dict())
    assert {"conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.conv_pw.weight", "blocks.0.0.bn2.bias"} <= names
    assert {"blocks.1.0.conv_pw.weight", "blocks.1.0.se.conv_reduce.bias", "blocks.6.0.conv_pwl.weight", "blocks.6.0.bn3.weight"} <= names
    assert {"conv_head.weight", "bn2.running_mean"} <= names and "blocks.0.0.conv_pwl.weight" not in names


@pytest.mark.parametrize("options", [{"width": 0.0}, {"depth": -1.0}, {"drop_path": 1.0}, {"stride": 64}])
def test_impossible_factors_are_refused(options):
    with pytest.raises(UsageError, match="no such EfficientNet"):
        EfficientNet(1, **options)
