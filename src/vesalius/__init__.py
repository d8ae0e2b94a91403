"""Vesalius: published methods for medical image segmentation, one engine, one fair comparison.

``import vesalius as vs`` is light; torch is imported by the first function that needs it.
"""

import os
from importlib import import_module

# OpenMP threads that wait by spinning fight with data-loading workers and other programs for the same cores; set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOMES = {
    "open_dataset": "vesalius.datasets",
    "train": "vesalius.engine.api",
    "predict": "vesalius.engine.api",
    "evaluate": "vesalius.engine.api",
    "compare": "vesalius.engine.api",
    "catalog": None,
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vesalius' has no attribute '{name}'")
    home = _HOMES[name]
    return import_module(f"vesalius.{name}") if home is None else getattr(import_module(home), name)
