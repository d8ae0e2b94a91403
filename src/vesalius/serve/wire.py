"""Voxels over HTTP: images and masks as .nii.gz, uploads read back with every check that files get.

A two-dimensional grid travels as a volume of one slice, (columns, rows, 1), turned so that viewers show row 0 at the top: its world is
x = column mm, y = -row mm. Volumes travel on their own grid. Nothing but voxels and the affine is in the header.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import nibabel as nib
import numpy as np
import psutil
from isal import igzip

from .. import io
from ..core.errors import DataError, GeometryError, ResourceError, VesaliusError
from ..core.geometry import Geometry
from ..io.notes import megabytes
from ..ops.components import bounding_box

_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
MOST_SHOWN = 2**31  # bytes of voxels that a browser can hold
_COPIES = 4  # of the voxels while they are encoded
_TYPES = {"uint8": np.uint8, "uint16": np.uint16, "int16": np.int16, "int32": np.int32}


def check_weight(sides: Sequence[int], dtype: np.dtype) -> None:
    """Raises DataError for an image that no browser can hold and ResourceError for one that this machine cannot now, by its header."""
    size, fix = math.prod(sides) * min(dtype.itemsize, 4), "crop or resample it"
    if size > MOST_SHOWN:
        raise DataError("the image is larger than a browser can hold", found=megabytes(size), allowed=megabytes(MOST_SHOWN), fix=fix)
    free = psutil.virtual_memory().available
    if _COPIES * size > free:
        raise ResourceError(
            "there is not enough memory for this image", found=f"{megabytes(size)} of voxels, {megabytes(free)} free", fix=fix
        )


def in_folder(file: Path, folder: Path) -> Path:
    """``file``, if it really lies in ``folder``, links followed. Raises DataError."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError("the file does not lie in the project")
    return file


def encode(data: np.ndarray, geometry: Geometry) -> bytes:
    """(C, *spatial) -> a gzipped NIfTI; three channels of bytes become RGB24, several others the fourth dimension."""
    data = _plain(np.asarray(data))
    if geometry.ndim == 2:
        data = data.transpose(0, 2, 1)[..., None]
    colour = len(data) == 3 and data.dtype == np.uint8
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(_RGB if colour else data.dtype)
    header.set_data_shape(data.shape[1:] if colour or len(data) == 1 else (*data.shape[1:], len(data)))
    header.set_xyzt_units("mm")
    affine = shown_affine(geometry)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1.0, 0.0, 352
    voxels = data.transpose(3, 2, 1, 0) if colour else data.transpose(0, 3, 2, 1)
    return igzip.compress(header.binaryblock + b"\0\0\0\0" + np.ascontiguousarray(voxels).tobytes(), 1)


def shown_affine(geometry: Geometry) -> np.ndarray:
    """(4, 4): the affine that a grid travels with."""
    if geometry.ndim == 3:
        return geometry.affine
    a = geometry.affine
    out = np.eye(4)
    out[0, :2], out[0, 3] = (a[1, 1], a[1, 0]), a[1, 2]
    out[1, :2], out[1, 3] = (-a[0, 1], -a[0, 0]), -a[0, 2]
    return out


def _plain(data: np.ndarray) -> np.ndarray:
    """In a type that viewers read."""
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind == "f":
        return data.astype("<f4", copy=False)
    if data.dtype.name in ("uint8", "uint16", "int16", "int32"):
        return data.astype(data.dtype.newbyteorder("<"), copy=False)
    if data.dtype.name == "int8":
        return data.astype("<i2")
    whole = data.min() >= -(2**31) and data.max() < 2**31
    return data.astype("<i4" if whole else "<f4")


def decode_mask(body: bytes, geometry: Geometry, folder: Path, shape: str = "", dtype: str = "") -> np.ndarray:
    """(*spatial) whole numbers from an upload: a NIfTI on the case's grid, or with ``shape`` and ``dtype`` (the headers X-Shape, X-Dtype) a
    gzipped array, C order, little endian. Raises DataError or GeometryError; nothing larger than the case is unpacked."""
    if shape or dtype:
        return _array(body, geometry, shape, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix="upload-", suffix=".nii.gz") as file:
        file.write(body)
        file.flush()
        try:
            sides, grid, _ = io.header(file.name)
            flat = geometry.ndim == 2 and grid.ndim == 3
            wanted = (*reversed(geometry.shape), 1) if flat else geometry.shape
            if sides[0] != 1 or grid.shape != tuple(wanted):
                raise GeometryError("the mask is of another size than the image", found=sides[1:], allowed=wanted)
            data, found = np.asarray(io.read_image(file.name).data[0]), Geometry(wanted, shown_affine(geometry)) if flat else geometry
        except VesaliusError as error:
            raise type(error)(error.what, where="the upload", found=error.found, allowed=error.allowed, fix=error.fix) from error
    if not grid.close(found, 1e-2):
        fix = "save the mask on the image's own grid"
        raise GeometryError("the mask lies on another grid than the image", found=grid.describe(), allowed=found.describe(), fix=fix)
    return _whole(data[..., 0].T if flat else data)


def _array(body: bytes, geometry: Geometry, shape: str, dtype: str) -> np.ndarray:
    sides = tuple(int(n) for n in shape.split(",") if n.strip().isdigit())
    if sides != geometry.shape or dtype not in _TYPES:
        allowed = f"{','.join(map(str, geometry.shape))} of {', '.join(_TYPES)}"
        raise GeometryError("the mask is of another size or type than allowed", found=f"{shape[:40]} of {dtype[:20]}", allowed=allowed)
    kind = np.dtype(_TYPES[dtype]).newbyteorder("<")
    promised, engine = int(np.prod(sides)) * kind.itemsize, zlib.decompressobj(31)
    try:
        raw = engine.decompress(body, promised + 1)
    except zlib.error as error:
        raise DataError("the upload is damaged", where="the upload", fix="send it again") from error
    if len(raw) != promised or not engine.eof:
        raise DataError("the upload is truncated or too long", where="the upload", found=f"{len(raw)} bytes", allowed=f"{promised} bytes")
    return _whole(np.frombuffer(raw, kind).reshape(sides))


def _whole(data: np.ndarray) -> np.ndarray:
    if data.dtype.kind == "f" and not (data == np.rint(data)).all():
        raise DataError("a mask holds whole numbers", where="the upload")
    if data.min() < 0 or data.max() > 65535:
        raise DataError("a mask's values are 0 to 65535", where="the upload", found=f"{data.min()} to {data.max()}")
    return data.astype(np.uint8 if data.max() < 256 else np.uint16)


def packed(mask: np.ndarray) -> dict:
    """A bool mask (*spatial) as the box that holds it: ``low``, ``size`` and ``bits`` (base64 of gzipped packed bits, C order)."""
    box = bounding_box(mask) or (slice(0, 0),) * mask.ndim
    mask = mask[box]
    bits = base64.b64encode(igzip.compress(np.packbits(np.ascontiguousarray(mask)).tobytes(), 1, mtime=0)).decode()
    return {"low": [s.start for s in box], "size": list(mask.shape), "bits": bits}


def unpacked(record: dict, shape: tuple[int, ...]) -> np.ndarray:
    """``packed`` back on the whole grid. Raises DataError for a box that does not fit in or bits that do not fill it."""
    try:
        low, size = ([int(n) for n in record[k]] for k in ("low", "size"))
        fits = len(low) == len(size) == len(shape) and all(0 <= a and 0 <= n and a + n <= s for a, n, s in zip(low, size, shape))
        if not fits:
            raise DataError("the mask's box does not lie in the image", found=json.dumps([low, size])[:80], allowed=shape)
        count = int(np.prod(size))
        raw = zlib.decompressobj(31).decompress(base64.b64decode(record["bits"], validate=True), (count + 7) // 8 + 1)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise DataError("the mask cannot be read", allowed="low, size and bits") from error
    if len(raw) != (count + 7) // 8:
        raise DataError("the mask's bits do not fill its box", found=f"{len(raw)} bytes", allowed=f"{(count + 7) // 8}")
    out = np.zeros(shape, bool)
    inside = np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool).reshape(size)
    out[tuple(slice(a, a + n) for a, n in zip(low, size))] = inside
    return out
