"""Gates and clean-up of the lung U-Net."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import Batch, Case, Image
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.methods.guided.lung_morphology import LungMorphology
from vesalius.ops.components import components

SIDE = 64


def method(classes=("background", "lung"), **options):
    stages = dict(features=(4, 8, 8), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3)
    plan = Plan(dims=2, channels=("XR",), classes=classes, patch=(SIDE, SIDE), **stages)
    manifest = Manifest("small", Path("."), 2, ("XR",), {n: k for k, n in enumerate(classes)}, ())
    torch.manual_seed(0)
    return LungMorphology(plan, manifest, **options).eval()


def case(seed=0):
    data = np.random.default_rng(seed).normal(size=(1, SIDE, SIDE)).astype(np.float32)
    return Case("one", images={"XR": Image(data, Geometry.of((SIDE, SIDE)))})


def logits(mask):
    return torch.from_numpy(np.stack([~mask, mask]).astype(np.float32) * 8)


def dirty_lungs():
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = (((y - 32) / 20) ** 2 + ((x - 18) / 9) ** 2 < 1) | (((y - 32) / 20) ** 2 + ((x - 46) / 9) ** 2 < 1)
    clean = mask.copy()
    mask[2, 2] = mask[60, 32] = mask[32, 20:44] = True  # specks and a bridge
    mask[30, 18] = False  # a hole
    return mask, clean


def test_finish_gives_raw_probability_and_a_cleaned_label_on_the_prepared_grid():
    mask, clean = dirty_lungs()
    c = case()
    answer = method(opening=4.0, closing=4.0).finish(logits(mask), c)  # one pixel at 64
    np.testing.assert_array_equal(answer.probability.data[1] > 0.5, mask)
    found = answer.label.data == 1
    assert len(components(found)[1]) == 2 and found[30, 18] and not found[2, 2] and not found[32, 32]
    assert 2 * (found & clean).sum() / (found.sum() + clean.sum()) > 0.99
    assert answer.label.geometry == c.geometry and answer.label.names == ("background", "lung")


def test_without_clean_up_the_decision_is_the_engines():
    mask, _ = dirty_lungs()
    answer = method(cleanup=False).finish(logits(mask), case())
    assert not answer.labels and answer.probability is not None


def test_an_empty_mask_stays_empty():
    assert not method().finish(logits(np.zeros((SIDE, SIDE), bool)), case()).label.data.any()


@pytest.mark.parametrize("keep", [1, 2, 0])
def test_at_most_keep_components(keep):
    noise = np.random.default_rng(0).uniform(size=(SIDE, SIDE)) < 0.2
    n = len(components(method(keep=keep, opening=0, closing=0).cleaned(noise.astype(np.int16)))[1])
    assert n <= keep if keep else n > 2


def test_classes_do_not_grow_into_each_other():
    label = np.zeros((SIDE, SIDE), np.int16)
    label[10:50, 5:30], label[10:50, 30:55] = 1, 2
    label[20:24, 10:14] = 2  # an island of the other class
    out = method(("background", "right", "left"), keep=1, closing=12.0).cleaned(label)
    assert not ((out == 1) & (label == 2)).any() and not ((out == 2) & (label == 1)).any()


def test_radii_scale_with_the_image():
    m = method(opening=4.0, closing=0.0, keep=0)
    for side in (64, 256):
        label = np.zeros((side, side), np.int16)
        bar = round(4 * 4 * side / 256)  # wider than the disc's diameter at both sizes
        label[side // 4 : side // 2, side // 4 : side // 4 + bar] = 1
        label[side // 2 + side // 8, 10 : side - 10] = 1  # a line
        out = m.cleaned(label)
        assert out[side // 4 : side // 2].any() and not out[side // 2 + side // 8, 10 : side - 10].any()


def test_an_open_gate_is_the_plain_network():
    gated, plain = method(ema=0), method(gates=False, ema=0)
    plain.network.load_state_dict({k: v for k, v in gated.network.state_dict().items() if "gate" not in k})
    for gate in gated.network.gate:
        torch.nn.init.zeros_(gate.psi.weight)
        torch.nn.init.constant_(gate.psi.bias, 40.0)  # sigmoid(40) is 1 in float32
    x = torch.from_numpy(case().stack()[None])
    with torch.no_grad():
        torch.testing.assert_close(gated(x), plain(x), rtol=0, atol=0)


def test_predicts_and_every_parameter_learns():
    m = method()
    with torch.no_grad():
        answer = m.predict(case(), rng=np.random.default_rng(0))
    assert answer.label.data.shape == (SIDE, SIDE) and answer.probability.data.shape == (2, SIDE, SIDE)
    m.train()
    mask, _ = dirty_lungs()
    x, y = torch.from_numpy(case().stack()[None]), torch.from_numpy(mask.astype(np.int64)[None])
    batch = Batch(x, {"reference": y}, torch.eye(3)[None], ["one"])
    sum(m.losses(batch, Clock(0, 10)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in m.network.named_parameters() if "conv" not in n or p.ndim > 1)


def test_the_papers_width_is_an_option():
    m = method(features=(4, 8, 16, 16, 16), norm="batch")
    assert m.network.multiple == (16, 16)
    assert any(isinstance(x, torch.nn.BatchNorm2d) for x in m.modules())
    with pytest.raises(UsageError, match="multiples of 128"):
        method(features=(4,) * 8)


@pytest.mark.parametrize("options", [dict(opening=-1.0), dict(keep=-1), dict(ce_weight=-0.5)])
def test_senseless_options_are_refused(options):
    with pytest.raises(UsageError):
        method(**options)
