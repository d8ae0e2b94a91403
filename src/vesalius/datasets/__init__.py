"""Datasets: opening what lies on disk in its own layout, the built-in phantoms, checking, reading cases and writing folders.

Importing this package loads neither torch nor a format library.
"""

from .cases import read_case
from .checks import Finding, check
from .export import write_dataset
from .layouts import available, open_dataset
from .nnunet import nnunet_splits

__all__ = ["Finding", "available", "check", "nnunet_splits", "open_dataset", "read_case", "write_dataset"]
