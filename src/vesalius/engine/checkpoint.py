"""Checkpoints: safetensors with a JSON record, written whole or not at all; the one before is kept until the new one is on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode

from ..core.errors import RunError
from ..core.method import Method
from ..io.atomic import atomic_write_bytes

VERSION = 1


def write(path: Path, tensors: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """``record`` is JSON and travels in the file's header."""
    arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    data = encode(arrays, metadata={"vesalius": json.dumps({**record, "version": VERSION})})
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, data)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    try:
        with safe_open(path, framework="numpy") as f:
            record = json.loads((f.metadata() or {}).get("vesalius", "{}"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except FileNotFoundError:
        raise RunError("there is no checkpoint", where=path, fix="was the training ever started?") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as e:
        raise RunError("this is not a readable checkpoint", where=path, found=str(e)[:120]) from None
    if record.get("version") != VERSION:
        raise RunError("the checkpoint was written by another version", where=path, found=record.get("version"), allowed=VERSION)
    return tensors, record


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, np.ndarray]:
    """Moments and step counts by 'opt/<name>/<parameter number>/<key>'."""
    out = {}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    out[f"opt/{name}/{index}/{key}"] = torch.as_tensor(value).detach().cpu().numpy()
    return out


def load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, np.ndarray]) -> None:
    for name, optimizer in optimizers.items():
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            parts = key.split("/")
            if parts[:2] == ["opt", name]:
                state.setdefault(int(parts[2]), {})[parts[3]] = torch.as_tensor(value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def method_tensors(method: Method) -> tuple[dict[str, np.ndarray], dict]:
    tensors, facts = method.state()
    return {f"method/{k}": v for k, v in tensors.items()}, facts


def load_method(method: Method, tensors: Mapping[str, np.ndarray], facts: Mapping, where: Path) -> None:
    """Names every difference when the checkpoint is of another method, class count or channel count."""
    own = {k.removeprefix("method/"): v for k, v in tensors.items() if k.startswith("method/")}
    try:
        method.load_state(own, facts)
    except (RuntimeError, KeyError, ValueError) as e:
        lines = " ".join(str(e).split())
        raise RunError(f"the checkpoint does not fit this {type(method).__name__}", where=where, found=lines[:300]) from None
