"""Weights of a backbone from a file or a package the user has: nothing is downloaded and nothing is unpickled."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...core.errors import DataError, UsageError
from ...core.machine import cache_root

HEADS = ("fc.", "head.", "classifier.", "num_batches_tracked")  # of the classifier the weights come from, or mere counters


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fill ``backbone`` with the tensors of its own names in a safetensors file (a leading 'backbone.' is dropped, the classifier's are
    ignored). The first convolution is made to fit other channels: its weights, averaged over the file's channels, serve each of them, so
    that a grey image gives what the same image in every channel gave.

    UsageError: no such file, or no safetensors. DataError: tensors that are missing or of another shape, by name.
    """
    found = {k.removeprefix("backbone."): v for k, v in read_tensors(path).items()}
    own = {k: v for k, v in backbone.state_dict().items() if not k.endswith(HEADS[-1])}
    missing = sorted(set(own) - set(found))
    if missing:
        raise DataError(f"{len(missing)} tensors of the backbone are not in the file", where=path, found="no " + ", ".join(missing[:3]))
    first = next(k for k, v in own.items() if v.ndim > 2)
    found[first] = _for_channels(found[first], own[first])
    other = [k for k in own if own[k].shape != found[k].shape]
    if other:
        k = other[0]
        raise DataError(f"tensor '{k}' has another shape", where=path, found=tuple(found[k].shape), allowed=tuple(own[k].shape))
    backbone.load_state_dict({k: found[k] for k in own}, strict=False)
    extra = sorted(k for k in set(found) - set(own) if not k.startswith(HEADS) and not k.endswith(HEADS))
    if extra:
        raise DataError(f"{len(extra)} tensors of the file have no place in the backbone", where=path, found=", ".join(extra[:3]))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. UsageError: no such file, or another kind of file."""
    path = Path(path)
    if not path.is_file():
        fix = "give the path of a .safetensors file, or leave 'pretrained' empty"
        raise UsageError("there is no such file of weights", where=path, fix=fix)
    try:
        return load_file(path)
    except SafetensorError as e:
        raise UsageError("this is not a safetensors file", where=path, found=str(e), fix="convert the weights to safetensors") from None


def _for_channels(given: Tensor, own: Tensor) -> Tensor:
    if given.shape[1] == own.shape[1]:
        return given
    return (given.sum(1, keepdim=True) / own.shape[1]).expand(-1, own.shape[1], *[-1] * (given.ndim - 2)).to(torch.float32).contiguous()


def from_wheel(package: str, file: str, sha256: str, *, install: str) -> dict[str, Tensor]:
    """Tensors of the weight file that an installed Python package carries. The first time its content is checked, only tensors are read
    (``weights_only``), and they are kept as safetensors in the user's cache, which is what is read from then on.

    UsageError: the package is not installed (``install``: what to do about it). DataError: the file is another one.
    """
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise UsageError(f"the weights come with the Python package '{package}', which is not installed", fix=install)
    kept = cache_root() / "weights" / f"{sha256}.safetensors"
    with suppress(OSError, SafetensorError):
        return load_file(kept)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise DataError("these are other weights than expected", where=path, found=f"sha256 {found[:12]}", allowed=sha256[:12], fix=install)
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    with suppress(OSError):  # no place to keep them: they are read from the package again
        _keep(state, kept)
    return state


def _keep(state: dict[str, Tensor], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(save({name: value.contiguous() for name, value in state.items()}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
