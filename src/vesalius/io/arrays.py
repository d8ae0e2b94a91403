"""Arrays by name in .npz and .h5 files, and single .npy files. Nothing is unpickled: arrays of objects are refused."""

from __future__ import annotations

import math
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core.errors import DataError, ResourceError, nearest
from ..core.geometry import Geometry
from .atomic import atomic
from .frames import check_spacing
from .kind import checked_file, sniff
from .notes import megabytes, note

AFFINE = "vesalius_affine"  # our own .npz files carry the grid under this name
_ADDRESS = re.compile(r"^(?P<file>.+\.(?:h5|hdf5|hdf|he5|npz)):(?P<key>[^:\[\]]+)(?:\[(?P<index>\d+)\])?$", re.IGNORECASE)
_GREATEST_RATIO = 1032
_KEPT_BYTES = 256 << 20


def split_address(text: str) -> tuple[str, str | None, int | None]:
    """'file.npz:key[3]' -> ('file.npz', 'key', 3); a plain path -> (path, None, None)."""
    match = _ADDRESS.match(text)
    if match is None:
        return text, None, None
    index = match["index"]
    return match["file"], match["key"], None if index is None else int(index)


def read(address: str, *, spacing: tuple[float, ...] | None = None) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, *spatial) and grid of an array. ``spacing`` (mm, array-axis order) for files that carry none; default 1.

    2D: one channel; (H, W, 3 or 4) uint8: a colour image; other 3D: a volume of one channel; 4D: (C, i, j, k).
    """
    path, key, index = split_address(address)
    array, affine = _array(path, key)
    if index is not None:
        if array.ndim < 1 or index >= len(array):
            raise DataError("the index is out of range", where=address, found=index, allowed=f"0 to {len(array) - 1}")
        array, affine = array[index], None
    return _as_image(array, affine, spacing, address)


def peek(address: str, *, spacing: tuple[float, ...] | None = None) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """Shape (C, *spatial), grid and dtype without reading the voxels."""
    path, key, index = split_address(address)
    shape, dtype, affine = _promise(path, key)
    if index is not None:
        shape, affine = shape[1:], None
    data, geometry = _as_image(np.broadcast_to(np.zeros((), dtype), shape), affine, spacing, address)
    return data.shape, geometry, data.dtype.newbyteorder("=")


def keys(path: str | Path) -> list[str]:
    """Names of the arrays in a .npz or .h5 file."""
    path = checked_file(path)
    if sniff(path) == "npz":
        with _opened_zip(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    import h5py

    found: list[str] = []
    with _opened_h5(path) as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _as_image(array: np.ndarray, affine: np.ndarray | None, spacing: tuple[float, ...] | None, where: str) -> tuple[np.ndarray, Geometry]:
    if array.dtype.kind not in "biuf":
        raise DataError("voxels are numbers", where=where, found=array.dtype, allowed="bool, integers and floats")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DataError("voxels of this type are not supported", where=where, found=array.dtype, fix="convert them to float32")
    if array.size == 0:
        raise DataError("the array is empty", where=where, found=array.shape)
    if affine is not None and array.ndim == len(affine):
        data = array
    elif array.ndim == 2:
        data = array[None]
    elif array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8:
        data = np.moveaxis(array, -1, 0)
    elif array.ndim == 3:
        data = array[None]
    elif array.ndim == 4:
        data = array
    else:
        raise DataError(
            "this array is no image", where=where, found=f"{array.ndim} dimensions", allowed="2, 3 or 4", fix="name one element: key[0]"
        )
    if affine is not None and array.ndim == len(affine):
        return data, Geometry(data.shape[1:], affine)
    return data, spaced(data.shape[1:], spacing, where)


def spaced(shape: tuple[int, ...], spacing: tuple[float, ...] | None, where: str | Path) -> Geometry:
    """The grid of an array that carries no geometry: ``spacing`` in array-axis order, else 1 mm (a note for volumes)."""
    if spacing is None:
        if len(shape) == 3:
            note("volumes in .h5, .npz and .npy carry no spacing; 1 mm is assumed where none is given")
        return Geometry.of(shape, 1.0)
    if len(spacing) != len(shape):
        raise DataError(
            "the spacing has another number of axes than the image", where=where, found=tuple(spacing), allowed=f"{len(shape)} numbers"
        )
    check_spacing(spacing, where)
    return Geometry.of(shape, spacing)


# -------------------------------------------------------------------------------------------------------------------------- containers
def _array(path: str, key: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    file = checked_file(path)
    stat = file.stat()
    _promise(path, key)
    array, affine = _kept(path, key, stat.st_size, stat.st_mtime_ns)
    if array.nbytes > _KEPT_BYTES:
        _kept.cache_clear()
    return array, affine


@lru_cache(maxsize=2)
def _kept(path: str, key: str | None, size: int, mtime: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The array and, in our own .npz, its affine. The last two are kept: a file of many cases is read once, not once a case."""
    kind, file = sniff(path), Path(path)
    affine = None
    try:
        if kind == "npy":
            array = np.load(file, allow_pickle=False)
        elif kind == "npz":
            with np.load(file, allow_pickle=False) as archive:
                array = archive[key or _only_key(file)]
                affine = archive[AFFINE] if AFFINE in archive.files else None
        else:
            with _opened_h5(file) as h5:
                array = h5[key or _only_key(file)][()]
    except MemoryError as error:
        raise ResourceError("not enough memory for this array", where=_name(path, key)) from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib_error()) as error:
        raise DataError("the array is damaged", where=_name(path, key), found=str(error), fix="copy or download it again") from error
    array = np.asarray(array)
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    array.setflags(write=False)
    return array, affine


def zlib_error() -> type[Exception]:
    import zlib

    return zlib.error


def _promise(path: str, key: str | None) -> tuple[tuple[int, ...], np.dtype, np.ndarray | None]:
    """Shape and dtype by the header, held against the file's size; the affine if the file is one of ours."""
    file = checked_file(path)
    kind = sniff(file)
    if kind not in ("npy", "npz", "hdf5"):
        raise DataError("this file holds no named arrays", where=path, found=kind, allowed="npz, hdf5, npy")
    if kind == "npy":
        with open(file, "rb") as stream:
            shape, dtype = _npy_head(stream, path)
            _check_bytes(math.prod(shape) * dtype.itemsize, file.stat().st_size - stream.tell(), path)
        return shape, dtype, None
    key = key or _only_key(file)
    return _npz_promise(file, key) if kind == "npz" else (*_h5_promise(file, key), None)


def _npz_promise(file: Path, key: str) -> tuple[tuple[int, ...], np.dtype, np.ndarray | None]:
    where = _name(file, key)
    with _opened_zip(file) as archive:
        names = archive.namelist()
        if key + ".npy" not in names:
            raise DataError(f"no array '{key}' in this file", where=file, fix=nearest(key, [n.removesuffix(".npy") for n in names]))
        member = archive.getinfo(key + ".npy")
        try:
            with archive.open(member) as stream:
                shape, dtype = _npy_head(stream, where)
                start = stream.tell()
        except (zipfile.BadZipFile, RuntimeError, EOFError, zlib_error()) as error:
            raise DataError("the array is damaged", where=where, found=str(error)) from error
        _check_bytes(math.prod(shape) * dtype.itemsize, min(member.file_size, member.compress_size * _GREATEST_RATIO + 1024) - start, where)
        affine = None
        if AFFINE + ".npy" in names:
            with np.load(file, allow_pickle=False) as own:
                affine = own[AFFINE]
    return shape, dtype, affine


def _h5_promise(file: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    import h5py

    where = _name(file, key)
    with _opened_h5(file) as h5:
        try:
            item = None if isinstance(h5.get(key, getlink=True), h5py.ExternalLink) else h5[key]
        except KeyError as error:  # no such name, or a link to nowhere
            raise DataError(f"no array '{key}' in this file", where=file, fix=nearest(key, keys(file))) from error
        if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
            raise DataError("the array lies in another file, which is not followed", where=where, fix="copy it into this file")
        if not isinstance(item, h5py.Dataset):
            raise DataError("this names a group, not an array", where=where, found=list(item)[:12])
        _refuse_objects(item.dtype, where)
        ratio = _GREATEST_RATIO if item.compression else 1
        _check_bytes(item.size * item.dtype.itemsize, item.id.get_storage_size() * ratio, where)
        return tuple(item.shape), item.dtype


def _npy_head(stream, where: str | Path) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(stream)
    except (ValueError, EOFError) as error:
        raise DataError("the array's header is damaged", where=where, found=str(error)) from error
    _refuse_objects(dtype, where)
    return shape, dtype


def _refuse_objects(dtype: np.dtype, where: str | Path) -> None:
    if dtype.hasobject:
        raise DataError("arrays of Python objects are never read, because loading them can run code", where=where, fix="save it as numbers")


def _check_bytes(promised: int, present: int, where: str | Path) -> None:
    if promised > present:
        found = f"{megabytes(promised)} promised, {megabytes(max(0, present))} found"
        raise DataError("the array is truncated or its header is wrong", where=where, found=found, fix="copy or download it again")


def _only_key(file: Path) -> str:
    names = [name for name in keys(file) if name != AFFINE and not name.startswith("vesalius_")]
    if len(names) != 1:
        raise DataError(
            "several arrays in this file", where=file, found=", ".join(names[:12]), fix=f"name one: {file.name}:{(names or ['key'])[0]}"
        )
    return names[0]


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError("the .npz file is damaged or truncated", where=path, found=str(error), fix="copy or download it again") from error


def _opened_h5(path: Path):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError("the HDF5 file is damaged or truncated", where=path, found=str(error), fix="copy or download it again") from error


def _name(path: str | Path, key: str | None) -> str:
    return f"{path}:{key}" if key else str(path)


# ----------------------------------------------------------------------------------------------------------------------------- writing
def write(path: str | Path, data: np.ndarray, geometry: Geometry, *, names: dict[int, str] | None = None, name: str = "image") -> None:
    """(C, *spatial) as .npz (with its grid and, for labels, the names of its values) or .npy (voxels only)."""
    path = Path(path)
    with atomic(path, size=data.nbytes if path.suffix.lower() == ".npy" else None) as temporary, open(temporary, "wb") as file:
        if path.suffix.lower() == ".npy":
            save_npy(file, data[0] if len(data) == 1 else data)
            return
        table = {} if not names else {"vesalius_values": np.array(list(names)), "vesalius_names": np.array(list(names.values()))}
        np.savez_compressed(file, **{name: data, AFFINE: geometry.affine}, **table)


def save_npy(file: BinaryIO, array: np.ndarray) -> None:
    """The .npy format, memory order kept; unlike ``numpy.save`` a full disk is reported by its error number."""
    array = array if array.flags.forc else np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    flat = array.reshape(-1, order="C" if array.flags.c_contiguous else "F")
    file.write(memoryview(flat).cast("B"))
