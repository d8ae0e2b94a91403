"""Provenance: what a run was made with, where it lives, and who holds it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import platform
import resource
import socket
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import RunError
from ..core.machine import cache_root, cores
from ..io.atomic import atomic_write_text

RUN_VERSION = 1


def versions() -> dict[str, str]:
    """Of Python, Vesalius and the libraries that decide numbers."""
    out = {"python": platform.python_version(), "vesalius": __version__}
    for name in ("torch", "numpy", "scipy", "monai", "SimpleITK", "nibabel", "pydicom", "numba", "openvino", "lightning-fabric"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def machine() -> dict[str, Any]:
    import torch

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def reset_peak_memory() -> None:
    """Give back what earlier runs of this process have freed (glibc would keep gigabytes of it), and forget the peak so far, so that the
    next run is measured by itself (Linux; elsewhere the peak is the process's)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Peak resident memory of this process, GiB, since the last reset (loading workers not counted)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_json(path: Path, record: Any) -> None:
    atomic_write_text(path, json.dumps(record, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(
            "this is not a run folder: a file is missing", where=path, fix="give the folder that 'vesalius train' wrote"
        ) from None
    except json.JSONDecodeError as e:
        raise RunError("not valid JSON", where=f"{path}:{e.lineno}", found=e.msg) from None


class Ledger:
    """Which run wrote which file of a folder, so that half a folder of predictions goes on where it was and other files stay untouched.
    It lies in the user's cache and names are hashed: neither the run nor the predictions tell who was predicted."""

    def __init__(self, folder: Path, maker: str):
        self.folder, self.maker = folder.resolve(), maker
        self.path = cache_root() / "predicted" / f"{_hash(str(self.folder))}.txt"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = (line.split() for line in self.path.read_text().splitlines())
            self.makers = dict(line for line in lines if len(line) == 2)  # a later line counts; one cut short does not
            return
        self.makers = {}

    def wrote(self, path: Path) -> bool:
        """Whether this run wrote the file that stands there."""
        return path.exists() and self.makers.get(_hash(path.name)) == self.maker

    def add(self, path: Path) -> None:
        self.makers[_hash(path.name)] = self.maker
        with contextlib.suppress(OSError):  # without a cache a file that exists is never skipped, only refused
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(f"{_hash(path.name)} {self.maker}\n")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Lock:
    """One process trains in a folder. A lock left by a dead process of this host is taken over."""

    def __init__(self, folder: Path):
        self.path = folder / ".lock"

    def __enter__(self) -> Lock:
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        for _ in range(2):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                os.write(handle, mine.encode())
                os.close(handle)
                return self
            except FileExistsError:
                try:
                    held: Mapping = json.loads(self.path.read_text() or "{}")
                except (OSError, json.JSONDecodeError):
                    held = {}
                if held.get("host", socket.gethostname()) == socket.gethostname() and not _alive(held.get("pid")):
                    self.path.unlink(missing_ok=True)
                    continue
                raise RunError(
                    "another process is training in this folder",
                    where=self.path.parent,
                    found=f"process {held.get('pid')} on {held.get('host')}",
                    fix="wait for it, or choose another --out",
                ) from None
        raise RunError("the folder's lock could not be taken", where=self.path)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def _alive(pid: int | None) -> bool:
    if not pid:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()
