"""A run and its folder: what was trained, opened again; what a training and a prediction ask of the machine and of the record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .. import catalog
from ..core.case import Case
from ..core.errors import RunError, UsageError
from ..core.manifest import Manifest, Split
from ..core.method import Method
from ..core.plan import Plan
from ..datasets import read_case
from . import checkpoint
from .record import RUN_VERSION, read_json


@dataclass
class Trained:
    """A method with what it was trained on; ``folder`` is its run."""

    method: Method
    plan: Plan
    manifest: Manifest
    split: Split
    folder: Path
    record: dict


def open_run(folder: str | Path, *, device: str = "auto") -> Trained:
    """A finished run, ready to predict. Needs the run folder only, not the data it was trained on."""
    folder, device = Path(folder), device_of(device)
    if not folder.exists():
        raise RunError("there is no such run folder", where=folder)
    record = read_json(folder / "run.json")
    same_version(record, folder)
    if not (folder / "method.safetensors").exists():
        raise RunError("this training has not finished", where=folder, fix="continue it with 'vesalius train ... --resume'")
    plan = Plan.from_json(read_json(folder / "plan.json"), folder / "plan.json")
    manifest = Manifest(
        record["data"]["name"],
        Path(record["data"]["root"]),
        plan.dims,
        plan.channels,
        record["labels"],
        (),
        licence=record["data"]["licence"],
        spacing_mm=record["data"].get("spacing_mm"),
        targets=record["data"].get("targets", {}),
    )
    parts = {n: catalog.build(s, plan, manifest) for n, s in record["parts"].items()}
    method = catalog.build(record["method"], plan, manifest, parts, record["options"])
    load(method, folder)
    if hasattr(method, "to"):
        method.to(device)
    return Trained(method, working_plan(method, plan), manifest, Split.from_json(record["split"]), folder, record)


def reader(manifest: Manifest) -> Callable[[str], Case]:
    """Reads a case as the (possibly label-hiding) manifest says."""

    def read(case: str) -> Case:
        found = read_case(manifest, case)
        return found if manifest.built_in is None or manifest[case].labels else replace(found, labels={})

    return read


def working_plan(method: Method, plan: Plan) -> Plan:
    """What cases are prepared by: the method's own plan (it may have changed the common one), with the run's post-processing."""
    return method.plan.derive(largest_component=plan.largest_component)


def build(method: str | type, plan: Plan, manifest: Manifest, parts: Mapping[str, Method], options) -> Method:
    if isinstance(method, str):
        return catalog.build(method, plan, manifest, parts, options)
    return method(plan, manifest, parts=parts, **dict(options or {}))


def load(method: Method, out: Path) -> None:
    tensors, record = checkpoint.read(out / "method.safetensors")
    checkpoint.load_method(method, tensors, record["facts"], out / "method.safetensors")
    if hasattr(method, "eval"):
        method.eval()


def same_version(record: Mapping, out: Path) -> None:
    if record.get("version") != RUN_VERSION:
        raise RunError("the run was made by another version", where=out, found=record.get("version"), allowed=RUN_VERSION)


def device_of(device: str) -> str:
    """A device that is there: 'cpu', 'cuda' or 'cuda:N'. One device trains or predicts at a time."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ", ".join(["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{k}" for k in range(gpus) if gpus > 1)])
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if re.fullmatch(r"(cuda|gpu)?:?\d+(,(cuda:)?\d+)+", device):
        fix = "start one run for each GPU (folds and seeds are independent)"
        raise UsageError("a run uses one device", where="--device", found=device, allowed=allowed, fix=fix)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError("no such device", where="--device", found=device, allowed=allowed)
    if device.startswith("cuda") and not gpus:
        raise UsageError("there is no GPU that torch can use", where="--device", found=device, allowed=allowed)
    if device.startswith("cuda:") and int(device[5:]) >= gpus:
        raise UsageError("there is no such GPU", where="--device", found=device, allowed=allowed)
    return device


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of the machine or of the GPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
