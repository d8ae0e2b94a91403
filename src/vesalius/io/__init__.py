"""Files to core objects and back: NIfTI, MHA, NRRD, DICOM series, SEG and RTSTRUCT, pictures, HDF5 and NumPy arrays; and atomic writing.

Importing this package loads no format library; the first read or write does.
"""

from importlib import import_module

from .atomic import atomic, atomic_write_bytes, atomic_write_json, atomic_write_text
from .kind import is_dicom, sniff
from .notes import VesaliusNote

_HOMES = {name: "files" for name in ("read_image", "read_labels", "write_image", "write_labels", "write_displacement", "header")}
_HOMES |= {"write_dicom_seg": "dicom_seg", "write_rtstruct": "rtstruct", "read_rtstruct": "rtstruct"}
__all__ = [*_HOMES, "atomic", "atomic_write_bytes", "atomic_write_json", "atomic_write_text", "is_dicom", "sniff", "VesaliusNote"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vesalius.io' has no attribute '{name}'")
    return getattr(import_module(f"vesalius.io.{_HOMES[name]}"), name)
