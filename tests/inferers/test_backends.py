"""An accelerated forward is used only where its labels are the reference's, and what was chosen is on record."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from vesalius.core.errors import RunError, UsageError
from vesalius.inferers import SlidingWindow, accelerate, backends, int8
from vesalius.inferers.backends import label_agreement

PROBE = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(3)).cumsum(2)


class Net(nn.Module):
    def __init__(self, dims=3):
        super().__init__()
        torch.manual_seed(0)
        conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dims == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        self.body = nn.Sequential(conv(1, 8, 3, padding=1), norm(8, affine=True), nn.LeakyReLU(0.01), conv(8, 3, 1))

    def forward(self, image, condition=None):
        return self.body(image)


def fast(module, **options):
    return accelerate(module.eval(), tuple(PROBE.shape), probe=PROBE, **options)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_named_backend_gives_the_module_s_labels(backend, precision):
    if backend == "openvino":
        if importlib.util.find_spec("openvino") is None:
            pytest.skip("the extra [fast] is not installed")
    module = Net()
    forward = fast(module, backend=backend, precision=precision, agreement=0.9)
    assert (forward.choice["backend"], forward.choice["precision"]) == (backend, precision), forward.choice
    assert forward.choice["seconds"] > 0 and forward.choice["agreement"] >= 0.9
    json.dumps(forward.choice)
    with torch.no_grad():
        windows = torch.cat([PROBE, PROBE.flip(2)])
        found, wanted = forward(windows), module(windows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-4 if precision == "fp32" else 0.05, rtol=1e-2)


def test_two_dimensional_windows():
    module, probe = Net(2).eval(), PROBE[:, :, 0]
    forward = accelerate(module, tuple(probe.shape), probe=probe, agreement=0.9)
    with torch.no_grad():
        assert label_agreement(forward(probe), module(probe)) >= 0.9


def test_auto_tries_all_and_keeps_the_fastest_that_agrees(monkeypatch):
    times = iter([4.0, 1.0, 2.0])
    monkeypatch.setattr(backends, "computes", lambda precision: True)
    monkeypatch.setattr(backends, "_openvino", lambda module, probe, hint: module if hint == "f32" else (lambda x: -module(x)))
    monkeypatch.setattr(backends, "_torch_bf16", lambda module, probe: module)
    monkeypatch.setattr(backends, "_seconds", lambda run, probe, limit: next(times))
    choice = fast(Net()).choice
    assert (choice["backend"], choice["precision"], choice["seconds"]) == ("torch", "bf16", 1.0)
    assert set(choice["candidates"]) == {"torch fp32", "torch bf16", "openvino fp32", "openvino bf16"}
    assert "agree" in choice["candidates"]["openvino bf16"]["refused"]


def test_a_backend_that_disagrees_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "_openvino", lambda module, probe, hint: lambda x: module(x).roll(1, 1))
    module = Net()
    forward = fast(module, backend="openvino", precision="fp32")
    assert forward.choice["backend"] == "torch" and forward.choice["candidates"]["openvino fp32"]["agreement"] < 0.995
    with torch.no_grad():
        assert torch.equal(forward(PROBE), module(PROBE))


class Deep(nn.Module):
    """Four spatial convolutions; the second and third do most of the work."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = (1, 16, 32, 16, 3)
        blocks = [nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b), nn.LeakyReLU(0.01)) for a, b in pairwise(sizes)]
        self.body = nn.Sequential(*blocks)

    def forward(self, image):
        return self.body(image)


def test_int8_is_calibrated_and_judged_on_windows_of_the_image():
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    module = Deep().eval()
    windows = torch.cat([PROBE, PROBE.flip(2), PROBE.flip(3), PROBE.flip(4)])
    with torch.no_grad():
        assert list(int8.heavy_convolutions(module, windows)) == ["body.1.0", "body.2.0"]
    forward = accelerate(module, tuple(windows.shape), backend="openvino", precision="int8", agreement=0.9, probe=windows)
    assert (forward.choice["backend"], forward.choice["precision"]) == ("openvino", "int8"), forward.choice
    with torch.no_grad():
        found, wanted = forward(windows), module(windows)
    off = (found - wanted).abs()
    assert 1e-4 < off.mean() < 0.05, "rounded to 8 bits, and not worse"


def test_int8_needs_windows_that_can_judge_it():
    one = fast(Deep(), precision="int8").choice
    assert one["backend"] == "torch" and "cannot judge" in one["candidates"]["openvino int8"]["refused"]
    module, windows = Net().eval(), PROBE.repeat(4, 1, 1, 1, 1)
    module.body[-1].weight.data.zero_()
    module.body[-1].bias.data.copy_(torch.tensor([1.0, 0, 0]))
    empty = accelerate(module, tuple(windows.shape), precision="int8", probe=windows).choice
    assert empty["backend"] == "torch" and "0 judged" in empty["candidates"]["openvino int8"]["refused"]


def test_int8_of_a_network_without_heavy_convolutions_is_refused():
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    windows = PROBE.repeat(4, 1, 1, 1, 1)
    choice = accelerate(Net().eval(), tuple(windows.shape), precision="int8", probe=windows).choice
    assert choice["backend"] == "torch" and "no convolution" in choice["candidates"]["openvino int8"]["refused"]


def test_missing_openvino_falls_back_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    choice = fast(Net(), backend="openvino", precision="fp32").choice
    assert choice["backend"] == "torch" and "ModuleNotFoundError" in choice["candidates"]["openvino fp32"]["refused"]


def test_several_maps_stay_with_torch():
    class Two(Net):
        def forward(self, image):
            return {"logits": self.body(image), "edge": image}

    choice = fast(Two()).choice
    assert choice["backend"] == "torch" and "more than one" in choice["reason"]


def test_other_windows_gradients_and_new_weights_run_the_module():
    module = Net().eval()
    forward = fast(module, backend="torch", precision="fp32")
    forward.run = lambda image: image * 0
    with torch.no_grad():
        assert not forward(PROBE).any()
        assert forward(PROBE[:, :, :8]).any()
    assert forward(PROBE).requires_grad
    with torch.no_grad():
        module.body[0].weight.mul_(2)
        assert torch.equal(forward(PROBE), module(PROBE))


def test_accelerated_sliding_window_gives_the_same_labels():
    module = Net().eval()
    image = torch.randn((1, 24, 20, 30), generator=torch.Generator().manual_seed(1)).cumsum(1)
    inferer = SlidingWindow((16, 16, 16), batch=2)
    with torch.no_grad():
        found, wanted = inferer(fast(module), image), inferer(module, image)
    assert label_agreement(found[None], wanted[None]) > 0.99


def test_agreement_has_known_answers():
    a = torch.tensor([[[2.0, 0, 0, 0], [0, 1, 1, 1]]])  # labels 0 1 1 1
    b = torch.tensor([[[2.0, 2, 0, 0], [0, 1, 1, 1]]])  # labels 0 0 1 1
    assert label_agreement(a, a) == 1
    assert label_agreement(a, b) == pytest.approx(4 / 5)
    empty = torch.tensor([[[2.0, 2, 2, 2], [0, 1, 1, 1]]])
    assert label_agreement(a, empty) == pytest.approx(1 / 4)
    assert label_agreement(empty, b) == 0
    assert label_agreement(a * float("nan"), a) == 0
    assert label_agreement(a[:, :1] - 1, b[:, :1] - 1) == pytest.approx(2 / 3)


def test_mistakes_are_refused():
    with pytest.raises(UsageError, match="backend"):
        fast(Net(), backend="tensorrt")
    with pytest.raises(UsageError, match="precision"):
        fast(Net(), precision="int4")
    with pytest.raises(UsageError, match="probe"):
        accelerate(Net().eval(), (1, 1, 8, 8, 8), probe=PROBE)
    with pytest.raises(RunError, match="training"):
        accelerate(Net().train(), tuple(PROBE.shape), probe=PROBE)


def test_openvino_telemetry_is_never_loaded(tmp_path):
    code = """if True:
        import sys, socket, torch
        def refuse(*a, **k): raise AssertionError("a connection was tried")
        socket.socket.connect = refuse
        from vesalius.inferers import accelerate
        probe = torch.randn(1, 1, 8, 8)
        net = torch.nn.Conv2d(1, 2, 3, padding=1).eval()
        choice = accelerate(net, (1, 1, 8, 8), backend="openvino", precision="fp32", probe=probe).choice
        loaded = [m for m in sys.modules if m.startswith("openvino_telemetry") and sys.modules[m] is not None]
        assert not loaded, loaded
        print(choice["backend"], choice["candidates"])
    """
    done = subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "OpenVINO's telemetry left its files"
