"""A faster forward for a trained network on the CPU, used only where it gives the same labels.

Every candidate (torch in float32 and bfloat16, OpenVINO in float32, bfloat16 and, for its heaviest convolutions, 8-bit integers) runs on
probe windows. Those whose labels agree with torch float32 are timed, and the fastest is kept; what was tried, how well it agreed and how
long it took is in ``choice``. OpenVINO is optional; its telemetry is never loaded, so nothing leaves the host.
"""

from __future__ import annotations

import copy
import importlib
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import RunError, UsageError
from . import int8

BACKENDS = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
INT8_WINDOWS = 4  # int8 is calibrated on every other window of the probe and judged on the rest, never on one window alone
_Run = Callable[[Tensor], Tensor]


@dataclass
class Forward:
    """What ``accelerate`` returns: call it like the module, (B, C, *patch) -> (B, K, *patch).

    Only windows of the size it was made for, on the CPU, without gradients and with the weights it was made from run accelerated;
    anything else runs the module itself. ``choice`` is JSON: backend, precision, agreement, seconds, reason, and by candidate the same.
    """

    module: nn.Module
    run: _Run
    window: tuple[int, ...]
    choice: dict
    versions: tuple[int, ...] = field(repr=False, default=())

    def __call__(self, image: Tensor) -> Tensor:
        same = tuple(image.shape[1:]) == self.window and image.device.type == "cpu" and _versions(self.module) == self.versions
        if not same or torch.is_grad_enabled():
            return self.module(image)
        with torch.no_grad():
            return self.run(image)


def accelerate(
    module: nn.Module,
    example_shape: tuple[int, ...],
    *,
    backend: str = "auto",
    precision: str = "auto",
    agreement: float = 0.995,
    probe: Tensor,
) -> Forward:
    """The fastest way to run ``module`` whose labels agree with torch float32.

    ``module`` is in eval mode on the CPU and maps one tensor to one tensor of logits. ``example_shape`` and ``probe`` are a window
    (B, C, *patch); the probe should look like the images to come. ``agreement``: the least DSC over the foreground classes of the
    probe's labels (share of equal voxels where there is no foreground) that a candidate needs. int8 is a candidate only for a probe of
    ``INT8_WINDOWS`` or more, and only where every window it is judged on shows foreground. ``backend`` and ``precision`` other
    than 'auto' leave only the candidates named; when none of them can be used, torch float32 is used and ``choice`` says why.
    Raises UsageError for unknown names or a probe of another shape, RunError for a module in training mode.
    """
    for name, value, allowed in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise UsageError(f"unknown {name}", where="accelerate", found=value, allowed=allowed)
    if tuple(probe.shape) != tuple(example_shape):
        raise UsageError("the probe is not a window", where="accelerate", found=tuple(probe.shape), allowed=tuple(example_shape))
    if module.training:
        raise RunError("a module in training mode cannot be accelerated", where="accelerate", fix="call eval() first")
    with torch.no_grad():
        forward = Forward(module, module, tuple(example_shape[1:]), {}, _versions(module))
        reference = module(probe)
        if not isinstance(reference, Tensor):
            forward.choice = _fallback("the forward gives more than one tensor")
            return forward
        if any(p.device.type != "cpu" for p in module.parameters()):
            forward.choice = _fallback("the module is not on the CPU")
            return forward
        runs, tried = {("torch", "fp32"): module}, {}
        for name, make in _candidates(backend, precision, len(probe)).items():
            tried[" ".join(name)] = record = {}
            try:
                judged = slice(1, None, 2) if name[1] == "int8" else slice(None)
                if name[1] == "int8":
                    _check_windows(reference)
                runs[name] = make(module, probe)
                record["agreement"] = round(label_agreement(runs[name](probe[judged]), reference[judged]), 5)
            except Exception as e:  # another library's failure is no failure of the prediction: torch remains, and the reason is recorded
                record["refused"] = f"{type(e).__name__}: {e}".splitlines()[0][:200]
                continue
            if record["agreement"] < agreement:
                record["refused"] = f"its labels agree to {record['agreement']} with torch fp32, less than {agreement}"
                continue
            record["seconds"] = _seconds(runs[name], probe[:1], limit=_best(tried))
        forward.run, forward.choice = _choose(runs, tried)
    return forward


def label_agreement(logits: Tensor, reference: Tensor) -> float:
    """Least DSC over the foreground classes that ``reference`` shows, of the labels of two logit maps (B, K, *s).

    The share of equal voxels where it shows none; with one channel the foreground is logit > 0. 0 where a logit is not finite.
    """
    if logits.shape != reference.shape or not torch.isfinite(logits).all():
        return 0.0
    found, wanted = _labels(logits), _labels(reference)
    shares = []
    for k in range(1, max(2, reference.shape[1])):
        a, b = found == k, wanted == k
        if b.any():
            shares.append(2 * (a & b).sum().item() / (a.sum() + b.sum()).item())
    return min(shares) if shares else (found == wanted).float().mean().item()


def _labels(logits: Tensor) -> Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def _check_windows(reference: Tensor) -> None:
    """Eight bits are tried where the probe can show what they do to the labels."""
    seen = _labels(reference[1::2]).flatten(1).any(1)
    if len(reference) < INT8_WINDOWS or not seen.all():
        allowed = f"{INT8_WINDOWS} windows or more, every one that is judged with foreground"
        raise RunError("the probe cannot judge int8", found=f"{len(reference)} windows, {int(seen.sum())} judged show it", allowed=allowed)


def _candidates(backend: str, precision: str, windows: int) -> dict[tuple[str, str], Callable[[nn.Module, Tensor], _Run]]:
    """What may be tried, by (backend, precision). 'auto' leaves out a precision in which the processor does not compute."""
    every = {
        ("torch", "fp32"): lambda module, probe: module,
        ("torch", "bf16"): _torch_bf16,
        ("openvino", "fp32"): lambda module, probe: _openvino(module, probe, "f32"),
        ("openvino", "bf16"): lambda module, probe: _openvino(module, probe, "bf16"),
        ("openvino", "int8"): _openvino_int8,
    }
    gains = {"fp32": True, "bf16": computes("bf16"), "int8": windows >= INT8_WINDOWS and computes("int8")}
    wanted = [p for p in gains if gains[p]] if precision == "auto" else [precision]
    return {name: make for name, make in every.items() if backend in ("auto", name[0]) and name[1] in wanted}


def _choose(runs: dict, tried: dict) -> tuple[_Run, dict]:
    usable = {name: tried[" ".join(name)] for name in runs if "seconds" in tried.get(" ".join(name), {})}
    if not usable:
        return runs["torch", "fp32"], {**_fallback("no candidate could be used"), "candidates": tried}
    best = min(usable, key=lambda name: usable[name]["seconds"])
    reason = "the only candidate that could be used" if len(usable) == 1 else "the fastest of those that agree"
    choice = {"backend": best[0], "precision": best[1], **usable[best], "reason": reason, "candidates": tried}
    return runs[best], choice


def _fallback(reason: str) -> dict:
    return {"backend": "torch", "precision": "fp32", "agreement": 1.0, "seconds": None, "reason": reason, "candidates": {}}


def _best(tried: dict) -> float:
    return min((r["seconds"] for r in tried.values() if "seconds" in r), default=float("inf"))


def _seconds(run: _Run, probe: Tensor, limit: float, repeats: int = 3) -> float:
    """Least wall time of up to ``repeats`` runs (it has run once already); one is enough for a candidate much slower than ``limit``."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run(probe)
        best = min(best, time.perf_counter() - start)
        if best > 1.5 * limit or best > 5:
            break
    return round(best / len(probe), 5)


def _versions(module: nn.Module) -> tuple[int, ...]:
    """Changes when weights are written to, so that a compiled copy is never used for other weights."""
    return tuple(t._version if not t.is_inference() else -1 for group in (module.parameters(), module.buffers()) for t in group)


def computes(precision: str) -> bool:
    """Whether this processor multiplies 'bf16' (AVX512-BF16 or AMX) or 'int8' (VNNI or AMX); False where it does not say."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    names = {"bf16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni", "amx_int8")}
    return any(name in flags for name in names[precision])


def _torch_bf16(module: nn.Module, probe: Tensor) -> _Run:
    last = torch.channels_last_3d if probe.ndim == 5 else torch.channels_last
    mine = copy.deepcopy(module)
    for p in mine.parameters():
        if p.ndim == probe.ndim:
            p.data = p.data.contiguous(memory_format=last)

    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mine(image.contiguous(memory_format=last) if image.ndim in (4, 5) else image).float()

    return run


class _OneTensor(nn.Module):
    """Hides optional arguments of a forward from the converter."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        return self.module(image)


def _openvino_int8(module: nn.Module, probe: Tensor) -> _Run:
    """The heavy convolutions in int8, the rest in the fastest floating point there is."""
    inputs = int8.heavy_convolutions(module, probe[::2])

    def edit(model) -> None:
        if not int8.quantise(model, module, inputs, "__module.module."):
            raise RunError("no convolution does enough of the work to be worth int8", where="openvino int8")

    return _openvino(module, probe, "bf16" if computes("bf16") else "f32", edit)


def _openvino(module: nn.Module, probe: Tensor, hint: str, edit: Callable = lambda model: None) -> _Run:
    ov = _import_openvino()
    one = probe[:1].contiguous()
    with _quiet():
        model = ov.convert_model(_OneTensor(module).eval(), example_input=one)
    model.reshape({model.input(0): list(one.shape)})
    edit(model)
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(image: Tensor) -> Tensor:
        found = []
        for window in image.float().contiguous().split(1):
            request.infer([window.numpy()], share_inputs=True)
            found.append(torch.from_numpy(request.get_output_tensor(0).data.copy()))
        return found[0] if len(found) == 1 else torch.cat(found)

    return run


def _import_openvino():
    """OpenVINO without its telemetry package, which would report each import and conversion; its own empty stub takes over."""
    name = "openvino_telemetry"
    if sys.modules.get(name) is not None:
        raise RunError("OpenVINO was imported with its telemetry", where="openvino", fix="import vesalius.inferers.backends first")
    sys.modules[name] = None  # the import system's own way to say: there is none
    return importlib.import_module("openvino")


@contextmanager
def _quiet():
    """Tracing warns of every Python branch in a network; the agreement check is what decides whether the trace is right."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
